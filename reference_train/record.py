"""What a run writes about itself: metrics, the configuration and versions, a picture of curves."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from reference_train.errors import TrainError

PACKAGES = ("visreg-core", "torch", "accelerate", "transformers", "kornia", "hydra-core", "numpy")


class Ledger:
    """Terms of the steps since the last reading, on the device.

    Adding a step costs no synchronisation. `read` is where the host waits: it returns the means
    over these steps and all processes, and stops the run at the first term that is not finite.
    """

    def __init__(self, accelerator: Accelerator, folder: Path) -> None:
        self.accelerator, self.folder = accelerator, folder
        self.names: list[str] = []
        self.statistics: list[str] = []
        self._clear()

    def _clear(self) -> None:
        self.steps: list[int] = []
        self.rows: list[torch.Tensor] = []
        self.ids: list[torch.Tensor] = []

    def add(
        self,
        step: int,
        terms: dict[str, torch.Tensor],
        statistics: dict[str, torch.Tensor],
        ids: torch.Tensor,
    ) -> None:
        """Keep a step's terms, statistics of its batch, and which images it had."""
        self.names, self.statistics = list(terms), list(statistics)
        values = [*terms.values(), *statistics.values()]
        self.rows.append(torch.stack([v.detach().to(torch.float32) for v in values]))
        self.steps.append(step)
        self.ids.append(ids)

    def read(self) -> dict[str, float]:
        """Means of the terms, if any were added; the only place where the host waits."""
        if not self.rows:
            return {}
        table = self.accelerator.gather(torch.stack(self.rows)[None]).cpu().double()
        terms = table[:, :, : len(self.names)]  # (processes, steps, terms)
        finite = torch.isfinite(terms)
        if not finite.all():
            bad_step = int((~finite.all(dim=0).all(dim=1)).nonzero()[0, 0])
            self._stop(bad_step, table[:, bad_step])
        self._clear()
        return dict(zip(self.names, terms.mean(dim=(0, 1)).tolist(), strict=True))

    def _stop(self, row: int, values: torch.Tensor) -> None:
        """Write what is known of the step at fault, and raise."""
        step = self.steps[row]
        ids = gather_object([self.ids[row].tolist()])
        # the process and the term where it began: the most is amiss there, and totals follow terms
        amiss = ~torch.isfinite(values)
        process = int(amiss.sum(dim=1).argmax())
        wrong = [n for n, bad in zip(self.names, amiss[process], strict=False) if bad]
        term = next((n for n in wrong if n not in ("loss", "regularizer")), wrong[0])
        columns = self.names + self.statistics
        dump = {
            "step": step,
            "process": process,
            "term": term,
            "processes": [
                {
                    "values": {
                        n: v if math.isfinite(v) else str(v)
                        for n, v in zip(columns, own.tolist(), strict=True)
                    },
                    "ids": ids[i],
                }
                for i, own in enumerate(values)
            ],
        }
        path = self.folder / f"nonfinite-step-{step:09d}.json"
        if self.accelerator.is_main_process:
            write_atomically(path, json.dumps(dump, indent=1))
        raise TrainError(
            f"step {step}: {term} is {values[process, self.names.index(term)].item()} on process "
            f"{process}; statistics of the batch: {path}"
        )


@torch.no_grad()
def batch_statistics(
    crops: list[torch.Tensor], embeddings: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Of what a step saw and made; small, and on the device."""
    named = {f"crops {i}": c for i, c in enumerate(crops)} | {"embeddings": embeddings}
    return {
        f"{name} {what}": value
        for name, x in named.items()
        for what, value in (
            ("min", x.amin()),
            ("max", x.amax()),
            ("mean", x.mean()),
            ("std", x.std()),
        )
    }


def of_step(parts: tuple[dict[str, torch.Tensor], ...]) -> dict[str, torch.Tensor]:
    """From those of its micro-batches: least minima, largest maxima, means of all the rest.

    What is not finite in one micro-batch is not finite here.
    """
    extremes = {"min": torch.amin, "max": torch.amax}
    return {
        name: extremes.get(name.rpartition(" ")[2], torch.mean)(
            torch.stack([part[name].detach() for part in parts]), dim=0
        )
        for name in parts[0]
    }


class Log:
    """Rows with a step, as JSON lines and as CSV; what follows `step` is cut off on a resume."""

    def __init__(self, folder: Path, name: str, step: int) -> None:
        self.jsonl, self.csv = folder / f"{name}.jsonl", folder / f"{name}.csv"
        self.rows = [row for row in read_log(self.jsonl) if row["step"] <= step]
        self._write()

    def add(self, row: dict[str, Any]) -> None:
        """Append a row to both files."""
        new_columns = not self.rows or list(row) != list(self.rows[-1])
        self.rows.append(row)
        if new_columns:
            self._write()
            return
        with self.jsonl.open("a") as file:
            file.write(json.dumps(row) + "\n")
        with self.csv.open("a", newline="") as file:
            csv.DictWriter(file, list(row)).writerow(row)

    def _write(self) -> None:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        write_atomically(self.jsonl, "".join(json.dumps(row) + "\n" for row in self.rows))
        temporary = self.csv.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        temporary.replace(self.csv)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_atomically(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def environment(world: int, device: torch.device) -> dict[str, Any]:
    """Versions and machine, for ``environment.json``."""
    return {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": world,
        "threads": torch.get_num_threads(),
    }


class Trackers:
    """TensorBoard and Weights & Biases, where they are asked for."""

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
        """Send what is a number."""
        if self.writer is not None:
            for name, value in metrics.items():
                self.writer.add_scalar(name, value, step)
        if self.run is not None:
            self.run.log(metrics, step=step)

    def close(self) -> None:
        """Write what is left."""
        if self.writer is not None:
            self.writer.close()
        if self.run is not None:
            self.run.finish()


def draw_curves(folder: Path) -> Path:
    """``curves.png``: every metric of ``metrics.jsonl`` over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_log(folder / "metrics.jsonl")
    names = [k for k in rows[-1] if k not in ("step", "epoch")]
    columns = 3
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(10, 2.2 * lines))
    figure.subplots_adjust(left=0.05, right=0.98, bottom=0.04, top=0.97, wspace=0.2, hspace=0.35)
    FigureCanvasAgg(figure)
    for i, name in enumerate(names):
        axes = figure.add_subplot(lines, columns, i + 1)
        axes.plot([row["step"] for row in rows], [row.get(name, math.nan) for row in rows])
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
    path = folder / "curves.png"
    figure.savefig(path, dpi=110)
    return path
