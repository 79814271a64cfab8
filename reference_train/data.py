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


class Batch(NamedTuple):
    """A micro-batch of one process."""

    images: torch.Tensor  # uint8, (N, C, size, size)
    labels: torch.Tensor  # int64, (N,)
    ids: torch.Tensor  # int64, (N,)


def collate(samples: list[Sample | Unreadable]) -> Batch | Unreadable:
    """A batch, or the first image in it that could not be read: the loop decides what to do."""
    for sample in samples:
        if isinstance(sample, Unreadable):
            return sample
    images, labels, ids = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.tensor(labels), torch.tensor(ids))


class Order:
    """Indices of batch ``start, start + 1, ...`` of one process, without end.

    Batch b of process r takes row r of the b-th block of ``world * size`` indices of its epoch's
    permutation. What is left over at the end of an epoch is dropped.
    """

    def __init__(self, n: int, size: int, *, seed: int, rank: int, world: int, start: int) -> None:
        self.n, self.size, self.seed = n, size, seed
        self.rank, self.world, self.start = rank, world, start
        self.batches = n // (size * world)

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


def batches_per_epoch(source: object, data: Data, world: int) -> int:
    """Micro-batches of one process in an epoch."""
    n = len(source) if hasattr(source, "__len__") else data.samples
    if n is None:
        raise TrainError("data.samples has to be given: the length of an epoch of this stream")
    if n < data.batch_size * world:
        raise TrainError(
            f"{n} training images do not fill one batch of {world} x {data.batch_size} "
            "(processes x data.batch_size)"
        )
    return n // (data.batch_size * world)


def batches(
    source: object, data: Data, *, seed: int, rank: int, world: int, start: int
) -> Iterator[Batch]:
    """Batches from position `start` on; raises `LocalError` on an image that cannot be read."""
    skip = data.unreadable == "skip"
    loading = {
        "num_workers": data.workers,
        "pin_memory": torch.cuda.is_available(),
        # a generator of its own: the loader must not draw from the one that augments
        "generator": torch.Generator().manual_seed(seed),
    }
    if hasattr(source, "__len__"):
        order = Order(len(source), data.batch_size, seed=seed, rank=rank, world=world, start=start)
        loader = DataLoader(
            _SkipUnreadable(source) if skip else source,
            batch_sampler=order,
            collate_fn=collate,
            **loading,
        )
    else:
        parts = source.batches(data.batch_size, rank=rank, world=world, start=start, skip=skip)
        loader = DataLoader(parts, batch_size=None, **loading)
    for batch in loader:
        if isinstance(batch, Unreadable):
            raise LocalError(f"cannot read {batch.name}: {' '.join(batch.reason.split())}")
        yield batch
