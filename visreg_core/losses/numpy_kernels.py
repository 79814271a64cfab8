"""NumPy's kernels: chunks of slices on several threads, and passes over blocks of rows in cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from visreg_core import _xp, threads
from visreg_core.gaussian import masked_normal_quantiles, normal_quantiles
from visreg_core.losses import rows as _rows
from visreg_core.losses.execution import Shards
from visreg_core.losses.rows import Rows
from visreg_core.losses.sliced import chunk_of

_BLOCK_BYTES = 1 << 19
_MAX_CACHED = 16
_SMALLEST = {np.dtype(f): np.finfo(f).smallest_normal for f in (np.float32, np.float64)}
_QUANTILES: dict[tuple[int, np.dtype], np.ndarray] = {}


def over_threads(
    xp: object,
    body: Callable[..., tuple[list[np.ndarray], list[np.ndarray]]],
    slices: np.ndarray,
    samples: tuple[np.ndarray, ...],
    *,
    chunk_size: int | None,
    multiple: int,
    need_gradient: bool,
    in_order: bool,
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """In place of `in_turn`: chunks of slices of one batch index each, spread over threads.

    One thread where shards communicate in the loop (`in_order`), as all must in the same order.
    """
    batch, n_slices = len(samples[0]), slices.shape[-1]
    rows = sum(x.shape[1] for x in samples)
    dtype = samples[0].dtype
    chunk = chunk_of(np, slices, chunk_size, rows * dtype.itemsize, multiple)
    if chunk >= n_slices and threads.is_small(batch * n_slices * rows * dtype.itemsize):
        (values,), parts = body(slices)  # all at once: what counts is how often NumPy is called
        return values, tuple(parts)
    values = np.empty((batch, n_slices), dtype)
    gradients = tuple(np.empty(x.shape, dtype) for x in samples if need_gradient)

    def work(items: Sequence[tuple[int, int]]) -> dict[int, list[np.ndarray]]:
        sums: dict[int, list[np.ndarray]] = {}
        for b, start in items:
            own = slices[b : b + 1] if len(slices) > 1 else slices
            (found,), parts = body(own[..., start : start + chunk], slice(b, b + 1))
            values[b, start : start + chunk] = found[0]
            if start == 0:  # the first chunk's sums go into the result
                sums[b] = [whole[b : b + 1] for whole in gradients]
                for total, more in zip(sums[b], parts, strict=True):
                    total[...] = more
            elif b not in sums:
                sums[b] = parts
            else:
                for total, more in zip(sums[b], parts, strict=True):
                    total += more
            del parts
        return sums

    items = [(b, start) for b in range(batch) for start in range(0, n_slices, chunk)]
    for sums in threads.spread(work, items, values.size * rows * dtype.itemsize, in_order):
        for b, parts in sums.items():
            for whole, part in zip(gradients, parts, strict=True):
                if not np.shares_memory(whole, part):
                    whole[b] += part[0]
    return values, gradients


def quantiles(xp: object, size: int, z: np.ndarray, n: float, masked: bool) -> np.ndarray:
    """In place of `quantiles_like`: one array for all calls of a size and dtype."""
    if masked:
        return masked_normal_quantiles(np, size, n, dtype=z.dtype)
    key = size, z.dtype
    found = _QUANTILES.get(key)
    if found is None:
        if len(_QUANTILES) >= _MAX_CACHED:
            _QUANTILES.clear()
        found = _QUANTILES[key] = normal_quantiles(size, dtype=z.dtype)
        found.flags.writeable = False
    return found


def moments(
    xp: object,
    views: Sequence[np.ndarray],
    row_mask: np.ndarray | None,
    shards: Shards,
    *,
    eps: float = 0.0,
    ddof: int = 0,
) -> list[_rows.Moments]:
    """In place of the function of rows: the same operations, in place, and none for a derivative.

    Small views are worked on together: what counts is how often NumPy is called.
    """
    if row_mask is not None or shards.size > 1:
        return _rows.moments(np, views, row_mask, shards, eps=eps, ddof=ddof)
    if len(views) > 1 and threads.is_small(sum(z.nbytes for z in views)):
        (all_,) = moments(np, [np.stack(views)], None, shards, eps=eps, ddof=ddof)
        return [_view(all_, z, v) for v, z in enumerate(views)]
    found = []
    for z in views:
        rows, centred = _centre(z, shards)
        found.append(_rows.Moments(rows, centred, _deviation(rows, centred, eps, ddof)))
    return found


def _view(found: _rows.Moments, z: np.ndarray, v: int) -> _rows.Moments:
    rows, centred, deviation = found
    own = rows._replace(z=z, first=rows.first[v], rest=rows.rest[v], unit=rows.unit[v])
    return _rows.Moments(own, centred[v], deviation[v])


def _centre(z: np.ndarray, shards: Shards) -> tuple[Rows, np.ndarray]:
    n = float(z.shape[-2])
    wide = z if z.dtype == np.float64 else z.astype(np.float32, copy=False)
    mean = _xp.sum_rows(np, wide)
    mean /= n
    low = np.minimum.reduce(wide, axis=-2, keepdims=True)
    high = np.maximum.reduce(wide, axis=-2, keepdims=True)
    first = np.maximum(mean, low)
    np.minimum(first, high, out=first)
    first -= mean
    first += mean
    centred = wide - first
    rest = _xp.sum_rows(np, centred)
    rest /= n
    centred -= rest
    reach = np.maximum(high - mean, mean - low)
    np.maximum(reach, _SMALLEST[reach.dtype], out=reach)
    unit = np.ldexp(reach.dtype.type(0.5), np.frexp(reach)[1])
    return Rows(np, z, first, rest, n, None, shards, unit), centred


def _deviation(rows: Rows, centred: np.ndarray, eps: float, ddof: int) -> np.ndarray:
    scaled = centred * (1 / rows.unit)
    scaled *= scaled
    deviation: np.ndarray = _xp.sum_rows(np, scaled)
    deviation /= rows.n - ddof
    np.sqrt(deviation, out=deviation)
    deviation *= rows.unit
    if eps == 0:
        return deviation
    root = math.sqrt(eps)
    larger = np.maximum(deviation, deviation.dtype.type(root))
    deviation /= larger
    deviation *= deviation
    deviation += np.square(root / larger)
    np.sqrt(deviation, out=deviation)
    deviation *= larger
    return deviation


def divide(x: np.ndarray, divisor: np.ndarray) -> np.ndarray:
    """The quotient, in x's own memory."""
    x /= divisor
    return x


