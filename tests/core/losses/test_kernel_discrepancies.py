"""What the closed forms of MMD, KSD and the limit of SIGReg rest on, against other derivations."""

import math
import tracemalloc

import mpmath
import numpy as np
import pytest
from scipy.special import erfcx

from tests.core import reference
from visreg_core import (
    gaussian_ksd,
    gaussian_mmd,
    random_slices,
    sigreg_limit,
    sigreg_loss,
    spherical_mmd,
    value_and_grad,
)
from visreg_core.losses.radial import mean_over_directions, prior_mean, prior_means


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 64, 1024])
def test_mean_over_directions_is_kummers_function(dim):
    s = np.array([0.0, 1e-9, 1e-3, 0.3, 2.0, 30.0, 1e3, 1e6, 1e12, 1e17])
    value, slope = mean_over_directions(np, dim, s, True)
    expected = [float(mpmath.hyp1f1(0.5, dim / 2, -v)) for v in s]
    np.testing.assert_allclose(value, expected, rtol=1e-13, atol=1e-300)
    expected = [float(-mpmath.hyp1f1(1.5, dim / 2 + 1, -v)) / dim for v in s]
    np.testing.assert_allclose(slope, expected, rtol=1e-13, atol=1e-300)
    (narrow,) = mean_over_directions(np, dim, s.astype(np.float32), False)
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, value, rtol=2e-6, atol=1e-37)


@pytest.mark.parametrize("dim", [3, 40])
def test_mean_over_directions_is_one_over_the_sphere(dim):
    w = random_slices(dim, 200_000)
    samples = np.exp(-0.5 * dim * w[0] ** 2)
    (value,) = mean_over_directions(np, dim, np.array([0.5 * dim]), False)
    assert abs(samples.mean() - value[0]) < 4 * samples.std() / math.sqrt(samples.size)


def test_laplaces_prior_mean_on_the_line():
    """E e^{−|z − X|/h} in closed form, as a part of the kernel's largest value."""
    for h in (0.4, 1.0, 7.0):
        z = np.array([0.0, 0.5, 2.0, 6.0, 30.0])
        # Of scaled complementary error functions: e^{a²/2 + az} Φ(−z − a) on either side of z.
        a = 1 / h
        sides = [erfcx((a + s * z) / math.sqrt(2)) for s in (1, -1)]
        with np.errstate(over="ignore"):
            exact = 0.5 * np.exp(-z * z / 2) * (sides[0] + sides[1])
        far = ~np.isfinite(exact)
        exact[far] = np.exp(a * a / 2 - a * z[far])
        means = prior_means("laplace", h, 1)
        np.testing.assert_allclose(prior_mean(np, means, z * z, False)[0], exact, atol=1e-15)


@pytest.mark.parametrize("dim", [1, 5, 200])
@pytest.mark.parametrize("relative", [0.3, 1.0, 4.0])
def test_prior_means_of_the_inverse_multiquadric(dim, relative):
    """Mean, slope and constant by mpmath's quadrature over the mixture of Gaussian kernels."""
    h = relative * math.sqrt(dim)

    def mixed(f):
        points = [0, 1e-6, 1e-3, 0.1, 1, 10, mpmath.inf]
        return float(mpmath.quad(lambda t: f(t * t / h**2) * mpmath.exp(-t * t), points)
                     * 2 / mpmath.sqrt(mpmath.pi))  # fmt: skip

    means = prior_means("imq", h, dim)
    assert means.both == pytest.approx(mixed(lambda g: (1 + 4 * g) ** (-dim / 2)), rel=1e-12)
    for q in (0.0, float(dim), 1e4):
        value, slope = (float(v[0]) for v in prior_mean(np, means, np.array([q]), True))

        def own(g, q=q):
            return (1 + 2 * g) ** (-dim / 2) * mpmath.exp(-g * q / (1 + 2 * g))

        assert value == pytest.approx(mixed(own), rel=1e-12)
        expected = -mixed(lambda g, own=own: g / (1 + 2 * g) * own(g))
        assert slope == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kernel", ["gaussian", "imq", "laplace"])
