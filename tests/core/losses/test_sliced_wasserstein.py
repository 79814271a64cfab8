"""Sliced Wasserstein distances against POT, SciPy and their own invariances."""

import numpy as np
import ot
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose

from tests.core import reference
from visreg_core import (
    gaussian_sliced_wasserstein,
    max_sliced_wasserstein,
    normal_quantiles,
    random_slices,
    shape_loss,
    sliced_wasserstein,
    value_and_grad,
)

LOSSES = {
    "mean": (sliced_wasserstein, ot.sliced_wasserstein_distance),
    "max": (max_sliced_wasserstein, ot.max_sliced_wasserstein_distance),
}


def masses(rng, n):
    w = rng.uniform(0.1, 1, size=n)
    return w / w.sum()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("p", [1, 2, 3, 1.5])
@pytest.mark.parametrize(("n", "m"), [(30, 30), (30, 41), (5, 64), (1, 7)])
@pytest.mark.parametrize("weighted", ["no", "x", "both"])
@pytest.mark.lean_on_jax(dtype=["float64"], p=[3], m=[41])
def test_pots_number(where, loss, p, n, m, weighted, rng):
    x, y = rng.normal(size=(n, 4)), 0.5 + 2 * rng.normal(size=(m, 4))
    slices = random_slices(4, 12, dtype=np.float64)
    a = masses(rng, n) if weighted != "no" else None
    b = masses(rng, m) if weighted == "both" else None
    if weighted == "x":
        b_for_pot = np.full(m, 1 / m)
    else:
        b_for_pot = b
    ours, pots = LOSSES[loss]
    expected = pots(x, y, a, b_for_pot, p=p, projections=slices)
    given = [where.asarray(v) for v in (x, y, slices)]
    weights = {
        name: where.asarray(w) for name, w in (("x_weights", a), ("y_weights", b)) if w is not None
    }
    got = where.to_numpy(ours(*given, p, **weights))
    assert_allclose(got, expected, rtol={"float64": 1e-12, "float32": 3e-6}[where.dtype])
    got = where.to_numpy(ours(*given, p, **weights, power=True))
    assert_allclose(got, expected**p, rtol={"float64": 1e-11, "float32": 1e-5}[where.dtype])


def test_scipys_number_for_one_slice(rng):
    """SciPy's exact one-dimensional distance with weights, p = 1."""
    x, y = rng.normal(size=(20, 1)), rng.normal(size=(33, 1))
    a, b = masses(rng, 20), masses(rng, 33)
    expected = scipy.stats.wasserstein_distance(x[:, 0], y[:, 0], a, b)
    got = sliced_wasserstein(x, y, np.ones((1, 1)), 1, a, b)
    assert_allclose(got, expected, rtol=1e-12)


def test_the_transcription_itself_is_pots_number(rng):
    x, y, slices = rng.normal(size=(9, 3)), rng.normal(size=(14, 3)), random_slices(3, 5)
    a, b = masses(rng, 9), masses(rng, 14)
    expected = ot.sliced_wasserstein_distance(x, y, a, b, p=3, projections=slices)
    got = reference.sliced_wasserstein(x, y, slices, 3, a, b)["value"].value
    assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.lean_on_jax(dtype=["float32"])
def test_a_weight_of_zero_drops_the_row(where, rng):
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(7, 3))
    slices = random_slices(3, 5, dtype=np.float64)
    a = masses(rng, 9)
    a[[0, 4, 8]] = 0
    a /= a.sum()
    kept = a > 0
    given = [where.asarray(v) for v in (x, y, slices)]
    got = sliced_wasserstein(*given, 2, where.asarray(a))
    expected = sliced_wasserstein(x[kept], y, slices, 2, a[kept])
    assert_allclose(where.to_numpy(got), expected, rtol=1e-12 if where.dtype == "float64" else 3e-6)
    _, (gx, gy) = value_and_grad(sliced_wasserstein)(*given, 2, where.asarray(a))
    assert np.all(where.to_numpy(gx)[~kept] == 0)
    assert np.all(np.isfinite(where.to_numpy(gy)))


