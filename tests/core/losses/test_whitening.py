"""W-MSE and SwAV beyond their transcriptions: collapse, invariances, POT's assignments."""

import numpy as np
import ot
import pytest

from visreg_core import swav_loss, value_and_grad, wmse_loss


def test_collapsed_views_are_as_far_apart_as_independent_ones(where, rng):
    a = rng.standard_normal((20, 4))
    flat = np.full_like(a, 0.1)
    for pair in ((flat, flat), (a, flat), (flat, a)):
        value, gradients = value_and_grad(wmse_loss)(*(where.asarray(z) for z in pair))
        assert float(value) == 2
        for z, gradient in zip(pair, gradients, strict=True):
            largest = np.abs(where.to_numpy(gradient)).max()
            assert largest == 0 if z is flat else largest < 1e-12


def test_a_constant_column_changes_nothing(rng):
    a, b = rng.standard_normal((2, 20, 4))
    wide = [np.insert(z, 2, 3.7, axis=1) for z in (a, b)]
    value, gradients = value_and_grad(wmse_loss)(*wide)
    expected, of_rest = value_and_grad(wmse_loss)(a, b)
    assert value == pytest.approx(expected, rel=1e-13)
    for g, e in zip(gradients, of_rest, strict=True):
        assert not g[:, 2].any()
        np.testing.assert_allclose(np.delete(g, 2, axis=1), e, rtol=1e-10, atol=1e-14)


def test_what_whitening_takes_away(rng):
    """Mean and scale of a column; without ε any lower triangular map, which L takes along."""
    a, b = rng.standard_normal((2, 40, 3))
    scales = np.array([1e-6, 3.0, 1e9])
    assert wmse_loss(a * scales + 5, b) == pytest.approx(wmse_loss(a, b), rel=1e-9)
    lower = np.tril(rng.standard_normal((3, 3))) + 2 * np.eye(3)
    assert wmse_loss(a, a @ lower.T, eps=1e-13) < 1e-18


def test_assignments_tend_to_transport(rng):
    """Sinkhorn's plan between uniform masses, times N, by POT."""
    a, b = rng.uniform(-1, 1, size=(2, 15, 4))
    plans = [15 * ot.sinkhorn(np.ones(15) / 15, np.ones(4) / 4, -s, 0.2, method="sinkhorn_log",
                              numItermax=5000, stopThr=1e-14) for s in (a, b)]  # fmt: skip
    expected = 0
    for s, q in zip((a, b), reversed(plans), strict=True):
        log_p = s / 0.1 - np.log(np.sum(np.exp(s / 0.1), axis=1, keepdims=True))
        expected -= np.mean(np.sum(q * log_p, axis=1)) / 2
    found = swav_loss(a, b, epsilon=0.2, n_iterations=500)
    assert found == pytest.approx(expected, rel=1e-9)


def test_scores_of_any_size_have_assignments():
    """e^{s/ε} of scores of 1000 is beyond float64."""
    s = 1000 * np.eye(4)[np.arange(12) % 4]
    assert swav_loss(s, s) == 0
    assert swav_loss(s, s + 7) == 0
