"""Analytic gradients against differences of the transcription and the frameworks' autograd."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.backends import Backend
from tests.cases import CASES, PATHS, each
from tests.core import reference
from visreg_core.losses import numpy_kernels

SHAPES = {"tall": (12, 5, 7), "wide": (5, 8, 6)}


def numpy_gradients(case, where, arrays, cotangents=None):
    given = {n: where.asarray(a) for n, a in arrays.items()}
    if cotangents is None:
        _, gradients = case.value_and_grad(given)
    else:
        _, vjp = case.value_and_vjp(given)
        gradients = vjp(*cotangents)
    for name, gradient in zip(case.differentiated, gradients, strict=True):
        assert where.backend.owns(gradient)
        assert where.backend.dtype_name(gradient) == where.dtype
        assert tuple(gradient.shape) == arrays[name].shape
    return [where.to_numpy(g) for g in gradients]


def autograd(case, backend, arrays, cotangents):
    """Gradients of the plain value's weighted fields by the framework's own autograd."""
    given = {n: backend.asarray(a) for n, a in arrays.items()}
    wrt = [given[n] for n in case.differentiated]

    def weighted(*differentiated):
        call = {**given, **dict(zip(case.differentiated, differentiated, strict=True))}
        fields = case.fields(case.call(call)).values()
        return sum(c * f for c, f in zip(cotangents, fields, strict=True))

    if backend is Backend.JAX:
        import jax

        gradients = jax.jit(jax.grad(weighted, argnums=tuple(range(len(wrt)))))(*wrt)
    else:
        gradients = backend.xp.autograd.grad(weighted(*(x.requires_grad_() for x in wrt)), wrt)
    return [backend.to_numpy(g) for g in gradients]


def differences(case, arrays, cotangents):
    """The same by central differences of the transcription, stop-gradients held."""
    held = case.hold(arrays)
    gradients = []
    for name in case.differentiated:

        def scalar(x, name=name):
            terms = case.expected({**arrays, name: x}, **held)
            values = (terms[f].value for f in case.loss.fields)
            return sum(c * v for c, v in zip(cotangents, values, strict=True))

        gradients.append(reference.central_difference(scalar, arrays[name]))
    return gradients


def uneven_cotangents(case):
    """One a field, none of them 1, 0 or alike."""
    return [1.7, -0.6, 2.3, 0.4][: len(case.loss.fields)]


def total_only(case):
    return [1.0] + [0.0] * (len(case.loss.fields) - 1)


def assert_gradients(got, expected, tolerance):
    """Every element within tolerance of the gradient's largest."""
    scale = max(np.max(np.abs(e)) for e in expected)
    for g, e in zip(got, expected, strict=True):
        assert_allclose(g, e, rtol=0, atol=tolerance * scale)


@each(CASES)
@pytest.mark.dtypes("float64")
@pytest.mark.backends("numpy")
def test_gradient_is_the_difference_quotient(case, where, rng):
    for shape in SHAPES.values():
        arrays = case.draw(rng, *shape)
        got = numpy_gradients(case, where, arrays)
        assert_gradients(got, differences(case, arrays, total_only(case)), 1e-6)


@each(CASES)
@pytest.mark.dtypes("float64")
@pytest.mark.backends("numpy")
def test_vjp_is_the_difference_quotient(case, where, rng):
    arrays = case.draw(rng, 7, 4, 5)
    got = numpy_gradients(case, where, arrays, uneven_cotangents(case))
    assert_gradients(got, differences(case, arrays, uneven_cotangents(case)), 1e-6)


@each(CASES)
@pytest.mark.backends("torch", "torch-cuda", "jax")
@pytest.mark.dtypes("float64")
@pytest.mark.variants_on_jax
@pytest.mark.lean_on_jax(case=PATHS)
def test_gradient_is_autograds(case, where, rng):
    """JAX's own gradient is compared with NumPy's analytic one, to compile one function only."""
    on_jax = where.backend is Backend.JAX
    analytic = where._replace(backend=Backend.NUMPY) if on_jax else where
    cotangents = uneven_cotangents(case)
    for shape in ("tall",) if on_jax else SHAPES:
        arrays = case.draw(rng, *SHAPES[shape])
        expected = autograd(case, where.backend, arrays, cotangents)
        assert_gradients(numpy_gradients(case, analytic, arrays, cotangents), expected, 1e-9)


@each([c for c in CASES if c.loss.name in ("shape_loss", "visreg_loss")])
@pytest.mark.backends("numpy")
@pytest.mark.dtypes("float64")
@pytest.mark.parametrize("rows", [1, 5])
def test_gradient_in_blocks_of_rows(case, where, rows, rng, monkeypatch):
    """12 rows in blocks of 1, and of 5 with 2 left over; the sizes in use hold thousands."""
    monkeypatch.setattr(numpy_kernels, "_BLOCK_BYTES", rows * 8 * 5)
    arrays = case.draw(rng, *SHAPES["tall"], leading=(2, 3))
    cotangents = uneven_cotangents(case)
    expected = autograd(case, Backend.TORCH, arrays, cotangents)
    assert_gradients(numpy_gradients(case, where, arrays, cotangents), expected, 1e-11)


@each(CASES)
@pytest.mark.dtypes("float64")
def test_gradient_is_the_same_on_every_backend(case, where, rng):
    arrays = case.draw(rng)
    with Backend.NUMPY.precision("float64"):
        numpy_where = where._replace(backend=Backend.NUMPY)
        expected = numpy_gradients(case, numpy_where, arrays)
    assert_gradients(numpy_gradients(case, where, arrays), expected, 1e-12)