def combine(
    rows: Rows,
    g: np.ndarray | None,
    a: np.ndarray | None,
    f: np.ndarray,
    r: np.ndarray,
    donated: bool,
) -> np.ndarray:
    """g a + (z − first) f + r in blocks of rows: without a temporary array of z's size."""
    size = rows.z.shape[-2:]
    out = g if donated and g is not None else np.empty(rows.z.shape, f.dtype)
    flat = [x.reshape(-1, *x.shape[-2:]) for x in (out, rows.z, f, r, rows.first)]
    of_g = None if g is None or a is None else (g.reshape(-1, *size), a.reshape(-1, 1, size[1]))
    block = max(1, _BLOCK_BYTES // (out.itemsize * size[1]))

    def work(items: Sequence[tuple[int, int]]) -> None:
        for b, start in items:
            n = slice(start, start + block)
            o, z_b, f_b, r_b, first = (x[b] for x in flat)
            part = z_b[n] - first if z_b.dtype == out.dtype else z_b[n].astype(out.dtype) - first
            masked = None if rows.keep is None else ~rows.keep[n, 0]
            if masked is not None:
                part[masked] = 0  # which may hold NaN
            part *= f_b
            part += r_b
            if of_g is not None:
                np.multiply(of_g[0][b, n], of_g[1][b], out=o[n])
                o[n] += part
            else:
                o[n] = part
            if masked is not None:
                o[n][masked] = 0

    starts = range(0, size[0], block)
    threads.spread(work, [(b, s) for b in range(len(flat[0])) for s in starts], out.nbytes)
    return out
