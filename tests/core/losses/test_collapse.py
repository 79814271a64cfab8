"""Finite values and gradients where embeddings have collapsed, and at every scale.

Values, analytic gradients, and the frameworks' autograd through the plain value.
"""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.backends import Backend
from tests.cases import CASES, PRIMARY, each
from tests.core.losses.test_gradients import uneven_cotangents
from visreg_core import (
    barlow_twins_loss,
    covariance_loss,
    gaussian_sliced_wasserstein,
    random_slices,
    scale_loss,
    shape_loss,
    sigreg_loss,
    value_and_grad,
    variance_loss,
)

# What multiplies unit-size embeddings; float16 over its own range.
SCALES = {
    "float64": (1e-8, 1e-4, 1e4, 1e8),
    "float32": (1e-8, 1e-4, 1e4, 1e8),
    "bfloat16": (1e-8, 1e-4, 1e4, 1e8),
    "float16": (1e-7, 1e-4, 1e2, 1.5e4),
}
N, D, K = 8, 3, 5
OTHERS = [c for c in CASES if c not in PRIMARY]


def embeddings(case):
    return [n for n in case.array_ndims if n in ("z", "x", "y", "a", "b", "views")]


def inputs(case, rng, dtype):
    """Degenerate inputs of one shape, by name."""
    base = case.draw(rng, N, D, K)

    def with_embeddings(change):
        return {n: change(a) if n in embeddings(case) else a for n, a in base.items()}

    def constant_column(z):
        z = z.copy()
        z[..., 0] = 0.7
        return z

    def one_large_column(z):
        return z * np.array([1000.0] + [1.0] * (z.shape[-1] - 1)) if z.ndim > 1 else 1000 * z

    out = {
        "zeros": with_embeddings(np.zeros_like),
        "identical rows": with_embeddings(lambda z: np.broadcast_to(z[..., :1, :], z.shape).copy()
                                          if z.ndim > 1 else np.full_like(z, 0.3)),
        "constant column": with_embeddings(constant_column),
        "large column": with_embeddings(one_large_column),
        "duplicate rows": with_embeddings(lambda z: np.round(z)),
        "far off centre": with_embeddings(lambda z: z + 100.0),
    }  # fmt: skip
    if len(embeddings(case)) == 2 and not case.unequal:
        first, second = embeddings(case)
        out["identical samples"] = {**base, second: base[first].copy()}
        out["one collapsed"] = {**base, second: np.zeros_like(base[second])}
    limit = 6e4 if dtype == "float16" else np.inf
    for scale in SCALES[dtype]:
        out[f"scale {scale:g}"] = with_embeddings(lambda z, s=scale: np.clip(s * z, -limit, limit))
        out[f"identical at {scale:g}"] = with_embeddings(
            lambda z, s=scale: np.full_like(z, 1.3 * s)
        )
    return out


def check_finite(case, where, arrays, label):
    given = {n: where.asarray(a) for n, a in arrays.items()}
    plain = case.fields(case.call(given))
    result, vjp = case.value_and_vjp(given)
    _, gradients = case.value_and_grad(given)
    for name, value in plain.items():
        assert np.isfinite(float(where.to_numpy(value))), f"{label}: {name} is {value}"
    for name, value in case.fields(result).items():
        assert np.isfinite(float(where.to_numpy(value))), f"{label}: {name} is {value} with vjp"
    for gradient in (*gradients, *vjp(*uneven_cotangents(case))):
        assert np.all(np.isfinite(where.to_numpy(gradient))), f"{label}: gradient {gradient}"
    if where.backend in (Backend.TORCH, Backend.TORCH_CUDA):
        wrt = [given[n].requires_grad_() for n in case.differentiated]
        scalar = case.scalar(case.call(given))
        for gradient in where.backend.xp.autograd.grad(scalar, wrt):
            gradient = where.to_numpy(gradient)
            if where.dtype == "float16":  # torch's own cast of what lies beyond 65504
                gradient = np.where(np.isinf(gradient), 65504.0, gradient)
            assert np.all(np.isfinite(gradient)), f"{label}: autograd {gradient}"


HALVES = ("float16", "bfloat16")


@each(CASES)
@pytest.mark.dtypes("float64", "float32", *HALVES)
@pytest.mark.backends("numpy", "torch", "torch-cuda", "cupy")
def test_everything_is_finite_at_collapse(case, where, rng):
    for label, arrays in inputs(case, rng, where.dtype).items():
        check_finite(case, where, arrays, label)


@each(PRIMARY)
@pytest.mark.dtypes("float64")
@pytest.mark.backends("array_api_strict")
def test_everything_is_finite_at_collapse_strictly(case, where, rng):
    for label, arrays in inputs(case, rng, where.dtype).items():
        check_finite(case, where, arrays, label)


