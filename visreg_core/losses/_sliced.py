"""The engine of every sliced loss: project a chunk of slices, evaluate a term, carry it back.

Projections are kept as (slices, samples), so that what a term sorts or sums is contiguous, and a
chunk of slices bounds memory: neither projections nor sort orders outlive their chunk, because the
gradient is accumulated in the same pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from visreg_core import _checks, _tiles, _xp
from visreg_core._typing import Array, DType, Namespace
from visreg_core.losses._execution import PLAIN, SORTING, Execution, Shards
from visreg_core.losses._rows import power_of_two_below

# term(need_grad, *projections (R, N_i)) -> values (R,) [, one gradient (R, N_i) for each sample]
Term = Callable[..., tuple[Array, ...]]


def flat_batch(xp: Namespace, z: Array) -> Array:
    """(..., N, D) -> (B, N, D)."""
    return z if z.ndim == 3 else xp.reshape(z, (-1, z.shape[-2], z.shape[-1]))


def flat_slices(xp: Namespace, slices: Array, z: Array) -> Array:
    """(..., D, K) -> (B, D, K) or (1, D, K) beside z (..., N, D)."""
    if slices.ndim == 2:
        return slices[None, ...]
    shape = (*z.shape[:-2], *slices.shape[-2:])
    return xp.reshape(xp.broadcast_to(slices, shape), (-1, *slices.shape[-2:]))


def sliced(
    xp: Namespace,
    samples: tuple[Array, ...],
    slices: Array,
    term: Term,
    *,
    scratch: int | None = 8,
    need_grad: bool,
    chunk_size: int | None,
    projection_dtype: DType,
    exchange: Shards | None = None,
    shards: Shards = PLAIN.shards,
) -> tuple[Array, tuple[Array, ...]]:
    """Values of `term` on every slice, and the gradients of their sum.

    `scratch` is the number of arrays of a sample's size that the term works with, None for a term
    that looks after the cache by itself. The samples may be one of `shards`, over which the term
    reduces; with `exchange` it sees all samples of a part of the slices.

    samples : arrays (B, N_i, D) of one compute dtype; slices : (B or 1, D, K).
    Returns values (B, K) and, if `need_grad`, one gradient (B, N_i, D) for each sample.
    """
    dtype = samples[0].dtype
    batch = samples[0].shape[0]
    on_numpy = _xp.name(xp) == "numpy"
    units = [_unit(xp, x, projection_dtype, shards) for x in samples]
    projected = [
        xp.permute_dims(_xp.cast(xp, x if u is None else x / u, projection_dtype), (0, 2, 1))
        for x, u in zip(samples, units, strict=True)
    ]
    rows = sum(x.shape[1] for x in samples)
    if chunk_size is None:
        together = 1 if on_numpy else batch
        chunk_size = _tiles.default_chunk(xp, together * rows * (8 if dtype == xp.float64 else 4))
    _checks.positive_int("chunk_size", chunk_size)
    if exchange is not None:  # a chunk that all shards can share
        chunk_size = -(-chunk_size // exchange.size) * exchange.size
    chunk_size = min(chunk_size, slices.shape[-1])

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
            values, *gradients = term(need_grad, *p)
        else:
            values, *gradients = _tiles.in_tiles(
                xp, lambda *tile: term(need_grad, *tile), *p, scratch=scratch
            )
        del p  # not beside what is carried back
        if exchange is not None:
            values = exchange.gather(values, axis=0)
            gradients = [exchange.exchange(g, split=1, join=0) for g in gradients]
        wide = _xp.cast(xp, directions, dtype)
        carried = [
            xp.matmul(xp.permute_dims(xp.reshape(g, shape), (0, 2, 1)), wide)
            for g, shape in zip(gradients, shapes if need_grad else [], strict=True)
        ]
        return [xp.reshape(values, (-1, columns.shape[-1]))], carried

    if on_numpy:
        shapes = [x.shape for x in samples]
        # What shards send each other in the loop must come in the same order from all.
        in_order = shards.size > 1
        return _over_threads(body, slices, chunk_size, dtype, shapes, need_grad, in_order)
    (values,), gradients = _xp.accumulate(xp, body, slices, chunk_size)
    return values, tuple(gradients)


def sliced_sorting(
    xp: Namespace,
    z: Array,
    slices: Array,
    term: Term,
    execution: Execution,
    *,
    need_grad: bool,
    chunk_size: int | None,
    projection_dtype: DType,
) -> tuple[Array, Array | None]:
    """`sliced` of one sample whose term sorts, so that it needs all rows of a slice in one place.

    Of several shards each has rows z (B, N, D) and sorts a part of the slices. Either each gathers
    all rows and returns the gradients of the others', which moves 2 B N D numbers a shard and peer;
    or each projects its own rows and exchanges the projections, which moves 2 B N K / W.
    """
    shards = execution.shards
    keywords: dict[str, Any] = {
        "need_grad": need_grad,
        "chunk_size": chunk_size,
        "projection_dtype": projection_dtype,
    }
    if shards.size == 1:
        values, gradients = sliced(xp, (z,), slices, term, **keywords)
        return values, gradients[0] if need_grad else None
    n_slices = slices.shape[-1]
    surplus = -n_slices % shards.size
    if surplus:  # directions of length 0, whose values are cut off and whose gradients are 0
        nothing = xp.zeros_like(slices[..., :1])
        slices = xp.concat([slices, *[nothing] * surplus], axis=-1)
    if sorts_by_exchange(execution, dim=z.shape[-1], n_slices=n_slices):
        values, gradients = sliced(
            xp, (z,), slices, term, exchange=shards, shards=shards, **keywords
        )
        gradient = gradients[0] if need_grad else None
    else:
        rows, own = shards.gather(z, axis=-2), shards.own(slices, axis=-1)
        values, gradients = sliced(xp, (rows,), own, term, **keywords)
        values = shards.gather(values, axis=-1)
        gradient = shards.scatter_sum(gradients[0], axis=-2) if need_grad else None
    return values[..., :n_slices], gradient


def sorts_by_exchange(execution: Execution, *, dim: int, n_slices: int) -> bool:
    """Whether shards exchange projections rather than gather embeddings (see `sliced_sorting`)."""
    _checks.choice("sorting", execution.sorting, SORTING)
    if execution.sorting != "auto":
        return execution.sorting == "exchange"
    size = execution.shards.size
    return math.ceil(n_slices / size) < dim


def _over_threads(
    body: Callable[..., tuple[list[Array], list[Array]]],
    slices: np.ndarray,
    chunk: int,
    dtype: DType,
    shapes: list[tuple[int, ...]],
    need_grad: bool,
    in_order: bool,
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The engine's loop on NumPy: chunks of slices of one batch index, shared out to threads."""
    batch, n_slices = shapes[0][0], slices.shape[-1]
    values = np.empty((batch, n_slices), dtype)
    gradients = tuple(np.empty(shape, dtype) for shape in shapes if need_grad)

    def work(items: Sequence[tuple[int, int]]) -> dict[int, list[np.ndarray]]:
        sums: dict[int, list[np.ndarray]] = {}
        for b, start in items:
            own = slices[b : b + 1] if len(slices) > 1 else slices
            (found,), carried = body(own[..., start : start + chunk], slice(b, b + 1))
            values[b, start : start + chunk] = found[0]
            if start == 0:  # whoever has the first chunk adds up in the result itself
                sums[b] = [whole[b : b + 1] for whole in gradients]
                for total, more in zip(sums[b], carried, strict=True):
                    total[...] = more
            elif b not in sums:
                sums[b] = carried
            else:
                for total, more in zip(sums[b], carried, strict=True):
                    total += more
            del carried
        return sums

    items = [(b, start) for b in range(batch) for start in range(0, n_slices, chunk)]
    row_bytes = values.itemsize * sum(shape[1] for shape in shapes)
    for sums in _tiles.spread(work, items, values.size * row_bytes, in_order):
        for b, parts in sums.items():
            for whole, part in zip(gradients, parts, strict=True):
                if not np.shares_memory(whole, part):
                    whole[b] += part[0]
    return values, gradients


def _unit(xp: Namespace, x: Array, projection_dtype: DType, shards: Shards) -> Array | None:
    """What to divide by before a float16 product, whose range ends at 65504; else None."""
    if _xp.dtype_name(projection_dtype) != "float16":
        return None
    largest = xp.max(xp.abs(_xp.stop_gradient(x)), axis=(-2, -1), keepdims=True)
    return power_of_two_below(xp, shards.maximum(largest))


def projection_dtype_for(xp: Namespace, z: Array, requested: Any) -> DType:
    """The dtype of z @ slices: as requested, else the compute dtype, float32 for 16-bit z.

    A 16-bit product costs 6 % of the shape gradient where the embeddings are nearly Gaussian, a
    float32 one nothing: what is left of p − q is much smaller than p.
    """
    if requested is None:
        return _xp.compute_dtype(xp, z)
    _checks.dtype("projection_dtype", requested, xp)
    return requested
