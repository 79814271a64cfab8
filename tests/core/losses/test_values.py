"""Every loss on every backend against its float64 transcription."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.backends import Backend
from tests.cases import CASES, PATHS, each, named

TOLERANCE = {"float64": 1e-12, "float32": 2e-6}
# More rows than dimensions, fewer (Gram matrices), two rows, one dimension.
SHAPES = {"tall": (12, 5, 7), "wide": (6, 9, 7), "pair": (2, 3, 4), "line": (9, 1, 3)}


def assert_terms(case, where, result, expected, tolerance=None):
    """Value within tolerance of the larger of |value| and magnitude; kind as the input's."""
    tolerance = tolerance or TOLERANCE[where.dtype]
    for name, got in case.fields(result).items():
        value, magnitude = expected[name]
        assert where.backend.owns(got), f"{name} is a {type(got)}"
        assert got.shape == (), f"{name} has shape {got.shape}"
        assert where.backend.dtype_name(got) == where.dtype
        error = abs(float(where.to_numpy(got)) - value)
        bound = tolerance * max(abs(value), magnitude)
        assert error <= bound, f"{name}: {float(got)} for {value}, error {error / bound:.2g} bounds"


@each(CASES)
@pytest.mark.lean_on_jax(dtype=["float64"])
def test_value_is_the_formula(case, where, rng):
    for shape in ("tall", "wide") if where.backend is Backend.JAX else SHAPES:
        check_value(case, where, case.draw(rng, *SHAPES[shape]))


def check_value(case, where, drawn):
    rounded = {n: a.astype(where.dtype).astype(a.dtype) if a.dtype.kind == "f" else a
               for n, a in drawn.items()}  # fmt: skip
    result = case.call({n: where.asarray(a) for n, a in rounded.items()})
    assert_terms(case, where, result, case.expected(rounded))


@each([c for c in CASES if c.leading])
@pytest.mark.lean_on_jax(dtype=["float64"])
def test_leading_axes_are_averaged(case, where, rng):
    """The loss of (2, 2, N, D) is the mean of its four losses, with the slices shared."""
    arrays = case.draw(rng, 6, 3, 4, leading=(2, 2))
    result = case.call({n: where.asarray(a) for n, a in arrays.items()})
    tolerance = TOLERANCE[where.dtype] * (1 if where.dtype == "float64" else 2)
    assert_terms(case, where, result, case.expected(arrays), tolerance)


@each([c for c in CASES if c.leading and c.loss.sliced])
@pytest.mark.dtypes("float64")
@pytest.mark.lean_on_jax(case=named("gaussian_sliced_wasserstein"))
def test_slices_broadcast_against_leading_axes(case, where, rng):
    """Slices with leading axes of their own: another set for each view."""
    for leading in [(3, 1)] if where.backend is Backend.JAX else [(2,), (3, 1), (3, 2)]:
        check_slices_with_leading_axes(case, where, rng, leading)


def check_slices_with_leading_axes(case, where, rng, leading):
    arrays = case.draw(rng, 6, 3, 4, leading=(3, 2))
    w = rng.normal(size=(*leading, 3, 4))
    arrays["slices"] = w / np.linalg.norm(w, axis=-2, keepdims=True)
    given = {n: where.asarray(a) for n, a in arrays.items()}
    assert_terms(case, where, case.call(given), case.expected(arrays))
    _, gradients = case.value_and_grad(given)
    for name, gradient in zip(case.differentiated, gradients, strict=True):
        assert gradient.shape == arrays[name].shape


@each([c for c in CASES if c.loss.chunked and not c.variant])
@pytest.mark.lean_on_jax(dtype=["float32"], case=named("shape_loss", "sliced_wasserstein"))
def test_chunks_change_nothing(case, where, rng):
    arrays = {n: where.asarray(a) for n, a in case.draw(rng).items()}
    whole = case.value_and_grad(arrays)
    for chunk_size in (3,) if where.backend is Backend.JAX else (1, 3, 7, 100):
        check_chunks(case, where, arrays, chunk_size, *whole)


