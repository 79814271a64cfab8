"""Mean, covariance and cross-covariance of rows that come in pieces (Chan, Golub and LeVeque 1979).

Pieces are centred by themselves; merging two adds the row √(n m / (n + m)) (μ_b − μ_a) to the
centred ones, so that nothing cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from visreg_core import threads

# Centred rows are kept, and their singular values exact, up to this many numbers (64 MiB).
KEPT_VALUES = 1 << 23


class Moments(NamedTuple):
    """Mean (D,) of N rows, and a factor R (any number of rows, D) with RᵀR = Σ (z − μ)(z − μ)ᵀ."""

    n: int
    mean: np.ndarray
    factor: np.ndarray

    @property
    def sigma(self) -> np.ndarray:
        """Standard deviations (D,), biased."""
        return np.linalg.norm(self.factor, axis=0) / np.sqrt(self.n)

    def scatter(self) -> np.ndarray:
        """Sum of centred products, (D, D)."""
        return self.factor.T @ self.factor

    def singular_values(self, *, center: bool) -> np.ndarray:
        """Singular values of the (centred) embeddings, rounding set to 0, descending."""
        mean = np.sqrt(self.n) * self.mean[None, :]
        rows = self.factor if center else np.concatenate([self.factor, mean])
        s = np.linalg.svd(rows, compute_uv=False)[: min(self.n - center, len(self.mean))]
        s = np.where(s > len(self.mean) * 2.0**-52 * s[0], s, 0.0)
        return np.pad(s, (0, min(self.n, len(self.mean)) - len(s)))

    def equivalent(self, *, ddof: int) -> np.ndarray:
        """A small sample with these moments: its loss is the loss of all rows.

        The 2r rows ±cR about the mean have c²·2RᵀR as their sum of centred products; c makes the
        covariance with `ddof` degrees of freedom taken off that of all N rows.
        """
        rows = 2 * len(self.factor)
        scaled = np.sqrt((rows - ddof) / (2 * (self.n - ddof))) * self.factor
        return self.mean + np.concatenate([scaled, -scaled])


class MomentSums:
    """The state behind `Moments`.

    Where all rows are too many to keep they are folded into the scatter matrix, whose square root
    resolves singular values down to 1e-7 of the largest. (A QR factorisation of each block would
    resolve more, at ten times the time.)
    """

    def __init__(self, dim: int) -> None:
        self.n = 0
        self.mean = np.zeros(dim)
        self._rows: list[np.ndarray] = []
        self._scatter: np.ndarray | None = None

    def update(self, z: np.ndarray) -> None:
        """Add finite rows (B, D) in float64, whose memory is taken over."""
        if not len(z):
            return
        mean = z.mean(axis=0)
        # The rounded mean of equal numbers may differ from them; a constant column has σ = 0.
        equal = np.flatnonzero(z[0] == z[-1])
        mean[equal] = np.clip(mean[equal], z[:, equal].min(axis=0), z[:, equal].max(axis=0))
        z -= mean
        self._add(len(z), mean, [z])

    def merge(self, other: MomentSums) -> None:
        """Add the rows of another state, which stays as it is."""
        if not other.n:
            return
        if other._scatter is not None:
            self._fold(other._scatter)
        self._add(other.n, other.mean, other._rows)

    def _add(self, m: int, mean: np.ndarray, rows: list[np.ndarray]) -> None:
        step = mean - self.mean
        link = np.sqrt(self.n * m / (self.n + m)) * step[None, :]
        self.n += m
        self.mean = self.mean + step * (m / self.n)
        self._rows += [*rows, link]
        d = len(self.mean)
        if self._scatter is not None or self.n * d > max(KEPT_VALUES, d * d):
            self._fold(np.zeros((d, d)))

    def _fold(self, scatter: np.ndarray) -> None:
        """Add to the scatter matrix, and all rows kept with it."""
        total = scatter.copy() if self._scatter is None else self._scatter + scatter
        for rows in self._rows:
            total += _product(rows, rows)
        self._scatter, self._rows = total, []

    def result(self) -> Moments:
        """Moments of all rows so far."""
        return Moments(self.n, self.mean, self._factor())

    def _factor(self) -> np.ndarray:
        if self._scatter is not None:
            return _square_root(self._scatter)
        factor = np.concatenate([*self._rows, np.empty((0, len(self.mean)))])
        return _triangle(factor) if len(factor) > len(self.mean) else factor

    def to_arrays(self) -> dict[str, np.ndarray]:
        """At most D² + D + 1 numbers."""
        if self._scatter is not None:
            kept = {"scatter": self._scatter}
        else:
            kept = {"rows": self._factor()}
        return {"n": np.array(self.n), "mean": self.mean, **kept}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> MomentSums:
        """The state that `to_arrays` wrote down."""
        state = cls(len(arrays["mean"]))
        state.n, state.mean = int(arrays["n"]), arrays["mean"]
        if "scatter" in arrays:
            state._scatter = arrays["scatter"]
        else:
            state._rows = [arrays["rows"]]
        return state


def _product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """xᵀy, a part of the rows on each thread."""

    def work(blocks: Sequence[slice]) -> np.ndarray:
        return np.asarray(sum(x[b].T @ y[b] for b in blocks))

    step = max(1, -(-len(x) // threads.available_threads()))
    blocks = [slice(i, i + step) for i in range(0, len(x), step)]
    return np.asarray(sum(threads.spread(work, blocks, x.nbytes)))


def _triangle(rows: np.ndarray) -> np.ndarray:
    """R of a QR factorisation: the same scatter and, to rounding, the same singular values."""
    return np.asarray(np.linalg.qr(rows, mode="r"))


def _square_root(scatter: np.ndarray) -> np.ndarray:
    """R with RᵀR = `scatter`; eigenvalues within rounding of 0 are 0."""
    values, vectors = np.linalg.eigh(scatter)
    values = np.where(values > len(values) * 2.0**-52 * values[-1], values, 0.0)
    return np.sqrt(values)[:, None] * vectors.T


class CrossScatter:
    """Sum over items of centred products of two sets, row i of both the same item.

    Parameters
    ----------
    dim_a, dim_b : int
        Dimensions of the two sets; the state has (Da + 1)(Db + 1) numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.statistics import CrossScatter
    >>> rng = np.random.default_rng(0)
    >>> a, b = rng.standard_normal((90, 3)), rng.standard_normal((90, 2))
    >>> one, two = CrossScatter(3, 2), CrossScatter(3, 2)
    >>> one.update(a[:30], b[:30])
    >>> two.update(a[30:], b[30:])
    >>> one.merge(two)
    >>> bool(np.allclose(one.result(), (a - a.mean(0)).T @ (b - b.mean(0))))
    True
    """

    def __init__(self, dim_a: int, dim_b: int) -> None:
        self.n = 0
        self.means = np.zeros(dim_a), np.zeros(dim_b)
        self.total = np.zeros((dim_a, dim_b))

    def update(self, a: np.ndarray, b: np.ndarray) -> None:
        """Add the same items' rows (B, Da) and (B, Db), all of them finite."""
        if len(a) != len(b):
            raise ValueError(f"expected rows of the same items; found {len(a)} and {len(b)}")
        if len(a):
            x, y = a.astype(np.float64), b.astype(np.float64)
            mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
            self._add(len(x), (mean_x, mean_y), _product(x - mean_x, y - mean_y))

    def merge(self, other: CrossScatter) -> None:
        """Add the items of another state, which stays as it is."""
        if other.n:
            self._add(other.n, other.means, other.total)

    def _add(self, m: int, means: tuple[np.ndarray, np.ndarray], total: np.ndarray) -> None:
        steps = [new - old for new, old in zip(means, self.means, strict=True)]
        self.total = self.total + total + self.n * m / (self.n + m) * np.outer(*steps)
        self.n += m
        first, second = (
            mean + step * (m / self.n) for mean, step in zip(self.means, steps, strict=True)
        )
        self.means = first, second

    def result(self) -> np.ndarray:
        """Σ (a − μ_a)(b − μ_b)ᵀ, (Da, Db)."""
        return self.total

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The state as plain arrays."""
        first, second = self.means
        return {"n": np.array(self.n), "mean_a": first, "mean_b": second, "total": self.total}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> CrossScatter:
        """The state that `to_arrays` wrote down."""
        state = cls(*arrays["total"].shape)
        state.n, state.total = int(arrays["n"]), arrays["total"]
        state.means = arrays["mean_a"], arrays["mean_b"]
        return state
