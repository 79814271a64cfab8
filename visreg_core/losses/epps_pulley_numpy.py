"""NumPy's kernels of the Epps-Pulley sums: a few powers, whose products give all the others.

With s = 2 B + 1 the powers U_b = e^{ibθ}, b = 1 … B, and V_a = e^{iasθ}, a = 1 … A, make every
multiple of the angle θ up to A s + B: as U_b, V_a, V_a U_b and V_a conj(U_b), so that about √(2m)
powers suffice for m multiples. The sums over samples are sums of products of real and imaginary
parts, one matrix product; so are the factors of V_a in a trigonometric polynomial.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from visreg_core._xp import tiles


def factors(m: int) -> tuple[int, int]:
    """A and B >= 1, of about the least sum, with A (2 B + 1) + B >= m."""
    b = max(1, round(math.sqrt(m / 2)))
    return max(0, -(-(m - b) // (2 * b + 1))), b


def scratch(n_knots: int) -> int:
    """Arrays of the samples' size that a row works with: parts of the powers and of V's factors."""
    a, b = factors(n_knots - 1)
    return 2 * (a + b) + 2 * a + 4


def multiples(
    xp: object, angle: np.ndarray, m: int, *, sharded: bool
) -> PowerMultiples | TiledMultiples:
    """The function of this name of `visreg_core.losses.epps_pulley`."""
    return TiledMultiples(angle, m) if sharded else PowerMultiples(angle, m)


class PowerMultiples:
    """Cosines and sines of j θ, j = 1 … m, for the angles θ (R, N)."""

    def __init__(self, angle: np.ndarray, m: int) -> None:
        rows, n = angle.shape
        self.m = m
        self.a, self.b = factors(m)
        # Parts of U_1 … U_B, V_1 … V_A. Each is contiguous: rows of a power of two apart would
        # share a few lines of the cache.
        powers = np.empty((self.b + self.a, 2, rows, n), angle.dtype)
        u, v, spare = powers[: self.b], powers[self.b :], np.empty_like(angle)
        np.cos(angle, out=u[0, 0])
        np.sin(angle, out=u[0, 1])
        _raise(u, spare)
        if self.a:
            square = np.empty_like(u[0])
            _square(u[-1], spare, out=square)
            _multiply(square, u[0], spare, out=v[0])
            _raise(v, spare)
        self.parts = powers.reshape(-1, rows, n).transpose(1, 0, 2)  # (R, 2 (B + A), N)
        self.u, self.v = self.parts[:, : 2 * self.b], self.parts[:, 2 * self.b :]

    def sums(self, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Σ_n cos jθ_n and Σ_n sin jθ_n over the kept samples, each (R, m)."""
        u, rows = self.u, len(self.u)
        kept = np.ones(u.shape[-1], u.dtype) if keep is None else keep[0].astype(u.dtype)
        own = (self.parts @ kept).reshape(rows, -1, 2)
        u = u if keep is None else u * kept
        products = (self.v @ u.transpose(0, 2, 1)).reshape(rows, self.a, 2, self.b, 2)
        (cos_cos, cos_sin), (sin_cos, sin_sin) = products.transpose(2, 4, 0, 1, 3)  # of V, of U
        cos = self._joined(cos_cos + sin_sin, own[..., 0], cos_cos - sin_sin)
        return cos, self._joined(sin_cos - cos_sin, own[..., 1], sin_cos + cos_sin)

    def polynomial(self, of_cos: np.ndarray, of_sin: np.ndarray) -> np.ndarray:
        """Σ_j of_cos_j cos jθ_n + of_sin_j sin jθ_n for coefficients (R, m): (R, N)."""
        rows = len(of_cos)
        (below_c, own_c, above_c), (below_s, own_s, above_s) = map(self._apart, (of_cos, of_sin))
        factors_of_v = [  # of its cosine, of its sine: from U's cosine, from U's sine
            [above_c + below_c, above_s - below_s],
            [above_s + below_s, below_c - above_c],
        ]
        matrix = np.array(factors_of_v).transpose(2, 3, 0, 4, 1)  # (R, A, 2, B, 2)
        of_v = matrix.reshape(rows, 2 * self.a, 2 * self.b) @ self.u
        own = np.stack([own_c, own_s], axis=-1).reshape(rows, 1, -1) @ self.parts
        return own[:, 0] + np.einsum("rpn,rpn->rn", self.v, of_v)

    def _joined(self, below: np.ndarray, own: np.ndarray, above: np.ndarray) -> np.ndarray:
        """In order of j, (R, m): of V_a conj(U_b), (R, A, B), of the powers, and of V_a U_b."""
        around = np.concatenate([below[..., ::-1], own[:, self.b :, None], above], axis=-1)
        around = around.reshape(len(own), -1)
        return np.concatenate([own[:, : self.b], around], axis=-1)[:, : self.m]

    def _apart(self, ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The three parts of what `_joined` joins."""
        b, rows = self.b, len(ordered)
        padded = np.zeros((rows, b + self.a * (2 * b + 1)), self.u.dtype)
        padded[:, : self.m] = ordered
        around = padded[:, b:].reshape(rows, self.a, 2 * b + 1)
        own = np.concatenate([padded[:, :b], around[..., b]], axis=-1)
        return around[..., b - 1 :: -1], own, around[..., b + 1 :]


class TiledMultiples:
    """`PowerMultiples`, computed anew for sums and polynomial, a tile of rows at a time.

    For samples on several shards, where the sums of all rows are reduced between the two.
    """

    def __init__(self, angle: np.ndarray, m: int) -> None:
        self.angle, self.m = angle, m

    def sums(self, keep: np.ndarray | None) -> tuple[np.ndarray, ...]:
        """As `PowerMultiples.sums`."""
        return self._tiled(lambda angle: PowerMultiples(angle, self.m).sums(keep))

    def polynomial(self, of_cos: np.ndarray, of_sin: np.ndarray) -> np.ndarray:
        """As `PowerMultiples.polynomial`."""
        return self._tiled(
            lambda angle, *of: (PowerMultiples(angle, self.m).polynomial(*of),), of_cos, of_sin
        )[0]

    def _tiled(
        self, body: Callable[..., tuple[np.ndarray, ...]], *arrays: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        return tiles.in_tiles(np, body, self.angle, *arrays, scratch=scratch(self.m + 1))


def _raise(powers: np.ndarray, spare: np.ndarray) -> None:
    """Fill in the powers 2, 3, … of the first of some complex numbers, whose parts are axis 1."""
    for j in range(1, len(powers)):
        if j % 2:
            _square(powers[j // 2], spare, out=powers[j])
        else:
            _multiply(powers[j - 1], powers[0], spare, out=powers[j])


def _multiply(x: np.ndarray, y: np.ndarray, spare: np.ndarray, out: np.ndarray) -> None:
    """Product of complex numbers whose parts are the first axis."""
    np.multiply(x[0], y[0], out=out[0])
    np.multiply(x[1], y[1], out=spare)
    out[0] -= spare
    np.multiply(x[0], y[1], out=out[1])
    np.multiply(x[1], y[0], out=spare)
    out[1] += spare


def _square(x: np.ndarray, spare: np.ndarray, out: np.ndarray) -> None:
    """x² with one operation fewer."""
    np.subtract(x[0], x[1], out=out[0])
    np.add(x[0], x[1], out=spare)
    out[0] *= spare
    np.multiply(x[0], x[1], out=out[1])
    out[1] += out[1]
