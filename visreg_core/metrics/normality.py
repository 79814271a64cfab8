"""More tests of the Gaussian hypothesis: classical statistics of slices, and of all dimensions."""

from __future__ import annotations

import importlib
import math
from typing import NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core._xp import tiles
from visreg_core.losses.gaussian_mmd import gaussian_mmd
from visreg_core.losses.sliced_statistic import STATISTICS, statistic_term
from visreg_core.metrics._inputs import matrix, plain
from visreg_core.metrics.gaussianity import check_directions
from visreg_core.typing import Array, Namespace

_ALL = (*STATISTICS, "vasicek")


class SlicedNormalityTest(NamedTuple):
    """A statistic over all slices, and how often Gaussian rows have one as large.

    mean, mean_p, max, max_p : mean and largest over slices and their p-values; values : of each
    slice, numpy.ndarray (K,).
    """

    mean: float
    mean_p: float
    max: float
    max_p: float
    values: np.ndarray


class NormalityTest(NamedTuple):
    """A statistic and its p-value."""

    statistic: float
    p: float


def sliced_normality_test(
    x: Array,
    slices: Array,
    statistic: str = "anderson_darling",
    *,
    n_simulations: int = 199,
    seed: int = 0,
) -> SlicedNormalityTest:
    """Test by a classical statistic of slices whether rows are independent draws of N(0, I).

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace, N ≥ 4.
    slices : array (D, K)
        Unit columns, from `random_slices`, in the namespace of `x`.
    statistic : str
        One of `sliced_statistic`, or "vasicek": the divergence of N(0, 1) from a slice's law,
        log √(2π) + mean x²/2 − H, with Vasicek's spacing estimate H of the entropy.
    n_simulations : int
        Gaussian samples of N rows on the same slices, behind the p-values; their least value is
        1/(n_simulations + 1).
    seed : int
        Of these.

    Returns
    -------
    SlicedNormalityTest
        ``(mean, mean_p, max, max_p, values)``. Large values speak against the Gaussian.

    Raises
    ------
    ValueError
        For shapes that do not fit, an unknown statistic, or columns of `slices` that are not of
        unit length.

    Notes
    -----
    Monte-Carlo tests of exact level for every N, D and K, at the cost of computing the statistic
    n_simulations more times. `gaussianity` has the Epps-Pulley and W₂ statistics, with laws that
    need no simulation for single slices. Source of "vasicek": Vasicek 1976, windows of
    ⌊√N + 1/2⌋ samples to either side.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core import random_slices
    >>> from visreg_core.metrics import sliced_normality_test
    >>> x = np.random.default_rng(0).standard_normal((100, 8))
    >>> w = random_slices(8, 16)
    >>> sliced_normality_test(x, w).mean_p > 0.05, sliced_normality_test(1.5 * x, w).mean_p
    (True, 0.005)
    """
    checks.choice("statistic", statistic, _ALL)
    checks.positive_int("n_simulations", n_simulations)
    checks.positive_int("seed", seed, minimum=0)
    _xp.namespace(x, slices)
    xp, x = matrix("x", x, min_rows=4)
    slices = plain("slices", slices)
    checks.slices(slices, x)
    slices = _xp.cast(xp, slices, x.dtype)
    check_directions(_xp.to_numpy(slices))
    values = _values(xp, x, slices, statistic)
    rng = np.random.default_rng(seed)
    simulated = np.empty((2, n_simulations))
    for i in range(n_simulations):
        z = _xp.from_numpy(xp, rng.standard_normal(x.shape), device=_xp.device(x), dtype=x.dtype)
        of_null = _values(xp, z, slices, statistic)
        simulated[:, i] = of_null.mean(), of_null.max()
    found = float(values.mean()), float(values.max())
    mean_p, max_p = (
        (1 + int(np.sum(s >= f))) / (1 + n_simulations)
        for s, f in zip(simulated, found, strict=True)
    )
    return SlicedNormalityTest(found[0], mean_p, found[1], max_p, values)


