"""Are two samples of one distribution? Permutation tests of three distances.

Dealing the rows of both samples anew to two sides of the same sizes shows how large a distance gets
by chance. The p-value is exact where rows are independent, whatever they are distributed like.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core.metrics._inputs import matrix
from visreg_core.typing import Array

_STATISTICS = ("sliced_wasserstein", "energy", "mmd")
_BLOCK_BYTES = 1 << 23  # of distances between some rows and all


class TwoSampleTest(NamedTuple):
    """A distance between two samples, and what it is by chance.

    statistic : squared distance; p : share of the deals, this one included, with no smaller a
    distance; dealt : squared distances of the others, numpy.ndarray (n_permutations,).
    """

    statistic: float
    p: float
    dealt: np.ndarray


def two_sample_test(
    x: Array,
    y: Array,
    slices: Array | None = None,
    *,
    statistic: str = "energy",
    paired: bool = False,
    bandwidth: float | None = None,
    n_permutations: int = 199,
    seed: int = 0,
) -> TwoSampleTest:
    """Permutation test of the hypothesis that two samples come from one distribution.

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace.
    y : array (M, D)
        Embeddings in the same namespace.
    slices : array (D, K), optional
        Unit columns, from `random_slices`: for "sliced_wasserstein", and for it alone.
    statistic : {"energy", "mmd", "sliced_wasserstein"}
        "energy": 2 E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖. "mmd": the squared maximum mean discrepancy
        with kernel e^{−‖x − y‖²/2h²}. "sliced_wasserstein": mean over slices of W₂².
    paired : bool
        Whether row i of both is the same item: then each pair changes sides together or not at all,
        and its two rows need not be independent of each other.
    bandwidth : float, optional
        h of "mmd"; the median distance between rows of both samples if not given.
    n_permutations : int
        Random deals; the least p-value is 1/(n_permutations + 1).
    seed : int
        Of the deals.

    Returns
    -------
    TwoSampleTest
        ``(statistic, p, dealt)``.

    Raises
    ------
    ValueError
        For shapes that do not fit, an unknown statistic, or slices where none are needed, or none
        where they are.

    Notes
    -----
    Source: Székely & Rizzo 2004; Gretton et al. 2012, whose statistics include i = j here; p-values
    by Phipson & Smyth 2010, (b + 1)/(m + 1), at level α false in at most α of all cases. Computed
    on the host in float64. The distances of all pairs are not stored: O((N + M)² (D + m)) steps.

    Power at level 0.05 for N = M = 100, D = 16 and K = 32 slices (100 samples of each departure
    from N(0, I), 99 deals; the error of an entry is up to 0.05):

    ======================================= ====== ==== ==================
    departure                               energy mmd  sliced_wasserstein
    ======================================= ====== ==== ==================
    none                                    0.05   0.05 0.05
    every mean 0.1                          0.23   0.23 0.21
    one mean 0.5                            0.46   0.47 0.58
    1.15 times too large                    0.25   0.31 0.45
    one column 2 times too large            0.17   0.25 0.64
    every pair of columns correlated by 0.2 0.17   0.22 0.14
    Student's t (3 degrees), of variance 1  0.35   0.22 0.30
    ======================================= ====== ==== ==================

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import two_sample_test
    >>> x, y = np.random.default_rng(0).standard_normal((2, 100, 4))
    >>> two_sample_test(x, y).p > 0.05, two_sample_test(x, y + 1).p
    (True, 0.005)
    """
    checks.choice("statistic", statistic, _STATISTICS)
    checks.flag("paired", paired)
    checks.positive_int("n_permutations", n_permutations)
    checks.positive_int("seed", seed, minimum=0)
    xp = _xp.namespace(x, y, slices)
    host = [_xp.to_numpy(matrix(name, a)[1]).astype(np.float64) for name, a in (("x", x), ("y", y))]
    n, m = (len(a) for a in host)
    if host[0].shape[1] != host[1].shape[1]:
        raise ValueError(
            f"expected x and y of one dimension; found {host[0].shape[1]} and {host[1].shape[1]}"
        )
    if paired and n != m:
        raise ValueError(f"expected as many rows in x and y of pairs; found {n} and {m}")
    if (slices is None) == (statistic == "sliced_wasserstein"):
        raise ValueError(
            'expected slices for statistic="sliced_wasserstein" and for no other; '
            f"found {'none' if slices is None else 'slices'} for {statistic!r}"
        )
    pooled = np.concatenate(host)
    sides = np.stack([own_sides(n, m), *dealt_sides(n, m, n_permutations, seed, paired=paired)])
    if slices is None:
        found = _pair_distances(pooled, sides, statistic, bandwidth)
    else:
        checks.slices(slices, xp.astype(x, slices.dtype))
        distance = SidesDistance(_xp.to_numpy(slices).astype(np.float64).T @ pooled.T, n, m)
        found = np.asarray([distance(side) for side in sides])
    return TwoSampleTest(float(found[0]), permutation_p_value(found[0], found[1:]), found[1:])


def own_sides(n: int, m: int) -> np.ndarray:
    """Which rows of both samples, one after the other, are of the first."""
    return np.arange(n + m) < n


def dealt_sides(n: int, m: int, count: int, seed: int, *, paired: bool) -> Iterator[np.ndarray]:
    """The same of random deals; pairs change sides together."""
    rng = np.random.default_rng(seed)
    first = own_sides(n, m)
    for _ in range(count):
        if paired:
            kept = rng.random(n) < 0.5
            yield np.concatenate([kept, ~kept])
        else:
            yield rng.permutation(first)


def permutation_p_value(found: float, dealt: np.ndarray) -> float:
    """(1 + how many deals are no nearer) / (1 + deals); what only rounding tells apart is equal."""
    tolerance = 1e-12 * float(np.max(np.abs(dealt), initial=abs(found)))
    return (1 + int(np.sum(dealt >= found - tolerance))) / (1 + len(dealt))


class SidesDistance:
    """Mean over slices of W₂² between two sides of projections (K, N + M), sorted once for all."""

    def __init__(self, projections: np.ndarray, n: int, m: int) -> None:
        self.order = np.argsort(projections, axis=1, kind="stable")
        self.ordered = np.take_along_axis(projections, self.order, axis=1)
        self.left, self.right, self.width = _quantile_steps(n, m)

    def __call__(self, first: np.ndarray) -> float:
        """Between the rows that are `first` and the others."""
        parts = []
        for values, rows in zip(self.ordered, self.order, strict=True):
            side = first.take(rows)  # places are taken several times faster than by a mask
            x, y = (values.take(np.flatnonzero(of)) for of in (side, ~side))
            apart = x[self.left] - y[self.right]
            parts.append(float(np.dot(apart * apart, self.width)))
        return math.fsum(parts) / len(parts)


_Places = np.ndarray | slice


def _quantile_steps(n: int, m: int) -> tuple[_Places, _Places, np.ndarray]:
    """Steps of both quantile functions: indices into either sample, and the steps' widths."""
    if n == m:
        return slice(None), slice(None), np.full(n, 1 / n)
    # Ends i/n and j/m as whole numbers of 1/(n m), so that equal ones are equal.
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    starts = np.concatenate([[0], ends[:-1]])
    return starts // m, starts // n, (ends - starts) / (n * m)


