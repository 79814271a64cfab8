"""Epps-Pulley against its closed form, and SIGReg at LeJEPA's constants."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from tests.core import reference
from tests.core.losses.test_values import TOLERANCE
from visreg_core import epps_pulley, random_slices, sigreg_loss, value_and_grad, value_and_vjp
from visreg_core.losses.epps_pulley_numpy import PowerMultiples, TiledMultiples, scratch

pytestmark = pytest.mark.lean_on_jax(dtype=["float64"])


@pytest.mark.dtypes("float64")
@pytest.mark.parametrize("n", [2, 15])
def test_tends_to_the_closed_form(where, n, rng):
    x = 0.4 + 1.3 * rng.normal(size=n)
    expected = reference.epps_pulley_closed_form(x)
    errors = [
        abs(float(where.to_numpy(epps_pulley(where.asarray(x), t_max, knots))) - expected)
        for t_max, knots in ((3.0, 17), (5.0, 65), (9.0, 257))
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] <= 1e-11 * n


@pytest.mark.dtypes("float64")
def test_gradient_tends_to_that_of_the_closed_form(where, rng):
    x = 0.4 + 1.3 * rng.normal(size=12)
    _, gradient = value_and_grad(epps_pulley)(where.asarray(x), 9.0, 257)
    expected = reference.central_difference(reference.epps_pulley_closed_form, x)
    assert_allclose(where.to_numpy(gradient), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.lean_on_jax(axis=[-2])
def test_axis_of_the_samples(where, axis, rng):
    """The result has the shape of x without that axis."""
    x = rng.normal(size=(6, 9))
    got = epps_pulley(where.asarray(x), axis=axis)
    columns = x.T if axis == -2 else x
    terms = [reference.epps_pulley_statistic(list(c)) for c in columns]
    assert got.shape == (len(columns),)
    assert where.backend.dtype_name(got) == where.dtype
    tolerance = TOLERANCE[where.dtype] * max(t.magnitude for t in terms)
    assert_allclose(where.to_numpy(got), [t.value for t in terms], rtol=0, atol=tolerance)


@pytest.mark.dtypes("float64")
def test_leading_axes_stay(where, rng):
    x = rng.normal(size=(2, 3, 6))
    got = where.to_numpy(epps_pulley(where.asarray(x)))
    assert got.shape == (2, 3)
    for index in np.ndindex(2, 3):
        expected = reference.epps_pulley_statistic(list(x[index])).value
        assert_allclose(got[index], expected, rtol=1e-12)
    moved = where.to_numpy(epps_pulley(where.asarray(x), axis=-2))
    assert moved.shape == (2, 6)
    expected = reference.epps_pulley_statistic(list(x[1, :, 4])).value
    assert_allclose(moved[1, 4], expected, rtol=1e-12)


def test_other_axes_are_refused(rng):
    for axis in (0, 1, 2, -3):
        with pytest.raises(ValueError, match=f"axis.*-1.*-2.*{axis}"):
            epps_pulley(rng.normal(size=(4, 5)), axis=axis)


@pytest.mark.dtypes("float64")
@pytest.mark.parametrize("axis", [-2, -1])
def test_gradient_of_columns_is_that_of_their_sum(where, axis, rng):
    x = rng.normal(size=(7, 4))
    arranged = x if axis == -2 else x.T.copy()
    value, gradient = value_and_grad(epps_pulley)(where.asarray(arranged), axis=axis)
    assert value.shape == (4,)
    gradient = where.to_numpy(gradient)
    gradient = gradient if axis == -2 else gradient.T

    def total(columns):
        return reference.epps_pulley_of_columns(columns)["value"].value

    expected = reference.central_difference(total, x)
    assert_allclose(gradient, expected, rtol=0, atol=1e-7 * np.max(np.abs(expected)))


@pytest.mark.dtypes("float64")
def test_a_cotangent_for_each_column(where, rng):
    x = where.asarray(rng.normal(size=(7, 4)))
    weights = np.array([2.0, -1.0, 0.0, 0.5])
    _, vjp = value_and_vjp(epps_pulley)(x, axis=-2)
    _, gradient = value_and_grad(epps_pulley)(x, axis=-2)
    got = where.to_numpy(vjp(where.asarray(weights)))
    assert_allclose(got, where.to_numpy(gradient) * weights, rtol=1e-13, atol=1e-15)


def test_sigreg_at_published_constants(where, rng):
    """LeJEPA's defaults, as eager arrays of shape (N, K, 17): knots 0 ... 3, trapezoid weights
    doubled by symmetry, a Gaussian window, statistic times N, mean over slices."""
    z = (1.1 * rng.normal(size=(40, 6)) + 0.2).astype(np.float32).astype(np.float64)
    slices = random_slices(6, 256, dtype=np.float32).astype(np.float64)
    t = np.linspace(0, 3, 17)
    window = np.exp(-(t**2) / 2)
    weights = np.full(17, 2 * 3 / 16)
    weights[[0, -1]] /= 2
    angles = (z @ slices)[..., None] * t
    error = (np.cos(angles).mean(0) - window) ** 2 + np.sin(angles).mean(0) ** 2
    expected = np.mean(error @ (weights * window)) * len(z)
    got = sigreg_loss(where.asarray(z), where.asarray(slices))
    assert_allclose(where.to_numpy(got), expected, rtol=TOLERANCE[where.dtype] * 10)
    plain = sigreg_loss(where.asarray(z), where.asarray(slices), scale_by_n=False)
    assert_allclose(where.to_numpy(plain), expected / 40, rtol=TOLERANCE[where.dtype] * 10)


@pytest.mark.parametrize("knots", [2, 3, 17, 129])
@pytest.mark.dtypes("float64")
@pytest.mark.backends("numpy", "array_api_strict")
def test_many_knots_stay_accurate(where, knots, rng):
    """Many knots and large arguments: multiples of angles lose no more digits than their number."""
    x = np.concatenate([rng.normal(size=6), [0.0, 30.0, -55.0, np.pi / 3 * (knots - 1)]])
    got, gradient = value_and_grad(epps_pulley)(where.asarray(x), 3.0, knots)
    assert_allclose(where.to_numpy(got), reference.epps_pulley_statistic(list(x), 3.0, knots).value,
                    rtol=1e-12 * knots)  # fmt: skip

    def statistic(values):
        return reference.epps_pulley_statistic(list(values), 3.0, knots).value

    expected = reference.central_difference(statistic, x, step=1e-6)
    assert_allclose(where.to_numpy(gradient), expected, rtol=0, atol=1e-7)


@given(
    n=st.integers(2, 20),
    knots=st.integers(2, 40),
    t_max=st.floats(0.5, 8),
    seed=st.integers(0, 9999),
    dtype=st.sampled_from(["float32", "float64"]),
)
@settings(max_examples=80, deadline=None)
def test_any_grid(n, knots, t_max, seed, dtype):
    x = np.random.default_rng(seed).normal(size=n).astype(dtype)
    got, gradient = value_and_grad(epps_pulley)(x, t_max, knots)
    term = reference.epps_pulley_statistic([float(v) for v in x], t_max, knots)
    assert abs(float(got) - term.value) <= 2 * TOLERANCE[dtype] * term.magnitude
    assert gradient.dtype == x.dtype and np.all(np.isfinite(gradient))


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("m", [*range(1, 20), 64, 301])
def test_products_of_powers_are_all_multiples(m, masked, rng, monkeypatch):
    """NumPy's twin, of all rows at once and in tiles, against each cosine and sine by itself."""
    angle, of_cos, of_sin = rng.normal(size=(7, 50)), *rng.normal(size=(2, 7, m))
    keep = rng.random((1, 50)) < 0.6 if masked else None
    j = np.arange(1, m + 1)[:, None]
    cos, sin = np.cos(j * angle[:, None]), np.sin(j * angle[:, None])
    kept = 1.0 if keep is None else keep
    polynomial = (of_cos[..., None] * cos + of_sin[..., None] * sin).sum(1)
    monkeypatch.setattr("visreg_core._xp.tiles._TILE_BYTES", 3 * 8 * 50 * scratch(m + 1))
    for made in (PowerMultiples(angle, m), TiledMultiples(angle, m)):
        cos_sums, sin_sums = made.sums(keep)
        assert_allclose(cos_sums, (cos * kept).sum(-1), atol=1e-12 * m)
        assert_allclose(sin_sums, (sin * kept).sum(-1), atol=1e-12 * m)
        assert_allclose(made.polynomial(of_cos, of_sin), polynomial, atol=1e-12 * m)


def test_no_array_of_all_knots(rng):
    """Nothing of shape (N, K, knots) is stored: memory stays far below that array's 819 MB."""
    import tracemalloc

    z = rng.normal(size=(2000, 4))
    slices = random_slices(4, 64)

    def peak(knots):
        tracemalloc.start()
        value_and_grad(sigreg_loss)(z, slices, 3.0, knots, chunk_size=64)
        _, size = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size

    peak(5)
    assert peak(800) <= 2000 * 64 * 800 * 8 / 8
