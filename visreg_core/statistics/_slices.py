"""What is known of projections on random slices without keeping them.

The sums behind SIGReg are Fourier coefficients: its knots are the multiples of the first one, so
that only the place of t₁ p on a circle counts. Squared 2-Wasserstein distances come from a fixed
histogram that keeps, for each bin, how many values are in it and their sum.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from visreg_core import _xp, threads
from visreg_core.gaussian import epps_pulley_knots, normal_quantiles
from visreg_core.losses.epps_pulley import Multiples, knots_like, value_from_moments
from visreg_core.typing import Array

# LeJEPA's knots, the default of `epps_pulley`.
_T_MAX, _KNOTS = 3.0, 17
# Points of the circle about which e^{ijθ} is expanded, and the order: (π j / 2048)⁴ / 4! = 1.5e-8
# is the largest error of one value at the last knot, j = 16.
_POINTS, _ORDER = 2048, 3
# Larger places on the circle are brought back to its first turn: they are no 32-bit integers.
_WHOLE = 1 << 30

# Projections of one product, and those of them that are worked on at once (512 KiB, for the cache).
_PROJECTED, _AT_ONCE = 1 << 20, 1 << 16

# Bins are equally wide in asinh(u), u a projection in standard deviations from its mean: no value
# of fewer than 1e13 rows is beyond ±√N, and asinh(√1e13) < 16.
_PER_UNIT, _REACH = 160, 16
BINS = 2 * _REACH * _PER_UNIT
# Beyond so many rows sums of quantiles are integrals, off by less than 0.3 (1e-7 of their squares).
_SUMMED = 1 << 22


class CharacteristicSums:
    """Σ cos(t_j p) and Σ sin(t_j p) of each slice at the knots of `epps_pulley`, (K, 2, m).

    A non-uniform Fourier transform: each value is moved to the nearest of 2,048 points on the
    circle, and how far, to the powers 0 to 3, is summed there (Anderson and Dahleh 1996, "Rapid
    computation of the discrete Fourier transform"). In float64, to 1e-8 of the number of rows.
    """

    def __init__(self, n_slices: int) -> None:
        self.sums = np.zeros((n_slices, 2, _KNOTS - 1))

    def update(self, z: np.ndarray, directions: np.ndarray) -> None:
        """Add the projections of float64 rows (B, D) on directions (D, K)."""
        turn = epps_pulley_knots(_T_MAX, _KNOTS)[0][1] / (2 * math.pi)
        on_circle = (_POINTS * turn) * directions
        farthest = np.sqrt(
            np.einsum("nd,nd->n", z, z).max() * np.einsum("dk,dk->k", *2 * [on_circle]).max()
        )

        def count(rows: Sequence[int]) -> np.ndarray:
            grids = np.empty((len(rows), _ORDER + 1, _POINTS))
            for some, off in _projections(z, on_circle, rows):
                if farthest > _WHOLE:
                    off -= _POINTS * np.rint(off / _POINTS)
                nearest = np.rint(off)
                off -= nearest
                bins = _Bins(nearest.astype(np.int32) & (_POINTS - 1), _POINTS)
                grids[some, 0] = bins.counts()
                power = off
                for order in range(1, _ORDER + 1):
                    grids[some, order] = bins.sums(power)
                    power = power * off
            return grids.reshape(len(rows), -1) @ _expansion()

        parts = threads.spread(count, range(len(self.sums)), z.nbytes)
        self.sums += np.concatenate(parts).reshape(self.sums.shape)

    def update_elsewhere(self, p: Array) -> None:
        """Add projections (K, B) of another namespace, summed there in their own dtype."""
        first = epps_pulley_knots(_T_MAX, _KNOTS)[0][1]
        parts = Multiples(_xp.namespace(p), first * p, _KNOTS - 1).sums(None)
        self.sums += np.stack([_xp.to_numpy(part) for part in parts], axis=1)

    def merge(self, other: CharacteristicSums) -> None:
        """Add the values of another state."""
        self.sums = self.sums + other.sums

    def statistics(self, n: int) -> np.ndarray:
        """`epps_pulley` of each slice's n values, (K,)."""
        knots = knots_like(np, self.sums, _T_MAX, _KNOTS)
        real, imaginary = self.sums[:, 0] / n, self.sums[:, 1] / n
        return np.asarray(value_from_moments(np, real, imaginary, n, knots))


def _projections(
    z: np.ndarray, directions: np.ndarray, rows: Sequence[int]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Projections (S, B) on some directions after others, and which of `rows` these are."""
    product, few = (max(1, size // len(z)) for size in (_PROJECTED, _AT_ONCE))
    for start in range(0, len(rows), product):
        some = rows[start : start + product]
        projected = directions[:, some[0] : some[-1] + 1].T @ z.T
        for first in range(0, len(some), few):
            part = projected[first : first + few]
            yield slice(start + first, start + first + len(part)), part


class _Bins:
    """Bins of values (S, B), whose numbers `index` (S, B) has and which are added up by row.

    As a product with a sparse matrix: it takes less time than `np.bincount`, which also makes other
    threads wait.
    """

    def __init__(self, index: np.ndarray, bins: int) -> None:
        from scipy.sparse import csc_array

        count, values = len(index), index.size
        index += np.arange(0, count * bins, bins, dtype=np.int32)[:, None]
        places = np.arange(values + 1, dtype=np.int32)
        self._matrix = csc_array(
            (np.ones(values), index.ravel(), places), shape=(count * bins, values)
        )
        self._shape = count, bins

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum of the values in each bin, (S, bins)."""
        return np.asarray(self._matrix @ values.ravel()).reshape(self._shape)

    def counts(self) -> np.ndarray:
        """How many values there are in each bin, (S, bins)."""
        return self.sums(self._matrix.data)


@functools.cache
def _expansion() -> np.ndarray:
    """Matrix from sums on the circle to Σ cos and Σ sin: ((order + 1) · points, 2 m)."""
    j = np.arange(1, _KNOTS)
    at_points = np.exp(2j * np.pi / _POINTS * (np.arange(_POINTS)[:, None] * j % _POINTS))
    parts = [
        at_points * (2j * np.pi / _POINTS * j) ** order / math.factorial(order)
        for order in range(_ORDER + 1)
    ]
    powers = np.concatenate(parts)
    return np.concatenate([powers.real, powers.imag], axis=1)


class Bounded(NamedTuple):
    """A value of each slice, (K,), and by how much the exact one may be larger."""

    value: np.ndarray
    bound: np.ndarray


class Histograms:
    """One histogram a slice, of values u about 0 and of standard deviation 1: counts and sums.

    A bin's mean is exact; how far its values are from it is known of all bins together, because
    Σ u² is summed, too.
    """

    def __init__(self, n_slices: int) -> None:
        self.counts = np.zeros((n_slices, BINS), np.int64)
        self.sums = np.zeros((n_slices, BINS))
        self.squares = np.zeros(n_slices)

    def update(self, z: np.ndarray, directions: np.ndarray) -> None:
        """Add the projections of float64 rows (B, D) on directions (D, K)."""

        def count(rows: Sequence[int]) -> None:
            for some, u in _projections(z, directions, rows):
                # In float32, whose rounding moves the ends of bins but no value.
                place = np.arcsinh(u.astype(np.float32))
                place *= _PER_UNIT
                place += BINS // 2
                bins = _Bins(np.clip(place, 0, BINS - 1, out=place).astype(np.int32), BINS)
                which = slice(rows[some.start], rows[some.stop - 1] + 1)
                self.counts[which] += bins.counts().astype(np.int64)
                self.sums[which] += bins.sums(u)
                self.squares[which] += np.einsum("kn,kn->k", u, u)

        threads.spread(count, range(len(self.counts)), z.nbytes)

    def merge(self, other: Histograms) -> None:
        """Add the values of another state."""
        self.counts = self.counts + other.counts
        self.sums = self.sums + other.sums
        self.squares = self.squares + other.squares

    @property
    def means(self) -> np.ndarray:
        """Mean of each bin, (K, bins); 0 of empty ones."""
        return self.sums / np.maximum(self.counts, 1)

    def within(self) -> np.ndarray:
        """Mean square distance of the values of each slice from their bins' means, (K,)."""
        between = np.sum(self.sums * self.means, axis=1)
        return np.maximum(self.squares - between, 0) / self.counts.sum(axis=1)

    def to_gaussian(self, shift: np.ndarray, scale: np.ndarray) -> Bounded:
        """Mean square of sorted values shift + scale·u less the Gaussian's quantiles.

        Within a bin both increase, so that their covariance there is between 0 and, by Cauchy and
        Schwarz, that of proportional values: with variances v_p and v_q within bins the value is
        between those of Σ_b n_b (p̄_b − q̄_b)²/N + v_p + v_q − 2c for c = √(v_p v_q) and c = 0.
        """
        n = int(self.counts[0].sum())
        ends = np.cumsum(self.counts, axis=1)
        sums, squares = (np.diff(s, axis=1, prepend=0) for s in _quantile_sums(n, ends))
        of_q = sums / np.maximum(self.counts, 1)
        v_q = np.maximum(np.sum(squares - sums * of_q, axis=1), 0) / n
        v_p = scale * scale * self.within()
        off = shift[:, None] + scale[:, None] * self.means - of_q
        between = np.sum(self.counts * off * off, axis=1) / n
        value = between + (np.sqrt(v_p) - np.sqrt(v_q)) ** 2
        return Bounded(value, 2 * np.sqrt(v_p * v_q))

    def ordered(self, k: int, ranks: np.ndarray) -> np.ndarray:
        """About the values of slice k of these ranks, from 0: the means of their bins."""
        return self.means[k][np.searchsorted(np.cumsum(self.counts[k]), ranks, side="right")]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The state as plain arrays."""
        return {"counts": self.counts, "sums": self.sums, "squares": self.squares}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Histograms:
        """The state that `to_arrays` wrote down."""
        state = cls(0)
        state.counts, state.sums = arrays["counts"], arrays["sums"]
        state.squares = arrays["squares"]
        return state


def _quantile_sums(n: int, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Σ q_i and Σ q_i² over the first `ends` of the n quantiles Φ⁻¹(i / (n + 1))."""
    if n <= _SUMMED:
        q = normal_quantiles(n)
        sums, squares = (np.concatenate([[0.0], np.cumsum(x)]) for x in (q, q * q))
        return sums[ends], squares[ends]
    # The midpoint rule for ∫Φ⁻¹ = −φ(Φ⁻¹) and ∫(Φ⁻¹)² = u − Φ⁻¹ φ(Φ⁻¹), from half a rank on.
    from scipy.special import ndtri

    def integrals(rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u = (rank + 0.5) / (n + 1)
        x = ndtri(u)
        density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        return -density * (n + 1), (u - x * density) * (n + 1)

    (first, first_square), (last, last_square) = integrals(np.zeros(1)), integrals(ends)
    return last - first, last_square - first_square


def between_two(
    a: Histograms, of_a: tuple[np.ndarray, np.ndarray],
    b: Histograms, of_b: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, float]:  # fmt: skip
    """W₂² of two sets' projections for each slice, (K,), and a bound of the whole.

    `of_a` and `of_b` are (shift, scale) of the values. A bin's values are taken to be spread evenly
    about their mean, as far as the bin allows. By the triangle inequality the root of the mean over
    slices is off by no more than the two files' root mean squares within bins, taken and exact.
    """
    values, off = [], np.zeros(2)
    for k in range(len(a.counts)):
        (x, u, v_x), (y, w, v_y) = (
            _spread_evenly(h, k, shift[k], scale[k]) for h, (shift, scale) in ((a, of_a), (b, of_b))
        )
        ends = np.union1d(u, w)
        middles = (ends[1:] + ends[:-1]) / 2
        start, stop = (
            _quantile(x, u, middles, ends[i : len(ends) - 1 + i])
            - _quantile(y, w, middles, ends[i : len(ends) - 1 + i])
            for i in (0, 1)
        )
        square = (start * start + start * stop + stop * stop) / 3
        values.append(float(np.dot(np.diff(ends), square)))
        off += v_x, v_y
    exact = [h.within() * s * s for h, (_, s) in ((a, of_a), (b, of_b))]
    bound = sum(
        math.sqrt(float(v.mean()) + taken / len(values))
        for v, taken in zip(exact, off, strict=True)
    )
    return np.array(values), bound


def _spread_evenly(
    h: Histograms, k: int, shift: float, scale: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Ends (2, bins) of intervals about the occupied bins' means, shares up to each, variance.

    Intervals reach to the bin's nearer end at most, and shorten together until their values vary
    as much as those of the bins do: ties stay points.
    """
    bins = np.flatnonzero(h.counts[k])
    share = h.counts[k][bins] / h.counts[k].sum()
    mean = h.means[k][bins]
    edges = np.sinh(np.stack([bins, bins + 1]) / _PER_UNIT - _REACH)
    half = np.maximum(np.minimum(mean - edges[0], edges[1] - mean), 0)
    half[h.counts[k][bins] == 1] = 0
    variance = float(share @ half**2) / 3
    exact = float(h.within()[k])
    if variance > exact:
        half *= math.sqrt(exact / variance)
        variance = exact
    ends = shift + scale * np.stack([mean - half, mean + half])
    return ends, np.concatenate([[0.0], np.cumsum(share)]), scale * scale * variance


def _quantile(
    ends: np.ndarray, shares: np.ndarray, inside: np.ndarray, at: np.ndarray
) -> np.ndarray:
    """The quantile function at `at`, on the piece that holds `inside`."""
    piece = np.clip(np.searchsorted(shares, inside, side="right") - 1, 0, ends.shape[1] - 1)
    width = shares[piece + 1] - shares[piece]
    part = np.clip((at - shares[piece]) / width, 0, 1)
    return ends[0][piece] * (1 - part) + ends[1][piece] * part