@pytest.mark.lean_on_jax(dtype=[])
def test_equal_weights_are_no_weights(where, rng):
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(9, 3))
    given = [where.asarray(v) for v in (x, y, random_slices(3, 5, dtype=np.float64))]
    plain = value_and_grad(sliced_wasserstein)(*given)
    uniform = where.asarray(np.full(9, 1 / 9))
    weighted = value_and_grad(sliced_wasserstein)(*given, 2, uniform, uniform)
    rtol = 1e-12 if where.dtype == "float64" else 1e-5
    assert_allclose(where.to_numpy(weighted[0]), where.to_numpy(plain[0]), rtol=rtol)
    for g, e in zip(weighted[1], plain[1], strict=True):
        e = where.to_numpy(e)
        assert_allclose(where.to_numpy(g), e, rtol=0, atol=rtol * np.max(np.abs(e)))


@pytest.mark.lean_on_jax(dtype=[])
@pytest.mark.parametrize("n", [300, 30_000])
def test_masses_keep_their_digits_whatever_their_number(where, n, rng):
    """Equal weights are no weights: the error does not grow with N."""
    x, y = rng.normal(size=(n, 2)), 1 + rng.normal(size=(n, 2))
    given = [where.asarray(v) for v in (x, y, random_slices(2, 3, dtype=np.float64))]
    uniform = where.asarray(np.full(n, 1 / n))
    plain = value_and_grad(sliced_wasserstein)(*given)
    weighted = value_and_grad(sliced_wasserstein)(*given, 2, uniform, uniform)
    for g, e in zip(weighted[1], plain[1], strict=True):
        e = where.to_numpy(e)
        assert_allclose(where.to_numpy(g), e, rtol=0, atol=2e-6 * np.max(np.abs(e)))


def test_repeating_every_row_changes_nothing(rng):
    """Unequal sizes by exact quantile merging: 6 rows are 12 rows, each twice."""
    x, y, slices = rng.normal(size=(6, 3)), rng.normal(size=(8, 3)), random_slices(3, 5)
    expected = sliced_wasserstein(x, y, slices)
    assert_allclose(sliced_wasserstein(np.repeat(x, 2, 0), y, slices), expected, rtol=1e-12)
    twice = np.repeat(x, 2, 0), np.repeat(y, 3, 0)
    assert_allclose(sliced_wasserstein(*twice, slices), expected, rtol=1e-12)


@pytest.mark.parametrize("loss", [sliced_wasserstein, max_sliced_wasserstein])
@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("power", [False, True])
@pytest.mark.lean_on_jax(dtype=["float32"], p=[2])
def test_identical_samples_have_value_and_gradient_zero(where, loss, p, power, rng):
    x = where.asarray(rng.normal(size=(9, 3)))
    slices = where.asarray(random_slices(3, 5, dtype=np.float64))
    value, (gx, gy) = value_and_grad(loss)(x, x, slices, p, power=power)
    assert float(value) == 0
    assert np.all(where.to_numpy(gx) == 0)
    assert np.all(where.to_numpy(gy) == 0)


@pytest.mark.backends("torch")
@pytest.mark.parametrize("loss", [sliced_wasserstein, max_sliced_wasserstein])
@pytest.mark.parametrize("power", [False, True])
def test_autograd_on_identical_samples_is_zero(where, loss, power, rng):
    """Never NaN, as POT's is."""
    x = where.asarray(rng.normal(size=(9, 3))).requires_grad_()
    y = x.detach().clone().requires_grad_()
    slices = where.asarray(random_slices(3, 5, dtype=np.float64))
    loss(x, y, slices, power=power).backward()
    assert bool((x.grad == 0).all()) and bool((y.grad == 0).all())


@pytest.mark.lean_on_jax(dtype=[])
def test_translation_has_the_distance_of_its_length(where, rng):
    x = rng.normal(size=(20, 3))
    shift = np.array([1.0, -2.0, 0.5])
    slices = random_slices(3, 50, dtype=np.float64)
    got = sliced_wasserstein(*(where.asarray(v) for v in (x, x + shift, slices)))
    expected = np.sqrt(np.mean((shift @ slices) ** 2))
    assert_allclose(where.to_numpy(got), expected, rtol=1e-12 if where.dtype == "float64" else 3e-6)


