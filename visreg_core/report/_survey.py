"""Statistics of one pass over all rows, besides moments: zeros, repeats, norms, cosines."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

# Repeats are counted exactly up to this many rows, whose fingerprints take 128 MiB.
_KEPT_ROWS = 1 << 24
_SHOWN = 5
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Repeats(NamedTuple):
    """Rows that equal another one: how many more than one of each, and the most frequent one."""

    extra: int
    most: int
    rows: tuple[int, ...]
    counted: int


class Survey:
    """Visitor of `moments`, called with each block of finite rows (B, D) in float64, in order."""

    def __init__(self, d: int) -> None:
        self.rows = 0
        self.zero_rows: list[int] = []
        self.n_zero = 0
        self._norms: list[np.ndarray] = []
        self._direction = np.zeros(d)
        self._prints: list[np.ndarray] = []
        odd = np.random.default_rng(0x52455045).integers(1, 1 << 63, d, dtype=np.uint64)
        self._multipliers = (odd << np.uint64(1)) | np.uint64(1)

    def __call__(self, z: np.ndarray) -> None:
        """Count one block, without changing it."""
        norms = _norms(z)
        zero = np.flatnonzero(norms == 0)
        self.n_zero += len(zero)
        self.zero_rows += (self.rows + zero[: _SHOWN - len(self.zero_rows)]).tolist()
        self._direction += np.where(norms > 0, 1 / np.where(norms > 0, norms, 1), 0) @ z
        self._norms.append(norms)
        if self.rows < _KEPT_ROWS:
            self._prints.append(self._fingerprints(z[: _KEPT_ROWS - self.rows]))
        self.rows += len(z)

    def _fingerprints(self, z: np.ndarray) -> np.ndarray:
        """64 bits of each row, equal for equal rows; ±0 are one number."""
        bits = (z + 0.0).view(np.uint64)
        bits ^= bits >> np.uint64(32)  # narrow floats have their bits on top
        bits *= _MIX
        bits ^= bits >> np.uint64(29)
        return bits @ self._multipliers

    @property
    def norms(self) -> np.ndarray:
        """Norm of each row."""
        return np.concatenate(self._norms)

    def mean_cosine(self) -> float:
        """Mean cosine of two different rows, of those that are not zero: (‖Σu‖² − M)/(M(M − 1))."""
        m = self.rows - self.n_zero
        if m < 2:
            return math.nan
        return float((self._direction @ self._direction - m) / (m * (m - 1)))

    def norm_variation(self) -> float:
        """Standard deviation of the norms over their mean."""
        norms = self.norms
        largest = float(norms.max())
        if largest == 0:
            return math.nan
        scaled = norms / largest
        return float(scaled.std() / scaled.mean())

    def repeats(self) -> Repeats:
        """Rows that equal another one, among the first 2²⁴ rows."""
        prints = np.concatenate(self._prints)
        order = np.argsort(prints, kind="stable")
        new = np.flatnonzero(np.diff(prints[order], prepend=~prints[order[:1]]) != 0)
        sizes = np.diff(new, append=len(prints))
        top = int(np.argmax(sizes))
        rows = order[new[top] : new[top] + min(int(sizes[top]), _SHOWN)]
        most = int(sizes[top])
        shown = tuple(rows.tolist()) if most > 1 else ()
        return Repeats(len(prints) - len(new), most, shown, len(prints))


def _norms(z: np.ndarray) -> np.ndarray:
    """Euclidean norms, also of rows whose squares underflow (larger ones are refused before)."""
    norms = np.sqrt(np.einsum("nd,nd->n", z, z))
    tiny = np.flatnonzero(norms < 1e-140)
    if len(tiny):
        largest = np.abs(z[tiny]).max(axis=1)
        unit = np.where(largest > 0, largest, 1)
        norms[tiny] = largest * np.linalg.norm(z[tiny] / unit[:, None], axis=1)
    return norms
