"""Sorting in registers, and cosines and sines, by themselves."""

import pytest
import torch
import triton
import triton.language as tl

from visreg_torch.kernels._sorting import rank_of, sort_rows
from visreg_torch.kernels.characteristic_rows import cos_sin

pytestmark = pytest.mark.backends("torch", "torch-cuda")


@triton.jit
def _sorted(x_ptr, y_ptr, ROWS: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr):
    at = tl.arange(0, ROWS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(y_ptr + at, sort_rows(tl.load(x_ptr + at), BITS))


@triton.jit
def _angles(x_ptr, cos_ptr, sin_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    cos, sin = cos_sin(tl.load(x_ptr + at))
    tl.store(cos_ptr + at, cos)
    tl.store(sin_ptr + at, sin)


@pytest.mark.parametrize("bits", [1, 2, 3, 6, 7, 8, 9, 11])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_rows_are_sorted_by_ranks(draw, bits, dtype):
    x = (draw(2, 1 << bits) * 1e9).to(dtype)
    x[1, : 1 << (bits - 1)] = torch.iinfo(dtype).max
    y = torch.empty_like(x)
    _sorted[(1,)](x, y, 2, 1 << bits, bits)
    ranks = [rank_of(column, bits) for column in range(1 << bits)]
    assert sorted(ranks) == list(range(1 << bits))
    assert torch.equal(y, x.sort(dim=1).values[:, ranks])


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 30.0, 1e5, 1e7])
def test_cosines_and_sines(draw, scale):
    x = scale * draw(1024)
    cos, sin = torch.empty_like(x), torch.empty_like(x)
    _angles[(1,)](x, cos, sin, 1024)
    torch.testing.assert_close(cos.double(), x.double().cos(), rtol=0, atol=4e-7)
    # Relative where it is small: a collapsed loss's gradient is made of these.
    torch.testing.assert_close(sin.double(), x.double().sin(), rtol=2e-7, atol=4e-7 * min(1, scale))
