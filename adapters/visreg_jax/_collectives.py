"""Every collective of the package: shards of a batch along the axes of a mesh or of a vmap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from jax import lax

AxisName = Any  # a name or a tuple of names


def names(axis: AxisName) -> tuple[Any, ...]:
    """The names that an axis name stands for."""
    return axis if isinstance(axis, tuple) else () if axis is None else (axis,)


@dataclass(frozen=True)
class AxisShards:
    """The shards of a batch: the devices along `axis`, each with the same number of rows."""

    axis: AxisName
    size: int
    checked: bool  # whether shard_map tracks which values vary over which axis

    def sum(self, x: jax.Array) -> jax.Array:
        """Sum over the devices."""
        return lax.psum(x, self.axis)

    def maximum(self, x: jax.Array) -> jax.Array:
        """Elementwise maximum over the devices."""
        return lax.pmax(x, self.axis)

    def gather(self, x: jax.Array, axis: int) -> jax.Array:
        """The devices' arrays joined."""
        to = "invarying" if self.checked else "varying"
        return lax.all_gather(x, self.axis, axis=axis % x.ndim, tiled=True, to=to)

    def own(self, x: jax.Array, axis: int) -> jax.Array:
        """Own part of an array that all have."""
        part = x.shape[axis] // self.size
        return lax.dynamic_slice_in_dim(x, lax.axis_index(self.axis) * part, part, axis % x.ndim)

    def scatter_sum(self, x: jax.Array, axis: int) -> jax.Array:
        """Own part of the sum over the devices."""
        return lax.psum_scatter(x, self.axis, scatter_dimension=axis % x.ndim, tiled=True)

    def exchange(self, x: jax.Array, split: int, join: int) -> jax.Array:
        """Part s along `split` goes to device s, which joins its parts along `join`."""
        return lax.all_to_all(x, self.axis, split % x.ndim, join % x.ndim, tiled=True)


@dataclass(frozen=True)
class Axes:
    """Where a loss is computed: batches along `rows`, directions along `slices` (or None)."""

    rows: AxisName
    slices: AxisName

    def __post_init__(self) -> None:
        if set(names(self.rows)) & set(names(self.slices)):
            raise ValueError(
                "expected rows and directions along different axes; found "
                f"axis_name={self.rows!r} and slice_axis={self.slices!r}"
            )

    @property
    def all(self) -> tuple[Any, ...]:
        """The names of all axes."""
        return (*names(self.rows), *names(self.slices))

    @property
    def checked(self) -> bool:
        """Whether this is inside of a shard_map with ``check_vma=True``."""
        return bool(varying(lax.axis_index(self.all)))

    def shards(self) -> AxisShards:
        """The shards of the batch."""
        return AxisShards(self.rows, lax.axis_size(self.rows), self.checked)

    def varied(self, x: jax.Array) -> jax.Array:
        """`x` marked as varying over all devices: shard_map then sums its gradient over them."""
        missing = tuple(a for a in self.all if a not in varying(x)) if self.checked else ()
        return lax.pcast(x, missing, to="varying") if missing else x

    def averaged(self, result: Any) -> Any:
        """Results averaged over the devices along `slices`, each with as many directions."""
        if names(self.slices):
            result = lax.pmean(result, self.slices)
        if self.checked and lax.axis_size(self.rows) == 1:
            # A single device reduced nothing, so that its results are still marked as varying.
            result = lax.psum(result, self.rows)
        return result

    def cotangents(self, fields: list[Any]) -> list[Any]:
        """What a device's own vjp takes, given the cotangents of the results on all devices.

        All devices return the same results, so that their cotangents belong to one value and add
        up, as in JAX's transpose of `lax.psum`. Where shard_map tracks what varies, invariant
        results have a single cotangent already.
        """
        parts = lax.axis_size(self.slices) if names(self.slices) else 1
        if not self.checked:
            fields = lax.psum(fields, self.all)
        return [f / parts for f in fields] if parts > 1 else fields


def varying(x: Any) -> frozenset[Any]:
    """The manual axes over which `x` varies, as far as shard_map tracks them."""
    kind = jax.typeof(x)
    kind = getattr(kind, "manual_axis_type", kind)  # `vma` was the aval's own before
    return frozenset(getattr(kind, "varying", getattr(kind, "vma", ())))