def test_mmd_of_gaussian_samples_on_average(kernel):
    """E MMD² of N draws of the prior is (1 − E k(X, X'))/N."""
    n, dim, repeats = 16, 6, 3000
    z = np.random.default_rng(0).standard_normal((repeats, n, dim))
    both = prior_means(kernel, math.sqrt(dim), dim).both
    error = float(gaussian_mmd(z, kernel=kernel)) - (1 - both) / n
    assert abs(error) < 4 * (1 - both) / n / math.sqrt(repeats)


@pytest.mark.parametrize("dim", [1, 2, 3, 9, 300])
def test_spherical_mmd_of_uniform_samples_on_average(dim):
    """E MMD² of N draws is (1 − E k(U, U'))/N, and two opposite poles have it in closed form."""
    n, repeats, t = 8, 3000, 1.5
    z = np.random.default_rng(dim).standard_normal((repeats, n, dim))
    uniform = reference.mean_to_uniform(t, dim)
    error = float(spherical_mmd(z, t)) - (1 - uniform) / n
    assert abs(error) < 4 * (1 - uniform) / n / math.sqrt(repeats)
    poles = np.stack([np.eye(dim)[0], -3 * np.eye(dim)[0]])
    expected = (1 + math.exp(-4 * t)) / 2 - uniform
    assert float(spherical_mmd(poles, t)) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("kernel", ["gaussian", "imq"])
def test_steins_kernel_has_mean_zero_under_the_prior(kernel):
    """Between a point and X ~ N(0, 1): from the discrepancy of two, less those of each alone."""
    nodes = np.linspace(-10, 10, 401)
    weights = np.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi) * (nodes[1] - nodes[0])

    def stein(x, y):  # n² KSD² = u(x, x) + u(y, y) + 2 u(x, y)
        both = gaussian_ksd(np.array([[x], [y]]), kernel=kernel)
        alone = [gaussian_ksd(np.array([[v], [v]]), kernel=kernel) for v in (x, y)]
        return float(2 * both - (alone[0] + alone[1]) / 2)

    for x in (0.0, 0.7, -2.0):
        values = [stein(x, y) for y in nodes]
        assert abs(np.dot(weights, values)) < 1e-9 * np.dot(weights, np.abs(values)) + 1e-12


def test_sigreg_tends_to_its_limit_as_one_over_the_root_of_k():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((48, 12)) @ (np.eye(12) + 0.3 * rng.standard_normal((12, 12)))
    fine = {"t_max": 8.0, "n_knots": 65}  # the whole integral, to 1e-13 of it
    limit, gradient = value_and_grad(sigreg_limit)(z)
    counts = np.array([16, 64, 256, 1024])
    errors = np.zeros((len(counts), 2))
    for i, k in enumerate(counts):
        for step in range(16):
            found, own = value_and_grad(sigreg_loss)(
                z, random_slices(12, int(k), step=step), **fine
            )
            errors[i] += (found - limit) ** 2, np.sum((own - gradient) ** 2)
    errors = np.sqrt(errors / 16) / [limit, np.linalg.norm(gradient)]
    rates = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    np.testing.assert_allclose(rates, -0.5, atol=0.08)
    assert errors[-1, 0] < 0.03


def test_sigreg_is_its_limit_on_the_line_and_over_the_circle():
    """In one dimension by a single slice, in two by equally spaced ones, without any chance."""
    fine = {"t_max": 9.0, "n_knots": 120}
    z = np.random.default_rng(1).standard_normal((30, 2))
    found, expected = sigreg_loss(z[:, :1], np.ones((1, 1)), **fine), sigreg_limit(z[:, :1])
    assert float(found) == pytest.approx(float(expected), rel=1e-11)
    assert float(expected) == pytest.approx(reference.epps_pulley_closed_form(z[:, 0]), rel=1e-12)
    angle = np.arange(64) * math.pi / 64
    circle = np.stack([np.cos(angle), np.sin(angle)])
    value, gradient = value_and_grad(sigreg_loss)(z, circle, **fine)
    limit, of_limit = value_and_grad(sigreg_limit)(z)
    assert float(value) == pytest.approx(float(limit), rel=1e-11)
    np.testing.assert_allclose(gradient, of_limit, atol=1e-11)


