"""Alignment and uniformity against mpmath, SciPy's pdist and closed forms."""

import importlib
import math

import mpmath
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from visreg_core import metrics

module = importlib.import_module("visreg_core.metrics.uniformity")


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("t", [2.0, 0.3])
def test_uniformity_is_pdists(where, rng, normalize, t):
    x = rng.standard_normal((70, 5)) + 0.5
    exponents = -t * pdist(unit(x) if normalize else x, "sqeuclidean")
    expected = scipy.special.logsumexp(exponents) - math.log(70 * 69 / 2)
    value = metrics.uniformity(where.asarray(x), t, normalize=normalize)
    assert type(value) is float
    assert value == pytest.approx(expected, rel=1e-11 if where.dtype == "float64" else 2e-5)
    both = scipy.special.logsumexp([*exponents, *exponents, *np.zeros(70)]) - 2 * math.log(70)
    value = metrics.uniformity(where.asarray(x), t, normalize=normalize, convention="all")
    assert value == pytest.approx(both, rel=1e-11 if where.dtype == "float64" else 2e-5)


@pytest.mark.backends("numpy", "torch")
def test_tiles_add_up(where, rng, monkeypatch):
    x = where.asarray(rng.standard_normal((53, 4)))
    whole = metrics.uniformity(x)
    monkeypatch.setattr(module, "_TILE", 16)
    assert metrics.uniformity(x) == pytest.approx(whole, rel=1e-6)


def test_uniformity_does_not_underflow():
    x = np.asarray([[0.0], [100.0], [250.0]])
    value = metrics.uniformity(x, 2.0, normalize=False)
    with mpmath.workdps(30):
        mean = sum(mpmath.exp(-2 * d**2) for d in (100, 150, 250)) / 3
        assert value == pytest.approx(float(mpmath.log(mean)), rel=1e-14)
    order = metrics.uniformity(x[::-1].copy(), 2.0, normalize=False)
    assert order == pytest.approx(value, rel=1e-14)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 3e10, 1e25])
def test_uniformity_at_any_scale(where, rng, scale):
    x = where.asarray(scale * rng.standard_normal((9, 3)))
    exponents = -2.0 * pdist(where.to_numpy(x).astype(float), "sqeuclidean")
    expected = scipy.special.logsumexp(exponents) - math.log(36)
    value = metrics.uniformity(x, normalize=False)
    assert value == pytest.approx(expected, rel=2e-5, abs=1e-6)


def test_regular_simplex_and_collapse(where):
    # D + 1 unit vectors at squared distance 2(D + 1)/D, the most uniform arrangement.
    d = 7
    simplex = np.linalg.svd(np.eye(d + 1) - 1 / (d + 1))[0][:, :d]
    value = metrics.uniformity(where.asarray(5.0 * simplex))
    assert value == pytest.approx(-4 * (d + 1) / d, rel=1e-5)
    collapsed = where.asarray(np.full((9, 3), 0.3))
    assert metrics.uniformity(collapsed) == pytest.approx(0, abs=1e-6)
    assert metrics.uniformity(collapsed, normalize=False) == 0
    assert metrics.uniformity(where.asarray(np.zeros((9, 3)))) == 0


def test_uniform_on_the_circle():
    """E exp(−t(2 − 2 cos θ)) = e^{−2t} I₀(2t)."""
    angles = np.linspace(0, 2 * np.pi, 4001)[:-1]
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    expected = -4.0 + math.log(scipy.special.i0(4.0))
    assert metrics.uniformity(x, convention="all") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("alpha", [2.0, 1.0, 0.5])
@pytest.mark.parametrize("normalize", [True, False])
def test_alignment_is_its_definition(where, rng, alpha, normalize):
    x, y = rng.standard_normal((2, 40, 6))
    a, b = (unit(x), unit(y)) if normalize else (x, y)
    expected = np.mean(np.linalg.norm(a - b, axis=1) ** alpha)
    value = metrics.alignment(where.asarray(x), where.asarray(y), alpha, normalize=normalize)
    assert type(value) is float
    assert value == pytest.approx(expected, rel=1e-12 if where.dtype == "float64" else 1e-5)


@given(scale=st.sampled_from([1e-30, 1e-8, 1e8, 1e30]), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_scale(scale, seed):
    x, y = np.random.default_rng(seed).standard_normal((2, 20, 3)).astype(np.float32)
    assert metrics.alignment(x, y * np.float32(scale)) == pytest.approx(
        metrics.alignment(x, y), rel=1e-5
    )
    assert metrics.uniformity(x * np.float32(scale)) == pytest.approx(
        metrics.uniformity(x), rel=1e-5
    )
    far = metrics.alignment(x * np.float32(scale), y * np.float32(scale), normalize=False)
    assert far == pytest.approx(scale**2 * metrics.alignment(x, y, normalize=False), rel=1e-5)


def test_alignment_of_identical_views_is_zero(where, rng):
    x = where.asarray(rng.standard_normal((6, 3)))
    assert metrics.alignment(x, x, normalize=False) == 0
    assert metrics.alignment(x, x, 0.5) == 0


def test_bad_input(rng):
    x = rng.standard_normal((6, 3))
    for bad in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="t to be a positive number"):
            metrics.uniformity(x, bad)
        with pytest.raises(ValueError, match="alpha to be a positive number"):
            metrics.alignment(x, x, bad)
    with pytest.raises(ValueError, match=r"distinct.*all"):
        metrics.uniformity(x, convention="some")
    with pytest.raises(ValueError, match=r"one shape; found \(6, 3\) and \(6, 2\)"):
        metrics.alignment(x, x[:, :2])
    with pytest.raises(ValueError, match="different ids in 6 rows"):
        metrics.alignment(x, x, ids_x=range(6), ids_y=range(1, 7))
    with pytest.raises(ValueError, match="N >= 2"):
        metrics.uniformity(x[:1])
