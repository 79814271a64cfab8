"""Drawing rows without replacement from the counter-based stream."""

from __future__ import annotations

import numpy as np

from visreg_core._xp.threefry import threefry2x32
from visreg_core.slices import DOMAIN_ROWS

# Rows whose words are drawn at once; the `count` smallest so far remain.
_STEP = 1 << 20


def draw(n: int, count: int, seed: int) -> np.ndarray:
    """`count` of the row numbers 0 … n − 1, increasing: those with the smallest 64-bit words.

    Row i has the words of key (seed, 0) and counter (i mod 2³², domain · 2²⁸ + ⌊i / 2³²⌋).
    """
    if not 0 <= seed < 1 << 32:
        raise ValueError(f"expected seed in 0 ... 2**32 - 1; found {seed}")
    kept_words = np.empty(0, np.uint64)
    kept_rows = np.empty(0, np.int64)
    for start in range(0, n, _STEP):
        rows = np.arange(start, min(start + _STEP, n))
        words = np.concatenate([kept_words, row_words(rows, seed)])
        rows = np.concatenate([kept_rows, rows])
        smallest = np.argsort(words, kind="stable")[:count]
        kept_words, kept_rows = words[smallest], rows[smallest]
    return np.sort(kept_rows)


def row_words(rows: np.ndarray, seed: int) -> np.ndarray:
    """64-bit words of row numbers: the smallest are drawn."""
    key = np.array([seed], np.uint32).view(np.int32)
    low = (rows & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
    high = ((DOMAIN_ROWS << 28) + (rows >> 32)).astype(np.uint32).view(np.int32)
    word0, word1 = threefry2x32(key, np.zeros(1, np.int32), low, high)
    return (word0.view(np.uint32).astype(np.uint64) << np.uint64(32)) | word1.view(np.uint32)
