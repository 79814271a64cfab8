"""Spectrum measures against mpmath, SciPy and transcriptions of the published formulas."""

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from visreg_core import metrics
from visreg_core.metrics import spectrum

# (function of embeddings, its twin, centring that the twin's argument needs, conventions)
MEASURES = [
    ("rankme", {"exact": False, "paper": False, "stable-pretraining": False,
                "eigenvalues": False, "reptrix": True}),
    ("effective_rank", {"roy-vetterli": False, "covariance": True}),
    ("condition_number", {"exact": False, "covariance": True, "stable-pretraining": False}),
    ("alpha_req", {"reptrix": True, "stringer": True, "ols": True}),
]  # fmt: skip
CASES = [(name, c, center) for name, cs in MEASURES for c, center in cs.items()]


def decaying(rng, n=60, d=24, mean=0.7):
    return rng.standard_normal((n, d)) * np.arange(1, d + 1) ** -0.6 + mean


def host_singular_values(x, center):
    return np.linalg.svd(x - x.mean(axis=0) if center else x, compute_uv=False)


# --- singular values ------------------------------------------------------------------------------


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("shape", [(60, 24), (12, 24), (2, 1), (2, 5)])
def test_singular_values_are_numpys(where, rng, shape, center):
    x = where.asarray(rng.standard_normal(shape) + 3.0)
    s = metrics.singular_values(x, center=center)
    expected = host_singular_values(where.to_numpy(x).astype(np.float64), center)
    tolerance = 1e-12 if where.dtype == "float64" else 2e-6
    assert type(s) is np.ndarray
    assert s.dtype == np.float64
    assert s.shape == (min(shape),)
    np.testing.assert_allclose(s, expected, rtol=tolerance, atol=tolerance * expected[0])


def test_centring_leaves_exact_zeros(where):
    constant = where.asarray(np.full((1000, 7), 0.1))
    assert np.all(metrics.singular_values(constant, center=True) == 0)
    wide = where.asarray(np.random.default_rng(0).standard_normal((5, 9)))
    s = metrics.singular_values(wide, center=True)
    assert s[-1] == 0
    assert s[-2] > 0.1


@pytest.mark.dtypes("float16", "bfloat16")
def test_half_precision_is_read_as_float32(where, rng):
    x = where.asarray(decaying(rng))
    exact = host_singular_values(where.to_numpy(x).astype(np.float64), False)
    np.testing.assert_allclose(metrics.singular_values(x), exact, rtol=1e-5)


def test_singular_values_from_gram(rng):
    for n, d in [(60, 24), (12, 24)]:
        x = decaying(rng, n, d)
        s = metrics.singular_values_from_gram(x.T @ x, n)
        np.testing.assert_allclose(s, host_singular_values(x, False), rtol=1e-9)
    low_rank = rng.standard_normal((60, 3)) @ rng.standard_normal((3, 24))
    s = metrics.singular_values_from_gram(low_rank.T @ low_rank, 60)
    assert np.sum(s > 0) == 3
    assert math.isinf(metrics.condition_number_from_singular_values(s))


# --- values ---------------------------------------------------------------------------------------


def test_published_conventions_on_a_gaussian():
    x = np.random.default_rng(0).standard_normal((1000, 512))
    published = {"exact": 472.8, "stable-pretraining": 485.8, "eigenvalues": 395.9}
    for convention, value in published.items():
        assert metrics.rankme(x, convention=convention) == pytest.approx(value, abs=0.2)
    assert metrics.rankme(x, convention="paper") == pytest.approx(472.977, abs=1e-3)
    assert metrics.rankme(x, convention="reptrix") == pytest.approx(396.0, abs=0.2)


