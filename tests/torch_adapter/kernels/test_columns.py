"""Moments, standardised rows and the combination against the core's, in float64."""

import array_api_compat.torch as xp
import pytest
import torch

from tests.torch_adapter.kernels.tensors import DTYPES, rounding, strided
from visreg_core.losses import _rows
from visreg_torch.kernels.columns import column_moments, combine_, standardised

pytestmark = pytest.mark.backends("torch", "torch-cuda")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def embeddings(draw, *shape, dtype=torch.float32):
    """Columns of several scales and means."""
    scale, mean = draw(2, 1, shape[-1])
    return (draw(*shape) * scale.exp() + 4 * mean).to(dtype)


def twin(z, row_mask=None):
    """Mean and biased variance of the core's centring."""
    rows, centred = _rows.centre(xp, z.double(), row_mask)
    variance = rows.sum(centred * centred) / rows.n
    return rows.mean()[..., 0, :], variance[..., 0, :]


def assert_agree(moments, expected):
    mean, variance = expected
    torch.testing.assert_close(moments.first.double() + moments.rest, mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moments.variance.double(), variance, rtol=1e-5, atol=1e-12)


@dtypes
@pytest.mark.parametrize(
    ("batch", "n", "d"), [(2, 2, 1), (1, 3, 70), (2, 255, 7), (1, 257, 64), (1, 5001, 3)]
)
def test_moments_agree_with_the_core(draw, dtype, batch, n, d):
    z = embeddings(draw, batch, n, d, dtype=dtype)
    assert_agree(column_moments(strided(z)), twin(z))


@dtypes
@pytest.mark.parametrize("n", [3, 700])
def test_masked_rows_do_not_exist(draw, mask_of, dtype, n):
    z, keep = embeddings(draw, 2, n, 5, dtype=dtype), mask_of(n)
    z[:, ~keep] = torch.nan
    assert_agree(column_moments(z, keep), twin(z[:, keep]))


def test_blocks_without_kept_rows(draw, device):
    z = embeddings(draw, 1, 700, 5)
    keep = torch.arange(700, device=device) >= 690
    assert_agree(column_moments(z, keep), twin(z[:, keep]))
    nothing = column_moments(z, torch.zeros_like(keep))
    assert all(torch.isnan(m).all() for m in nothing)


@pytest.mark.parametrize("n", [3, 1000])
@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e8])
def test_constant_columns_have_exactly_no_variance(draw, n, scale):
    """A mean rounds to either side of them, which the many columns see to."""
    constants = scale * draw(100)
    first, rest, variance = column_moments(constants.expand(1, n, -1))
    assert torch.equal(first[0], constants)
    assert torch.all(rest == 0) and torch.all(variance == 0)


def test_a_mean_far_from_zero(draw):
    """Single values are rounded to 1/128 here; what is taken from them is not."""
    z = draw(1, 3000, 4) + 1e5
    moments = column_moments(z)
    mean, variance = twin(z)
    off = moments.first.double() + moments.rest - mean
    assert off.abs().max() < 1e-5
    torch.testing.assert_close(moments.variance.double(), variance, rtol=1e-5, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_value_stays_in_its_column(draw, bad):
    z = draw(1, 300, 4)
    z[0, 5, 2] = bad
    first, _, variance = column_moments(z)
    assert torch.isfinite(first)[0].tolist() == [True, True, False, True]
    assert torch.isnan(variance)[0].tolist() == [False, False, True, False]


@dtypes
@pytest.mark.parametrize("masked", [False, True])
def test_standardised(draw, mask_of, dtype, masked):
    z = embeddings(draw, 2, 130, 70, dtype=dtype)
    keep = mask_of(130) if masked else None
    first, scale = draw(2, 2, 70)
    rest = 1e-3 * draw(2, 70)
    centred = z.float() - first[:, None] - rest[:, None]
    expected = (centred * scale[:, None]).to(torch.bfloat16)
    if masked:
        expected[:, ~keep] = 0
        z[:, ~keep] = torch.nan
    found = standardised(strided(z), first, rest, scale, keep, out_dtype=torch.bfloat16)
    torch.testing.assert_close(found, expected, rtol=2 * rounding(torch.bfloat16), atol=0)
    assert (found == expected).double().mean() > 0.99  # one rounding, but for a fused operation


@dtypes
@pytest.mark.parametrize("masked", [False, True])
def test_combined(draw, mask_of, dtype, masked):
    z, g = draw(2, 2, 70, 130).to(dtype)
    keep = mask_of(70) if masked else None
    first, on_g, on_shifted, constant = draw(4, 2, 130)
    shifted = (z.double() - first[:, None]) * on_shifted[:, None] + constant[:, None]
    expected = g.double() * on_g[:, None] + shifted
    if masked:
        expected[:, ~keep] = 0
        z[:, ~keep] = torch.nan
    assert combine_(g, strided(z), first, on_g, on_shifted, constant, keep) is g
    tolerance = {"rtol": 2 * rounding(dtype), "atol": 1e-6}
    torch.testing.assert_close(g.double(), expected, **tolerance)


def test_float16_ends_at_its_largest(draw, device):
    g = torch.full((1, 2, 3), 600.0, dtype=torch.float16, device=device)
    z = torch.zeros_like(g)
    on_g = torch.tensor([[100.0, 200.0, -200.0]], device=device)
    nothing = torch.zeros(1, 3, device=device)
    combine_(g, z, nothing, on_g, nothing, nothing)
    assert g[0, 0].tolist() == [60000, 65504, -65504]


def test_errors(draw):
    z = draw(2, 5, 3)
    with pytest.raises(ValueError, match=r"expected z of shape \(B, N, D\); found \(5, 3\)"):
        column_moments(z[0])
    with pytest.raises(ValueError, match=r"expected scale of shape \(2, 3\); found \(3,\)"):
        standardised(z, z[:, 0], z[:, 0], z[0, 0], out_dtype=torch.float32)
    with pytest.raises(ValueError, match=r"expected g of shape \(2, 5, 3\); found \(2, 5, 2\)"):
        combine_(z[..., :2], z, *[z[:, 0]] * 4)
