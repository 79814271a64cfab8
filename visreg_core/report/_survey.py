"""Statistics of one pass over all rows, besides moments: zeros, repeats, norms, cosines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from visreg_core import threads

# Fingerprints of rows are kept, and repeats counted exactly, up to this row (128 MiB).
_KEPT_ROWS = 1 << 24
_SHOWN = 5
# Numbers that are worked on at once, for the cache.
_AT_ONCE = 1 << 15
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Repeats(NamedTuple):
    """Rows that equal another one: how many more than one of each, and the most frequent one."""

    extra: int
    most: int
    rows: tuple[int, ...]
    counted: int


class Survey:
    """A mergeable state: shown blocks of finite rows (B, D) in float64 with their numbers."""

    def __init__(self, d: int) -> None:
        self.rows = 0
        self.n_zero = 0
        self._zero = np.empty(0, np.int64)
        # Mean and standard deviation of the norms; the largest ones, and whose they are.
        self._norms = (0.0, 0.0)
        self._largest = np.empty((2, 0))
        self._direction = np.zeros(d)
        self._prints: list[np.ndarray] = []
        self._printed: list[np.ndarray] = []
        odd = np.random.default_rng(0x52455045).integers(1, 1 << 63, d, dtype=np.uint64)
        self._multipliers = (odd << np.uint64(1)) | np.uint64(1)

    def update(self, z: np.ndarray, numbers: np.ndarray) -> None:
        """Count one block; leaves it as it is."""
        norms = _norms(z)
        zero = numbers[norms == 0]
        direction = np.where(norms > 0, 1 / np.where(norms > 0, norms, 1), 0) @ z
        unit = float(norms.max()) or 1.0
        spread = float((norms / unit).mean() * unit), float((norms / unit).std() * unit)
        fifth = max(len(norms) - _SHOWN, 0)
        top = np.flatnonzero(norms >= np.partition(norms, fifth)[fifth])
        top = top[np.argsort(-norms[top], kind="stable")[:_SHOWN]]
        self._add(len(z), len(zero), zero, spread, np.stack([norms[top], numbers[top]]), direction)
        early = numbers < _KEPT_ROWS
        if early.any():
            some = z if early.all() else z[early]
            self._prints.append(self._fingerprints(some))
            self._printed.append(numbers[early])

    def merge(self, other: Survey) -> None:
        """Count the rows of another survey, which stays as it is."""
        self._add(
            other.rows, other.n_zero, other._zero, other._norms, other._largest, other._direction
        )
        self._prints += other._prints
        self._printed += other._printed

    def _add(
        self,
        rows: int,
        n_zero: int,
        zero: np.ndarray,
        norms: tuple[float, float],
        largest: np.ndarray,
        direction: np.ndarray,
    ) -> None:
        self._norms = _pooled(self.rows, self._norms, rows, norms)
        self.rows += rows
        self.n_zero += n_zero
        self._zero = np.sort(np.concatenate([self._zero, zero]))[:_SHOWN]
        both = np.concatenate([self._largest, largest], axis=1)
        self._largest = both[:, np.lexsort((both[1], -both[0]))[:_SHOWN]]
        self._direction = self._direction + direction

    def _fingerprints(self, z: np.ndarray) -> np.ndarray:
        """64 bits of each row, equal for equal rows; ±0 are one number."""
        step = max(1, _AT_ONCE // z.shape[1])

        def of_rows(starts: Sequence[int]) -> np.ndarray:
            prints = []
            for start in starts:
                bits = (z[start : start + step] + 0.0).view(np.uint64)
                bits ^= bits >> np.uint64(32)  # narrow floats have their bits on top
                bits *= _MIX
                bits ^= bits >> np.uint64(29)
                prints.append(bits @ self._multipliers)
            return np.concatenate(prints)

        return np.concatenate(threads.spread(of_rows, range(0, len(z), step), z.nbytes))

    @property
    def zero_rows(self) -> list[int]:
        """The first rows of zeros."""
        return self._zero.tolist()

    @property
    def largest(self) -> np.ndarray:
        """Rows of the largest norms, the largest first."""
        return self._largest[1].astype(np.int64)

    def mean_cosine(self) -> float:
        """Mean cosine of two different rows, of those that are not zero: (‖Σu‖² − M)/(M(M − 1))."""
        m = self.rows - self.n_zero
        if m < 2:
            return math.nan
        return float((self._direction @ self._direction - m) / (m * (m - 1)))

    def norm_variation(self) -> float:
        """Standard deviation of the norms over their mean."""
        mean, deviation = self._norms
        return deviation / mean if mean > 0 else math.nan

    def repeats(self) -> Repeats:
        """Rows that equal another one, among the first 2²⁴ rows."""
        prints, numbers = np.concatenate(self._prints), np.concatenate(self._printed)
        order = np.lexsort((numbers, prints))
        new = np.flatnonzero(np.diff(prints[order], prepend=~prints[order[:1]]) != 0)
        sizes = np.diff(new, append=len(prints))
        top = int(np.argmax(sizes))
        rows = numbers[order[new[top] : new[top] + min(int(sizes[top]), _SHOWN)]]
        most = int(sizes[top])
        shown = tuple(rows.tolist()) if most > 1 else ()
        return Repeats(len(prints) - len(new), most, shown, len(prints))


def _pooled(
    n: int, of_n: tuple[float, float], m: int, of_m: tuple[float, float]
) -> tuple[float, float]:
    """Mean and standard deviation of two samples together, without squares that overflow."""
    if n == 0 or m == 0:
        return of_m if n == 0 else of_n
    unit = max(*of_n, *of_m)
    if unit == 0:
        return 0.0, 0.0
    (a, sa), (b, sb) = ((mean / unit, sd / unit) for mean, sd in (of_n, of_m))
    share = m / (n + m)
    variance = (1 - share) * sa * sa + share * sb * sb + share * (1 - share) * (b - a) ** 2
    return unit * (a + share * (b - a)), unit * math.sqrt(variance)


def _norms(z: np.ndarray) -> np.ndarray:
    """Euclidean norms, also of rows whose squares underflow (larger ones are refused before)."""
    norms = np.sqrt(np.einsum("nd,nd->n", z, z))
    tiny = np.flatnonzero(norms < 1e-140)
    if len(tiny):
        largest = np.abs(z[tiny]).max(axis=1)
        unit = np.where(largest > 0, largest, 1)
        norms[tiny] = largest * np.linalg.norm(z[tiny] / unit[:, None], axis=1)
    return norms