def henze_zirkler(x: Array, bandwidth: float | None = None) -> NormalityTest:
    """Henze and Zirkler's test whether rows are draws of some Gaussian, of any mean and covariance.

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace, N > D.
    bandwidth : float, optional
        1/β of the statistic, which for a chosen β is called BHEP (Baringhaus & Henze 1988); if not
        given √2 (4/(N (2D + 1)))^{1/(D + 4)}, Henze and Zirkler's.

    Returns
    -------
    NormalityTest
        ``(statistic, p)``: N times `gaussian_mmd` of the rows, centred and whitened by their biased
        covariance, and the p-value of a log-normal law of the same mean and variance.

    Raises
    ------
    ValueError
        Where the covariance is singular, N ≤ D included.

    Notes
    -----
    Source: Henze & Zirkler 1990, whose moments are those of N → ∞. Whitening hides scale and
    correlation, which the losses of this package are about: `gaussian_mmd` of the rows themselves
    is the statistic of the hypothesis N(0, I).

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import henze_zirkler
    >>> x = np.random.default_rng(0).standard_normal((200, 3))
    >>> henze_zirkler(5 * x + 1).p > 0.05, henze_zirkler(x**3).p < 1e-6
    (True, True)
    """
    xp, x = matrix("x", x)
    n, d = x.shape
    if bandwidth is None:
        bandwidth = math.sqrt(2) * (4 / (n * (2 * d + 1))) ** (1 / (d + 4))
    checks.positive("bandwidth", bandwidth)
    host = _xp.to_numpy(x).astype(np.float64)
    centred = host - host.mean(axis=0)
    size = np.abs(centred).max(axis=0)
    centred = centred / np.where(size > 0, size, 1.0)  # the test does not depend on scales
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    resolved = max(n, d) * float(xp.finfo(x.dtype).eps)
    if n <= d or s[-1] <= resolved * s[0]:
        rank = int(np.sum(s > resolved * s[0])) if s[0] > 0 else 0
        raise ValueError(f"expected x of rank D = {d} about its mean; found rank {rank}")
    white = u * math.sqrt(n)  # the rows in coordinates of covariance I, up to a rotation
    statistic = n * float(gaussian_mmd(white, bandwidth=bandwidth))
    mean, variance = _moments(d, 1 / bandwidth**2)
    spread = math.log1p(variance / mean**2)
    z = (math.log(statistic / mean) + spread / 2) / math.sqrt(spread)
    return NormalityTest(statistic, float(importlib.import_module("scipy.special").ndtr(-z)))


def _moments(d: int, b: float) -> tuple[float, float]:
    """Mean and variance of the statistic for N → ∞, b = β² (Henze & Zirkler 1990)."""
    a, w = 1 + 2 * b, (1 + b) * (1 + 3 * b)
    dd = d * (d + 2)
    mean = 1 - a ** (-d / 2) * (1 + d * b / a + dd * b**2 / (2 * a**2))
    variance = (
        2 * (1 + 4 * b) ** (-d / 2)
        + 2 * a**-d * (1 + 2 * d * b**2 / a**2 + 3 * dd * b**4 / (4 * a**4))
        - 4 * w ** (-d / 2) * (1 + 3 * d * b**2 / (2 * w) + dd * b**4 / (2 * w**2))
    )
    return mean, variance


def _values(xp: Namespace, x: Array, slices: Array, statistic: str) -> np.ndarray:
    """The statistic of each slice."""
    n, k = x.shape[0], slices.shape[1]
    step = tiles.default_chunk(xp, n * (8 if x.dtype == xp.float64 else 4))
    of_chunk = _xp.compiled(xp, _chunk_values, "xp", "statistic")
    found = [
        _xp.to_numpy(of_chunk(xp, x, slices[:, start : min(start + step, k)], statistic))
        for start in range(0, k, step)
    ]
    return np.concatenate(found).astype(np.float64)


def _chunk_values(xp: Namespace, x: Array, slices: Array, statistic: str) -> Array:
    p = xp.matrix_transpose(slices) @ xp.matrix_transpose(x)
    if statistic == "vasicek":
        return _vasicek_divergence(xp, p)
    (values,) = statistic_term(statistic, xp, p, float(x.shape[0]), None, False)
    return values


def _vasicek_divergence(xp: Namespace, p: Array) -> Array:
    """log √(2π) + mean x²/2 − H of each row of p (R, N); ∞ where samples of a window are equal."""
    n = p.shape[-1]
    m = math.floor(math.sqrt(n) + 0.5)
    ordered = xp.sort(p, axis=-1)
    low, high = (xp.ones_like(p[:, :m]) * ordered[:, i : i + 1] for i in (0, n - 1))
    padded = xp.concat([low, ordered, high], axis=-1)
    gaps = padded[:, 2 * m :] - padded[:, :n]
    log_gaps = xp.where(gaps > 0, xp.log(xp.where(gaps > 0, gaps, 1.0)), -math.inf)
    entropy = xp.mean(log_gaps, axis=-1) + math.log(n / (2 * m))
    return 0.5 * math.log(2 * math.pi) + xp.mean(p * p, axis=-1) / 2 - entropy
