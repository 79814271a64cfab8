"""Null laws against simulation, SciPy and quadrature; p-values uniform; departures detected."""

import importlib
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from visreg_core import (
    epps_pulley,
    gaussian_sliced_wasserstein,
    metrics,
    normal_quantiles,
    random_slices,
    sigreg_loss,
)
from visreg_core.gaussian import epps_pulley_knots
from visreg_core.metrics import _gaussian_null as null

module = importlib.import_module("visreg_core.metrics.gaussianity")
KNOTS = (3.0, 17)


def wasserstein_statistic(x):
    return np.sum((np.sort(x, axis=-1) - normal_quantiles(x.shape[-1])) ** 2, axis=-1)


# --- Epps-Pulley ----------------------------------------------------------------------------------


def features(x):
    """Vectors whose inner products are h(x, y), from the definition of the statistic."""
    t, w, e = (np.asarray(a) for a in epps_pulley_knots(*KNOTS))
    x = x[:, None]
    return np.concatenate([np.sqrt(w) * (np.cos(t * x) - e), np.sqrt(w) * np.sin(t * x)], axis=1)


@pytest.mark.parametrize("rho", [1.0, 0.6, -0.3, 0.0])
def test_epps_pulley_moments_by_gauss_hermite(rho):
    """E T = E h(x, x); Cov of two slices = Cov(h(x,x), h(y,y))/N + 2(1 − 1/N) E h(x,x')h(y,y')."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(36)
    weights = weights / weights.sum()
    x, u = (a.ravel() for a in np.meshgrid(nodes, nodes, indexing="ij"))
    w = np.outer(weights, weights).ravel()
    f_x, f_y = features(x), features(rho * x + math.sqrt(1 - rho**2) * u)
    h_x, h_y = f_x @ f_x.T, f_y @ f_y.T
    mean = w @ np.diag(h_x)
    diagonal = w @ (np.diag(h_x) * np.diag(h_y)) - mean**2
    pairs = w @ (h_x * h_y) @ w
    for n in (2, 7, 1000):
        expected = diagonal / n + 2 * (1 - 1 / n) * pairs
        assert null.epps_pulley_moments(n, *KNOTS)[0] == pytest.approx(mean, rel=1e-10)
        found = null.epps_pulley_covariance(np.asarray([rho**2]), n, *KNOTS)[0]
        assert found == pytest.approx(expected, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("df", [1, 2, 5, 19])
def test_mixture_tail_of_equal_weights_is_chi_squared(df):
    q = np.asarray([1e-2, 0.1, 1.0, 5.0, 20.0, 100.0, 600.0])
    tail = null.chi_squared_mixture_tail(q, np.full(df, 0.7))
    np.testing.assert_allclose(tail, scipy.stats.chi2.sf(q / 0.7, df), rtol=1e-6)
    np.testing.assert_allclose(tail[2:], scipy.stats.chi2.sf(q[2:] / 0.7, df), rtol=1e-9)
    assert null.chi_squared_mixture_tail(np.asarray([0.0]), np.full(df, 0.7))[0] == 1


def test_mixture_tail_of_two_weights():
    """Σ of two, one of two degrees of freedom: a convolution with an exponential density."""
    a, b = 0.6, 0.1
    for q in (0.3, 2.0, 9.0):

        def density_times_tail(r, q=q):
            chi = 2 * math.exp(-r * r / 2) / math.sqrt(2 * math.pi)  # r = |N(0, 1)|
            return chi * math.exp(-max(q - a * r * r, 0.0) / (2 * b))

        corner = math.sqrt(q / a)
        expected = scipy.integrate.quad(density_times_tail, 0, corner, epsabs=0, epsrel=1e-11)[0]
        expected += scipy.stats.chi2.sf(q / a, 1)
        found = null.chi_squared_mixture_tail(np.asarray([q]), np.asarray([a, b, b]))[0]
        assert found == pytest.approx(expected, rel=1e-6 if q < a + 2 * b else 1e-9)


@pytest.mark.parametrize(("n", "draws"), [(10, 4000), (200, 4000)])
def test_epps_pulley_p_values_are_uniform(n, draws, rng):
    t = epps_pulley(rng.standard_normal((draws, n)), *KNOTS)
    p = null.epps_pulley_tail(t, n, *KNOTS)
    for level in (0.9, 0.5, 0.1, 0.01):
        noise = math.sqrt(level * (1 - level) / draws)
        assert abs(np.mean(p <= level) - level) < 4 * noise + 0.1 * min(level, 1 - level)
    if n == 200:
        assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_other_quadratures(rng):
    t = epps_pulley(rng.standard_normal((2000, 100)), 5.0, 33)
    mean, variance = null.epps_pulley_moments(100, 5.0, 33)
    assert abs(t.mean() - mean) < 4 * math.sqrt(variance / 2000)
    assert t.var() == pytest.approx(variance, rel=0.15)
    assert scipy.stats.kstest(null.epps_pulley_tail(t, 100, 5.0, 33), "uniform").pvalue > 0.01


# --- W₂ -------------------------------------------------------------------------------------------


def test_wasserstein_mean_of_known_order_statistics():
    """E of the largest of 2 is 1/√π, of 3 is 3/(2√π); E Σ x² = N."""
    for n, largest in [(2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi))]:
        q = normal_quantiles(n)
        expected = n - 4 * q[-1] * largest + np.sum(q**2)
        assert null.wasserstein_null(n).mean == pytest.approx(expected, rel=1e-9)


def test_thinned_grid_against_all_ranks(monkeypatch):
    n = 1000
    exact = null.wasserstein_null(n)
    monkeypatch.setattr(null, "_EXACT", 300)
    null.wasserstein_null.cache_clear()
    thinned = null.wasserstein_null(n)
    null.wasserstein_null.cache_clear()
    assert thinned.mean == pytest.approx(exact.mean, rel=1e-3)
    assert thinned.draws.var() == pytest.approx(exact.draws.var(), rel=0.1)
    assert scipy.stats.ks_2samp(thinned.draws, exact.draws).pvalue > 0.01


@pytest.mark.parametrize(("n", "draws"), [(2, 4000), (60, 4000), (2000, 800)])
def test_wasserstein_law_by_simulation(n, draws, rng):
    w = wasserstein_statistic(rng.standard_normal((draws, n)))
    law = null.wasserstein_null(n)
    assert abs(w.mean() - law.mean) < 4 * w.std() / math.sqrt(draws)
    assert w.var() == pytest.approx(law.variance, rel=0.2)
    assert law.draws.mean() == pytest.approx(law.mean, rel=1e-12)
    assert scipy.stats.kstest(null.wasserstein_tail(w, n), "uniform").pvalue > 0.001


def test_wasserstein_law_grows_as_log_log_n():
    means = [null.wasserstein_null(10**e).mean for e in (3, 5, 7)]
    # log of the number of Hermite terms that N resolves, itself of the order log N
    steps = np.diff(means)
    expected = np.diff(np.log(np.log([1e3, 1e5, 1e7])))
    np.testing.assert_allclose(steps, expected, rtol=0.25)


# --- the test -------------------------------------------------------------------------------------


def test_agrees_with_the_losses_on_every_backend(where, rng):
    x, w = rng.standard_normal((90, 6)), random_slices(6, 24)
    expected = metrics.gaussianity(x, w, n_worst=5)
    found = metrics.gaussianity(where.asarray(x), where.asarray(w), n_worst=5)
    tolerance = 1e-10 if where.dtype == "float64" else 1e-3
    for f, e in zip(found, expected, strict=True):
        for name in ("mean", "mean_z", "max", "max_z"):
            assert type(getattr(f, name)) is float
            assert getattr(f, name) == pytest.approx(getattr(e, name), rel=tolerance)
        assert 0 < f.mean_p <= 1
        np.testing.assert_allclose(f.z, e.z, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(f.p, e.p, atol=2e-3)
        np.testing.assert_array_equal(f.worst, e.worst)
        assert where.backend.owns(f.directions)
        np.testing.assert_allclose(where.to_numpy(f.directions), w[:, f.worst], rtol=1e-6)
    assert expected.epps_pulley.mean == pytest.approx(float(sigreg_loss(x, w)), rel=1e-12)
    swd = float(gaussian_sliced_wasserstein(x, w))
    assert expected.wasserstein.mean == pytest.approx(swd, rel=1e-12)


def test_worst_slices_are_the_largest(rng):
    x, w = rng.standard_normal((80, 5)), random_slices(5, 40)
    test = metrics.gaussianity(x, w, n_worst=40)
    t = epps_pulley(x @ w, *KNOTS, axis=-2)
    np.testing.assert_array_equal(test.epps_pulley.worst, np.argsort(-t))
    assert test.epps_pulley.max == pytest.approx(t.max(), rel=1e-12)
    values = wasserstein_statistic((x @ w).T) / 80
    np.testing.assert_array_equal(test.wasserstein.worst, np.argsort(-values))
    assert test.wasserstein.max == pytest.approx(values.max(), rel=1e-12)
    # z and p say the same thing
    for sliced in test:
        order = np.argsort(sliced.z)
        assert np.all(np.diff(sliced.p[order]) <= 1e-12)
        assert sliced.max_z == sliced.z.max()


@pytest.mark.parametrize(("n", "d", "k", "samples"), [(40, 6, 12, 150), (1500, 4, 8, 120)])
def test_p_values_are_uniform_under_the_null(n, d, k, samples, rng):
    """Both below and above the number of simulated rows; and z-scores of the mean have unit std."""
    w = random_slices(d, k, dtype=np.float32)
    p, z = [], []
    for _ in range(samples):
        x = rng.standard_normal((n, d), dtype=np.float32)
        e, s = metrics.gaussianity(x, w, n_simulations=499)
        p.append([e.mean_p, e.max_p, s.mean_p, s.max_p])
        z.append([e.mean_z, s.mean_z])
    for column in np.asarray(p).T:
        assert scipy.stats.kstest(column, "uniform").pvalue > 0.003
    z = np.asarray(z)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=4 / math.sqrt(samples))
    np.testing.assert_allclose(z.std(axis=0), 1, atol=0.25)


def test_variance_of_the_mean_knows_which_slices(rng):
    """Sixteen copies of one slice are one slice; orthogonal slices are nearly independent."""
    one = random_slices(16, 1)
    laws = module._laws(100, np.repeat(one, 16, axis=1), *KNOTS)
    for law in laws:
        assert law.std_of_mean == pytest.approx(law.std, rel=1e-9)
    laws = module._laws(100, np.eye(16), *KNOTS)
    for law in laws:
        assert law.std_of_mean == pytest.approx(law.std / 4, rel=1e-9)


DEPARTURES = {
    "scale 1.05": lambda rng, x: 1.05 * x,
    "rank 15": lambda rng, x: x * np.append(np.full(15, math.sqrt(16 / 15)), 0.0),
    "correlation": lambda rng, x: (
        math.sqrt(0.9) * x + math.sqrt(0.1) * rng.standard_normal((x.shape[0], 1))
    ),
    "Student": lambda rng, x: x * np.sqrt(3 / rng.chisquare(5, (x.shape[0], 1))),
}
# mean_p of Epps-Pulley, max_p of Epps-Pulley, mean_p of W₂, max_p of W₂
POWER = {
    "scale 1.05": (0.6, 0.1, 0.8, 0.2),
    "rank 15": (0.85, 0.9, 0.8, 0.9),
    "correlation": (0.8, 0.85, 0.85, 0.9),
    "Student": (0.95, 0.9, 0.95, 0.95),
}


@pytest.mark.parametrize("departure", DEPARTURES)
def test_power(departure, rng):
    w = random_slices(16, 64, dtype=np.float32)
    p = []
    for _ in range(24):
        x = rng.standard_normal((512, 16))
        x = DEPARTURES[departure](rng, x).astype(np.float32)
        e, s = metrics.gaussianity(x, w)
        p.append([e.mean_p, e.max_p, s.mean_p, s.max_p])
    power = np.mean(np.asarray(p) <= 0.05, axis=0)
    assert np.all(power >= POWER[departure]), power


def test_simulations_are_seeded_and_kept(rng, monkeypatch):
    x, w = rng.standard_normal((30, 4)), random_slices(4, 9)
    first = metrics.gaussianity(x, w, n_simulations=49, seed=3)
    monkeypatch.setattr(np.random, "default_rng", None)  # a second simulation would fail
    again = metrics.gaussianity(x, w, n_simulations=49, seed=3)
    assert first.epps_pulley.mean_p == again.epps_pulley.mean_p
    monkeypatch.undo()
    module._SIMULATED.clear()
    afresh = metrics.gaussianity(x, w, n_simulations=49, seed=3)
    assert first.wasserstein.max_p == afresh.wasserstein.max_p


# --- search ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", ["epps_pulley", "wasserstein"])
def test_worst_direction_finds_a_bad_one(rng, statistic):
    x = rng.standard_normal((1200, 8))
    x[:, 5] = np.sign(x[:, 5])
    rotation = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    x = x @ rotation.T  # no coordinate axis is the bad direction
    found = metrics.worst_direction(x, random_slices(8, 256), statistic=statistic)
    assert np.linalg.norm(found.direction) == pytest.approx(1)
    assert abs(found.direction @ rotation[:, 5]) > 0.95
    assert found.p <= 1e-4
    assert found.z > 10


@pytest.mark.parametrize("statistic", ["epps_pulley", "wasserstein"])
@pytest.mark.dtypes("float64")
def test_worst_direction_on_every_backend(where, rng, statistic):
    x = rng.standard_normal((80, 5))
    w = random_slices(5, 8)
    options = {"statistic": statistic, "n_steps": 1}
    expected = metrics.worst_direction(x, w, **options)
    found = metrics.worst_direction(where.asarray(x), where.asarray(w), **options)
    assert where.backend.owns(found.direction)
    np.testing.assert_allclose(where.to_numpy(found.direction), expected.direction, atol=1e-9)
    assert found[1:] == pytest.approx(expected[1:], rel=1e-8)


def test_worst_direction_is_honest_under_the_null(rng):
    w = random_slices(8, 16)
    for statistic in ("epps_pulley", "wasserstein"):
        p = [
            metrics.worst_direction(
                rng.standard_normal((60, 8)), w, statistic=statistic, n_steps=4
            ).p
            for _ in range(80)
        ]
        assert scipy.stats.kstest(p, "uniform").pvalue > 0.005


# --- bad input ------------------------------------------------------------------------------------


def test_bad_input(rng):
    x, w = rng.standard_normal((20, 4)), random_slices(4, 6)
    with pytest.raises(ValueError, match=r"unit columns; found 6 .*first at 0: 2"):
        metrics.gaussianity(x, 2 * w)
    with pytest.raises(ValueError, match="unit columns"):
        metrics.worst_direction(x, np.full((4, 6), math.nan))
    with pytest.raises(ValueError, match=r"D = 4; found shape \(3, 6\)"):
        metrics.gaussianity(x, w[:3])
    with pytest.raises(ValueError, match="n_worst <= K = 6"):
        metrics.gaussianity(x, w, n_worst=7)
    with pytest.raises(ValueError, match="n_simulations"):
        metrics.gaussianity(x, w, n_simulations=0)
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        metrics.gaussianity(x[None], w)
    with pytest.raises(ValueError, match="statistic"):
        metrics.worst_direction(x, w, statistic="anderson")
    with pytest.raises(ValueError, match="N >= 4"):
        metrics.worst_direction(x[:3], w)


@pytest.mark.dtypes("float32")
def test_far_from_gaussian_is_finite(where):
    for a in (np.zeros((20, 4)), np.full((20, 4), 1e6)):
        test = metrics.gaussianity(where.asarray(a), where.asarray(random_slices(4, 6)))
        for sliced in test:
            assert sliced.mean_p <= 0.01
            assert np.all(np.isfinite(sliced.z))
            assert np.all((sliced.p >= 0) & (sliced.p <= 1))


def test_a_value_that_ties_with_draws_is_no_rarer_than_they():
    """(1 + as many as are at least as large) / (1 + all): equal ones count."""
    draws = np.asarray([0.0, 1.0, 1.0, 2.0])
    module = importlib.import_module("visreg_core.metrics.gaussianity")
    assert [module._rank_p(v, draws) for v in (-1, 0, 1, 1.5, 2, 3)] == [1, 1, 0.8, 0.4, 0.4, 0.2]
    known = null.wasserstein_null(30).draws
    for at in (0, 40, known.size - 1):
        tied = np.count_nonzero(known >= known[at])
        found = null.wasserstein_tail(known[at : at + 1], 30)
        assert found[0] == (1 + tied) / (1 + known.size)
