"""Batches: which images a process reads at which step, exactly resumable.

The order is a function of (seed, epoch) and the position is the number of batches already taken.
So a resumed run reads what the uninterrupted one would have read, whatever had been prefetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from reference_train.config import Data
from reference_train.errors import LocalError, TrainError
from reference_train.sources import Sample, Source, Unreadable

Place = tuple[int, int]  # of a stream's lane: its pass, and the samples of it that were given


class Batch(NamedTuple):
    """A micro-batch of one process."""

    images: torch.Tensor  # uint8, (N, C, H, W)
    labels: torch.Tensor  # int64, (N,)
    ids: torch.Tensor  # int64, (N,)
    # Height and width of each image, (N, 2), which lies at the upper left: where they differ
    sizes: torch.Tensor | None = None
    place: tuple[int, int, int] | None = None  # streams: lane, pass and samples of it after this


def collate(samples: list[Sample | Unreadable]) -> Batch | Unreadable:
    """A batch, or the first image in it that could not be read: the loop decides what to do."""
    for sample in samples:
        if isinstance(sample, Unreadable):
            return sample
    images, labels, ids = zip(*samples, strict=True)
    labels, ids = torch.tensor(labels), torch.tensor(ids)
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = sizes.amax(0).tolist()
    # channels last, as they are decoded
    joined = torch.zeros(len(images), height, width, len(images[0]), dtype=torch.uint8)
    for place, image in zip(joined, images, strict=True):
        place[: image.shape[1], : image.shape[2]] = image.permute(1, 2, 0)
    alike = bool((sizes == sizes[0]).all())
    return Batch(joined.permute(0, 3, 1, 2), labels, ids, None if alike else sizes)


class Order:
    """Indices of batch ``start, start + 1, ...`` of one process, without end.

    Batch b of process r takes row r of the b-th block of ``world * size`` indices of its epoch's
    permutation. An epoch is whole steps of `accumulate` blocks, and what is left over at its end is
    dropped. So a step's images depend on ``accumulate * world * size`` alone.
    """

    def __init__(
        self,
        n: int,
        size: int,
        *,
        seed: int,
        rank: int,
        world: int,
        start: int,
        accumulate: int = 1,
    ) -> None:
        self.n, self.size, self.seed = n, size, seed
        self.rank, self.world, self.start = rank, world, start
        self.batches = n // (size * world * accumulate) * accumulate

    def __iter__(self) -> Iterator[list[int]]:
        epoch, first = divmod(self.start, self.batches)
        while True:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.n)
            for batch in range(first, self.batches):
                begin = (batch * self.world + self.rank) * self.size
                yield order[begin : begin + self.size].tolist()
            epoch, first = epoch + 1, 0


class _SkipUnreadable:
    """A source that gives the next readable image for one that is not."""

    def __init__(self, source: Source) -> None:
        self.source, self.labels = source, source.labels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        for step in range(len(self)):
            sample = self.source[(index + step) % len(self)]
            if not isinstance(sample, Unreadable):
                return sample
        return sample


def batches_per_epoch(source: object, data: Data, world: int, accumulate: int = 1) -> int:
    """Micro-batches of one process in an epoch of whole steps."""
    n = len(source) if hasattr(source, "__len__") else data.samples
    if n is None:
        raise TrainError("data.samples has to be given: the length of an epoch of this stream")
    if n < data.batch_size * world * accumulate:
        micro = f" x {accumulate}" if accumulate > 1 else ""
        raise TrainError(
            f"{n} training images do not fill one batch of {world} x {data.batch_size}{micro} "
            f"(processes x data.batch_size{' x run.accumulate' * bool(micro)})"
        )
    return n // (data.batch_size * world * accumulate) * accumulate


class Reading(Iterator[Batch]):
    """Batches from a position on; raises `LocalError` on an image that cannot be read.

    `places` are those of a stream's lanes after the last batch, and `lanes` is their number: what
    a checkpoint has to keep of a stream.
    """

    def __init__(self, loader: DataLoader, lanes: int | None, places: dict[int, Place]) -> None:
        self.loader, self.lanes, self.places = loader, lanes, dict(places)
        self._batches: Iterator[Batch | Unreadable] | None = None

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = iter(self.loader)
        batch = next(self._batches)
        if isinstance(batch, Unreadable):
            raise LocalError(f"cannot read {batch.name}: {' '.join(batch.reason.split())}")
        if batch.place is not None:
            lane, epoch, taken = batch.place
            self.places[lane] = epoch, taken
        return batch


def batches(
    source: object,
    data: Data,
    *,
    seed: int,
    rank: int,
    world: int,
    start: int,
    accumulate: int = 1,
    lanes: int | None = None,
    places: dict[int, Place] | None = None,
) -> Reading:
    """Batches of one process from position `start` on; `lanes` and `places` of a `Reading`."""
    skip = data.unreadable == "skip"
    loading = {
        "num_workers": data.workers,
        "prefetch_factor": data.prefetch if data.workers else None,
        "pin_memory": torch.cuda.is_available(),
        # a generator of its own: the loader must not draw from the one that augments
        "generator": torch.Generator().manual_seed(seed),
    }
    if hasattr(source, "__len__"):
        order = Order(
            len(source), data.batch_size, seed=seed, rank=rank, world=world, start=start,
            accumulate=accumulate,
        )  # fmt: skip
        loader = DataLoader(
            _SkipUnreadable(source) if skip else source,
            batch_sampler=order,
            collate_fn=collate,
            **loading,
        )
        return Reading(loader, None, {})
    lanes, places = lanes or source.lanes(world), places or {}
    parts = source.batches(
        data.batch_size, rank=rank, world=world, start=start, skip=skip, lanes=lanes, places=places
    )
    return Reading(DataLoader(parts, batch_size=None, **loading), lanes, places)