def _pair_distances(
    pooled: np.ndarray, sides: np.ndarray, statistic: str, bandwidth: float | None
) -> np.ndarray:
    """Squared distance of each of the sides (P, N + M).

    Either is a quadratic form uᵀKu of u = 1/N on the one side and −1/M on the other, K the kernel
    or −‖x − y‖: a matrix product of a block of rows of K for all deals.
    """
    u = np.where(sides, 1 / sides.sum(axis=1, keepdims=True), 0.0)
    u -= np.where(sides, 0.0, 1 / (~sides).sum(axis=1, keepdims=True))
    if statistic == "mmd":
        h = _median_distance(pooled) if bandwidth is None else bandwidth
        checks.positive("bandwidth", h)
        kernel: Callable[[np.ndarray], np.ndarray] = lambda rho: np.exp(rho / (-2 * h * h))  # noqa: E731
    else:
        kernel = lambda rho: -np.sqrt(rho)  # noqa: E731
    found = np.zeros(len(u))
    for start, rho in _squared_distances(pooled):
        found += np.sum((u @ kernel(rho).T) * u[:, start : start + len(rho)], axis=1)
    return found


def _squared_distances(z: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The first row of each block, and the block's squared distances from all rows."""
    z = z - z.mean(axis=0)
    squares = np.sum(z * z, axis=1)
    block = max(1, _BLOCK_BYTES // (8 * len(z)))
    for start in range(0, len(z), block):
        rows = slice(start, start + block)
        rho = np.maximum(squares[rows, None] + squares - 2 * z[rows] @ z.T, 0.0)
        rho[np.arange(len(rho)), start + np.arange(len(rho))] = 0
        yield start, rho


def _median_distance(z: np.ndarray, most: int = 1000) -> float:
    """Median distance of different rows, of an even choice of `most` rows where there are more."""
    chosen = z[np.unique(np.linspace(0, len(z) - 1, min(len(z), most)).astype(np.intp))]
    rho = np.concatenate([block for _, block in _squared_distances(chosen)])
    median = float(np.median(np.sqrt(rho[np.triu_indices(len(rho), 1)])))
    return median if median > 0 else 1.0  # most rows are equal: any bandwidth does