def test_named_releases_give_their_numbers():
    """What reptrix 0.1.0 and stable-pretraining 0.1.8 printed for these rows."""
    x = np.random.default_rng(0).standard_normal((1000, 512)) * np.arange(1, 513) ** -0.25
    assert metrics.alpha_req(x, convention="reptrix") == pytest.approx(0.4444964252966917)
    assert metrics.rankme(x, convention="reptrix") == pytest.approx(327.3957101958812)
    stable = {"convention": "stable-pretraining"}
    assert metrics.rankme(x, **stable) == pytest.approx(466.3719460520823)
    assert metrics.condition_number(x, **stable) == pytest.approx(13.760211247576672)


@pytest.mark.parametrize("convention", ["exact", "paper", "stable-pretraining", "eigenvalues"])
def test_rankme_against_mpmath(rng, convention):
    s = [mpmath.mpf(float(v)) for v in host_singular_values(decaying(rng), False)]
    power = 2 if convention == "eigenvalues" else 1
    eps = {"paper": mpmath.mpf("1e-7"), "stable-pretraining": mpmath.mpf("1e-5")}
    with mpmath.workdps(40):
        total = mpmath.fsum(v**power for v in s)
        p = [v**power / total + eps.get(convention, 0) for v in s]
        expected = mpmath.exp(-mpmath.fsum(v * mpmath.log(v) for v in p))
    found = metrics.rankme_from_singular_values([float(v) for v in s], convention=convention)
    assert found == pytest.approx(float(expected), rel=1e-13)


def test_effective_rank_is_scipys_entropy(rng):
    x = decaying(rng)
    s = host_singular_values(x, False)
    assert metrics.effective_rank(x) == pytest.approx(np.exp(scipy.stats.entropy(s)), rel=1e-12)
    covariance = np.linalg.eigvalsh(np.cov(x.T))
    assert metrics.effective_rank(x, convention="covariance") == pytest.approx(
        np.exp(scipy.stats.entropy(covariance)), rel=1e-12
    )


def test_norm_ratios_and_covariances(rng):
    x = decaying(rng)
    stable = np.linalg.norm(x) ** 2 / np.linalg.norm(x, 2) ** 2
    assert metrics.stable_rank(x) == pytest.approx(stable, rel=1e-12)
    centred = x - x.mean(axis=0)
    stable = np.linalg.norm(centred) ** 2 / np.linalg.norm(centred, 2) ** 2
    assert metrics.stable_rank(x, center=True) == pytest.approx(stable, rel=1e-12)
    c = np.cov(x.T)
    assert metrics.participation_ratio(x) == pytest.approx(
        np.trace(c) ** 2 / np.trace(c @ c), rel=1e-12
    )
    m = x.T @ x
    assert metrics.participation_ratio(x, center=False) == pytest.approx(
        np.trace(m) ** 2 / np.trace(m @ m), rel=1e-12
    )
    assert metrics.condition_number(x) == pytest.approx(np.linalg.cond(x), rel=1e-10)
    assert metrics.condition_number(x, convention="covariance") == pytest.approx(
        np.linalg.cond(c), rel=1e-9
    )


def test_condition_number_at_the_published_floor():
    s = [2.0, 1e-14]
    assert metrics.condition_number_from_singular_values(s) == pytest.approx(2e14)
    floored = metrics.condition_number_from_singular_values(s, convention="stable-pretraining")
    assert floored == pytest.approx(2e10)


def weighted_line(eigenvalues, first, last, weighted):
    """Least squares by NumPy's polyfit: its weights multiply residuals before squaring."""
    j = np.arange(first, last + 1)
    w = np.sqrt(1 / j) if weighted else None
    slope, intercept = np.polyfit(np.log(j), np.log(eigenvalues[first - 1 : last]), 1, w=w)
    return -slope, intercept


