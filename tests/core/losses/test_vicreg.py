"""VICReg and SAG-VICReg: published constants, conventions, Gram matrices."""

import tracemalloc

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.linalg import hadamard

from tests.core import reference
from visreg_core import (
    covariance_loss,
    sag_vicreg_loss,
    spectralnet_loss,
    value_and_grad,
    variance_loss,
    vicreg_loss,
)

pytestmark = pytest.mark.lean_on_jax(dtype=[])  # test_values and test_jit are enough


def published(a, b):
    """VICReg's loss as eager torch, with its own constants."""
    repr_loss = torch.nn.functional.mse_loss(a, b)
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    std_a, std_b = (torch.sqrt(v.var(dim=0) + 0.0001) for v in (a, b))
    std_loss = torch.relu(1 - std_a).mean() / 2 + torch.relu(1 - std_b).mean() / 2
    n, d = a.shape
    cov_loss = 0
    for v in (a, b):
        cov = v.T @ v / (n - 1)
        cov_loss = cov_loss + (cov - torch.diag(torch.diagonal(cov))).pow(2).sum() / d
    return 25 * repr_loss + 25 * std_loss + cov_loss, repr_loss, std_loss, cov_loss


@pytest.mark.parametrize(("n", "d"), [(64, 16), (16, 64)])
def test_published_constants(where, n, d, rng):
    a = rng.normal(size=(n, d)) * 0.8
    b = a + 0.3 * rng.normal(size=(n, d))
    ta, tb = (torch.from_numpy(v).requires_grad_() for v in (a, b))
    expected = published(ta, tb)
    result, gradients = value_and_grad(vicreg_loss)(where.asarray(a), where.asarray(b))
    tolerance = 1e-12 if where.dtype == "float64" else 5e-6
    for got, wanted in zip(result, expected, strict=True):
        assert_allclose(where.to_numpy(got), wanted.item(), rtol=tolerance)
    for got, wanted in zip(gradients, torch.autograd.grad(expected[0], (ta, tb)), strict=True):
        wanted = wanted.numpy()
        atol = tolerance * np.max(np.abs(wanted))
        assert_allclose(where.to_numpy(got), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("convention", ["vicreg", "solo-learn", "paper", "visreg"])
def test_conventions_differ_as_documented(convention, rng):
    a = 0.6 * rng.normal(size=(10, 4)) + 0.5
    b = a + 0.1 * rng.normal(size=(10, 4))
    base, got = vicreg_loss(a, b), vicreg_loss(a, b, convention=convention)
    if convention == "paper":
        assert_allclose(got.invariance, 4 * base.invariance, rtol=1e-14)
    else:
        assert_allclose(got.invariance, base.invariance, rtol=1e-14)
    if convention in ("solo-learn", "paper"):
        assert_allclose(got.variance, 2 * base.variance, rtol=1e-14)
        assert_allclose(got.covariance, base.covariance, rtol=1e-14)
    if convention == "visreg":
        stacked = np.concatenate([a, b])
        assert_allclose(got.covariance, covariance_loss(stacked), rtol=1e-13)
        stds = np.sqrt(stacked.var(0, ddof=1) + 1e-4)
        assert_allclose(got.variance, np.mean(np.maximum(0, 1 - stds) ** 2), rtol=1e-12)
    weighted = 25 * got.invariance + 25 * got.variance + got.covariance
    assert_allclose(got.total, weighted, rtol=1e-14)


@pytest.mark.parametrize("v", [2, 3, 5])
def test_views_are_the_mean_over_pairs(where, v, rng):
    views = rng.normal(size=(v, 8, 3))
    pairs = [vicreg_loss(views[i], views[j]) for i in range(v) for j in range(i)]
    got = vicreg_loss(where.asarray(views))
    for field in got._fields:
        expected = np.mean([getattr(p, field) for p in pairs])
        tolerance = 1e-12 if where.dtype == "float64" else 5e-6
        assert_allclose(where.to_numpy(getattr(got, field)), expected, rtol=tolerance)


def test_the_hinge_is_off_above_gamma(rng):
    z = 5 * rng.normal(size=(30, 3))
    value, gradient = value_and_grad(variance_loss)(z)
    assert value == 0 and np.all(gradient == 0)
    value, gradient = value_and_grad(variance_loss)(z, gamma=50.0)
    assert value > 0 and np.any(gradient != 0)


@pytest.mark.parametrize("offset", [-1e-3, 1e-3])
def test_the_hinge_just_beside_gamma(where, offset, rng):
    """A thousandth below γ the variance is pulled up, a thousandth above nothing is."""
    z = rng.normal(size=(30, 3))
    z = (1 + offset) * z / np.std(z, axis=0, ddof=1)
    value, gradient = value_and_grad(variance_loss)(where.asarray(z), eps=0.0)
    expected = max(0.0, -offset)
    assert_allclose(where.to_numpy(value), expected, rtol=0, atol=1e-6)
    norms = np.sum(z * where.to_numpy(gradient), axis=0)
    assert_allclose(norms, -(1 + offset) / 3 if offset < 0 else 0, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("n", "d"), [(5, 40), (40, 5), (8, 8), (9, 8), (8, 9)])
def test_gram_and_covariance_paths_agree(where, n, d, rng):
    z = rng.normal(size=(n, d)) @ (np.eye(d) + 0.3 * rng.normal(size=(d, d)))
    c = np.cov(z, rowvar=False)
    expected = (np.sum(c**2) - np.sum(np.diag(c) ** 2)) / d
    value, gradient = value_and_grad(covariance_loss)(where.asarray(z))
    tolerance = 1e-12 if where.dtype == "float64" else 4e-6
    assert_allclose(where.to_numpy(value), expected, rtol=tolerance)
    off = c - np.diag(np.diag(c))
    wanted = 4 / (d * (n - 1)) * (z - z.mean(0)) @ off
    atol = tolerance * np.max(np.abs(wanted))
    assert_allclose(where.to_numpy(gradient), wanted, rtol=0, atol=2 * atol)


@pytest.mark.parametrize(("d", "heavy"), [(40, 1), (40, 9), (40, 15), (17, 12), (12, 9)])
@pytest.mark.parametrize("ratio", [30, 1e4])
def test_heavy_columns_do_not_drown_the_rest(where, d, heavy, ratio, rng):
    """Uncorrelated columns far larger than the others: their squares are nearly all of the Gram
    matrix, and none of the loss. Signs of a Hadamard matrix, whose products are exact."""
    n = 16
    z = rng.normal(size=(n, d))
    z[:, rng.permutation(d)[:heavy]] = ratio * hadamard(n)[:, 1 : heavy + 1]
    z = z.astype(np.float32).astype(np.float64)
    expected = reference.covariance_loss(z)["value"].value
    value, gradient = value_and_grad(covariance_loss)(where.asarray(z))
    rtol = 1e-12 if where.dtype == "float64" else 2e-6
    assert_allclose(where.to_numpy(value), expected, rtol=rtol)
    off = np.cov(z, rowvar=False) * (1 - np.eye(d))
    wanted = 4 / (d * (n - 1)) * (z - z.mean(0)) @ off
    error = np.linalg.norm(where.to_numpy(gradient) - wanted)
    # As far as a rounded product of two columns is known, of which the larger is a factor.
    assert error <= rtol * (np.linalg.norm(wanted) + 0.1 * ratio**2)


def test_heavy_columns_of_one_batch_among_several(rng):
    z = rng.normal(size=(3, 16, 40)).astype(np.float32)
    z[1, :, :10] = 1e4 * hadamard(16)[:, 1:11]
    value, gradient = value_and_grad(covariance_loss)(z)
    alone = [value_and_grad(covariance_loss)(part.astype(np.float64)) for part in z]
    assert_allclose(value, np.mean([v for v, _ in alone]), rtol=2e-6)
    for part, (_, wanted) in zip(gradient, alone, strict=True):
        assert np.linalg.norm(3 * part - wanted) <= 1e-5 * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    "loss", ["covariance_loss", "vicreg_loss", "barlow_twins_loss", "sag_vicreg_loss"]
)
def test_no_square_of_the_dimension(loss, rng):
    """N = 8 rows of D = 2048: a D x D matrix would be 32 MiB."""
    import visreg_core

    a, b = rng.normal(size=(2, 8, 2048))
    arguments = {"covariance_loss": (a,), "sag_vicreg_loss": (a, b, np.arange(8), np.ones(8))}
    function = value_and_grad(getattr(visreg_core, loss))
    arguments = arguments.get(loss, (a, b))
    function(*arguments)
    tracemalloc.start()
    function(*arguments)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6


