"""Rows as points: their directions, in float64 as they are asked for; and which are equal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Numbers widened at a time: what memory is taken for that stays in the cache, and is never given
# back to the system.
_TILE = 1 << 13

# Rows that a middle is chosen from.
_SAMPLE = 16


class Points:
    """Rows (N, D) in float64 that are made of `x`, float32 or float64, when they are asked for.

    Row i is x[i] / divisor[i].
    """

    def __init__(self, x: np.ndarray, divisor: np.ndarray, zero: np.ndarray) -> None:
        self.x, self.divisor, self.zero = x, divisor, zero

    @classmethod
    def in_units(cls, x: np.ndarray, unit: float) -> Points:
        """Rows of x (N, D), all divided by a power of two."""
        x = _float(x)
        return cls(x, np.broadcast_to(unit, (len(x), 1)), np.zeros(len(x), dtype=bool))

    @classmethod
    def directions(cls, x: np.ndarray) -> Points:
        """Rows of x (N, D), of length 1; zero rows stay zero."""
        x = _float(x)
        if x.dtype == np.float64:  # of float32 no square overflows or vanishes
            largest = np.abs(x).max(axis=1, keepdims=True)
            with np.errstate(invalid="ignore"):  # of infinity
                x = x / np.where(largest > 0, largest, 1.0)
        square = np.einsum("nd,nd->n", x, x, dtype=np.float64)
        zero = square == 0
        return cls(x, np.sqrt(np.where(zero, 1.0, square))[:, None], zero)

    def are_finite(self) -> bool:
        """Of directions: whether no row has NaN or infinity."""
        return bool(np.all(np.isfinite(self.divisor)))

    def __len__(self) -> int:
        return len(self.x)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.x.shape[1])

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        out = self.x[index].astype(np.float64)
        out /= self.divisor[index]
        return out

    def only(self, index: np.ndarray | slice) -> Points:
        """Those of some rows."""
        return Points(self.x[index], self.divisor[index], self.zero[index])

    def less(self, middle: np.ndarray, out: np.ndarray, negative: bool = False) -> None:
        """Write what the rows are apart from `middle`, in float32 or float64, or minus that."""
        if not middle.any():
            divisor = self.divisor.astype(np.result_type(self.x, out))
            np.divide(self.x, -divisor if negative else divisor, out=out, casting="same_kind")
            return
        for tile in _tiles(*self.x.shape):
            rows = self[tile]
            pair = (middle, rows) if negative else (rows, middle)
            np.subtract(*pair, out=out[tile], casting="same_kind")

    def middle(self) -> np.ndarray:
        """A row near the mean, or 0 where rows are nearer to that: whole numbers stay whole."""
        some = self[:: max(1, len(self) // _SAMPLE)]
        mean = some.mean(axis=0)
        squares = np.einsum("nd,nd->n", some, some)
        row = some[np.argmin(squares / 2 - some @ mean)]
        return row if row @ row < 2 * (row @ mean) else np.zeros_like(row)

    def distinct(self) -> tuple[np.ndarray, Members | None]:
        """As `distinct` of the rows."""
        column = self.x[:, 0] / self.divisor[:, 0]
        column.sort()
        if np.all(column[1:] != column[:-1]):  # which is quick to tell, and usual
            return np.arange(len(self)), None
        return distinct(self[:])


def _float(x: np.ndarray) -> np.ndarray:
    return x if x.dtype == np.float32 else x.astype(np.float64, copy=False)


def _tiles(n: int, dim: int) -> list[slice]:
    step = max(1, _TILE // dim)
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


class Members(NamedTuple):
    """Which rows each distinct row stands for: `order[first[i] : first[i] + size[i]]`."""

    order: np.ndarray
    first: np.ndarray
    size: np.ndarray

    @property
    def group(self) -> np.ndarray:
        """The distinct row that each row is equal to."""
        out = np.empty_like(self.order)
        out[self.order] = np.repeat(np.arange(self.size.size), self.size)
        return out


def distinct(rows: np.ndarray) -> tuple[np.ndarray, Members | None]:
    """Indices of the first of each set of equal rows, ascending, and the sets; None without any."""
    n = len(rows)
    if np.unique(rows[:, 0]).size == n:  # which is quick to tell, and usual
        return np.arange(n), None
    rows = np.ascontiguousarray(rows + 0.0)  # −0 becomes 0
    keys = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).reshape(-1)
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    if first.size == n:
        return np.arange(n), None
    by_index = np.argsort(first)
    place = np.empty_like(by_index)
    place[by_index] = np.arange(by_index.size)
    group = place[group]
    size = np.bincount(group)
    members = Members(np.argsort(group, kind="stable"), np.cumsum(size) - size, size)
    return first[by_index], members
