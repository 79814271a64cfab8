"""Terms of the training steps, collected on the device; statistics of batches."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from reference_train.errors import TrainError
from reference_train.logs import write_atomically


class Ledger:
    """Terms of the steps since the last `read`, on the device.

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
        """Add a step's terms, statistics of its batch, and the ids of its images."""
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
        """Write what is known of the failed step, and raise."""
        step = self.steps[row]
        ids = gather_object([self.ids[row].tolist()])
        # where it began: the process with the most terms that are not finite, and the first of
        # these
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
    """Statistics of a step's crops and embeddings, on the device."""
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
    """Statistics of a step from its micro-batches: minima, maxima, and means of all others.

    What is not finite in one micro-batch is not finite in the result.
    """
    extremes = {"min": torch.amin, "max": torch.amax}
    return {
        name: extremes.get(name.rpartition(" ")[2], torch.mean)(
            torch.stack([part[name].detach() for part in parts]), dim=0
        )
        for name in parts[0]
    }
