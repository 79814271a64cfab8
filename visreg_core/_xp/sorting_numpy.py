"""Stable order of the rows of a NumPy matrix, several times faster than NumPy's argsort."""

from __future__ import annotations

import math

import numpy as np

# Short rows are sorted as words, which the processor's vectors do in registers: float32 numbers are
# sorted whole, in 64-bit words with the sample's index below. Other rows are ordered by coarse
# keys, and what these did not resolve is repaired: float64's keys in 32-bit words, above the index;
# of longer rows in 16 bits, which NumPy sorts by counting. Any of these is several times faster
# than an argsort of the floats, until 16 bits leave so much to repair that it is quicker to count
# all of a float's bits, 16 at a time.
_PACKED_SAMPLES = 1 << 9
_KEYED_SAMPLES = {4: 1 << 13, 8: 1 << 15}  # by bytes of a float
_REPAIRS = 12
# Of so few numbers NumPy's own sort is done before keys are made.
_FEW = 1 << 10


def sorted_rows(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row of p (R, N) sorted, and the stable order that sorts it."""
    p = np.ascontiguousarray(p)
    flat, ordered = _flat_order(p)
    if ordered is None:
        ordered = p.reshape(-1).take(flat)
    flat -= _row_starts(p, flat.dtype)
    return ordered, flat


def targets_by_rank(p: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """t[r, n] = targets[r, rank of p[r, n] in its row], all of them (R, N)."""
    out = np.empty(p.size, p.dtype)
    out[_flat_order(np.ascontiguousarray(p))[0].reshape(-1)] = targets.reshape(-1)
    return out.reshape(p.shape)


def _row_starts(p: np.ndarray, dtype: type | np.dtype) -> np.ndarray:
    """Where each row starts in the flattened matrix, (R, 1)."""
    return (np.arange(p.shape[0], dtype=dtype) * p.shape[1])[:, None]


def _flat_order(p: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Indices into the flattened p (R, N) that sort each row, ties in index order; sorted rows.

    The rows are None where nobody needed them for the order.

    The key of an element is its value, scaled linearly to a few bits: elements of one key come out
    in index order, and exchanging neighbours that are out of order (stable, as any bubble sort is)
    finishes the job. Rows that do not finish soon, are not finite or are long sort all their bits.
    """
    if p.size <= _FEW:
        return np.argsort(p, axis=-1, kind="stable") + _row_starts(p, np.intp), None
    n = p.shape[1]
    if p.itemsize == 4 and n <= _PACKED_SAMPLES and p.size < 1 << 32 and not math.isnan(p.min()):
        return _whole_order(p), None
    low, high = p.min(axis=-1, keepdims=True), p.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(high - low).all()
    if n > _KEYED_SAMPLES[p.itemsize] or not finite:
        return _radix_order(p), None
    order = (_packed_order if n <= _PACKED_SAMPLES else _counted_order)(p, low, high)
    order += _row_starts(p, np.intp)
    ordered = p.reshape(-1).take(order)
    wrong = _out_of_order(ordered)
    for _ in range(_REPAIRS):
        if not wrong.size:
            return order, ordered
        _exchange(order.reshape(-1), ordered.reshape(-1), wrong)
        wrong = _out_of_order(ordered)
    rows = np.unique(wrong // n)
    order[rows] = _radix_order(p[rows]) + (rows - np.arange(rows.size))[:, None] * n
    ordered[rows] = p.reshape(-1).take(order[rows])
    return order, ordered


def _whole_order(p: np.ndarray) -> np.ndarray:
    """Flat indices that sort each row of float32 numbers, none of them NaN, by one sort."""
    bits = (p + p.dtype.type(0)).view(np.int32)  # −0 + 0 is +0
    # Negative floats order as integers do once all bits but the sign are flipped.
    words = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
    words <<= 32
    words |= np.arange(p.size).reshape(p.shape)
    words.sort(axis=-1)
    words &= 0xFFFFFFFF
    return words


def _keys(p: np.ndarray, low: np.ndarray, high: np.ndarray, bits: int) -> np.ndarray:
    """p (R, N) scaled from each row's range to 0 … 2^bits − 1, not rounded."""
    width = np.maximum(high - low, np.finfo(p.dtype).tiny * 2.0**bits, dtype=p.dtype)
    scaled = p - low
    scaled *= (2**bits - 1) / width
    return scaled


def _packed_order(p: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Order of each row by keys, in one sort of words that hold the index below the key."""
    n = p.shape[1]
    index_bits = (n - 1).bit_length()
    # float32 arithmetic makes no linear key of more than 22 bits
    words = _keys(p, low, high, min(31 - index_bits, 22)).astype(np.int32)
    words <<= index_bits
    words |= np.arange(n, dtype=np.int32)
    words.sort(axis=-1)
    words &= (1 << index_bits) - 1
    return words.astype(np.intp)


def _counted_order(p: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Order of each row by 16-bit keys."""
    return np.argsort(_keys(p, low, high, 16).astype(np.uint16), axis=-1, kind="stable")


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


def _radix_order(p: np.ndarray) -> np.ndarray:
    """Flat indices that sort each row by all bits, 16 at a time from the lowest; NaN comes last."""
    unsigned, width = f"u{p.itemsize}", 8 * p.itemsize
    p = np.where(np.isnan(p), p.dtype.type(np.nan), p + p.dtype.type(0))  # −0 + 0 is +0
    bits = p.view(f"i{p.itemsize}")
    # All bits of negative floats flipped, of others the sign: unsigned integers order as they do.
    keys = (bits ^ ((bits >> (width - 1)) | np.iinfo(bits.dtype).min)).view(unsigned)
    starts = _row_starts(p, np.intp)
    lowest, *higher = (
        (keys >> np.dtype(unsigned).type(shift)).astype(np.uint16) for shift in range(0, width, 16)
    )
    order = np.argsort(lowest, axis=-1, kind="stable") + starts
    for digit in higher:
        ranked = np.argsort(digit.reshape(-1).take(order), axis=-1, kind="stable")
        order = order.reshape(-1).take(ranked + starts)
    return order
