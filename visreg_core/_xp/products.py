"""Products that screen for neighbours: how much they err, and the memory that they are made in."""

from __future__ import annotations

import threading

import numpy as np

# Numbers in memory that is kept from block to block: to get it from the system again and again
# takes longer than what is done with it.
_KEPT = 1 << 18
_memory = threading.local()


def product_with(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a bᵀ, in memory that the thread's next one may overwrite."""
    return np.matmul(a, b.T, out=kept("product", (len(a), len(b)), a.dtype))


def kept(name: str, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """An array that is not initialised; if it is small, what the thread's last of `name` was."""
    size = shape[0] * shape[1]
    if size > _KEPT:
        return np.empty(shape, dtype)
    if not hasattr(_memory, name):
        setattr(_memory, name, np.empty(_KEPT))
    memory: np.ndarray = getattr(_memory, name)
    return memory.view(dtype)[:size].reshape(shape)


class Error:
    """Bounds of the rounding error of t = ‖v‖²/2 − ⟨u, v⟩, in terms of ‖u‖² and t.

    With unit roundoff ε a product of D + 1 terms errs by at most c (‖u‖‖v‖ + ‖v‖²/2), where
    c = (D + 16) ε covers the rounding of what is multiplied, too. No ‖v‖ is more than `longest`,
    and at distance r from u it is at most ‖u‖ + r, with r² = 2t + ‖u‖² but for the same error. A
    constant that is added to t counts in r². `tiny` covers what underflows.
    """

    def __init__(self, squares: np.ndarray, longest: float, dim: int, dtype: np.dtype) -> None:
        info = np.finfo(dtype)
        self.dtype = dtype
        self.c = min((dim + 16) * float(info.eps) / 2, 0.04)
        self.squares, self.own = squares, np.sqrt(squares)
        self.longest = longest
        self.tiny = (dim + 16) * float(info.tiny)

    def of(self, t: np.ndarray) -> np.ndarray:
        """Of products up to t."""
        slack = 6 * self.c
        squares = (t + (0.5 + slack) * self.squares) / (0.5 - slack)
        length = np.minimum(self.own + np.sqrt(np.maximum(squares, 0)), self.longest)
        return self.c * (self.own + length / 2) * length + self.tiny

    def limit(self, t: np.ndarray) -> np.ndarray:
        """Up to which products are candidates, when so many as are wanted are up to t."""
        t = t.astype(np.float64)
        limit = (t + 2 * self.of(t)).astype(self.dtype)
        return np.nextafter(limit, self.dtype.type(np.inf))
