"""Epps-Pulley's two passes on projections in registers, against the core's on stored ones."""

import array_api_compat.torch as xp
import pytest
import torch

from tests.torch_adapter.kernels.tensors import DTYPES, relative_error, rounding, strided
from visreg_core.losses.epps_pulley import Multiples
from visreg_torch.kernels import _launch
from visreg_torch.kernels.projected_epps_pulley import (
    projected_epps_pulley_polynomial,
    projected_epps_pulley_sums,
)

pytestmark = pytest.mark.backends("torch", "torch-cuda")
STEP = 3 / 16
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def arrays(draw, dtype, batch, n, d, k):
    return draw(batch, n, d).to(dtype), (draw(1, d, k) / d**0.5).to(dtype)


def twin(z, w, m):
    return Multiples(xp, STEP * (z.double() @ w.double()).mT.flatten(0, 1), m)


@dtypes
@pytest.mark.parametrize(
    ("batch", "n", "d", "k", "m"),
    [(1, 2, 3, 1, 16), (2, 3, 40, 7, 1), (1, 255, 5, 7, 5), (1, 129, 70, 70, 16)],
)
def test_agrees_with_the_core(draw, dtype, batch, n, d, k, m):
    z, w = arrays(draw, dtype, batch, n, d, k)
    found = projected_epps_pulley_sums(strided(z), strided(w), STEP, m)
    for f, e in zip(found, twin(z, w, m).sums(None), strict=True):
        assert f.shape == (batch, k, m)
        torch.testing.assert_close(f.double().flatten(0, 1), e, rtol=1e-5, atol=1e-5 * n)
    of_cos, of_sin = draw(2, batch, k, m)
    found = projected_epps_pulley_polynomial(strided(z), strided(w), STEP, of_cos, of_sin)
    assert found.shape == (batch, k, n)
    coefficients = (c.double().flatten(0, 1) for c in (of_cos, of_sin))
    assert relative_error(found.flatten(0, 1), twin(z, w, m).polynomial(*coefficients)) < 2e-5


@pytest.mark.parametrize("programs", [1, 2])
def test_parts_of_several_tiles(draw, monkeypatch, programs):
    monkeypatch.setattr(_launch, "PROGRAMS", programs)
    z, w = arrays(draw, torch.float32, 1, 300, 5, 4)  # five tiles of rows
    found = projected_epps_pulley_sums(z, w, STEP, 3)
    for f, e in zip(found, twin(z, w, 3).sums(None), strict=True):
        torch.testing.assert_close(f.double().flatten(0, 1), e, rtol=1e-5, atol=1e-3)


def test_masked_rows(draw, mask_of):
    (z, w), keep = arrays(draw, torch.float32, 2, 150, 9, 4), mask_of(150)
    z[:, ~keep] = torch.nan
    of_kept = twin(z[:, keep], w, 6)
    for f, e in zip(
        projected_epps_pulley_sums(z, w, STEP, 6, keep), of_kept.sums(None), strict=True
    ):
        torch.testing.assert_close(f.double().flatten(0, 1), e, rtol=1e-5, atol=1e-3)
    of_cos, of_sin = draw(2, 2, 4, 6)
    found = projected_epps_pulley_polynomial(z, w, STEP, of_cos, of_sin, keep)
    coefficients = (c.double().flatten(0, 1) for c in (of_cos, of_sin))
    expected = of_kept.polynomial(*coefficients)
    assert relative_error(found[..., keep].flatten(0, 1), expected) < 1e-5
    assert torch.all(found[..., ~keep] == 0)


def test_narrow_gradient(draw):
    z, w = arrays(draw, torch.bfloat16, 1, 30, 9, 4)
    of_cos, of_sin = draw(2, 1, 4, 6)
    found = projected_epps_pulley_polynomial(z, w, STEP, of_cos, of_sin, out_dtype=torch.bfloat16)
    coefficients = (c.double().flatten(0, 1) for c in (of_cos, of_sin))
    expected = twin(z, w, 6).polynomial(*coefficients)
    assert found.dtype == torch.bfloat16
    assert relative_error(found.flatten(0, 1), expected) < 2 * rounding(torch.bfloat16)


def test_errors(draw):
    z, w = arrays(draw, torch.float32, 2, 5, 3, 4)
    with pytest.raises(ValueError, match=r"expected m of at least 1; found 0"):
        projected_epps_pulley_sums(z, w, STEP, 0)
    with pytest.raises(ValueError, match=r"expected of_cos of shape \(2, 4, 6\)"):
        projected_epps_pulley_polynomial(z, w, STEP, draw(2, 3, 6), draw(2, 4, 6))