# SAG-VICReg --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(25, 25, 1), (1, 2, 3)])
def test_identity_pairs_with_unit_weights_are_vicreg(where, weights, rng):
    """Exactly: the same bits in every field and every element of the gradient."""
    a, b = rng.normal(size=(2, 9, 4))
    a, b = where.asarray(a), where.asarray(b)
    pairs, ones = where.asarray(np.arange(9)), where.asarray(np.ones(9))
    plain, plain_gradients = value_and_grad(vicreg_loss)(a, b, weights)
    sag, sag_gradients = value_and_grad(sag_vicreg_loss)(a, b, pairs, ones, weights)
    assert type(sag).__name__ == "SAGVICRegTerms"
    for s, p in zip(sag, plain, strict=True):
        assert float(s) == float(p)
    for s, p in zip(sag_gradients, plain_gradients, strict=True):
        assert np.array_equal(where.to_numpy(s), where.to_numpy(p))


def test_many_rows_may_share_a_partner(where, rng):
    """The gradient of b sums over all rows paired with it; unchosen rows keep the other terms."""
    a, b = rng.normal(size=(2, 6, 3))
    pairs = np.array([2, 2, 2, 2, 2, 2])
    w = rng.uniform(size=6)
    weights = (1, 0, 0)
    arguments = [where.asarray(v) for v in (a, b, pairs, w)]
    result, (ga, gb) = value_and_grad(sag_vicreg_loss)(*arguments, weights)
    residual = 2 * w[:, None] * (a - b[2]) / a.size
    tolerance = 1e-13 if where.dtype == "float64" else 1e-6
    assert_allclose(where.to_numpy(ga), residual, rtol=0, atol=tolerance)
    expected = np.zeros_like(b)
    expected[2] = -residual.sum(0)
    assert_allclose(where.to_numpy(gb), expected, rtol=0, atol=tolerance)
    assert_allclose(float(result.total), float(result.invariance), rtol=1e-6)