@pytest.mark.lean_on_jax(dtype=[])
@pytest.mark.parametrize("loss", [sliced_wasserstein, max_sliced_wasserstein])
@pytest.mark.parametrize("scale", [2.0**-27, 2.0**27])
def test_high_powers_neither_overflow_nor_vanish(where, loss, scale, rng):
    """p = 6 at 1e8 is 1e48 and at 1e-8 1e-48: float32 has neither, but the distance scales."""
    x, y = rng.normal(size=(9, 3)), 1 + rng.normal(size=(7, 3))
    slices = where.asarray(random_slices(3, 5, dtype=np.float64))
    function = value_and_grad(loss)
    value, gradients = function(where.asarray(x), where.asarray(y), slices, 6)
    got, scaled = function(where.asarray(scale * x), where.asarray(scale * y), slices, 6)
    rtol = 1e-12 if where.dtype == "float64" else 2e-6
    assert_allclose(float(got), scale * float(value), rtol=rtol)
    for g, e in zip(scaled, gradients, strict=True):
        e = where.to_numpy(e)
        assert_allclose(where.to_numpy(g), e, rtol=0, atol=rtol * np.abs(e).max())


def test_max_is_the_largest_slice(rng):
    x, y, slices = rng.normal(size=(9, 3)), rng.normal(size=(11, 3)), random_slices(3, 6)
    each = [float(sliced_wasserstein(x, y, slices[:, k : k + 1])) for k in range(6)]
    assert float(max_sliced_wasserstein(x, y, slices)) == pytest.approx(max(each), rel=1e-14)
    assert float(max_sliced_wasserstein(x, y, slices, chunk_size=1)) == pytest.approx(max(each))


def test_half_of_the_terms_to_the_first_power(rng):
    """p = 1 with a fractional overlap, by hand: {0, 1} against {0, 1, 2} on one slice.

    Quantile functions differ on [1/3, 1/2] by 1 (0 against 1) and on [2/3, 1] by 1 (1 against 2).
    """
    x, y = np.array([[0.0], [1.0]]), np.array([[2.0], [0.0], [1.0]])
    got = sliced_wasserstein(x, y, np.ones((1, 1)), 1)
    assert_allclose(got, 1 / 6 + 1 / 3, rtol=1e-15)


# One sample against the Gaussian -----------------------------------------------------------------


def test_ties_take_targets_in_index_order(where):
    """Equal projections are told apart by row index, on every backend: the gradient at exact
    collapse pushes row n to quantile n."""
    n = 7
    z = where.asarray(np.zeros((n, 2)))
    slices = where.asarray(np.array([[1.0, 0.0], [0.0, -1.0]]).T.copy())
    _, gradient = value_and_grad(gaussian_sliced_wasserstein)(z, slices)
    q = normal_quantiles(n)
    expected = np.stack([-q, q], axis=1) * 2 / (n * 2)
    rtol = 1e-12 if where.dtype == "float64" else 1e-6
    assert_allclose(where.to_numpy(gradient), expected, rtol=rtol, atol=1e-16)


@given(
    z=arrays(np.int8, st.tuples(st.integers(2, 9), st.just(2)), elements=st.integers(-2, 2)),
    dtype=st.sampled_from(["float32", "float64"]),
)
@settings(max_examples=60, deadline=None)
def test_ties_among_few_values(z, dtype):
    """Integer embeddings on axis-parallel slices: many ties, all exact, against a stable sort."""
    from tests.backends import Backend

    n = len(z)
    q = normal_quantiles(n)
    slices = np.eye(2)
    order = np.argsort(z, axis=0, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(n)[:, None], axis=0)
    expected = (z - q[rank]) / n
    for backend in (Backend.NUMPY, Backend.TORCH, Backend.STRICT):
        _, gradient = value_and_grad(gaussian_sliced_wasserstein)(
            backend.asarray(z, dtype), backend.asarray(slices, dtype)
        )
        atol = 1e-14 if dtype == "float64" else 1e-6
        assert_allclose(backend.to_numpy(gradient), expected, rtol=0, atol=atol)


