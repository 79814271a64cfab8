"""Normality tests: statistics against SciPy and the published formulas, level and power."""

import math

import numpy as np
import pytest
from scipy import stats

from visreg_core import random_slices, sliced_statistic
from visreg_core.metrics import henze_zirkler, normality, sliced_normality_test

STATISTICS = ("anderson_darling", "cramer_von_mises", "watson", "jarque_bera", "vasicek")
FEW = {"n_simulations": 1}


def test_statistics_are_those_of_the_loss_and_of_scipy():
    x = 0.3 + 1.2 * np.random.default_rng(0).standard_normal((40, 5))
    w = random_slices(5, 7)
    for statistic in STATISTICS[:-1]:
        test = sliced_normality_test(x, w, statistic, **FEW)
        each = [float(sliced_statistic(x, w[:, k : k + 1], statistic=statistic)) for k in range(7)]
        np.testing.assert_allclose(test.values, each, rtol=1e-12)
        assert (test.mean, test.max) == (np.mean(test.values), np.max(test.values))
    p = x @ w
    entropy = stats.differential_entropy(p, method="vasicek", axis=0)
    expected = 0.5 * math.log(2 * math.pi) + np.mean(p * p, axis=0) / 2 - entropy
    found = sliced_normality_test(x, w, "vasicek", **FEW).values
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_level(statistic):
    rng, w = np.random.default_rng(0), random_slices(3, 4)
    false = np.zeros(2)
    for seed in range(200):
        x = rng.standard_normal((12, 3))
        test = sliced_normality_test(x, w, statistic, n_simulations=9, seed=seed)
        false += [test.mean_p <= 0.1, test.max_p <= 0.1]
    assert np.all(np.abs(false - 20) < 4 * math.sqrt(200 * 0.1 * 0.9))


@pytest.mark.parametrize("statistic", STATISTICS)
def test_power(statistic):
    rng, w = np.random.default_rng(0), random_slices(4, 8)
    x = rng.standard_normal((150, 4))
    assert sliced_normality_test(x, w, statistic, n_simulations=99).mean_p > 0.05
    assert sliced_normality_test(1.5 * x, w, statistic, n_simulations=99).mean_p == 0.01
    assert sliced_normality_test(0 * x, w, statistic, n_simulations=9).mean_p == 0.1


def bhep(x, beta):
    """Henze and Zirkler's definition: a double loop over Mahalanobis distances."""
    n, d = x.shape
    inverse = np.linalg.inv(np.cov(x.T, bias=True).reshape(d, d))
    centred = x - x.mean(axis=0)
    pairs = [(u - v) @ inverse @ (u - v) for u in x for v in x]
    own = [u @ inverse @ u for u in centred]
    b = beta * beta
    first = math.fsum(math.exp(-b / 2 * v) for v in pairs) / n
    second = math.fsum(math.exp(-b / (2 * (1 + b)) * v) for v in own) * (1 + b) ** (-d / 2)
    return first - 2 * second + n * (1 + 2 * b) ** (-d / 2)


@pytest.mark.parametrize("d", [1, 4])
def test_henze_zirkler_is_the_definition(d):
    x = np.random.default_rng(0).standard_normal((30, d)) @ (np.eye(d) + 0.3) + 2
    beta = ((2 * d + 1) * 30 / 4) ** (1 / (d + 4)) / math.sqrt(2)
    assert henze_zirkler(x).statistic == pytest.approx(bhep(x, beta), rel=1e-10)
    assert henze_zirkler(x, bandwidth=2.0).statistic == pytest.approx(bhep(x, 0.5), rel=1e-10)


@pytest.mark.parametrize("d", [1, 3])
def test_henze_zirkler_under_the_gaussian(d):
    """Moments as published, and the level of the log-normal law, at N = 150."""
    rng = np.random.default_rng(d)
    tests = [henze_zirkler(rng.standard_normal((150, d)), bandwidth=1.0) for _ in range(400)]
    values = np.array([t.statistic for t in tests])
    mean, variance = normality._moments(d, 1.0)
    assert values.mean() == pytest.approx(mean, abs=4 * math.sqrt(variance / 400) + 0.02 * mean)
    assert values.var() == pytest.approx(variance, rel=0.35)
    assert abs(np.mean([t.p <= 0.05 for t in tests]) - 0.05) < 0.04
    moved = np.array([henze_zirkler(3 * rng.standard_normal((20, d)) + 7).p for _ in range(5)])
    assert np.all(moved > 1e-4)
    assert henze_zirkler(rng.exponential(size=(150, d))).p < 1e-6


def test_singular_rows_are_refused():
    x = np.random.default_rng(0).standard_normal((10, 3))
    with pytest.raises(ValueError, match="expected x of rank D = 4 about its mean; found rank 3"):
        henze_zirkler(np.concatenate([x, x[:, :1]], axis=1))
    with pytest.raises(ValueError, match="expected x of rank D = 2 about its mean; found rank 0"):
        henze_zirkler(np.ones((5, 2)))
    with pytest.raises(ValueError, match="expected statistic to be one of"):
        sliced_normality_test(x, np.eye(3), "shapiro")
