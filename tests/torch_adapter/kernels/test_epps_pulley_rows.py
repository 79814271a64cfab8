"""Sums and polynomials of rows against the core's, in float64."""

import array_api_compat.torch as xp
import pytest
import torch

from tests.torch_adapter.kernels.tensors import DTYPES, strided
from visreg_core.losses.epps_pulley import Multiples, knots_like, term
from visreg_core.losses.execution import PLAIN
from visreg_torch.kernels import _launch
from visreg_torch.kernels.epps_pulley_rows import epps_pulley_polynomial, epps_pulley_sums

pytestmark = pytest.mark.backends("torch", "torch-cuda")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def reference(x, m):
    return Multiples(xp, x.double(), m)


@dtypes
@pytest.mark.parametrize(
    ("rows", "n", "m"), [(1, 2, 16), (7, 3, 1), (7, 255, 16), (1, 257, 5), (3, 5001, 16)]
)
def test_agrees_with_the_core(draw, dtype, rows, n, m):
    x = draw(rows, n, dtype=dtype)
    for found, expected in zip(
        epps_pulley_sums(strided(x), m), reference(x, m).sums(None), strict=True
    ):
        assert found.shape == (rows, m)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6 * n)
    of_cos, of_sin = draw(2, rows, m)
    found = epps_pulley_polynomial(strided(x), of_cos, of_sin)
    expected = reference(x, m).polynomial(of_cos.double(), of_sin.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)


def test_long_rows_in_parts(draw):
    x = draw(2, 50_001)
    expected_sums = Multiples(xp, x.double(), 3).sums(None)
    for found, expected in zip(epps_pulley_sums(x, 3), expected_sums, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("programs", [1, 3])
def test_parts_of_several_blocks(draw, monkeypatch, programs):
    monkeypatch.setattr(_launch, "PROGRAMS", programs)
    x = draw(1, 9000)  # five blocks
    for found, expected in zip(
        epps_pulley_sums(x, 5), Multiples(xp, x.double(), 5).sums(None), strict=True
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("n", [3, 300, 2500])
def test_masked_samples_do_not_exist(draw, mask_of, n):
    x, keep = draw(3, n), mask_of(n)
    x[:, ~keep] = torch.nan
    found = epps_pulley_sums(x, 16, keep)
    for f, e in zip(found, reference(x[:, keep], 16).sums(None), strict=True):
        torch.testing.assert_close(f.double(), e, rtol=1e-5, atol=1e-6 * n)


def test_a_nan_is_heard_of(draw):
    x = draw(2, 300)
    x[0, 7] = torch.nan
    cos_sums, sin_sums = epps_pulley_sums(x, 4)
    assert cos_sums.isnan().tolist() == sin_sums.isnan().tolist() == [[True] * 4, [False] * 4]
    gradient = epps_pulley_polynomial(x, cos_sums.nan_to_num(), sin_sums.nan_to_num())
    assert gradient.isnan().sum() == 1 and gradient[0, 7].isnan()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_the_whole_statistic(draw, device, scale):
    """Value and gradient of the core's term, put together from the two passes."""
    x = scale * draw(5, 300)
    k = knots_like(xp, x.double(), 3.0, 17)
    expected = term(xp, x.double(), 300.0, k, None, PLAIN._replace(need_gradient=True))
    k = knots_like(xp, x, 3.0, 17)
    real, imaginary = (s / 300 for s in epps_pulley_sums(k.first * x, 16))
    value = 300 * torch.sum(k.weights * ((real - k.targets) ** 2 + imaginary**2), dim=-1)
    slope = 2 * k.weights * k.knots
    gradient = epps_pulley_polynomial(k.first * x, slope * imaginary, -slope * (real - k.targets))
    angle_error = 1e-7 * (1 + 3 * scale)
    torch.testing.assert_close(value.double(), expected[0], rtol=1e-5, atol=300 * angle_error)
    torch.testing.assert_close(gradient.double(), expected[1], rtol=1e-4, atol=30 * angle_error)


def test_errors(draw):
    x = draw(2, 5)
    with pytest.raises(ValueError, match=r"expected m of at least 1; found 0"):
        epps_pulley_sums(x, 0)
    with pytest.raises(ValueError, match=r"expected of_sin of shape \(2, 3\); found \(2, 4\)"):
        epps_pulley_polynomial(x, draw(2, 3), draw(2, 4))
    with pytest.raises(TypeError, match=r"expected angle of dtype .* found torch.float64"):
        epps_pulley_sums(x.double(), 3)
