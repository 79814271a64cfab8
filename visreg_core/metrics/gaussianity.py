"""Is an embedding a standard Gaussian? Sliced statistics against their law under that hypothesis.

The hypothesis is that the rows are independent draws of N(0, I), the one SIGReg and the sliced
Wasserstein losses aim at: mean, scale, correlation and shape are all tested. Columns standardised
by their own statistics are another hypothesis, for which these p-values are too large.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core._xp import tiles
from visreg_core.gaussian import normal_quantiles
from visreg_core.losses import epps_pulley, value_and_grad
from visreg_core.metrics import _gaussian_null as null
from visreg_core.metrics._inputs import matrix, plain, unit_rows
from visreg_core.typing import Array, Namespace

# Rows of a simulated sample at most: standardised, the statistics hardly depend on N any more.
_SIMULATED_ROWS = 256
_STATISTICS = ("epps_pulley", "wasserstein")
_SIMULATED: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}
_MAX_CACHED = 16
_SIMULATIONS = 199
# Means over slices of Gaussian samples have no z-score like this: the law of one slice has the
# tail of χ², and its z-score exceeds 20 with probability 1e-6.
_FAR_OUT = 20.0


class SlicedTest(NamedTuple):
    """One statistic over all slices, against its law for Gaussian rows.

    mean, mean_z, mean_p
        Mean over slices, its z-score and its p-value.
    max, max_z, max_p
        Largest value over slices, its z-score as if it were the only slice, and the p-value of
        the maximum over all slices.
    z, p : numpy.ndarray (K,)
        z-score and p-value of each single slice. Slices of one sample are dependent.
    worst : numpy.ndarray (n_worst,)
        Indices of the slices with the largest values, worst first.
    directions : array (D, n_worst)
        Those slices, in the namespace of the embeddings.
    """

    mean: float
    mean_z: float
    mean_p: float
    max: float
    max_z: float
    max_p: float
    z: np.ndarray
    p: np.ndarray
    worst: np.ndarray
    directions: Array


class Gaussianity(NamedTuple):
    """Epps-Pulley statistics and squared W₂ distances of the projections."""

    epps_pulley: SlicedTest
    wasserstein: SlicedTest


def gaussianity(
    x: Array,
    slices: Array,
    *,
    n_worst: int | None = None,
    n_simulations: int = _SIMULATIONS,
    seed: int = 0,
    t_max: float = 3.0,
    n_knots: int = 17,
) -> Gaussianity:
    r"""Test whether the rows of an embedding are independent draws of N(0, I).

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace, N ≥ 2. Statistics are computed there, p-values on the host.
    slices : array (D, K)
        Unit columns, from `random_slices`, in the namespace of `x`.
    n_worst : int, optional
        How many of the worst slices to return, at most K; by default 3, or all of fewer.
    n_simulations : int
        Simulated Gaussian samples behind `mean_p` and `max_p`; their least value is
        1/(n_simulations + 1).
    seed : int
        Of these simulations. Results are cached for repeated calls with the same slices.
    t_max, n_knots
        Quadrature of `epps_pulley`.

    Returns
    -------
    Gaussianity
        ``(epps_pulley, wasserstein)``, each a `SlicedTest`. The first's `mean` is `sigreg_loss`,
        the second's `gaussian_sliced_wasserstein`. Large values speak against the Gaussian; all
        p-values are one-sided.

    Raises
    ------
    ValueError
        For shapes that do not fit or columns of `slices` that are not of unit length.

    Notes
    -----
    Epps-Pulley: mean and variance, of a slice and of the mean over these slices, are exact for
    every N; a slice's p-value comes from the law of N → ∞ with this N's moments (to a tenth of
    itself from N = 10 on). W₂: the mean is exact, a slice's p-value its rank among 9,999 draws
    of its law at this N, at least 1e-4; the variance of the mean over slices is an approximation
    good to a few per cent.

    `mean_p` and `max_p` are ranks among simulated samples on the same slices: exact Monte-Carlo
    tests for N ≤ 256. Beyond, simulations have 256 rows and standardised values are compared, an
    approximation whose error is below that of 199 simulations.

    Power at level 0.05 for N = 512, D = 16, K = 64 (200 samples of each departure):

    ============================================ ============ ============ ======= =======
    departure                                    Epps-Pulley  Epps-Pulley  W₂      W₂
    \                                            mean_p       max_p        mean_p  max_p
    ============================================ ============ ============ ======= =======
    none                                         0.06         0.08         0.07    0.04
    all of them 1.05 times too large             0.81         0.30         0.95    0.41
    all of them 0.9 times too large              1.00         0.83         1.00    0.63
    every mean 0.1                               1.00         1.00         1.00    1.00
    every pair of columns correlated by 0.1      0.93         0.97         0.96    1.00
    one column 0, the others larger (rank 15)    0.97         1.00         0.93    1.00
    rows from Student's t, 5 degrees of freedom  1.00         0.99         1.00    1.00
    rows on the sphere                           0.25         0.10         0.03    0.03
    independent uniform columns                  0.10         0.05         0.01    0.02
    one column of two narrow clusters            0.07         0.09         0.05    0.07
    ============================================ ============ ============ ======= =======

    The last five have unit variance in every column. Projections of many independent columns are
    nearly Gaussian whatever the columns are, so that the last three are hard to see in random
    directions; `worst_direction` searches for better ones.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core import random_slices
    >>> from visreg_core.metrics import gaussianity
    >>> x = np.random.default_rng(0).standard_normal((200, 8))
    >>> test = gaussianity(x, random_slices(8, 32))
    >>> test.epps_pulley.mean_p > 0.05
    True
    >>> gaussianity(1.3 * x, random_slices(8, 32)).epps_pulley.mean_p
    0.005
    """
    if n_worst is not None:
        checks.positive_int("n_worst", n_worst)
    checks.positive_int("n_simulations", n_simulations)
    checks.positive_int("seed", seed, minimum=0)
    _xp.namespace(x, slices)
    xp, x = matrix("x", x)
    slices = plain("slices", slices)
    checks.slices(slices, x)
    slices = _xp.cast(xp, slices, x.dtype)
    host_slices = np.asarray(_xp.to_numpy(slices), dtype=np.float64)
    check_directions(host_slices)
    n, k = x.shape[0], slices.shape[1]
    n_worst = min(3, k) if n_worst is None else n_worst
    if n_worst > k:
        raise ValueError(f"expected n_worst <= K = {k} slices; found {n_worst}")

    statistics = _statistics(xp, x, slices, t_max, n_knots)
    laws = _laws(n, host_slices, t_max, n_knots)
    p_values = (
        null.epps_pulley_tail(statistics[0], n, t_max, n_knots),
        null.wasserstein_tail(statistics[1], n),
    )
    simulated = _simulated(n, host_slices, n_simulations, seed, t_max, n_knots)
    tests = []
    for i, (values, law, p) in enumerate(zip(statistics, laws, p_values, strict=True)):
        z = (values - law.mean) / law.std
        mean_z, max_z = float(np.mean(z)) * law.std / law.std_of_mean, float(np.max(z))
        worst = np.argsort(-values, kind="stable")[:n_worst]
        index = _xp.from_numpy(xp, worst, device=_xp.device(x))
        unit = 1.0 if i == 0 else 1.0 / n
        tests.append(
            SlicedTest(
                mean=float(np.mean(values)) * unit,
                mean_z=mean_z,
                mean_p=_rank_p(mean_z, simulated[0][i]),
                max=float(np.max(values)) * unit,
                max_z=max_z,
                max_p=_rank_p(max_z, simulated[1][i]),
                z=z,
                p=p,
                worst=worst,
                directions=xp.take(slices, index, axis=1),
            )
        )
    return Gaussianity(*tests)


def mean_z_scores(
    epps_pulley_values: np.ndarray, wasserstein_values: np.ndarray, n: int, slices: np.ndarray
) -> tuple[float, float]:
    """`mean_z` of both tests from given statistics (K,) of `n` rows on `slices` (D, K).

    The Epps-Pulley statistics are those of `epps_pulley`, the others squared W₂ distances.
    """
    laws = _laws(n, slices, 3.0, 17)
    means = float(np.mean(epps_pulley_values)), float(np.mean(wasserstein_values)) * n
    first, second = ((m - law.mean) / law.std_of_mean for m, law in zip(means, laws, strict=True))
    return first, second


def mean_p_value(statistic: int, mean_z: float, n: int, slices: np.ndarray) -> float:
    """`mean_p` of `_STATISTICS[statistic]` from a given `mean_z`.

    Beyond the range of simulations nothing is drawn.
    """
    if mean_z > _FAR_OUT:
        return 1 / (1 + _SIMULATIONS)
    return _rank_p(mean_z, _simulated(n, slices, _SIMULATIONS, 0, 3.0, 17)[0][statistic])


class WorstDirection(NamedTuple):
    """A direction (D,) found on one half of the rows, and its test on the other half."""

    direction: Array
    statistic: float
    z: float
    p: float


def worst_direction(
    x: Array,
    slices: Array,
    *,
    statistic: str = "epps_pulley",
    n_steps: int = 60,
    seed: int = 0,
    t_max: float = 3.0,
    n_knots: int = 17,
) -> WorstDirection:
    """Search for the direction along which an embedding is least like N(0, 1), and test it.

    The search sees a random half of the rows only: gradient ascent of the statistic over the unit
    sphere from the eight worst of the slices and the coordinate axes. The other half tests the
    direction found, so that its p-value is that of a single slice fixed in advance and needs no
    correction for the search. It is a local search: a bad direction far from all starts is missed.

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace, N ≥ 4.
    slices : array (D, K)
        Unit columns to start from, in the namespace of `x`.
    statistic : str
        "epps_pulley", or "wasserstein", whose gradient does not vanish far from the Gaussian.
    n_steps : int
        Steps of the ascent, of decreasing length.
    seed : int
        Of the split into halves.
    t_max, n_knots
        Quadrature of `epps_pulley`.

    Returns
    -------
    WorstDirection
        ``(direction, statistic, z, p)``; all but the direction from the half not searched on.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core import random_slices
    >>> from visreg_core.metrics import worst_direction
    >>> x = np.random.default_rng(0).standard_normal((2000, 32))
    >>> x[:, 5] = np.sign(x[:, 5])
    >>> found = worst_direction(x, random_slices(32, 64))
    >>> int(np.argmax(np.abs(found.direction))), found.p < 1e-6
    (5, True)
    """
    checks.choice("statistic", statistic, _STATISTICS)
    checks.positive_int("n_steps", n_steps)
    checks.positive_int("seed", seed, minimum=0)
    _xp.namespace(x, slices)
    xp, x = matrix("x", x, min_rows=4)
    slices = plain("slices", slices)
    checks.slices(slices, x)
    slices = _xp.cast(xp, slices, x.dtype)
    check_directions(_xp.to_numpy(slices))
    which = _STATISTICS.index(statistic)
    n, device = x.shape[0], _xp.device(x)
    order = _xp.from_numpy(xp, np.random.default_rng(seed).permutation(n), device=device)
    searched = xp.take(x, order[: n // 2], axis=0)
    tested = xp.take(x, order[n // 2 :], axis=0)

    axes = xp.eye(x.shape[1], dtype=x.dtype, **_xp.on_device(x))
    w = xp.concat([slices, axes], axis=1)
    start = np.argsort(-_statistics(xp, searched, w, t_max, n_knots)[which], kind="stable")
    w = xp.take(w, _xp.from_numpy(xp, start[:8], device=device), axis=1)
    best, best_value = (w, 0), -math.inf
    ascended = _xp.compiled(xp, _ascended, "xp", "statistic", "t_max", "n_knots")
    for step in range(n_steps + 1):
        values = _statistics(xp, searched, w, t_max, n_knots)[which]
        top = int(np.argmax(values))
        if values[top] > best_value:
            best, best_value = (w, top), float(values[top])
        w = ascended(xp, searched, w, 0.3 * 0.95**step, statistic, t_max, n_knots)

    w, top = best
    # Of all columns: another number of them would be another program.
    value = _statistics(xp, tested, w, t_max, n_knots)[which][top : top + 1]
    m = n - n // 2
    if statistic == "epps_pulley":
        mean, variance = null.epps_pulley_moments(m, t_max, n_knots)
        p = null.epps_pulley_tail(value, m, t_max, n_knots)
    else:
        mean, variance, _ = null.wasserstein_null(m)
        p = null.wasserstein_tail(value, m)
    unit = 1.0 if statistic == "epps_pulley" else 1.0 / m
    z = (float(value[0]) - mean) / math.sqrt(variance)
    return WorstDirection(w[:, top], float(value[0]) * unit, z, float(p[0]))


def _ascended(
    xp: Namespace,
    x: Array,
    w: Array,
    length: float,
    statistic: str,
    t_max: float,
    n_knots: int,
) -> Array:
    """The directions after a step of this length, uphill on the sphere."""
    uphill = _slice_gradient(xp, x, w, statistic, t_max, n_knots)
    uphill = uphill - w * xp.sum(uphill * w, axis=0, keepdims=True)
    return _unit_columns(xp, w + length * _unit_columns(xp, uphill))


def _slice_gradient(
    xp: Namespace, x: Array, w: Array, statistic: str, t_max: float, n_knots: int
) -> Array:
    """Direction of steepest ascent of each slice's statistic, (D, K), of any length."""
    projections = xp.matrix_transpose(w) @ xp.matrix_transpose(x)
    if statistic == "epps_pulley":
        _, on_projections = value_and_grad(epps_pulley)(projections, t_max, n_knots)
    else:
        quantiles = normal_quantiles(x.shape[0], xp=xp, dtype=x.dtype, device=_xp.device(x))
        ranks = xp.argsort(xp.argsort(projections, axis=-1, stable=True), axis=-1)
        targets = xp.reshape(xp.take(quantiles, xp.reshape(ranks, (-1,)), axis=0), ranks.shape)
        on_projections = projections - targets
    return xp.matrix_transpose(on_projections @ x)


