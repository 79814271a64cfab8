"""float16 and bfloat16: only the projection product may round.

The errors are those against the float64 loss of the same rounded inputs; ``measure`` is what the
backends table of the documentation reports.
"""

import numpy as np
import pytest

from tests.backends import Backend
from tests.cases import CASES, PRIMARY, each, named
from tests.core.losses.test_visreg import algorithm_1
from visreg_core import random_slices, value_and_grad, visreg_loss

HALVES = ("bfloat16", "float16")
SHAPE = (64, 16, 48)
VALUE_BOUND = 2e-6
# Relative L2 error of the gradient: it is returned in the input's dtype, which alone rounds by
# 2**-9 (bfloat16) or 2**-12 (float16) relative.
GRADIENT_BOUND = {"bfloat16": 4e-3, "float16": 5e-4}
# With ``projection_dtype`` narrow, the product's rounding comes on top, amplified where sorted
# projections nearly equal their targets.
NARROW_VALUE_BOUND = {"bfloat16": 4e-3, "float16": 5e-4}
NARROW_GRADIENT_BOUND = {"bfloat16": 0.12, "float16": 0.06}


def rounded(a, dtype):
    if a.dtype.kind != "f":
        return a
    return Backend.TORCH.to_numpy(Backend.TORCH.asarray(a, dtype)).astype(np.float64)


def measure(case, backend, dtype, rng, **options):
    """``(error of the fields relative to their magnitude, relative L2 error of the gradient)``."""
    arrays = {n: rounded(a, dtype) for n, a in case.draw(rng, *SHAPE).items()}
    terms = case.expected(arrays)
    _, expected_gradients = case.value_and_grad(arrays)
    with backend.precision(dtype):
        given = {n: backend.asarray(a, dtype if a.dtype.kind == "f" else None)
                 for n, a in arrays.items()}  # fmt: skip
        result, gradients = case.value_and_grad(given, **options)
        fields = case.fields(result)
        for name, value in fields.items():
            assert backend.dtype_name(value) == "float32", f"{name} is {value.dtype}"
        for gradient in gradients:
            assert backend.dtype_name(gradient) == dtype
        value_error = max(
            abs(float(backend.to_numpy(v)) - terms[n].value)
            / max(abs(terms[n].value), terms[n].magnitude)
            for n, v in fields.items()
        )
        gradient_error = max(
            np.linalg.norm(backend.to_numpy(g) - e) / np.linalg.norm(e)
            for g, e in zip(gradients, expected_gradients, strict=True)
        )
    return value_error, gradient_error


@each(CASES)
@pytest.mark.dtypes(*HALVES)
@pytest.mark.lean_on_jax(dtype=["bfloat16"], case=named("shape_loss", "sigreg_loss", "vicreg_loss"))
def test_half_precision_errors_are_bounded(case, where, rng):
    value_error, gradient_error = measure(case, where.backend, where.dtype, rng)
    assert value_error <= VALUE_BOUND
    assert gradient_error <= GRADIENT_BOUND[where.dtype]


@each([c for c in PRIMARY if c.loss.chunked])
@pytest.mark.dtypes(*HALVES)
@pytest.mark.backends("torch", "torch-cuda", "jax")
@pytest.mark.lean_on_jax(dtype=["bfloat16"])
def test_a_narrow_projection_rounds_the_product_only(case, where, rng):
    narrow = where.backend.dtype(where.dtype)
    value_error, gradient_error = measure(
        case, where.backend, where.dtype, rng, projection_dtype=narrow
    )
    assert value_error <= NARROW_VALUE_BOUND[where.dtype]
    assert gradient_error <= NARROW_GRADIENT_BOUND[where.dtype]


@pytest.mark.parametrize("sigma", [1.0, 1e-3])
@pytest.mark.backends("torch")
@pytest.mark.dtypes("bfloat16")
def test_far_below_eager_code(where, sigma):
    """Against Algorithm 1 written eagerly in bfloat16, whose gradient is 7 to 12 % off."""
    torch = where.backend.xp
    generator = torch.Generator().manual_seed(0)
    z = (sigma * torch.randn(256, 128, generator=generator)).bfloat16()
    slices = random_slices(128, 512, xp=torch, dtype=torch.bfloat16)
    _, exact = value_and_grad(visreg_loss)(z.double(), slices.double())
    _, ours = value_and_grad(visreg_loss)(z, slices)
    leaf = z.clone().requires_grad_()
    algorithm_1(leaf, slices)[0].backward()

    def error(gradient):
        return float((gradient.double() - exact).norm() / exact.norm())

    assert error(ours) <= 4e-3
    assert error(leaf.grad) >= 10 * error(ours)


@each([c for c in PRIMARY if c.loss.chunked])
@pytest.mark.dtypes("float32")
@pytest.mark.backends("torch", "jax")
def test_a_narrower_projection_is_taken(case, where, rng):
    """``projection_dtype=bfloat16`` on float32 input: close, and not the same number."""
    given = {n: where.asarray(a) for n, a in case.draw(rng, *SHAPE).items()}
    narrow = where.backend.dtype("bfloat16")
    full = case.scalar(case.call(given))
    half = case.scalar(case.call(given, projection_dtype=narrow))
    assert where.backend.dtype_name(half) == "float32"
    assert float(half) != float(full)
    assert float(half) == pytest.approx(float(full), rel=0.02)


@each(PRIMARY)
@pytest.mark.dtypes(*HALVES)
@pytest.mark.backends("torch", "jax")
@pytest.mark.lean_on_jax(dtype=["bfloat16"], case=named("visreg_loss", "sigreg_loss"))
def test_sums_over_many_rows_are_wide(case, where, rng):
    """A sum over 4096 rows in a 16-bit accumulator would stall; the value says it did not."""
    # Of pairs of rows, whose sums are as long with fewer.
    of_pairs = {"gaussian_mmd", "gaussian_ksd", "sigreg_limit", "spherical_mmd", "spectralnet_loss"}
    shape = (256 if case.loss.name in of_pairs else 4096, 2, 4)
    arrays = {n: rounded(a, where.dtype) for n, a in case.draw(rng, *shape).items()}
    expected = case.fields(case.call(arrays))
    given = {n: where.asarray(a) for n, a in arrays.items()}
    for name, value in case.fields(case.call(given)).items():
        assert float(where.to_numpy(value)) == pytest.approx(float(expected[name]), rel=1e-2)