@each(CASES)
@pytest.mark.dtypes("float32")
@pytest.mark.lean_on_jax(dtype=[])  # test_jit compares the same
def test_float32_gradient_in_norm(case, where, rng):
    """Relative L2 norm: a swap of two near-equal projections moves single elements."""
    arrays = case.draw(rng)
    arrays = {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in arrays.items()}
    wide = {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in arrays.items()}
    double = where._replace(backend=Backend.NUMPY, dtype="float64")
    expected = numpy_gradients(case, double, wide)
    for g, e in zip(numpy_gradients(case, where, arrays), expected, strict=True):
        assert np.linalg.norm(g - e) <= 5e-6 * np.linalg.norm(e)


@each(CASES)
@pytest.mark.dtypes("float64", "float32")
@pytest.mark.lean_on_jax(dtype=[])
def test_value_and_grad_agrees_with_value_and_vjp(case, where, rng):
    """The result is the loss's own, and the gradient is the vjp of the total."""
    given = {n: where.asarray(a) for n, a in case.draw(rng).items()}
    value = case.call(given)
    result, gradients = case.value_and_grad(given)
    again, vjp = case.value_and_vjp(given)
    assert type(result) is type(again)
    rtol = 1e-14 if where.dtype == "float64" else 1e-6
    for name, v in case.fields(value).items():
        for other in (result, again):
            got = where.to_numpy(case.fields(other)[name])
            assert_allclose(got, where.to_numpy(v), rtol=10 * rtol)
    pulled = vjp(*total_only(case))
    assert_gradients(
        [where.to_numpy(g) for g in gradients], [where.to_numpy(g) for g in pulled], 4 * rtol
    )
    assert_gradients(
        [where.to_numpy(g) for g in vjp(*total_only(case))],  # a vjp may be called twice
        [where.to_numpy(g) for g in pulled],
        1e-300,
    )


@each([c for c in CASES if not c.variant])
@pytest.mark.dtypes("float64")
def test_vjp_takes_arrays_and_is_linear(case, where, rng):
    given = {n: where.asarray(a) for n, a in case.draw(rng).items()}
    _, vjp = case.value_and_vjp(given)
    cotangents = uneven_cotangents(case)
    numbers = [where.to_numpy(g) for g in vjp(*cotangents)]
    arrays = vjp(*(where.asarray(np.asarray(c)) for c in cotangents))
    assert_gradients([where.to_numpy(g) for g in arrays], numbers, 1e-14)
    doubled = [where.to_numpy(g) / 2 for g in vjp(*(2 * c for c in cotangents))]
    assert_gradients(doubled, numbers, 1e-14)
    parts = [
        [where.to_numpy(g) for g in vjp(*(c if i == j else 0.0 for j, c in enumerate(cotangents)))]
        for i in range(len(cotangents))
    ]
    assert_gradients([sum(column) for column in zip(*parts, strict=True)], numbers, 1e-13)


@each([c for c in CASES if not c.variant])
@pytest.mark.dtypes("float64")
@pytest.mark.backends("numpy")
def test_vjp_refuses_another_number_of_cotangents(case, where, rng):
    given = {n: where.asarray(a) for n, a in case.draw(rng).items()}
    _, vjp = case.value_and_vjp(given)
    with pytest.raises((TypeError, ValueError), match=r"(?i)cotangent|argument"):
        vjp(*([1.0] * (len(case.loss.fields) + 1)))


@each([c for c in CASES if not c.variant and c.loss.name != "spectralnet_loss"])
@pytest.mark.dtypes("float64")
@pytest.mark.backends("numpy")
def test_permuted_rows_permute_the_gradient(case, where, rng):
    arrays = case.draw(rng)
    n = arrays[case.differentiated[0]].shape[case.loss.row_axis(case.differentiated[0])]
    order = rng.permutation(n)
    moved = dict(arrays)
    for name in case.loss.rows:
        moved[name] = np.take(arrays[name], order, axis=case.loss.row_axis(name))
    if "pairs" in moved:
        moved["pairs"] = np.argsort(order)[moved["pairs"]]
    before = numpy_gradients(case, where, arrays)
    after = numpy_gradients(case, where, moved)
    expected = [
        np.take(g, order, axis=case.loss.row_axis(name))
        for name, g in zip(case.differentiated, before, strict=True)
    ]
    assert_gradients(after, expected, 1e-12)


@each([c for c in CASES if c.leading])
@pytest.mark.dtypes("float64")
@pytest.mark.backends("numpy", "torch")
def test_gradient_over_leading_axes(case, where, rng):
    """Each batch gets its own gradient over the number of batches."""
    arrays = case.draw(rng, 7, 4, 5, leading=(2, 3))
    got = numpy_gradients(case, where, arrays)
    for index in np.ndindex(2, 3):
        one = {n: a[index] if a.ndim > case.array_ndims[n] else a for n, a in arrays.items()}
        expected = [g / 6 for g in numpy_gradients(case, where, one)]
        assert_gradients([g[index] for g in got], expected, 1e-12)


@pytest.mark.dtypes("float64")
@pytest.mark.backends("numpy")
def test_value_and_grad_refuses_a_function_without_a_gradient(where):
    import visreg_core

    for wrapper in (visreg_core.value_and_grad, visreg_core.value_and_vjp):
        with pytest.raises((TypeError, ValueError), match="loss"):
            wrapper(visreg_core.random_walk_affinity)
        with pytest.raises((TypeError, ValueError), match="loss"):
            wrapper(sum)