def test_negative_and_positive_zero_tie(where):
    """-0.0 and 0.0 are equal keys: index order, whatever a bitwise sort may think."""
    z = where.asarray(np.array([[0.0], [-0.0], [0.0], [-0.0]]))
    _, gradient = value_and_grad(gaussian_sliced_wasserstein)(z, where.asarray(np.ones((1, 1))))
    expected = -normal_quantiles(4)[:, None] * 2 / 4
    assert_allclose(where.to_numpy(gradient), expected, rtol=1e-6)


@pytest.mark.parametrize("n", [2, 3, 100, 1025])
@pytest.mark.lean_on_jax(dtype=["float32"], n=[3])
def test_quantiles_themselves_have_distance_zero(where, n, rng):
    z = where.asarray(rng.permutation(normal_quantiles(n))[:, None])
    got = gaussian_sliced_wasserstein(z, where.asarray(np.ones((1, 1))))
    assert abs(float(where.to_numpy(got))) <= np.finfo(where.dtype).eps


@pytest.mark.parametrize(("n", "k"), [(1000, 9), (257, 33), (4097, 3)])
@pytest.mark.lean_on_jax(dtype=["float32"], n=[257])
def test_many_rows(where, n, k, rng):
    """Sizes at which chunks, threads and packed sorts have something to do."""
    z = rng.normal(size=(n, 6)).astype(np.float32).astype(np.float64)
    slices = random_slices(6, k, dtype=np.float32).astype(np.float64)
    value, gradient = value_and_grad(shape_loss)(where.asarray(z), where.asarray(slices))
    mu, sigma = z.mean(0), z.std(0)
    zt = (z - mu) / (sigma + 1e-6)
    p = zt @ slices
    order = np.argsort(p, axis=0, kind="stable")
    target = np.empty_like(p)
    np.put_along_axis(target, order, normal_quantiles(n)[:, None], axis=0)
    expected = np.mean((p - target) ** 2)
    g = 2 * (p - target) / p.size @ slices.T
    g = (g - g.mean(0)) / (sigma + 1e-6)
    tolerance = 1e-12 if where.dtype == "float64" else 2e-6
    assert abs(float(where.to_numpy(value)) - expected) <= tolerance * 4
    error = np.linalg.norm(where.to_numpy(gradient) - g) / np.linalg.norm(g)
    # Among 4097 rows a few projections lie closer than a float32 ulp: their targets swap.
    assert error <= (1e-10 if where.dtype == "float64" else 2e-3 if n > 4000 else 1e-5)


@given(
    n=st.integers(2, 24),
    d=st.integers(1, 6),
    k=st.integers(1, 9),
    scale=st.sampled_from([1e-8, 1e-3, 1.0, 1e3, 1e8]),
    dtype=st.sampled_from(["float32", "float64"]),
    ties=st.booleans(),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=120, deadline=None)
def test_any_shape_scale_and_ties(n, d, k, scale, dtype, ties, seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, d))
    z = (np.round(z) if ties else z) * scale
    z = z.astype(dtype)
    slices = random_slices(d, k, seed=seed, dtype=np.dtype(dtype).type)
    for loss, of in (
        (shape_loss, reference.shape_loss),
        (gaussian_sliced_wasserstein, reference.gaussian_sliced_wasserstein),
    ):
        value, gradient = value_and_grad(loss)(z, slices)
        term = of(z.astype(float), slices.astype(float))["value"]
        tolerance = {"float64": 1e-11, "float32": 1e-5}[dtype]
        # ties, and columns that are nearly constant, amplify the rounding of the mean
        tolerance *= 50 if ties else 1
        assert abs(float(value) - term.value) <= tolerance * max(term.magnitude, 1e-300)
        assert np.all(np.isfinite(gradient))
        assert gradient.shape == z.shape and gradient.dtype == z.dtype
