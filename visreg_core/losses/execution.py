"""What a loss runs on: one array or the shards of a batch, and kernels.

Both passes of every loss take an `Execution` as their first argument. Public losses make it from
the library of their arrays. Adapters make their own, with an object that reduces and moves arrays
between the shards of a batch (processes, devices), and with kernels for the functions of rows that
dominate a loss.

Shards hold equal numbers of rows. Adapters pad uneven ones and mask the padding, so that all
shapes are static.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from visreg_core import _xp
from visreg_core.typing import Array, Namespace

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
        """Part s of `x` along `split` goes to shard s, which joins its parts along `join`."""


class Alone:
    """The whole batch in one place: every reduction is the array itself."""

    size = 1

    def _same(self, x: Array, **_: int) -> Array:
        return x

    sum = maximum = gather = own = scatter_sum = exchange = _same


_ALONE: Any = Alone()


class Execution(NamedTuple):
    """What the two passes of a loss run on.

    Parameters
    ----------
    shards : Shards
        Where the rows of the batch are.
    sorting : {"auto", "gather", "exchange"}
        How a term that sorts gets all rows of a slice: "gather" the embeddings, "exchange" the
        projections, or "auto": whichever moves fewer bytes.
    kernels : mapping
        Faster equivalents, by the name of the function that each replaces.
    need_gradient : bool
        Whether a backward pass may follow. Without one a forward pass does no work for it.
    donated : bool
        In a backward pass: the saved arrays are not needed again and may be overwritten.
    """

    shards: Shards = _ALONE
    sorting: str = "auto"
    kernels: Mapping[str, Callable[..., Any]] = {}
    need_gradient: bool = False
    donated: bool = False

    def namespace(self, *arrays: Array | None) -> Namespace:
        """The array-API namespace of arrays; None is skipped.

        TypeError where two libraries meet, ValueError where two devices do.
        """
        return _xp.namespace(*arrays)

    def widened(self, z: Array) -> Array:
        """`z` in the dtype to compute in: float64 for float64, float32 for anything narrower."""
        xp = _xp.namespace(z)
        return _xp.cast(xp, z, _xp.compute_dtype(xp, z))


PLAIN = Execution()
