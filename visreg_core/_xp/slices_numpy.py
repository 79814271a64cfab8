"""The stream of normals on NumPy, in place: the same words and the same floats.

Threefry is some 130 elementwise operations, so that its cost is memory traffic. Here a tile
of counters stays in the cache until its normals are written, and threads share the tiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from visreg_core import threads
from visreg_core._xp.threefry import threefry2x32_in_place
from visreg_core.typing import DType

_TILE = 1 << 16  # counters: the arrays of so many fit a core's cache


def normals(
    dim: int,
    count: int,
    *,
    first: int,
    domain: int,
    seed: int,
    step: int | np.ndarray,
    dtype: DType,
) -> np.ndarray:
    """Standard normals (dim, count): rows 2m, 2m + 1 of column j are of counter (first + j, m).

    Of several steps (S,) they are (S, dim, count).
    """
    pairs = (dim + 1) // 2
    steps, step = np.shape(step), step if isinstance(step, int) else step[:, None, None]
    out = np.empty((*steps, pairs, 2, count), dtype)
    k = np.arange(first, first + count, dtype=np.int64).astype(np.uint32)
    rows = max(1, _TILE // count)

    def work(starts: Sequence[int]) -> None:
        for start in starts:
            tile = out[..., start : start + rows, :, :]
            of_rows = np.arange(start, min(start + rows, pairs), dtype=np.uint32)
            x0 = np.empty((*steps, of_rows.size, count), np.uint32)
            x1 = np.empty_like(x0)
            x0[...] = k
            x1[...] = domain + of_rows[:, None]
            threefry2x32_in_place(seed, step, x0, x1)
            _box_muller(x0, x1, out=tile)

    threads.spread(work, range(0, pairs, rows), out.nbytes)
    return out.reshape(*steps, 2 * pairs, count)[..., :dim, :]


def _box_muller(word0: np.ndarray, word1: np.ndarray, out: np.ndarray) -> None:
    """Two normals (..., 2, count) of two words (..., count), which are overwritten."""
    radius, angle = (_uniforms(word, out.dtype) for word in (word0, word1))
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle *= 2.0 * math.pi
    for wave, normal in ((np.cos, out[..., 0, :]), (np.sin, out[..., 1, :])):
        wave(angle, out=normal)
        normal *= radius


def _uniforms(word: np.ndarray, dtype: DType) -> np.ndarray:
    """As `visreg_core.slices.uniforms`."""
    word >>= 9
    u = word.astype(dtype)
    u += 0.5
    u *= 2.0**-23
    return u