@pytest.mark.backends("torch")
@pytest.mark.dtypes("float64")
def test_no_gradient_through_pair_weights(where, rng):
    a, b = (where.asarray(v).requires_grad_() for v in rng.normal(size=(2, 6, 3)))
    w = where.asarray(rng.uniform(size=6)).requires_grad_()
    total = sag_vicreg_loss(a, b, where.asarray(np.arange(6)), w).total
    (gradient,) = where.backend.xp.autograd.grad(total, [w], allow_unused=True)
    assert gradient is None or not bool(gradient.any())


@pytest.mark.dtypes("float64")
def test_invariance_is_a_laplacian_form(where, rng):
    """On the n = 2N stacked rows with W = 1 on positive pairs, VICReg's invariance is
    n/D times ``spectralnet_loss`` (SAG-VICReg section 3.1)."""
    n, d = 7, 3
    a, b = rng.normal(size=(2, n, d))
    w = np.zeros((2 * n, 2 * n))
    w[np.arange(n), n + np.arange(n)] = w[n + np.arange(n), np.arange(n)] = 1
    stacked = where.asarray(np.concatenate([a, b]))
    invariance = vicreg_loss(where.asarray(a), where.asarray(b)).invariance
    spectral = spectralnet_loss(stacked, where.asarray(w))
    assert_allclose(float(invariance), 2 * n / d * float(spectral), rtol=1e-13)


def test_transcription_is_the_published_loss(rng):
    a, b = rng.normal(size=(2, 7, 3))
    mine = [t.value for t in reference.vicreg_loss(a, b).values()]
    theirs = [float(t) for t in published(torch.from_numpy(a), torch.from_numpy(b))]
    assert_allclose(mine, theirs, rtol=1e-13)
