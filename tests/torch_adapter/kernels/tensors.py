"""What the kernels' tests do to tensors and how they compare them."""

import array_api_compat.torch as xp
import torch

from visreg_core import normal_quantiles
from visreg_core.gaussian import masked_normal_quantiles

SIXTEEN_BITS = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *SIXTEEN_BITS)


def quantiles(n, device, row_mask=None):
    if row_mask is None:
        return normal_quantiles(n, xp=xp, dtype=torch.float32, device=device)
    kept = row_mask.sum().to(torch.float32)
    return masked_normal_quantiles(xp, n, kept, dtype=torch.float32)


def strided(x):
    """The same values, none of whose strides is 1."""
    wide = torch.full((*x.shape, 2), torch.nan, dtype=x.dtype, device=x.device)
    wide = wide.movedim(0, -2).contiguous().movedim(-2, 0)
    wide[..., 0] = x
    assert min(wide[..., 0].stride()) > 1
    return wide[..., 0]


def relative_error(found, expected):
    """In norm."""
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm())


def rounding(dtype):
    """Relative error of one rounding to a dtype."""
    return torch.finfo(dtype).eps / 2