def _unit_columns(xp: Namespace, w: Array) -> Array:
    return xp.matrix_transpose(unit_rows(xp, xp.matrix_transpose(w)))


class _Law(NamedTuple):
    mean: float
    std: float
    std_of_mean: float


def _laws(n: int, slices: np.ndarray, t_max: float, n_knots: int) -> tuple[_Law, _Law]:
    """Moments of both statistics at this N: of one slice, and of the mean over these slices."""
    k = slices.shape[1]
    step = max(1, (1 << 20) // k)
    totals = np.zeros(2)
    for start in range(0, k, step):
        squared_cosines = np.minimum((slices[:, start : start + step].T @ slices) ** 2, 1.0)
        totals[0] += null.epps_pulley_covariance(squared_cosines, n, t_max, n_knots).sum()
        totals[1] += null.wasserstein_covariance(squared_cosines, n).sum()
    mean, variance = null.epps_pulley_moments(n, t_max, n_knots)
    wasserstein = null.wasserstein_null(n)
    std_of_mean = np.sqrt(totals) / k
    return (
        _Law(mean, math.sqrt(variance), float(std_of_mean[0])),
        _Law(wasserstein.mean, math.sqrt(wasserstein.variance), float(std_of_mean[1])),
    )


def _statistics(
    xp: Namespace, x: Array, slices: Array, t_max: float, n_knots: int
) -> tuple[np.ndarray, np.ndarray]:
    """Per slice: the Epps-Pulley statistic, and Σ_r (x_(r) − Φ⁻¹(r/(N+1)))²."""
    n, k = x.shape[0], slices.shape[1]
    quantiles = normal_quantiles(n, xp=xp, dtype=x.dtype, device=_xp.device(x))
    step = tiles.default_chunk(xp, n * (8 if x.dtype == xp.float64 else 4))
    samples = xp.matrix_transpose(x)
    of_chunk = _xp.compiled(xp, _chunk_statistics, "xp", "t_max", "n_knots")
    values: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for start in range(0, k, step):
        columns = slices[:, start : min(start + step, k)]
        for kept, found in zip(
            values, of_chunk(xp, columns, samples, quantiles, t_max, n_knots), strict=True
        ):
            kept.append(_xp.to_numpy(found))
    epps, wasserstein = (np.concatenate(v).astype(np.float64) for v in values)
    return epps, wasserstein


def _chunk_statistics(
    xp: Namespace,
    columns: Array,
    samples: Array,
    quantiles: Array,
    t_max: float,
    n_knots: int,
) -> tuple[Array, Array]:
    projections = xp.matrix_transpose(columns) @ samples
    difference = xp.sort(projections, axis=-1) - quantiles
    return epps_pulley(projections, t_max, n_knots), xp.sum(difference * difference, axis=-1)


def _simulated(
    n: int, slices: np.ndarray, n_simulations: int, seed: int, t_max: float, n_knots: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted z-scores (2, n_simulations) of Gaussian samples: of the mean, of the maximum."""
    rows = min(n, _SIMULATED_ROWS)
    digest = hashlib.sha256(slices.tobytes()).digest()
    key = (rows, slices.shape, digest, n_simulations, seed, t_max, n_knots)
    if key not in _SIMULATED:
        rng = np.random.default_rng(seed)
        laws = _laws(rows, slices, t_max, n_knots)
        narrow = slices.astype(np.float32)
        z = np.empty((2, 2, n_simulations))
        for i in range(n_simulations):
            x = rng.standard_normal((rows, slices.shape[0]), dtype=np.float32)
            values = _statistics(_xp.as_namespace(np), x, narrow, t_max, n_knots)
            for j, (law, v) in enumerate(zip(laws, values, strict=True)):
                z[:, j, i] = (
                    (v.mean() - law.mean) / law.std_of_mean,
                    (v.max() - law.mean) / law.std,
                )
        if len(_SIMULATED) >= _MAX_CACHED:
            _SIMULATED.pop(next(iter(_SIMULATED)))
        z.sort(axis=-1)
        _SIMULATED[key] = z[0], z[1]
    return _SIMULATED[key]


def _rank_p(value: float, simulated: np.ndarray) -> float:
    at_least = simulated.size - int(np.searchsorted(simulated, value, side="left"))
    return (1 + at_least) / (1 + simulated.size)


def check_directions(slices: np.ndarray) -> None:
    """ValueError unless columns are of unit length, to one in a hundred."""
    norms = np.linalg.norm(slices, axis=0)
    bad = np.flatnonzero(~(np.abs(norms - 1) < 1e-2))
    if bad.size:
        raise ValueError(
            f"expected slices with unit columns; found {bad.size} of another length, "
            f"the first at {bad[0]}: {norms[bad[0]]:g}"
        )