@pytest.mark.parametrize(
    ("convention", "first", "last", "weighted"),
    [("reptrix", 11, 100, True), ("stringer", 11, 500, True), ("ols", 1, 600, False)],
)
def test_alpha_req_fit_ranges(rng, convention, first, last, weighted):
    x = rng.standard_normal((900, 600)) * np.arange(1, 601) ** -0.5
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    alpha, _ = weighted_line(eigenvalues, first, last, weighted)
    assert metrics.alpha_req(x, convention=convention) == pytest.approx(alpha, rel=1e-9)
    s = metrics.singular_values(x, center=True)
    fit = metrics.power_law_fit(s, convention=convention)
    assert (fit.first, fit.last) == (first, last)
    # The amplitude is that of σ², N − 1 times the covariance's.
    _, intercept = weighted_line(s**2, first, last, weighted)
    assert fit.log_amplitude == pytest.approx(intercept, rel=1e-9)


def test_r_squared_is_scipys_without_weights(rng):
    s = host_singular_values(decaying(rng), True)
    expected = scipy.stats.linregress(np.log(np.arange(1, 25)), 2 * np.log(s))
    fit = metrics.power_law_fit(s, convention="ols")
    assert fit.r_squared == pytest.approx(expected.rvalue**2, rel=1e-12)
    assert fit.alpha == pytest.approx(-expected.slope, rel=1e-12)


def test_fit_range_is_clipped_to_the_resolved_spectrum(where, rng):
    x = rng.standard_normal((80, 12)) @ rng.standard_normal((12, 40))
    s = metrics.singular_values(where.asarray(x), center=True)
    alpha = metrics.alpha_req(where.asarray(x))
    exact, _ = weighted_line(host_singular_values(x, True) ** 2, 11, 12, True)
    assert alpha == pytest.approx(exact, rel=1e-3 if where.dtype == "float32" else 1e-9)
    assert metrics.alpha_req_from_singular_values(s, rtol=1e-5) == pytest.approx(alpha)
    assert metrics.alpha_req(where.asarray(x), fit_range=(2, 9)) == pytest.approx(
        weighted_line(host_singular_values(x, True) ** 2, 2, 9, True)[0], rel=1e-4
    )


@given(
    alpha=st.floats(0.0, 3.0),
    amplitude=st.floats(1e-6, 1e6),
    size=st.integers(12, 700),
    convention=st.sampled_from(["reptrix", "stringer", "ols"]),
)
@settings(max_examples=60, deadline=None)
def test_power_laws_are_recovered(alpha, amplitude, size, convention):
    s = np.sqrt(amplitude * np.arange(1.0, size + 1) ** -alpha)
    fit = metrics.power_law_fit(s, convention=convention)
    assert fit.alpha == pytest.approx(alpha, abs=1e-9)
    assert fit.log_amplitude == pytest.approx(math.log(amplitude), abs=1e-8)


# --- every measure --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "convention", "center"), CASES)
def test_twin_agrees_on_every_backend(where, rng, name, convention, center):
    x = decaying(rng)
    value = getattr(metrics, name)(where.asarray(x), convention=convention)
    twin = getattr(metrics, f"{name}_from_singular_values")
    assert type(value) is float
    expected = twin(host_singular_values(x, center), convention=convention)
    assert value == pytest.approx(expected, rel=1e-10 if where.dtype == "float64" else 2e-5)


@given(
    s=st.lists(st.floats(1e-3, 1.0), min_size=8, max_size=40),
    scale=st.sampled_from([1e-150, 1e-8, 7.0, 1e8, 1e150]),
)
@settings(max_examples=60, deadline=None)
def test_measures_know_no_scale_and_their_bounds(s, scale):
    """Also: the order of the ranks. Squaring sharpens a spectrum, and the stable rank is least."""
    s = np.asarray(s)
    entropy = metrics.effective_rank_from_singular_values(s)
    sharpened = metrics.effective_rank_from_singular_values(s, convention="covariance")
    participation = metrics.participation_ratio_from_singular_values(s)
    stable = metrics.stable_rank_from_singular_values(s)
    slack = 1 + 1e-12
    assert stable * slack >= 1
    assert stable <= participation * slack
    assert participation <= sharpened * slack
    assert sharpened <= entropy * slack
    assert entropy <= s.size * slack
    assert entropy == metrics.rankme_from_singular_values(s)
    for name in ("rankme", "effective_rank", "stable_rank", "participation_ratio", "alpha_req"):
        twin = getattr(metrics, f"{name}_from_singular_values")
        assert twin(scale * s) == pytest.approx(twin(s), rel=1e-9, abs=1e-9, nan_ok=True)