@pytest.mark.parametrize("loss", [gaussian_mmd, gaussian_ksd, sigreg_limit])
def test_no_array_of_all_pairs_is_made(loss):
    z = np.random.default_rng(0).standard_normal((2500, 4))
    value_and_grad(loss)(z[:100])
    tracemalloc.start()
    try:
        value_and_grad(loss)(z)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2500**2 * 8 / 4


@pytest.mark.parametrize("call", [
    lambda z, h: gaussian_mmd(z, kernel="imq", bandwidth=h),
    lambda z, h: gaussian_ksd(z, bandwidth=h),
    spherical_mmd,
])  # fmt: skip
def test_numbers_that_torch_traces(call):
    import torch

    compiled = torch.compile(call, fullgraph=True, backend="eager", dynamic=True)
    z = torch.arange(12.0).reshape(4, 3).sin()
    for h in (0.7, 1.9):
        torch.testing.assert_close(compiled(z, h), call(z, h))


@pytest.mark.parametrize("loss", [gaussian_mmd, gaussian_ksd])
def test_arguments_are_checked(loss):
    z = np.zeros((3, 2))
    with pytest.raises(ValueError, match="expected kernel to be one of"):
        loss(z, kernel="cauchy")
    with pytest.raises(ValueError, match="expected bandwidth to be a finite number > 0"):
        loss(z, bandwidth=0.0)


def by_differences(z, kernel):
    """mean_ij k and mean_i E k(z_i, X) with their gradient, pair by pair in float64."""
    z = np.asarray(z, np.float64)
    n, dim = z.shape
    h = math.sqrt(dim)
    apart = z[:, None] - z[None]
    rho = np.sum(apart**2, axis=2)
    if kernel == "laplace":
        k = np.exp(-np.sqrt(rho) / h)
        slope = -k / (2 * h * np.sqrt(np.where(rho > 0, rho, np.inf)))
    else:
        k = np.exp(-rho / (2 * h * h))
        slope = -k / (2 * h * h)
    means = prior_means(kernel, h, dim)
    alone, on_square = prior_mean(np, means, np.sum(z * z, axis=1), True)
    gradient = 4 / n**2 * np.sum(slope[..., None] * apart, axis=1)
    return (
        k.mean() - 2 * alone.mean() + means.both,
        gradient - 4 / n * on_square[:, None] * z,
    )


@pytest.mark.parametrize("kernel", ["gaussian", "laplace"])
def test_close_rows_far_from_their_mean(where, rng, kernel):
    """Products of float32 rows would lose the distances inside clusters a thousand apart."""
    centres = 300 * rng.standard_normal((6, 16))
    z = centres[rng.integers(0, 6, 60)] + 0.5 * rng.standard_normal((60, 16))
    z[7] = z[3]  # equal rows are at the tip of Laplace's kernel
    given = where.asarray(z)
    expected, on_z = by_differences(where.to_numpy(given), kernel)
    value, gradient = value_and_grad(gaussian_mmd)(given, kernel=kernel)
    tolerance = 1e-7 if where.dtype == "float64" else 2e-6
    assert float(value) == pytest.approx(expected, rel=tolerance)
    np.testing.assert_allclose(
        where.to_numpy(gradient), on_z, rtol=0, atol=tolerance * np.abs(on_z).max()
    )


def test_rows_whose_squares_leave_float32():
    z = np.array([[1e25, 0.0], [0.0, -1e25], [1e25, 1e25]], np.float32)
    value, gradient = value_and_grad(gaussian_mmd)(z)
    assert value == pytest.approx(1 / 3 + prior_means("gaussian", math.sqrt(2), 2).both)
    assert not gradient.any()  # no two rows are near