@each(PRIMARY)
@pytest.mark.dtypes("bfloat16")
@pytest.mark.backends("jax")
def test_everything_is_finite_at_collapse_under_jit(case, where, rng):
    """In bfloat16, whose losses are computed in float32: one compilation serves for both."""
    import jax

    def everything(given):
        def scalar(*differentiated):
            call = {**given, **dict(zip(case.differentiated, differentiated, strict=True))}
            return case.scalar(case.call(call))

        wrt = [given[n] for n in case.differentiated]
        own = jax.grad(scalar, argnums=tuple(range(len(wrt))))(*wrt)
        return case.call(given), case.value_and_grad(given), own

    compiled = jax.jit(everything)
    for label, arrays in inputs(case, rng, where.dtype).items():
        given = {n: where.asarray(a) for n, a in arrays.items()}
        for leaf in jax.tree.leaves(compiled(given)):
            assert np.all(np.isfinite(where.to_numpy(leaf))), f"{label}: {leaf}"


CENTRED = ("scale_loss", "shape_loss", "variance_loss", "covariance_loss", "barlow_twins_loss")


@each([c for c in CASES if c.loss.name in (*CENTRED, "spectralnet_loss") and not c.wrt])
@pytest.mark.dtypes("float32")
@pytest.mark.backends("numpy", "torch", "array_api_strict", "torch-cuda", "cupy")
def test_values_are_right_far_off_centre(case, where, rng):
    """A mean of 1e6 rounds by 0.06 in float32: centring takes away what that leaves."""
    for offset in (1e2, 1e4, 1e6):
        check_value_off_centre(case, where, offset, rng)


def check_value_off_centre(case, where, offset, rng):
    drawn = case.draw(rng, N, D, K)
    arrays = {
        n: (a + offset * rng.normal(size=D)).astype(np.float32).astype(np.float64)
        if n in embeddings(case)
        else a.astype(np.float32).astype(np.float64)
        for n, a in drawn.items()
    }
    result = case.call({n: where.asarray(a) for n, a in arrays.items()})
    _, gradients = case.value_and_grad({n: where.asarray(a) for n, a in arrays.items()})
    for name, got in case.fields(result).items():
        value, magnitude = case.expected(arrays)[name]
        if case.loss.name == "spectralnet_loss":  # differences lose nothing either
            magnitude = value
        assert abs(float(where.to_numpy(got)) - value) <= 4e-6 * max(abs(value), magnitude)
    centred = {
        n: a - np.mean(a, axis=-2, keepdims=True) if n in embeddings(case) else a
        for n, a in arrays.items()
    }
    _, expected = case.value_and_grad(centred)
    for g, e in zip(gradients, expected, strict=True):
        assert np.linalg.norm(where.to_numpy(g) - e) <= 2e-5 * np.linalg.norm(e)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize(("n", "d"), [(3000, 3), (40, 60)])
@pytest.mark.lean_on_jax(scale=[])
def test_covariance_of_many_rows_at_every_scale(where, scale, n, d, rng):
    """Sums of N products of 1e8 squared overflow float32 though their mean square does not."""
    z = (scale * rng.normal(size=(n, d)) @ (np.eye(d) + 0.3 * rng.normal(size=(d, d)))).astype(
        np.float32
    )
    c = np.cov(z.astype(np.float64), rowvar=False)
    off = c - np.diag(np.diag(c))
    value, gradient = value_and_grad(covariance_loss)(where.asarray(z))
    assert_allclose(where.to_numpy(value), np.sum(off**2) / d, rtol=2e-5)
    centred = z.astype(np.float64) - z.mean(0, dtype=np.float64)
    expected = 4 / (d * (n - 1)) * centred @ off
    error = np.linalg.norm(where.to_numpy(gradient).astype(np.float64) - expected)
    assert error <= 2e-5 * np.linalg.norm(expected)


SMALL = {"two rows": (2, 3, 4), "one dimension": (6, 1, 3), "two numbers": (2, 1, 1)}


@each(CASES)
@pytest.mark.dtypes("float64", "float32", "bfloat16")
@pytest.mark.backends("numpy", "torch", "torch-cuda")
def test_smallest_shapes_are_finite(case, where, rng):
    for label, shape in SMALL.items():
        arrays = case.draw(rng, *shape)
        check_finite(case, where, arrays, label)
        zeros = {n: np.zeros_like(a) if n in embeddings(case) else a for n, a in arrays.items()}
        check_finite(case, where, zeros, f"{label}, zeros")


@each([c for c in CASES if c.loss.name != "epps_pulley"])
@pytest.mark.backends("numpy", "torch")
def test_values_are_right_at_every_scale(case, where, rng):
    """Not only finite: relative to the magnitude of the terms, as at scale 1."""
    for scale in (1e-8, 1e-3, 1e4, 1e8):
        check_value_at_scale(case, where, scale, rng)


def check_value_at_scale(case, where, scale, rng):
    drawn = case.draw(rng, N, D, K)
    arrays = {n: (scale * a if n in embeddings(case) else a) for n, a in drawn.items()}
    arrays = {n: a.astype(where.dtype).astype(np.float64) if a.dtype.kind == "f" else a
              for n, a in arrays.items()}  # fmt: skip
    expected = case.expected(arrays)
    result = case.call({n: where.asarray(a) for n, a in arrays.items()})
    tolerance = {"float64": 1e-12, "float32": 2e-6}[where.dtype]
    if case.loss.name == "sigreg_loss":
        # The argument t * x of cosine carries the rounding of x, whatever its size.
        tolerance *= max(1.0, 3.0 * scale)
    limit = np.finfo(where.dtype).max
    for name, got in case.fields(result).items():
        value, magnitude = expected[name]
        if magnitude < limit / 100:
            bound = tolerance * max(abs(value), magnitude)
            assert abs(float(where.to_numpy(got)) - value) <= bound, (name, float(got), value)