def check_chunks(case, where, arrays, chunk_size, whole, gradients):
    rtol = 1e-13 if where.dtype == "float64" else 2e-6
    chunked, chunked_gradients = case.value_and_grad(arrays, chunk_size=chunk_size)
    value = case.call(arrays, chunk_size=chunk_size)
    for a, b, c in zip(*(case.fields(r).values() for r in (whole, chunked, value)), strict=True):
        assert_allclose(where.to_numpy(b), where.to_numpy(a), rtol=rtol)
        assert_allclose(where.to_numpy(c), where.to_numpy(a), rtol=rtol)
    for a, b in zip(gradients, chunked_gradients, strict=True):
        scale = np.max(np.abs(where.to_numpy(a)))
        assert_allclose(where.to_numpy(b), where.to_numpy(a), rtol=0, atol=rtol * scale)


@each(PATHS)
@pytest.mark.dtypes("float32")
@pytest.mark.lean_on_jax(dtype=[])  # its arrays are immutable
def test_inputs_are_left_alone(case, where, rng):
    """Not a bit of an input changes, nor whether it requires a gradient, and it may be read-only
    (NumPy's arrays are, throughout the tests)."""
    drawn = case.draw(rng)
    arrays = {n: where.asarray(a) for n, a in drawn.items()}
    before = {n: where.to_numpy(a).copy() for n, a in arrays.items()}
    if where.backend in (Backend.TORCH, Backend.TORCH_CUDA):
        for name in case.differentiated:
            arrays[name].requires_grad_()
    case.call(arrays)
    case.value_and_grad(arrays)
    for name, a in arrays.items():
        assert np.array_equal(where.to_numpy(a), before[name]), name
        if where.backend in (Backend.TORCH, Backend.TORCH_CUDA):
            assert a.requires_grad == (name in case.differentiated)


@each([c for c in CASES if not c.variant])
@pytest.mark.backends("numpy", "torch", "torch-cuda", "cupy")
def test_memory_layout_changes_nothing(case, where, rng):
    """Transposed, reversed and strided inputs, which no contiguous fast path may misread."""
    drawn = case.draw(rng)
    plain = {n: where.asarray(a) for n, a in drawn.items()}
    strided = {}
    for name, a in drawn.items():
        if a.ndim < 2:
            strided[name] = where.asarray(np.repeat(a, 2))[::2]
        else:
            wide = np.repeat(np.swapaxes(a, -1, -2), 2, axis=-1)
            strided[name] = where.asarray(wide)[..., ::2].swapaxes(-1, -2)
    one, one_gradients = case.value_and_grad(plain)
    two, two_gradients = case.value_and_grad(strided)
    rtol = 1e-13 if where.dtype == "float64" else 2e-6
    for a, b in zip(case.fields(one).values(), case.fields(two).values(), strict=True):
        assert_allclose(where.to_numpy(b), where.to_numpy(a), rtol=rtol)
    for a, b in zip(one_gradients, two_gradients, strict=True):
        scale = np.max(np.abs(where.to_numpy(a)))
        assert_allclose(where.to_numpy(b), where.to_numpy(a), rtol=0, atol=10 * rtol * scale)


@each([c for c in CASES if not c.variant])
@pytest.mark.backends("numpy")
@pytest.mark.dtypes("float64")
def test_big_endian_input_works_or_is_refused_in_one_line(case, where, rng):
    arrays = {n: a.astype(a.dtype.newbyteorder(">")) for n, a in case.draw(rng).items()}
    try:
        result = case.call(arrays)
    except (TypeError, ValueError) as error:
        assert "\n" not in str(error)
    else:
        assert_allclose(case.scalar(result), case.expected(arrays)[case.loss.fields[0]].value)
