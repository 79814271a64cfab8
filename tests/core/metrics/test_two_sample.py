"""Two-sample tests: distances against SciPy and double loops, the level, and the power."""

import math

import numpy as np
import pytest
from scipy.stats import energy_distance

from visreg_core import random_slices, sliced_wasserstein
from visreg_core.metrics import two_sample, two_sample_test

STATISTICS = ("energy", "mmd", "sliced_wasserstein")


def run(x, y, statistic, **options):
    slices = random_slices(x.shape[1], 8) if statistic == "sliced_wasserstein" else None
    return two_sample_test(x, y, slices, statistic=statistic, **options)


def test_distances_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((9, 3)), 0.5 + rng.standard_normal((12, 3))
    few = {"n_permutations": 1}

    def mean(f, a, b):
        return math.fsum(f(u, v) for u in a for v in b) / (len(a) * len(b))

    norm = lambda u, v: math.dist(u, v)  # noqa: E731
    expected = 2 * mean(norm, x, y) - mean(norm, x, x) - mean(norm, y, y)
    assert run(x, y, "energy", **few).statistic == pytest.approx(expected, rel=1e-12)
    line = run(x[:, :1], y[:, :1], "energy", **few).statistic
    assert math.sqrt(line) == pytest.approx(energy_distance(x[:, 0], y[:, 0]), rel=1e-12)

    kernel = lambda u, v: math.exp(-(math.dist(u, v) ** 2) / (2 * 1.3**2))  # noqa: E731
    expected = mean(kernel, x, x) + mean(kernel, y, y) - 2 * mean(kernel, x, y)
    assert run(x, y, "mmd", bandwidth=1.3, **few).statistic == pytest.approx(expected, rel=1e-12)
    pooled = np.concatenate([x, y])
    median = np.median([math.dist(u, v) for i, u in enumerate(pooled) for v in pooled[:i]])
    found = run(x, y, "mmd", **few).statistic
    assert found == pytest.approx(
        run(x, y, "mmd", bandwidth=float(median), **few).statistic, rel=1e-12
    )

    expected = float(sliced_wasserstein(x, y, random_slices(3, 8), power=True))
    found = run(x, y, "sliced_wasserstein", **few).statistic
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_blocks_change_nothing(statistic, monkeypatch):
    x, y = np.random.default_rng(0).standard_normal((2, 20, 3))
    whole = run(x, y, statistic)
    monkeypatch.setattr(two_sample, "_BLOCK_BYTES", 7 * 8 * 40)
    np.testing.assert_allclose(run(x, y, statistic).dealt, whole.dealt, rtol=1e-11)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("paired", [False, True])
def test_level(statistic, paired):
    """19 deals: at level 0.05 exactly one case in 20 where nothing ties."""
    false = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x, y = rng.standard_t(2, (2, 8, 2)) + (rng.standard_normal((8, 2)) if paired else 0)
        p = run(x, y, statistic, paired=paired, n_permutations=19, seed=seed).p
        assert round(20 * p) == pytest.approx(20 * p)
        false += p <= 0.05
    assert false <= 23  # 10, with four deviations of chance


@pytest.mark.parametrize("statistic", STATISTICS)
def test_power(statistic):
    x, y = np.random.default_rng(0).standard_normal((2, 80, 3))
    assert run(x, y, statistic).p > 0.05
    assert run(x, y + 0.7, statistic).p == 0.005
    assert run(x, 2 * y, statistic).p == 0.005


@pytest.mark.parametrize("statistic", STATISTICS)
def test_pairs_see_what_the_spread_of_the_rows_hides(statistic):
    x = 3 * np.random.default_rng(0).standard_normal((100, 2))
    assert run(x, x + 0.05, statistic).p > 0.2
    assert run(x, x + 0.05, statistic, paired=True).p == 0.005


@pytest.mark.parametrize("statistic", STATISTICS)
def test_equal_samples_are_not_told_apart(statistic):
    x = np.random.default_rng(0).standard_normal((30, 3))
    assert run(x, x[::-1].copy(), statistic).p == 1.0
    constant = np.ones((5, 2))
    assert run(constant, constant, statistic).p == 1.0


def test_arguments_are_checked():
    x = np.zeros((4, 2))
    for options, message in (
        ({"statistic": "ks"}, "expected statistic to be one of"),
        ({"slices": np.eye(2)}, "expected slices for statistic="),
        ({"statistic": "sliced_wasserstein"}, "expected slices for statistic="),
        ({"y": np.zeros((4, 3))}, "expected x and y of one dimension; found 2 and 3"),
        ({"y": np.zeros((5, 2)), "paired": True}, "expected as many rows in x and y of pairs"),
        ({"bandwidth": -1.0, "statistic": "mmd"}, "expected bandwidth to be a finite number > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            two_sample_test(x, **{"y": x, **options})
