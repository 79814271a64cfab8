"""Sums over all pairs of rows of a function of their distance, in blocks of rows.

O(N² D) steps, and memory for a block of N rows at a time: no N × N array.
"""

from __future__ import annotations

from collections.abc import Callable

from visreg_core import _xp
from visreg_core._xp import tiles
from visreg_core.losses import rows as _rows
from visreg_core.losses.execution import Execution
from visreg_core.losses.sliced import flat_batch
from visreg_core.typing import Array

# of_pair(ρ, s, need_slopes) -> (f, ∂f/∂ρ, ∂f/∂s or None); of_row(q, need_slope) -> (g, g').
OfPair = Callable[[Array, Array, bool], tuple[Array, ...]]
OfRow = Callable[[Array, bool], tuple[Array, ...]]

# Arrays of a block's size that a function of pairs works with.
_SCRATCH = 8


def mean_over_pairs(
    execution: Execution, z: Array, row_mask: Array | None, of_pair: OfPair, of_row: OfRow | None
) -> tuple[Array, Array | None]:
    """mean_ij f(‖z_i − z_j‖², q_i + q_j) + mean_i g(q_i), q = ‖z‖², and the gradient if needed.

    The mean over z's leading axes, the gradient of the sum over them. Computed in float64 where the
    device has it: distances come from products of centred rows, good to the rounding unit times the
    squared norm of those, of which float32 would leave no digits where rows are close together and
    far from their mean. What is within that rounding of 0 is 0, so that equal rows are equal.
    """
    xp = execution.namespace(z, row_mask)
    dtype = _xp.compute_dtype(xp, z)
    if _xp.compiles(xp) and not execution.need_gradient:
        # A value alone, which JAX may differentiate by itself, outside of the context.
        return _mean_over_pairs(execution, _xp.cast(xp, z, dtype), row_mask, of_pair, of_row)
    with _xp.float64_inside(xp):
        wide = _xp.cast(xp, z, _xp.widest(xp, z))
        value, gradient = _mean_over_pairs(execution, wide, row_mask, of_pair, of_row)
    return _xp.cast(xp, value, dtype), None if gradient is None else _xp.cast(xp, gradient, dtype)


def _mean_over_pairs(
    execution: Execution, z: Array, row_mask: Array | None, of_pair: OfPair, of_row: OfRow | None
) -> tuple[Array, Array | None]:
    xp, shards = execution.namespace(z, row_mask), execution.shards
    need_gradient = execution.need_gradient
    wide = flat_batch(xp, z)
    n = _rows.count(xp, wide, row_mask, shards)
    _, centred = _rows.centre(xp, wide, row_mask, shards)
    wide = _rows.kept(xp, _rows.keep_column(row_mask), wide)
    batch, size, dim = wide.shape
    place = xp.arange(size * shards.size, dtype=wide.dtype, **_xp.on_device(wide))
    place = shards.own(place, axis=-1)
    if row_mask is not None:
        place = xp.where(row_mask, place, -xp.ones_like(place))
    columns = xp.concat(
        [
            xp.permute_dims(centred, (0, 2, 1)),
            xp.sum(centred * centred, axis=-1)[:, None, :],
            xp.sum(wide * wide, axis=-1)[:, None, :],
            xp.broadcast_to(place, (batch, 1, size)),
        ],
        axis=1,
    )
    others = shards.gather(columns, axis=-1)
    square_j, q_j, place_j = (others[:, i : i + 1, :] for i in range(dim, dim + 3))
    others = others[:, :dim, :]
    unit = 4 * float(xp.finfo(wide.dtype).eps)

    def body(own: Array) -> tuple[list[Array], list[Array]]:
        mine = xp.permute_dims(own, (0, 2, 1))
        square_i, q_i, place_i = (mine[:, :, i : i + 1] for i in range(dim, dim + 3))
        mine = mine[:, :, :dim]
        squares = square_i + square_j
        rho = squares - 2 * xp.matmul(mine, others)
        same = (place_i == place_j) | (rho <= unit * squares)
        rho = xp.where(same, xp.zeros_like(rho), rho)
        found = of_pair(rho, q_i + q_j, need_gradient)
        if row_mask is not None:
            keep = (place_i >= 0) & (place_j >= 0)
            found = tuple(None if f is None else _rows.kept(xp, keep, f) for f in found)
        value = xp.sum(found[0], axis=-1) / n
        alone = () if of_row is None else of_row(q_i[..., 0], need_gradient)
        if row_mask is not None:
            alone = tuple(_rows.kept(xp, place_i[..., 0] >= 0, g) for g in alone)
        value = value if of_row is None else value + alone[0]
        if not need_gradient:
            return [value], []
        _, on_rho, on_s = found
        on_rho = xp.where(same, xp.zeros_like(on_rho), on_rho)  # 0 · (z_i − z_j), which would round
        apart = xp.sum(on_rho, axis=-1, keepdims=True) * mine
        apart = apart - xp.matmul(on_rho, xp.permute_dims(others, (0, 2, 1)))
        along = xp.zeros_like(value)
        if on_s is not None:
            along = along + (4 / (n * n)) * xp.sum(on_s, axis=-1)
        if of_row is not None:
            along = along + (2 / n) * alone[1]
        return [value, xp.permute_dims(apart, (0, 2, 1)) * (4 / (n * n)), along], []

    chunk = tiles.default_chunk(xp, batch * others.shape[-1] * 8 * _SCRATCH)
    (values, *parts), _ = _xp.accumulate(xp, body, columns, min(chunk, size))
    value = shards.sum(xp.sum(values)) / (n * batch)
    if not need_gradient:
        return value, None
    apart, along = parts
    gradient = xp.permute_dims(apart, (0, 2, 1)) + along[..., None] * wide
    return value, xp.reshape(gradient, z.shape)
