"""NumPy's twin of the Epps-Pulley sums: sums over samples and over knots are matrix products.

With j = B a − b, e^{ijθ} = V_a · conj(U_b) for V_a = e^{iBaθ} and U_b = e^{ibθ}: about 2√m powers
make all m multiples of the angle θ. As real vectors of interleaved real and imaginary parts,

    cos jθ = V_a · U_b   and   sin jθ = V_a · (i U_b)

are inner products of pairs. So the moments are the real product of the rows of (U, iU) with those
of V over samples, and a trigonometric polynomial is V's pairwise product with its coefficients
times (U, iU).
"""

from __future__ import annotations

import math

import numpy as np


def factors(m: int) -> tuple[int, int]:
    """A and B, about √m, for which A B >= m."""
    b = math.isqrt(m - 1) + 1
    return -(-m // b), b


def scratch(n_knots: int) -> int:
    """Arrays of the samples' size that a row works with: (U, iU), V and V's product partner."""
    a, b = factors(n_knots - 1)
    return 4 * (a + b)


class Multiples:
    """Cosines and sines of j θ, j = 1 … m, for the angles θ (R, N)."""

    def __init__(self, angle: np.ndarray, m: int) -> None:
        rows, n = angle.shape
        self.m = m
        self.a, self.b = factors(m)
        dtype = np.result_type(angle.dtype, np.complex64)
        u = np.empty((rows, 2 * self.b, n), dtype)
        v = np.empty((rows, self.a, n), dtype)
        first = np.empty((rows, n), dtype)
        np.cos(angle, out=first.real)
        np.sin(angle, out=first.imag)
        u[:, 0] = 1
        for b in range(1, self.b):
            np.multiply(u[:, b - 1], first, out=u[:, b])
        np.multiply(u[:, self.b - 1], first, out=v[:, 0])
        for a in range(1, self.a):
            np.multiply(v[:, a - 1], v[:, 0], out=v[:, a])
        np.multiply(u[:, : self.b], 1j, out=u[:, self.b :])
        self.u, self.v = (x.view(x.real.dtype) for x in (u, v))  # (R, 2B, 2N), (R, A, 2N)

    def sums(self, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Σ_n cos jθ_n and Σ_n sin jθ_n over the kept samples, each (R, m)."""
        v = self.v if keep is None else self.v * np.repeat(keep, 2)
        products = np.matmul(v, self.u.transpose(0, 2, 1)).reshape(-1, self.a, 2, self.b)
        ordered = products[..., ::-1]  # b falls as j rises
        cos, sin = (ordered[:, :, part].reshape(-1, self.a * self.b) for part in (0, 1))
        return cos[:, : self.m], sin[:, : self.m]

    def polynomial(self, of_cos: np.ndarray, of_sin: np.ndarray) -> np.ndarray:
        """Σ_j of_cos_j cos jθ_n + of_sin_j sin jθ_n for coefficients (R, m): (R, N)."""
        padded = np.zeros((len(of_cos), 2, self.a * self.b), self.u.dtype)
        padded[:, 0, : self.m], padded[:, 1, : self.m] = of_cos, of_sin
        ordered = padded.reshape(-1, 2, self.a, self.b)[..., ::-1].transpose(0, 2, 1, 3)
        coefficients = ordered.reshape(-1, self.a, 2 * self.b)
        pairs = np.einsum("ran,ran->rn", self.v, coefficients @ self.u)
        return pairs[:, 0::2] + pairs[:, 1::2]
