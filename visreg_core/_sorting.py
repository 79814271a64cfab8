"""Stable order of the rows of a matrix: the step between projections and their quantiles."""

from __future__ import annotations

import numpy as np

from visreg_core import _xp
from visreg_core._typing import Array, Namespace

# On NumPy a row is ordered by sorting integers that hold a coarse key above the sample's index:
# sorting 32-bit words is several times faster than any argsort. Indices up to this many bits leave
# enough of the word for keys that seldom collide.
_PACKED_INDEX_BITS = 15
_KEY_BITS = 22  # float32 arithmetic makes no finer linear key
_REPAIRS = 12


def sorted_values(xp: Namespace, p: Array) -> Array:
    """Each row of p (R, N) sorted.

    Stable where automatic differentiation may follow, so that ties take targets in index order.
    """
    if _xp.name(xp) == "jax":
        return xp.take_along_axis(p, _xp.stable_order(xp, p), axis=-1)
    return xp.sort(p, axis=-1, stable=_xp.name(xp) != "numpy")


def sorted_rows(xp: Namespace, p: Array) -> tuple[Array, Array]:
    """Each row of p (R, N) sorted, and the stable order that sorts it."""
    if _xp.name(xp) == "numpy":
        flat, ordered = _flat_order(p)
        flat -= _row_starts(p, flat.dtype)
        return ordered, flat
    order = _xp.stable_order(xp, p)
    return xp.take_along_axis(p, order, axis=-1), order


def targets_by_rank(xp: Namespace, p: Array, targets: Array) -> Array:
    """t[r, n] = targets[r, rank of p[r, n] in its row]; ties take ranks in index order.

    p : (R, N); targets : (N,) or (R, N), in the order of ranks.
    """
    targets = xp.broadcast_to(targets, p.shape)
    if _xp.name(xp) == "numpy":
        out = np.empty(p.size, p.dtype)
        out[_flat_order(p)[0].reshape(-1)] = targets.reshape(-1)
        return out.reshape(p.shape)
    return _xp.put_last(xp, _xp.stable_order(xp, p), targets)


def _row_starts(p: np.ndarray, dtype: type | np.dtype) -> np.ndarray:
    """Where each row starts in the flattened matrix, (R, 1)."""
    return (np.arange(p.shape[0], dtype=dtype) * p.shape[1])[:, None]


def _flat_order(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices into the flattened p (R, N) that sort each row, ties in index order; sorted rows.

    One sort of 32-bit words and the repair of what their keys did not resolve. The key is the
    value, scaled linearly to as many bits as the index leaves: elements of one key come out in
    index order, and exchanging neighbours that are out of order (stable, as any bubble sort is)
    finishes the job. Rows that do not finish soon, or are not finite, sort wider words.
    """
    p = np.ascontiguousarray(p)
    n = p.shape[1]
    index_bits = (n - 1).bit_length()
    low, high = p.min(axis=-1, keepdims=True), p.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(high - low).all()
    if index_bits > _PACKED_INDEX_BITS or p.size > 1 << 31 or not finite:
        order = _wide_order(p) + _row_starts(p, np.intp)
        return order, p.reshape(-1).take(order)
    key_bits = min(31 - index_bits, _KEY_BITS)
    width = np.maximum(high - low, np.finfo(p.dtype).tiny * 2.0**_KEY_BITS, dtype=p.dtype)
    scaled = p - low
    scaled *= (2**key_bits - 1) / width
    words = scaled.astype(np.int32)
    words <<= index_bits
    words |= np.arange(n, dtype=np.int32)
    words.sort(axis=-1)
    words &= (1 << index_bits) - 1
    words += _row_starts(p, np.int32)
    order = words.astype(np.intp)
    ordered = p.reshape(-1).take(order)
    wrong = _out_of_order(ordered)
    for _ in range(_REPAIRS):
        if not wrong.size:
            return order, ordered
        _exchange(order.reshape(-1), ordered.reshape(-1), wrong)
        wrong = _out_of_order(ordered)
    unfinished = np.unique(wrong // n)
    order[unfinished] = _wide_order(p[unfinished]) + unfinished[:, None] * n
    ordered[unfinished] = p.reshape(-1).take(order[unfinished])
    return order, ordered


def _out_of_order(ordered: np.ndarray) -> np.ndarray:
    """Flat indices i with ordered[i] > ordered[i + 1] inside a row."""
    wrong = np.zeros(ordered.shape, dtype=bool)
    np.less(ordered[:, 1:], ordered[:, :-1], out=wrong[:, :-1])
    return np.flatnonzero(wrong)


def _exchange(order: np.ndarray, ordered: np.ndarray, wrong: np.ndarray) -> None:
    """Swap i and i + 1 where they are out of order: even i first, then those odd i still wrong."""
    for parity in (0, 1):
        i = wrong[wrong % 2 == parity]
        i = i[ordered[i] > ordered[i + 1]]
        for a in (order, ordered):
            a[i], a[i + 1] = a[i + 1], a[i]


def _wide_order(p: np.ndarray) -> np.ndarray:
    """Indices that sort any rows: float32 by 64-bit words of the value's bits and the index."""
    n = p.shape[-1]
    if p.dtype != np.float32 or n >= 1 << 31:
        return np.argsort(p, axis=-1, kind="stable")
    bits = (p + np.float32(0)).view(np.int32)  # -0 + 0 is +0: the two zeros tie
    # Flipping the magnitude bits of negative floats makes integers order as the floats do.
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32
    keys |= np.arange(n)
    keys.sort(axis=-1)
    keys &= 0xFFFFFFFF
    return keys
