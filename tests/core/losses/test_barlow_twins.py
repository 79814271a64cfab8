"""Barlow Twins at published constants and its two conventions for a constant column."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.linalg import hadamard

from visreg_core import barlow_twins_loss, value_and_grad, value_and_vjp

pytestmark = pytest.mark.lean_on_jax(dtype=[])  # test_values and test_jit are enough


def published(a, b, eps):
    """Batch norm without affine, then the cross-correlation, as eager torch."""

    def norm(z):
        if eps:
            return torch.nn.functional.batch_norm(z, None, None, training=True, eps=eps)
        return (z - z.mean(0)) / z.std(0, unbiased=False)

    c = norm(a).T @ norm(b) / a.shape[0]
    on = (torch.diagonal(c) - 1).pow(2).sum()
    off = c.pow(2).sum() - torch.diagonal(c).pow(2).sum()
    return on + 0.0051 * off, on, off


@pytest.mark.parametrize("eps", [1e-5, 0.0])
@pytest.mark.parametrize(("n", "d"), [(64, 12), (12, 40)])
def test_published_constants(where, n, d, eps, rng):
    a = rng.normal(size=(n, d)) * rng.uniform(0.5, 2, size=d) + 0.3
    b = a + 0.5 * rng.normal(size=(n, d))
    ta, tb = (torch.from_numpy(v).requires_grad_() for v in (a, b))
    expected = published(ta, tb, eps)
    function = value_and_grad(barlow_twins_loss)
    result, gradients = function(where.asarray(a), where.asarray(b), eps=eps)
    tolerance = 1e-11 if where.dtype == "float64" else 2e-5
    for got, wanted in zip(result, expected, strict=True):
        assert_allclose(where.to_numpy(got), wanted.item(), rtol=tolerance)
    for got, wanted in zip(gradients, torch.autograd.grad(expected[0], (ta, tb)), strict=True):
        wanted = wanted.numpy()
        error = np.linalg.norm(where.to_numpy(got) - wanted) / np.linalg.norm(wanted)
        assert error <= tolerance


def test_a_constant_column_standardises_to_zero(where, rng):
    """eps = 0: its correlations are 0 exactly, its diagonal term 1, its gradient 0."""
    a, b = rng.normal(size=(2, 10, 3))
    a[:, 1] = 0.1  # not a binary fraction: its mean rounds
    a32 = a.astype(where.dtype)
    result, (ga, gb) = value_and_grad(barlow_twins_loss)(where.asarray(a32), where.asarray(b))
    sub = barlow_twins_loss(where.asarray(a[:, [0, 2]]), where.asarray(b[:, [0, 2]]))
    assert float(result.on_diagonal) == pytest.approx(float(sub.on_diagonal) + 1, rel=1e-5)
    assert np.all(where.to_numpy(ga)[:, 1] == 0)
    # b's column still correlates with a's others.
    assert np.all(np.isfinite(where.to_numpy(gb))) and np.any(where.to_numpy(gb)[:, 1] != 0)


def test_scale_and_shift_invariance(where, rng):
    """eps = 0: standardisation removes any scale, at 1e-8 and 1e8 as at 1."""
    a, b = rng.normal(size=(2, 12, 4))
    expected = barlow_twins_loss(a, b)
    scales = np.array([1e-8, 1e-3, 1e4, 1e8])
    got = barlow_twins_loss(where.asarray(a * scales), where.asarray(b / scales))
    for g, e in zip(got, expected, strict=True):
        assert_allclose(where.to_numpy(g), e, rtol=1e-11 if where.dtype == "float64" else 2e-5)


@pytest.mark.parametrize("v", [2, 3, 4])
def test_views_are_the_mean_over_pairs(where, v, rng):
    views = rng.normal(size=(v, 8, 3))
    pairs = [barlow_twins_loss(views[i], views[j]) for i in range(v) for j in range(i + 1, v)]
    got = barlow_twins_loss(where.asarray(views))
    for field in got._fields:
        expected = np.mean([getattr(p, field) for p in pairs])
        tolerance = 1e-12 if where.dtype == "float64" else 2e-5
        assert_allclose(where.to_numpy(getattr(got, field)), expected, rtol=tolerance)


def test_identical_views_correlate_perfectly(rng):
    a = rng.normal(size=(20, 4))
    result = barlow_twins_loss(a, a)
    assert float(result.on_diagonal) == pytest.approx(0, abs=1e-28)
    c = np.corrcoef(a, rowvar=False)
    assert float(result.off_diagonal) == pytest.approx(np.sum(c**2) - 4, rel=1e-12)
    assert float(result.total) == pytest.approx(0.0051 * (np.sum(c**2) - 4), rel=1e-12)


@pytest.mark.parametrize("live", [7, 15])
@pytest.mark.parametrize("shared", [True, False])
def test_uncorrelated_dimensions_leave_no_noise(where, live, shared, rng):
    """N < D with fewer live dimensions than rows: the Gram matrices are all diagonal.

    Rounding of these is 1e-7 of the diagonal, where the correlations' own is 1e-14.
    """
    n, d = 16, 40
    a, b = np.zeros((2, n, d))
    a[:, 5 : 5 + live] = hadamard(n)[:, 1 : 1 + live] * rng.uniform(0.5, 2, size=live)
    b[:, 5 : 5 + live] = a[:, 5 : 5 + live] if shared else hadamard(n)[:, 15 : 15 - live : -1]
    b += 1e-3 * (a != 0) * rng.normal(size=(n, d))
    a, b = (x.astype(np.float32).astype(np.float64) for x in (a, b))
    standard = [(x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1) for x in (a, b)]
    c = standard[0].T @ standard[1] / n
    expected = np.sum(c**2) - np.sum(np.diag(c) ** 2)
    tolerance = 1e-6 * expected if where.dtype == "float64" else 1e-3 * expected
    result, vjp = value_and_vjp(barlow_twins_loss)(where.asarray(a), where.asarray(b))
    assert_allclose(where.to_numpy(result.off_diagonal), expected, rtol=0, atol=tolerance)
    off = c - np.diag(np.diag(c))
    for x, other, matrix, got in zip(
        standard, standard[::-1], (off.T, off), vjp(0, 0, 1), strict=True
    ):
        g = 2 / n * other @ matrix
        deviation = (a if x is standard[0] else b).std(0)
        wanted = (g - x * np.mean(g * x, axis=0)) / np.where(deviation > 0, deviation, np.inf)
        limit = 1e-6 if where.dtype == "float32" else 1e-13
        assert np.linalg.norm(where.to_numpy(got) - wanted) <= limit
