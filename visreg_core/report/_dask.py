"""Both passes over files on a dask cluster: each part of a file is read where a worker is.

A part's rows become a state on the worker that reads them; states are merged in pairs, in the order
of the parts, so that nothing of the size of the data moves and a worker that is lost changes
nothing: dask reads its parts again, and the same states are merged in the same order.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from visreg_core.embeddings import Embeddings, EmbeddingsError
from visreg_core.embeddings._remote import is_url
from visreg_core.optional import require
from visreg_core.report._files import open_embeddings, shards
from visreg_core.report._streaming import First, Tick
from visreg_core.statistics import Moments, SliceDistributions

# Rows of a mapped file are divided into parts of at least so many numbers.
_PART_VALUES = 1 << 25
_MAPPED = (".npy", ".safetensors")


class Part(NamedTuple):
    """Rows `start` … `stop` − 1 of a file, the first of which is row `number` of the input."""

    spec: str
    start: int
    stop: int
    number: int

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Its rows and the number of the first of them, block by block."""
        stored = _opened(self.spec)
        if self.stop - self.start < stored.shape[0]:
            stored = stored.select(np.arange(self.start, self.stop))
        number = self.number
        for block in stored.blocks():
            yield number, block
            number += len(block)


@functools.lru_cache(maxsize=8)
def _opened(spec: str) -> Embeddings:
    return open_embeddings(spec)


def parts_of(stored: Embeddings) -> list[Part]:
    """The parts of an input: its files, those that are mapped divided further."""
    if stored.selection is not None or not _is_file(stored.name):
        expected = "a file that every worker can open, all rows of it"
        raise EmbeddingsError(stored.name, "rows of this process", f"{expected}, for --engine dask")
    parts, number = [], 0
    for spec in map(_absolute, shards(stored.name)):
        n, d = _opened(spec).shape
        step = n
        if Path(spec.partition("::")[0]).suffix.lower() in _MAPPED:
            step = max(1, _PART_VALUES // d)
        for start in range(0, n, step):
            parts.append(Part(spec, start, min(start + step, n), number + start))
        number += n
    return parts


def _absolute(spec: str) -> str:
    """The same file for a worker that was started in another folder."""
    return spec if is_url(spec) else os.path.abspath(spec)


def _is_file(name: str) -> bool:
    try:
        return bool(shards(name))
    except EmbeddingsError:
        return False


def _first(part: Part, dim: int, options: dict[str, int]) -> First:
    state = First(dim, **options)
    for number, block in part.blocks():
        state.update(block, numbers=number)
    state.reduce()
    return state


def _moments(state: First) -> tuple[Moments, np.ndarray]:
    return state.moments.result(), state.slices


def _second(part: Part, known: tuple[Moments, np.ndarray]) -> SliceDistributions:
    state = SliceDistributions(*known)
    for _, block in part.blocks():
        state.update(block)
    return state


def _merged(one: Any, other: Any) -> Any:
    one = one.copy()
    one.merge(other)
    return one


class Cluster:
    """A client of a scheduler, and what both passes are on it."""

    def __init__(self, client: Any, tick: Tick) -> None:
        self.client, self.tick = client, tick

    def first(self, stored: Embeddings, options: dict[str, int]) -> tuple[First, Any]:
        """The first pass over a file, and where the moments of all rows are."""
        make = functools.partial(_first, dim=stored.shape[1], options=options)
        future = self._reduced(make, parts_of(stored), "moments")
        return future.result(), self.client.submit(_moments, future)

    def second(self, stored: Embeddings, known: Any) -> SliceDistributions:
        """The second pass."""
        future = self._reduced(_second, parts_of(stored), "slices", known=known)
        state: SliceDistributions = future.result()
        return state

    def _reduced(
        self, make: Callable[..., Any], parts: Sequence[Part], doing: str, **known: Any
    ) -> Any:
        """The merged state of all parts, on the cluster."""
        completed = require("distributed", extra="dask", purpose="--engine dask").as_completed
        states = [self.client.submit(make, part, **known, pure=False) for part in parts]
        level = states
        while len(level) > 1:
            pairs = [
                self.client.submit(_merged, *level[i : i + 2], pure=False)
                for i in range(0, len(level) - 1, 2)
            ]
            level = pairs + level[2 * len(pairs) :]
        for done, _ in enumerate(completed(states), 1):
            self.tick(doing, done, len(parts))
        return level[0]


@contextlib.contextmanager
def cluster(scheduler: str | None, tick: Tick) -> Iterator[Cluster]:
    """A running cluster at this address, or one of processes on this machine."""
    distributed = require("distributed", extra="dask", purpose="--engine dask")
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            scheduler = stack.enter_context(
                distributed.LocalCluster(
                    threads_per_worker=1, processes=True, dashboard_address=None
                )
            )
        try:
            client = stack.enter_context(distributed.Client(scheduler, timeout=30))
        except (OSError, ValueError) as error:
            found = f"{type(error).__name__}: {error}"
            raise EmbeddingsError(str(scheduler), found, "the address of a scheduler") from None
        yield Cluster(client, tick)
