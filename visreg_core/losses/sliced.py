"""The engine of sliced losses: project a chunk of slices, evaluate a term, backproject.

Projections are stored as (slices, samples), so that terms sort and sum along contiguous axes.
Chunks of slices bound the memory: the gradient is accumulated in the same pass, so that neither
projections nor sort orders outlive their chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from visreg_core import _xp, checks
from visreg_core._xp import tiles
from visreg_core.losses.execution import PLAIN, SORTING, Execution, Shards
from visreg_core.losses.rows import power_of_two_below
from visreg_core.typing import Array, DType, Namespace

# term(need_gradient, *projections (R, N_i)) -> values (R,) [, a gradient (R, N_i) for each sample]
Term = Callable[..., tuple[Array, ...]]

# body(columns (B or 1, D, k), batch indices) -> ([values (B, k)], [gradient (B, N_i, D), ...])
Body = Callable[..., tuple[list[Array], list[Array]]]


def flat_batch(xp: Namespace, z: Array) -> Array:
    """(..., N, D) -> (B, N, D)."""
    return z if z.ndim == 3 else xp.reshape(z, (-1, z.shape[-2], z.shape[-1]))


def flat_slices(xp: Namespace, slices: Array, z: Array) -> Array:
    """(..., D, K) -> (B, D, K) or (1, D, K) that fit z (..., N, D)."""
    if slices.ndim == 2:
        return slices[None, ...]
    shape = (*z.shape[:-2], *slices.shape[-2:])
    return xp.reshape(xp.broadcast_to(slices, shape), (-1, *slices.shape[-2:]))


def sliced(
    xp: Namespace,
    samples: tuple[Array, ...],
    slices: Array,
    term: Term,
    execution: Execution,
    *,
    scratch: int | None = 8,
    chunk_size: int | None,
    projection_dtype: DType,
    exchange: Shards | None = None,
    shards: Shards = PLAIN.shards,
) -> tuple[Array, tuple[Array, ...]]:
    """Values of `term` on every slice and, where one is needed, the gradients of their sum.

    `scratch` is the number of arrays of a sample's size that the term allocates, None for a term
    that tiles its own work. Each of `shards` may have a part of the samples, over which the term
    reduces; with `exchange` the term has all samples of a part of the slices.

    samples : arrays (B, N_i, D) of one compute dtype; slices : (B or 1, D, K).
    Returns values (B, K) and, if needed, one gradient (B, N_i, D) for each sample.
    """
    dtype, need_gradient = samples[0].dtype, execution.need_gradient
    over_chunks = execution.kernels.get("over_chunks", in_turn)
    units = [_unit(xp, x, projection_dtype, shards) for x in samples]
    projected = [
        xp.permute_dims(_xp.cast(xp, x if u is None else x / u, projection_dtype), (0, 2, 1))
        for x, u in zip(samples, units, strict=True)
    ]

    def body(columns: Array, of: slice = slice(None)) -> tuple[list[Array], list[Array]]:
        directions = xp.permute_dims(columns, (0, 2, 1))
        narrow = _xp.cast(xp, directions, projection_dtype)
        p = [_xp.matmul_accumulate(xp, narrow, x[of, ...], dtype) for x in projected]
        p = [x if u is None else x * u[of, ...] for x, u in zip(p, units, strict=True)]
        shapes = [x.shape for x in p]
        p = [xp.reshape(x, (-1, x.shape[-1])) for x in p]
        if exchange is not None:
            p = [exchange.exchange(x, split=0, join=1) for x in p]
        if scratch is None:
            values, *gradients = term(need_gradient, *p)
        else:
            values, *gradients = tiles.in_tiles(
                xp, lambda *tile: term(need_gradient, *tile), *p, scratch=scratch
            )
        del p  # before the gradients of the samples are made
        if exchange is not None:
            values = exchange.gather(values, axis=0)
            gradients = [exchange.exchange(g, split=1, join=0) for g in gradients]
        wide = _xp.cast(xp, directions, dtype)
        backprojected = [
            xp.matmul(xp.permute_dims(xp.reshape(g, shape), (0, 2, 1)), wide)
            for g, shape in zip(gradients, shapes if need_gradient else [], strict=True)
        ]
        return [xp.reshape(values, (-1, columns.shape[-1]))], backprojected

    values, gradients = over_chunks(
        xp,
        body,
        slices,
        samples,
        chunk_size=chunk_size,
        multiple=1 if exchange is None else exchange.size,  # a chunk that all shards can share
        need_gradient=need_gradient,
        in_order=shards.size > 1,
    )
    return values, gradients


def in_turn(
    xp: Namespace,
    body: Body,
    slices: Array,
    samples: tuple[Array, ...],
    *,
    chunk_size: int | None,
    multiple: int,
    need_gradient: bool,
    in_order: bool,
) -> tuple[Array, tuple[Array, ...]]:
    """The engine's loop over chunks of slices, all batch indices together.

    Chunks are multiples of `multiple`. The loop always satisfies `in_order`.
    """
    rows = sum(x.shape[1] for x in samples)
    row_bytes = samples[0].shape[0] * rows * (8 if samples[0].dtype == xp.float64 else 4)
    chunk = chunk_of(xp, slices, chunk_size, row_bytes, multiple)
    (values,), gradients = _xp.accumulate(xp, body, slices, chunk)
    return values, tuple(gradients)


def chunk_of(
    xp: Namespace, slices: Array, chunk_size: int | None, row_bytes: int, multiple: int
) -> int:
    """Slices to project at once, where the projections on one take `row_bytes` bytes."""
    if chunk_size is None:
        chunk_size = tiles.default_chunk(xp, row_bytes)
    else:
        checks.positive_int("chunk_size", chunk_size)
    return min(-(-chunk_size // multiple) * multiple, slices.shape[-1])


def sliced_sorting(
    xp: Namespace,
    z: Array,
    slices: Array,
    term: Term,
    execution: Execution,
    *,
    chunk_size: int | None,
    projection_dtype: DType,
) -> tuple[Array, Array | None]:
    """`sliced` of one sample, for a term that sorts: all rows of a slice must be in one place.

    Each of several shards has rows z (B, N, D) and sorts a part of the slices. Either it gathers
    all rows and sends their gradients back, which moves 2 B N D numbers per shard and peer; or it
    projects its own rows and exchanges the projections, which moves 2 B N K / W.
    """
    shards = execution.shards
    keywords: dict[str, Any] = {"chunk_size": chunk_size, "projection_dtype": projection_dtype}
    if shards.size == 1:
        values, gradients = sliced(xp, (z,), slices, term, execution, **keywords)
        return values, gradients[0] if execution.need_gradient else None
    n_slices = slices.shape[-1]
    surplus = -n_slices % shards.size
    if surplus:  # directions of length 0, whose values are cut off and whose gradients are 0
        nothing = xp.zeros_like(slices[..., :1])
        slices = xp.concat([slices, *[nothing] * surplus], axis=-1)
    if sorts_by_exchange(execution, dim=z.shape[-1], n_slices=n_slices):
        values, gradients = sliced(
            xp, (z,), slices, term, execution, exchange=shards, shards=shards, **keywords
        )
        gradient = gradients[0] if execution.need_gradient else None
    else:
        rows, own = shards.gather(z, axis=-2), shards.own(slices, axis=-1)
        values, gradients = sliced(xp, (rows,), own, term, execution, **keywords)
        values = shards.gather(values, axis=-1)
        gradient = shards.scatter_sum(gradients[0], axis=-2) if execution.need_gradient else None
    return values[..., :n_slices], gradient


def sorts_by_exchange(execution: Execution, *, dim: int, n_slices: int) -> bool:
    """Whether shards exchange projections rather than gather embeddings (see `sliced_sorting`)."""
    checks.choice("sorting", execution.sorting, SORTING)
    if execution.sorting != "auto":
        return execution.sorting == "exchange"
    size = execution.shards.size
    return math.ceil(n_slices / size) < dim


def _unit(xp: Namespace, x: Array, projection_dtype: DType, shards: Shards) -> Array | None:
    """Divisor that keeps a float16 product within range, which ends at 65504; None for others."""
    if _xp.dtype_name(projection_dtype) != "float16":
        return None
    largest = xp.max(xp.abs(_xp.stop_gradient(x)), axis=(-2, -1), keepdims=True)
    return power_of_two_below(xp, shards.maximum(largest))


def projection_dtype_for(xp: Namespace, z: Array, requested: Any) -> DType:
    """The dtype of z @ slices: as requested, else the compute dtype, float32 for 16-bit z.

    For nearly Gaussian embeddings p − q is much smaller than p, so that a 16-bit product has an
    error of 6 % in the shape gradient; a float32 product has none that matters.
    """
    if requested is None:
        return _xp.compute_dtype(xp, z)
    checks.dtype("projection_dtype", requested, xp)
    return requested