@each([c for c in CASES if c.loss.name not in ("epps_pulley", "sigreg_loss")])
@pytest.mark.dtypes("float32")
@pytest.mark.backends("numpy", "torch")
def test_gradients_are_right_at_every_scale(case, where, rng):
    for scale in (1e-8, 1e4, 1e8):
        check_gradient_at_scale(case, where, scale, rng)


def check_gradient_at_scale(case, where, scale, rng):
    drawn = case.draw(rng, N, D, K)
    arrays = {n: (scale * a if n in embeddings(case) else a) for n, a in drawn.items()}
    arrays = {n: a.astype(np.float32).astype(np.float64) if a.dtype.kind == "f" else a
              for n, a in arrays.items()}  # fmt: skip
    _, expected = case.value_and_grad(arrays)
    _, gradients = case.value_and_grad({n: where.asarray(a) for n, a in arrays.items()})
    for g, e in zip(gradients, expected, strict=True):
        if np.max(np.abs(e)) < 1e37:
            error = np.linalg.norm(where.to_numpy(g) - e)
            assert error <= 2e-5 * np.linalg.norm(e) + 1e-37


@pytest.mark.parametrize("n", [3, 6, 7, 49])
@pytest.mark.lean_on_jax(n=[7], dtype=["float32"])
def test_gradient_of_a_standard_deviation_at_zero_is_zero(where, n, rng):
    """The subgradient: a collapsed column's gradient is exactly 0 in scale, variance and Barlow
    Twins, also where the mean of N equal numbers rounds."""
    for constant in (0.25, 0.1, 1e8 / 3, 1e-9 / 7, -7.3):
        check_collapsed_column(where, n, constant, rng)


def check_collapsed_column(where, n, constant, rng):
    z = 0.3 * rng.normal(size=(n, 3))
    z[:, 1] = constant
    a, b = where.asarray(z), where.asarray(z[::-1].copy())
    gradients = [
        value_and_grad(scale_loss)(a)[1],
        value_and_grad(variance_loss)(a, eps=0.0)[1],
        *value_and_grad(barlow_twins_loss)(a, b)[1],
    ]
    for gradient in gradients:
        gradient = where.to_numpy(gradient)
        assert np.all(gradient[:, 1] == 0)
        assert np.any(gradient[:, 0] != 0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.dtypes("float32")
@pytest.mark.backends("numpy", "torch", "jax", "torch-cuda", "cupy")
def test_many_equal_rows_have_deviation_zero(where, masked, rng):
    """The mean of many equal numbers rounds to another number, most of all where a compiler
    reorders it: scale is 1, as far as a mean of 40 ones is, and has no gradient, exactly."""
    n = 100_003
    values = rng.normal(size=40) * 10.0 ** rng.uniform(-8, 8, size=40)
    z = np.broadcast_to(values, (n, 40)).copy()
    keep = np.arange(n) % 7 != 2
    options = {"row_mask": where.asarray(keep)} if masked else {}
    if masked:
        z[~keep] = -1e9
    function = value_and_grad(scale_loss)
    if where.backend is Backend.JAX:
        import jax

        function = jax.jit(function)
    value, gradient = function(where.asarray(z), **options)
    assert abs(float(value) - 1) <= 2**-23
    assert not where.to_numpy(gradient).any()


@pytest.mark.parametrize("r", [1e-3, 1e-5, 1e-7])
def test_gradient_norms_under_collapse(r):
    """On N rows of total scale r: scale tends to 2/sqrt(ND), the shape term grows as 1/(r + eps)
    under the stop-gradient, SIGReg's vanishes as r."""
    n, d, eps = 40, 8, 1e-6
    z = np.random.default_rng(1).normal(size=(n, d))
    z = (z - z.mean(0)) / z.std(0)
    slices = random_slices(d, 64)

    _, scale = value_and_grad(scale_loss)(r * z)
    assert np.linalg.norm(scale) == pytest.approx(2 / np.sqrt(n * d), rel=2 * r + 1e-12)

    _, shape = value_and_grad(shape_loss)(r * z, slices, eps=eps)
    _, unit = value_and_grad(gaussian_sliced_wasserstein)(z * (r / (r + eps)), slices)
    unit = (unit - unit.mean(0)) / (r + eps)
    assert_allclose(shape, unit, rtol=0, atol=1e-9 * np.max(np.abs(unit)))

    _, sigreg = value_and_grad(sigreg_loss)(r * z, slices)
    _, tenth = value_and_grad(sigreg_loss)(r / 10 * z, slices)
    assert np.linalg.norm(tenth) == pytest.approx(np.linalg.norm(sigreg) / 10, rel=1e-2)
