"""The kernels of short and of long rows against the core's term, and plain sorting in Python."""

import array_api_compat.torch as xp
import pytest
import torch

from tests.torch_adapter.kernels.tensors import DTYPES, quantiles, strided
from visreg_core.losses.gaussian_sliced_wasserstein import gaussian_term
from visreg_torch.kernels.gaussian_rows import MAX_SAMPLES, gaussian_rows
from visreg_torch.kernels.ordered_rows import ordered_rows

pytestmark = pytest.mark.backends("torch", "torch-cuda")
SLOPE = -0.7
kernels = pytest.mark.parametrize("kernel", [gaussian_rows, ordered_rows])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def twin(p, q, row_mask=None):
    return gaussian_term(xp, p.double(), q.double(), row_mask, True, SLOPE)


def by_hand(row, q):
    """Targets of a row: samples ordered by (value, index)."""
    order = sorted(range(len(row)), key=lambda i: (row[i], i))
    targets = torch.empty(len(row))
    targets[order] = q.cpu()
    return targets


def assert_agree(found, expected):
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == torch.float32
        torch.testing.assert_close(f.double(), e, rtol=2e-6, atol=1e-6, equal_nan=True)


@kernels
@dtypes
@pytest.mark.parametrize(("rows", "n"), [(1, 2), (7, 3), (1, 255), (2, 257)])
def test_agrees_with_the_core(draw, device, kernel, dtype, rows, n):
    p, q = draw(rows, n, dtype=dtype), quantiles(n, device)
    assert_agree(kernel(p, q, None, True, SLOPE), twin(p, q))
    assert_agree(kernel(strided(p), q, None, False), twin(p, q)[:1])


@pytest.mark.parametrize(
    ("kernel", "n"), [(gaussian_rows, 5001), (gaussian_rows, MAX_SAMPLES), (ordered_rows, 50_001)]
)
def test_long_rows(draw, device, kernel, n):
    p, q = draw(1, n), quantiles(n, device)
    assert_agree(kernel(p, q, None, True, SLOPE), twin(p, q))


@kernels
@dtypes
@pytest.mark.parametrize("n", [3, 200])
def test_masked_samples_do_not_exist(draw, mask_of, device, kernel, dtype, n):
    p, keep = draw(3, n, dtype=dtype), mask_of(n)
    p[:, ~keep] = torch.nan
    q = quantiles(n, device, keep)
    values, gradient = kernel(p, q, keep, True, SLOPE)
    alone = twin(p[:, keep], quantiles(int(keep.sum()), device))
    assert_agree((values, gradient[:, keep]), alone)
    assert torch.all(gradient[:, ~keep] == 0)
    assert_agree(kernel(p, q, keep, False), (alone[0],))


@kernels
@dtypes
def test_ties_take_targets_in_index_order(draw, device, kernel, dtype):
    n = 70
    p = (2 * draw(3, n)).round().to(dtype)
    p[0] = 0
    p[1, ::2] = -p[1, ::2]  # the two zeros tie, too
    q = quantiles(n, device)
    _, gradient = kernel(p, q, None, True, 1.0)
    for row, of_row in zip(p.cpu(), gradient.cpu(), strict=True):
        torch.testing.assert_close(of_row, row.float() - by_hand(row.tolist(), q))


@kernels
@dtypes
def test_not_a_number_and_infinity(draw, device, kernel, dtype):
    n = 40
    p, q = draw(5, n, dtype=dtype), quantiles(n, device)
    p[0, 3] = torch.nan
    p[1, 4] = -torch.tensor(torch.nan)
    p[2, 5] = torch.inf
    p[3, 6] = -torch.inf
    values, gradient = kernel(p, q, None, True, SLOPE)
    expected, of_p = twin(p, q)
    # On a GPU torch sorts a NaN with a sign in front of all numbers: its row has no order.
    assert_agree((values, gradient[2:]), (expected, of_p[2:]))
    assert values[:4].isnan().tolist() == [True, True, False, False]
    assert torch.isfinite(gradient).sum() == gradient.numel() - 4


@kernels
@dtypes
def test_a_kept_nan_is_heard_of(draw, mask_of, device, kernel, dtype):
    n = 40
    p, keep = draw(2, n, dtype=dtype), mask_of(n)
    p[0, 0] = torch.nan
    values, gradient = kernel(p, quantiles(n, device, keep), keep, True, SLOPE)
    assert values.isnan().tolist() == [True, False]
    assert torch.isfinite(gradient).sum() == gradient.numel() - 1


@kernels
def test_extreme_scales(device, kernel):
    q = quantiles(3, device)
    p = torch.tensor([[1e-38, -1e-45, 3e-42], [1e30, -3e38, 2.0], [0.0, -0.0, 1e-40]])
    p = p.to(device)
    values, gradient = kernel(p[:1], q, None, True, 1.0)
    assert_agree((values, gradient * SLOPE), twin(p[:1], q))
    _, gradient = kernel(p[1:], q, None, True, 1.0)
    for row, of_row in zip(p[1:].cpu(), gradient.cpu(), strict=True):
        torch.testing.assert_close(of_row, row - by_hand(row.tolist(), q))


def test_errors(draw, device):
    p, q = draw(2, 5), quantiles(5, device)
    with pytest.raises(ValueError, match=r"expected q of shape \(5,\); found \(4,\)"):
        gaussian_rows(p, q[:4])
    with pytest.raises(ValueError, match=r"expected p of shape \(R, N\); found \(5,\)"):
        ordered_rows(p[0], q)
    with pytest.raises(TypeError, match=r"expected p of dtype .* found torch.float64"):
        gaussian_rows(p.double(), q)
    with pytest.raises(ValueError, match=rf"at most {MAX_SAMPLES} samples; found 8193"):
        gaussian_rows(draw(1, 8193), quantiles(8193, device))
    with pytest.raises(ValueError, match=r"expected row_mask of shape \(5,\)"):
        gaussian_rows(p, q, torch.ones(4, dtype=torch.bool, device=device))


@kernels
def test_no_rows(device, kernel):
    values, gradient = kernel(torch.empty(0, 4, device=device), quantiles(4, device))
    assert values.shape == (0,) and gradient.shape == (0, 4)
