"""The histogram against the same rule written naively, and its value against index order."""

import array_api_compat.torch as xp
import pytest
import torch

from tests.torch_adapter.kernels.tensors import SIXTEEN_BITS, quantiles, strided
from visreg_core.losses.gaussian_sliced_wasserstein import gaussian_term
from visreg_torch.kernels.histogram_rows import histogram_rows

pytestmark = pytest.mark.backends("torch", "torch-cuda")
SLOPE = -0.7
dtypes = pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=str)


def naive(p, q):
    """Equal samples take the mean of their quantiles; a row of equal samples, index order."""
    p, q = p.double().cpu(), q.double().cpu()
    values, gradients = [], []
    for row in p:
        different, which = row.unique(return_inverse=True)
        ranked = which.sort().values
        mean = torch.stack([q[ranked == i].mean() for i in range(len(different))])[which]
        values.append(row @ row - 2 * row @ mean + q @ q)
        target = q if len(different) == 1 else mean
        gradients.append(SLOPE * (row - target))
    return torch.stack(values), torch.stack(gradients)


def assert_agree(found, expected):
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == torch.float32
        torch.testing.assert_close(f.double().cpu(), e.cpu(), rtol=2e-6, atol=1e-6)


@dtypes
@pytest.mark.parametrize(("rows", "n"), [(1, 2), (7, 3), (1, 255), (2, 257), (1, 5001)])
def test_agrees_with_the_rule(draw, device, dtype, rows, n):
    p, q = draw(rows, n, dtype=dtype), quantiles(n, device)
    found = histogram_rows(strided(p), q, None, True, SLOPE)
    assert_agree(found, naive(p, q))
    (in_index_order,) = gaussian_term(xp, p.double(), q.double(), None, False)
    assert_agree(found[:1], (in_index_order,))


def test_long_rows(draw, device):
    p, q = draw(1, 50_001, dtype=torch.bfloat16), quantiles(50_001, device)
    found = histogram_rows(p, q, None, True, SLOPE)
    assert_agree(found, naive(p, q))


@dtypes
def test_rows_of_one_key_take_index_order(draw, device, dtype):
    n = 300
    p, q = draw(3, n, dtype=dtype), quantiles(n, device)
    p[0] = 0
    p[0, ::3] = -0.0  # the same number
    p[2] = -1.5
    values, gradient = histogram_rows(p, q, None, True, SLOPE)
    assert_agree((values, gradient), naive(p, q))
    expected = gaussian_term(xp, p.double(), q.double(), None, True, SLOPE)
    for row in (0, 2):
        assert_agree((values[row], gradient[row]), (expected[0][row], expected[1][row]))
        assert gradient[row].std() > 0.6  # collapse has a gradient within it


@dtypes
def test_masked_samples_do_not_exist(draw, mask_of, device, dtype):
    n = 300
    p, keep = draw(3, n, dtype=dtype), mask_of(n)
    p[1] = 2.0
    p[:, ~keep] = torch.nan
    q = quantiles(n, device, keep)
    values, gradient = histogram_rows(p, q, keep, True, SLOPE)
    alone = naive(p[:, keep], quantiles(int(keep.sum()), device))
    assert_agree((values, gradient[:, keep]), alone)
    assert torch.all(gradient[:, ~keep] == 0)


@dtypes
def test_every_key_has_its_place(device, dtype):
    """All finite numbers of the dtype, in every order of magnitude, descending."""
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    p = bits.view(dtype)
    p = p[torch.isfinite(p)].double().unique().flip(0).to(dtype)
    assert len(p) == 2 * (0x7F80 if dtype == torch.bfloat16 else 0x7C00) - 1
    q = torch.linspace(-3, 3, len(p))
    _, gradient = histogram_rows(p[None].to(device), q.to(device), None, True, 1.0)
    torch.testing.assert_close(gradient[0].cpu(), p.float() - q.flip(0))


@dtypes
def test_not_a_number_and_infinity(draw, device, dtype):
    n = 40
    p, q = draw(4, n, dtype=dtype), quantiles(n, device)
    p[0, 3] = torch.nan
    p[1, 4] = -torch.tensor(torch.nan)
    p[2, 5] = torch.inf
    p[3, 6] = -torch.inf
    values, gradient = histogram_rows(p, q, None, True, SLOPE)
    assert values.isnan().tolist() == [True, True, False, False]
    assert values[2:].tolist() == [torch.inf, torch.inf]
    assert torch.isfinite(gradient).sum() == gradient.numel() - 4


def test_rows_in_parts(draw, device, monkeypatch):
    from visreg_torch.kernels import histogram_rows as module

    p, q = draw(3, 30, dtype=torch.bfloat16), quantiles(30, device)
    monkeypatch.setattr(module, "_SCRATCH_BYTES", 2 * 4 * module.KEYS)
    assert_agree(histogram_rows(p, q, None, True, SLOPE), naive(p, q))
    assert_agree(histogram_rows(p, q, None, False), naive(p, q)[:1])


def test_errors(draw, device):
    with pytest.raises(TypeError, match=r"expected p of 16 bits; found torch.float32"):
        histogram_rows(draw(2, 5), quantiles(5, device))
    with pytest.raises(ValueError, match=r"expected q of shape \(5,\); found \(4,\)"):
        histogram_rows(draw(2, 5, dtype=torch.bfloat16), quantiles(4, device))
