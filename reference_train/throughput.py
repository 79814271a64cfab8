r"""Images per second of the parts of a training step, and which of them is the bottleneck.

    python -m reference_train.throughput --config-name visreg_vit_s8_imagenette \
        data.path=/data/imagenette run.folder=runs/speed data.workers=8

One process, as the recipe would train it. The parts alone, then the whole step:

    decoding   one image after the other, per second of one CPU core
    loading    batches from data.workers loading processes
    crops      on the device, of a batch that is there
    training   forward and backward pass and the optimiser, of crops that are there
    step       all of it, as in a run

The best of several repetitions, but for loading and the step, which are means over a stretch.
Loading runs beside the device, so the slower of the two is the bottleneck. The numbers are printed
and written to throughput.json in run.folder.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from reference_train import data, methods, optim, speed
from reference_train.augment import MultiCrop
from reference_train.config import RECIPES, Config, load
from reference_train.environment import write_result
from reference_train.errors import TrainError, one_line
from reference_train.gradients import Gradients
from reference_train.progress import memory
from reference_train.share import best_of
from reference_train.sources import Unreadable
from reference_train.splits import open_splits
from reference_train.train import new_learner, start


class Rates(NamedTuple):
    """Images per second; `decoding` per second of a core."""

    decoding: float
    loading: float
    crops: float
    training: float
    step: float

    @property
    def device(self) -> float:
        """Of crops and training one after the other."""
        return 1 / (1 / self.crops + 1 / self.training)

    def bottleneck(self, workers: int) -> str:
        """A line that names it."""
        if self.loading < self.device:
            cores = math.ceil(self.device / self.decoding)
            return (
                f"loading: the device could take {self.device:.3g} images/s, for which decoding "
                f"needs about {cores} cores; data.workers={workers}"
            )
        part = min(("crops", "training"), key=lambda name: getattr(self, name))
        share = self.device / getattr(self, part)
        return (
            f"{part}: {share:.0%} of the device's time; loading gives {self.loading:.3g} images/s"
        )


def measure(config: Config, steps: int) -> Rates:
    """Rates of a configuration, on this process's device."""
    accelerator = start(config)
    device = accelerator.device
    splits = open_splits(config.data, config.run.seed)
    learner = new_learner(config, splits.n_classes).to(device)
    method = methods.build(config, learner).to(device)
    dtype = torch.float64 if config.run.precision == "float64" else torch.float32
    learner.to(dtype).train(), method.to(dtype)
    speed.hasten(learner, config.run)
    optimizer = optim.optimizer(learner, config.optim, config.probe)
    crops_of = MultiCrop(config.augment, config.data).to(device)
    gradients = Gradients(
        accelerator, accelerator.prepare(learner), method, crops_of, dtype,
        config.run.channels_last,
    )  # fmt: skip

    def batches() -> Iterator[data.Batch]:
        return data.batches(
            splits.train, config.data, seed=config.run.seed, rank=0, world=1, start=0
        )

    size = config.data.batch_size
    batch = next(batches())
    crops = gradients.crops(batch)

    def train_on(given: data.Batch) -> None:
        gradients.of_means([given], 0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    whole = stretch(train_on, batches(), steps, device)
    loading = stretch(lambda given: None, batches(), steps, device)
    cropping = best_of(lambda: gradients.crops(batch), device, steps)
    gradients.crops = lambda given: crops  # what is left is the training
    training = best_of(lambda: train_on(batch), device, steps)
    return Rates(
        decoding(splits.train, min(256, steps * size)),
        size / loading,
        size / cropping,
        size / training,
        size / whole,
    )


def stretch(
    work: Callable[[Any], None], batches: Iterator[Any], steps: int, device: torch.device
) -> float:
    """Mean seconds of so many steps, after the first two."""
    for batch in itertools.islice(batches, 2):
        work(batch)
    synchronise(device)
    begun = time.perf_counter()
    for batch in itertools.islice(batches, steps):
        work(batch)
    synchronise(device)
    return (time.perf_counter() - begun) / steps


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def decoding(source: Any, images: int) -> float:
    """Images per second of this process's CPU time; in-memory sources only copy."""
    if hasattr(source, "__len__"):
        rows = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:images]
        samples: Iterator[Any] = (source[int(row)] for row in rows)
    else:
        raw = source.reader.read(source.reader.shards[0])
        samples = (source.decode_raw(sample) for sample in itertools.islice(raw, images))
    begun = time.process_time()
    read = sum(not isinstance(sample, Unreadable) for sample in samples)
    return read / max(1e-9, time.process_time() - begun)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m reference_train.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-name", required=True, metavar="RECIPE")
    parser.add_argument("--config-dir", default=RECIPES, help="folder of other recipes")
    parser.add_argument("--steps", type=int, default=10, help="of each measurement (10)")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    given = parser.parse_args(arguments)
    try:
        if given.steps < 1:
            raise TrainError(f"--steps: expected at least 1; found {given.steps}")
        config = load(given.config_name, given.settings, given.config_dir)
        rates = measure(config, given.steps)
    except (TrainError, OSError) as error:
        print(f"reference_train.throughput: {one_line(error)}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    device = torch.device("cuda" if torch.cuda.is_available() and not config.run.cpu else "cpu")
    result = {
        "images per second": rates._asdict(),
        "bottleneck": rates.bottleneck(config.data.workers),
        "peak memory": memory(device),
        "recipe": given.config_name,
        "settings": given.settings,
    }
    write_result(Path(config.run.folder) / "throughput.json", result)
    for name, rate in rates._asdict().items():
        unit = "images per second of a core" if name == "decoding" else "images/s"
        print(f"{name:10} {rate:10.1f} {unit}")  # noqa: T201
    print(f"bottleneck: {result['bottleneck']}")  # noqa: T201


if __name__ == "__main__":
    main()
