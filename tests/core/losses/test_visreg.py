"""VISReg: Algorithm 1 as eager torch, weights, epsilon, and the objective."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from visreg_core import (
    center_loss,
    invariance_loss,
    joint_objective,
    normal_quantiles,
    random_slices,
    scale_loss,
    shape_loss,
    value_and_grad,
    visreg_loss,
)

pytestmark = pytest.mark.lean_on_jax(dtype=["float64"])


def algorithm_1(z, slices, eps=1e-6, detach=True):
    """The paper's Algorithm 1 with the formula's epsilon."""
    mu = z.mean(dim=0)
    centred = z - mu
    std = centred.std(dim=0, unbiased=False)
    divisor = (std.detach() if detach else std) + eps
    p = torch.sort(centred / divisor @ slices, dim=0).values
    n = len(z)
    target = (
        torch.distributions.Normal(0.0, 1.0)
        .icdf(torch.arange(1, n + 1, dtype=torch.float64) / (n + 1))
        .to(z.dtype)
    )
    scale, shape, center = (
        (1.0 - std).pow(2).mean(),
        (p - target[:, None]).pow(2).mean(),
        mu.pow(2).mean(),
    )
    return scale + shape + center, scale, shape, center


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.lean_on_jax(dtype=[])
def test_algorithm_1(where, detach, rng):
    z = rng.normal(size=(50, 8)) * rng.uniform(0.5, 1.5, size=8) + 0.2
    z = z.astype(np.float32).astype(np.float64)
    slices = random_slices(8, 32, dtype=np.float32).astype(np.float64)
    tz = torch.from_numpy(z).requires_grad_()
    expected = algorithm_1(tz, torch.from_numpy(slices), detach=detach)
    function = value_and_grad(visreg_loss)
    result, gradient = function(where.asarray(z), where.asarray(slices), detach_scale=detach)
    tolerance = 1e-12 if where.dtype == "float64" else 2e-6
    for got, wanted in zip(result, expected, strict=True):
        assert abs(float(where.to_numpy(got)) - wanted.item()) <= tolerance * 5
    (wanted,) = torch.autograd.grad(expected[0], tz)
    error = np.linalg.norm(where.to_numpy(gradient) - wanted.numpy())
    bound = 1e-11 if where.dtype == "float64" else 1e-5
    assert error <= bound * np.linalg.norm(wanted.numpy())


def test_terms_are_the_single_losses(where, rng):
    z = where.asarray(rng.normal(size=(12, 4)) + 0.5)
    slices = where.asarray(random_slices(4, 6, dtype=np.float64))
    got = visreg_loss(z, slices, (2, 3, 5))
    rtol = 1e-14 if where.dtype == "float64" else 1e-6
    singles = scale_loss(z), shape_loss(z, slices), center_loss(z)
    for field, single in zip(("scale", "shape", "center"), singles, strict=True):
        assert_allclose(float(getattr(got, field)), float(single), rtol=rtol)
    weighted = 2 * float(got.scale) + 3 * float(got.shape) + 5 * float(got.center)
    assert_allclose(float(got.total), weighted, rtol=10 * rtol)


def test_zero_weights_drop_terms_from_the_gradient(rng):
    z, slices = rng.normal(size=(12, 4)) + 0.5, random_slices(4, 6)
    for weights, single in (
        ((1, 0, 0), value_and_grad(scale_loss)(z)),
        ((0, 1, 0), value_and_grad(shape_loss)(z, slices)),
        ((0, 0, 1), value_and_grad(center_loss)(z)),
    ):
        result, gradient = value_and_grad(visreg_loss)(z, slices, weights)
        assert_allclose(result.total, single[0], rtol=1e-14)
        assert_allclose(gradient, single[1], rtol=0, atol=1e-15)


def test_the_stop_gradient_decouples_scale_from_shape(rng):
    """Moving along the scale direction of a column, the shape gradient of the detached loss does
    not vanish; attached it does up to eps, since the shape does not depend on scale."""
    z, slices = rng.normal(size=(30, 4)), random_slices(4, 16)
    centred = z - z.mean(0)
    _, detached = value_and_grad(shape_loss)(z, slices)
    _, attached = value_and_grad(shape_loss)(z, slices, detach_scale=False)
    along = np.abs(np.sum(centred * attached, axis=0))
    assert np.all(along < 1e-5)
    assert np.all(np.abs(np.sum(centred * detached, axis=0)) > 100 * along)


def test_shape_ignores_place_and_nearly_scale(where, rng):
    z = rng.normal(size=(30, 4))
    slices = where.asarray(random_slices(4, 8, dtype=np.float64))
    expected = float(where.to_numpy(shape_loss(where.asarray(z), slices)))
    moved = where.asarray(z * np.array([8.0, 2.0, 4.0, 64.0]) + 3.0)
    assert float(where.to_numpy(shape_loss(moved, slices))) == pytest.approx(expected, rel=1e-4)


def test_a_standard_normal_is_almost_a_minimum():
    n = 20_000
    z = np.random.default_rng(0).permuted(
        np.repeat(normal_quantiles(n)[:, None], 3, axis=1), axis=0
    )
    got = visreg_loss(z, random_slices(3, 20))
    assert float(got.center) < 1e-20
    assert float(got.scale) < 1e-6
    assert float(got.shape) < 5e-3


def test_invariance_of_views_around_the_global_mean(rng):
    z = rng.normal(size=(4, 6, 3))
    center = z[:2].mean(0)
    assert_allclose(invariance_loss(z, 2), np.mean((z - center) ** 2), rtol=1e-14)
    assert_allclose(invariance_loss(z), np.mean((z - z.mean(0)) ** 2), rtol=1e-14)
    assert_allclose(invariance_loss(z, reduction="sum"), 3 * invariance_loss(z), rtol=1e-14)
    _, detached = value_and_grad(invariance_loss)(z, 2, detach_center=True)
    assert_allclose(detached, 2 * (z - center) / z.size, rtol=1e-13)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_joint_objective(where, lam):
    a, b = where.asarray(np.asarray(2.0)), where.asarray(np.asarray(5.0))
    got = joint_objective(a, b, lam)
    assert where.backend.owns(got)
    assert where.backend.dtype_name(got) == where.dtype
    assert float(got) == pytest.approx((1 - lam) * 2 + lam * 5)


@pytest.mark.dtypes("float32")
def test_deviations_of_many_rows_keep_their_digits(where, rng):
    """A million squares added one after the other would lose half of float32's digits."""
    z = (3 * rng.normal(size=(1_000_000, 2))).astype(np.float32)
    expected = np.mean((1 - z.std(axis=0, dtype=np.float64)) ** 2)
    assert float(scale_loss(where.asarray(z))) == pytest.approx(expected, rel=1e-6)
