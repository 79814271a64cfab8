"""The few smallest of many numbers, on NumPy: how neighbours are found."""

from __future__ import annotations

import numpy as np

_GROUP = 32  # numbers in a group, of which only the minimum counts


def smallest_of_rows(x: np.ndarray, k: int) -> np.ndarray:
    """Indices (R, k) of the k smallest of each row of x (R, N), least first, ties by index.

    NaN counts as infinite. Sorts no more than the numbers up to a bound of the k-th smallest.
    """
    rows, n = x.shape
    x = np.where(np.isnan(x), np.inf, x) if np.isnan(np.min(x)) else x
    if n // (4 * k) < 2:
        return np.argsort(x, axis=-1, kind="stable")[:, :k]
    chosen = np.flatnonzero(x <= bound_of_smallest(x, k)[:, None])
    row, column = np.divmod(chosen, n)
    first = np.searchsorted(row, np.arange(rows))
    place = np.arange(len(row)) - first[row]
    most = 1 + int(np.max(place))
    values, index = np.full((rows, most), np.inf, x.dtype), np.zeros((rows, most), column.dtype)
    values[row, place], index[row, place] = x.reshape(-1)[chosen], column
    order = np.argsort(values, axis=-1, kind="stable")[:, :k]
    return np.take_along_axis(index, order, axis=-1)


def bound_of_smallest(x: np.ndarray, k: int) -> np.ndarray:
    """An upper bound (R,) of the k-th smallest of each row of x (R, N), and a close one.

    It is the k-th smallest of the minima of disjoint groups: at least k numbers do not exceed it,
    and few more do not as long as there are many more groups than k.
    """
    n = x.shape[1]
    width = min(_GROUP, n // (4 * k))
    if width > 1:
        groups = n // width
        least = np.minimum(x[:, :groups], x[:, groups : 2 * groups])
        for start in range(2 * groups, width * groups, groups):  # twice as fast as one `np.min`
            np.minimum(least, x[:, start : start + groups], out=least)
        x = least
    return np.partition(x, k - 1, axis=-1)[:, k - 1]
