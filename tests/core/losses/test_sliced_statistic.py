"""Statistics of goodness of fit against SciPy, and what they are at the Gaussian."""

import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from visreg_core import random_slices, sliced_statistic, value_and_grad

ONE = np.ones((1, 1))


def of_line(x, statistic):
    return float(sliced_statistic(x[:, None], ONE, statistic=statistic))


@pytest.mark.parametrize("seed", range(3))
def test_statistics_are_scipys(seed):
    x = 0.2 + 1.3 * np.random.default_rng(seed).standard_normal(50)
    expected = stats.cramervonmises(x, "norm").statistic
    assert of_line(x, "cramer_von_mises") == pytest.approx(expected, rel=1e-12)
    expected = stats.goodness_of_fit(
        stats.norm,
        x,
        known_params={"loc": 0, "scale": 1},
        statistic="ad",
        n_mc_samples=1,
        rng=np.random.default_rng(0),
    ).statistic
    assert of_line(x, "anderson_darling") == pytest.approx(expected, rel=1e-12)
    # Mean 0 and variance 1 leave what SciPy's test has.
    y = (x - x.mean()) / x.std()
    assert of_line(y, "jarque_bera") == pytest.approx(stats.jarque_bera(y).statistic, rel=1e-10)


def test_watsons_statistic_is_free_of_the_origin_on_the_circle():
    """Φ moved round the unit circle: U² is the same, W² is not."""
    u = np.sort(np.random.default_rng(0).uniform(size=40) ** 1.3)
    moved = (u + 0.37) % 1
    first, second = (of_line(stats.norm.ppf(v), "watson") for v in (u, moved))
    assert first == pytest.approx(second, rel=1e-9)
    first, second = (of_line(stats.norm.ppf(v), "cramer_von_mises") for v in (u, moved))
    assert abs(first - second) > 0.01 * first


def test_means_under_the_gaussian():
    """E A² = 1, E W² = 1/6, E U² = 1/12 and, as N grows, E of the last is 4."""
    means = {"anderson_darling": 1, "cramer_von_mises": 1 / 6, "watson": 1 / 12, "jarque_bera": 4}
    z = np.random.default_rng(0).standard_normal((400, 8000))
    for statistic, expected in means.items():
        values = [of_line(x, statistic) for x in z.reshape(800, 4000)]
        error = np.std(values) / math.sqrt(len(values))
        assert abs(np.mean(values) - expected) < 4 * error, statistic


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_anderson_darling_has_its_gradient_in_the_tails(dtype):
    """On either side of where the series begins, and far beyond, by mpmath."""
    x = np.array([-1e12, -300.0, -20.5, -19.5, -8.1, -7.9, 0.3, 40.0])
    _, gradient = value_and_grad(sliced_statistic)(x[:, None].astype(dtype), ONE.astype(dtype))

    def slope_of_log_cdf(v):
        v = mpmath.mpf(v)
        return -v if v < -1e6 else mpmath.npdf(v) / mpmath.ncdf(v)

    c = (2 * np.arange(8) + 1) / 8
    with mpmath.workdps(40):
        expected = [
            float((2 - a) * slope_of_log_cdf(-v) - a * slope_of_log_cdf(v))
            for a, v in zip(c.tolist(), x.astype(dtype).tolist(), strict=True)
        ]
    rtol = 1e-11 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(gradient[:, 0], expected, rtol=rtol)


def test_statistics_grow_with_the_departure():
    rng = np.random.default_rng(0)
    z, w = rng.standard_normal((400, 6)), random_slices(6, 32)
    departures = {"scaled": 1.3 * z, "shifted": z + 0.3, "heavy tails": rng.standard_t(3, z.shape)}
    for statistic in ("anderson_darling", "cramer_von_mises", "watson", "jarque_bera"):
        of_null = float(sliced_statistic(z, w, statistic=statistic))
        for name, x in departures.items():
            assert float(sliced_statistic(x, w, statistic=statistic)) > 1.5 * of_null, name


def test_statistic_is_checked():
    with pytest.raises(ValueError, match="expected statistic to be one of"):
        sliced_statistic(np.zeros((3, 1)), ONE, statistic="shapiro_wilk")
