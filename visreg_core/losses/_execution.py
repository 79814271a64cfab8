"""How a loss is executed: on one array or on the shards of a batch, with which kernels.

Every implementation takes ``execution``; `PLAIN` is what the public losses run. The adapters pass
their own: an object that reduces and moves arrays between the shards of the batch (processes,
devices), and kernels that stand in for the functions of rows that dominate a loss.

Shards hold equal numbers of rows. Uneven ones are padded by their adapter and the padding masked,
so that every statement below is about static shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from visreg_core._typing import Array

SORTING = ("auto", "gather", "exchange")


class Shards(Protocol):
    """The parts of a batch that hold its rows, in order; each runs the same program."""

    @property
    def size(self) -> int:
        """Number of shards."""

    def sum(self, x: Array) -> Array:
        """Sum of the shards' arrays, the same on all."""

    def maximum(self, x: Array) -> Array:
        """Elementwise maximum of the shards' arrays, the same on all."""

    def gather(self, x: Array, axis: int) -> Array:
        """The shards' arrays joined along `axis`, the same on all."""

    def own(self, x: Array, axis: int) -> Array:
        """Own part, one of `size` equal ones, of an array that all have."""

    def scatter_sum(self, x: Array, axis: int) -> Array:
        """Own part along `axis` of the sum of the shards' arrays."""

    def exchange(self, x: Array, split: int, join: int) -> Array:
        """Part s of `x` along `split` goes to shard s, which joins what it gets along `join`."""


class _Alone:
    """The whole batch in one place."""

    size = 1

    def sum(self, x: Array) -> Array:
        return x

    def maximum(self, x: Array) -> Array:
        return x

    def gather(self, x: Array, axis: int) -> Array:
        return x

    def own(self, x: Array, axis: int) -> Array:
        return x

    def scatter_sum(self, x: Array, axis: int) -> Array:
        return x

    def exchange(self, x: Array, split: int, join: int) -> Array:
        return x


class Execution(NamedTuple):
    """What an implementation runs on.

    shards : where the rows of the batch are.
    sorting : how a term that sorts meets all rows of a slice: "gather" the embeddings, "exchange"
        the projections, or whichever moves fewer bytes ("auto").
    kernels : faster twins by the name of the function that they stand in for.
    """

    shards: Shards = _Alone()
    sorting: str = "auto"
    kernels: Mapping[str, Callable[..., Any]] = {}


PLAIN = Execution()
