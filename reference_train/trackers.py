"""TensorBoard and Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reference_train.errors import TrainError


class Trackers:
    """TensorBoard and Weights & Biases, if the configuration enables them."""

    def __init__(self, folder: Path, config: dict[str, Any], step: int) -> None:
        self.writer = self.run = None
        if config["run"]["tensorboard"]:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(folder / "tensorboard", purge_step=step)
        if config["run"]["wandb"]:
            try:
                import wandb
            except ImportError:
                raise TrainError("run.wandb=true needs the package wandb") from None
            self.run = wandb.init(project="visreg", id=folder.name, resume="allow", config=config)

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Send metrics."""
        if self.writer is not None:
            for name, value in metrics.items():
                self.writer.add_scalar(name, value, step)
        if self.run is not None:
            self.run.log(metrics, step=step)

    def close(self) -> None:
        """Flush and close."""
        if self.writer is not None:
            self.writer.close()
        if self.run is not None:
            self.run.finish()