def test_flat_spectrum_has_full_rank(where):
    x = where.asarray(np.eye(16) * 3.0)
    for measure in (metrics.rankme, metrics.effective_rank, metrics.stable_rank):
        assert measure(x) == pytest.approx(16, rel=1e-6)
    assert metrics.participation_ratio(x, center=False) == pytest.approx(16, rel=1e-6)
    assert metrics.condition_number(x) == pytest.approx(1, rel=1e-6)


def test_collapse(where):
    zeros, constant = where.asarray(np.zeros((6, 9))), where.asarray(np.full((6, 9), 0.3))
    for convention in ("exact", "paper", "reptrix"):
        assert metrics.rankme(zeros, convention=convention) == 0
    assert metrics.rankme(constant, convention="reptrix") == 0
    assert metrics.effective_rank(constant, convention="covariance") == 0
    assert metrics.participation_ratio(constant) == 0
    assert metrics.stable_rank(zeros) == 0
    assert metrics.stable_rank(constant, center=True) == 0
    assert math.isnan(metrics.condition_number(zeros))
    assert math.isnan(metrics.alpha_req(constant))
    assert metrics.rankme(constant) == pytest.approx(1, abs=1e-4)
    assert math.isnan(metrics.condition_number(constant, convention="covariance"))


# --- bad input ------------------------------------------------------------------------------------


def test_unknown_conventions_are_named():
    x = np.eye(4)
    for name, conventions in MEASURES:
        with pytest.raises(ValueError, match="convention.*" + min(conventions)):
            getattr(metrics, name)(x, convention="nope")
        with pytest.raises(ValueError, match=r"convention.*found 'nope'"):
            getattr(metrics, f"{name}_from_singular_values")([1.0], convention="nope")


def test_bad_input():
    with pytest.raises(ValueError, match=r"N >= 2 samples.*\(1, 4\)"):
        metrics.rankme(np.ones((1, 4)))
    with pytest.raises(ValueError, match=r"shape \(N, D\); found shape \(2, 3, 4\)"):
        metrics.rankme(np.ones((2, 3, 4)))
    with pytest.raises(TypeError, match="int64"):
        metrics.rankme(np.ones((3, 4), dtype=np.int64))
    with pytest.raises(TypeError, match="list"):
        metrics.rankme([[1.0, 2.0]])
    for s in ([-1.0], [math.nan, 1.0]):
        with pytest.raises(ValueError, match="non-negative"):
            metrics.stable_rank_from_singular_values(s)
    with pytest.raises(ValueError, match="vector"):
        metrics.stable_rank_from_singular_values(np.eye(2))
    with pytest.raises(ValueError, match=r"last <= 4; found \(2, 9\)"):
        metrics.power_law_fit([4.0, 3.0, 2.0, 1.0], fit_range=(2, 9))
    with pytest.raises(ValueError, match=r"shape \(D, D\)"):
        metrics.singular_values_from_gram(np.ones((2, 3)), 5)


def test_gradients_are_left_alone():
    import torch

    x = torch.randn(20, 5, requires_grad=True)
    metrics.rankme(x)
    assert x.requires_grad
    assert x.grad is None


def test_conventions_tables_match_the_docstrings():
    for function, table in [
        (metrics.rankme, spectrum.RANKME),
        (metrics.effective_rank, spectrum.EFFECTIVE_RANK),
        (metrics.condition_number, spectrum._CONDITION_NUMBER),
        (metrics.alpha_req, spectrum._ALPHA_REQ),
    ]:
        assert all(f'"{name}"' in function.__doc__ for name in table)
