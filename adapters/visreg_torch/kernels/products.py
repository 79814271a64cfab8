"""Products of 16-bit matrices with float32 sums, by the vendor's library.

cuBLAS has them with a float32 result (torch's ``out_dtype``), at the rate of the tensor cores.
Elsewhere, where only tests run them, 16-bit matrices are multiplied as float32.
"""

from __future__ import annotations

from typing import Any

import torch


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    dtype: torch.dtype,
    *,
    out: Any = None,
    add: bool = False,
) -> torch.Tensor:
    """a @ b of batches of matrices, summed in float32, rounded once to `dtype`.

    a, b : (G, M, J) and (G, J, N); of one 16-bit dtype, or float32
    dtype : of the result: that of a and b, or float32
    out : (G, M, N); where to write
    add : whether to add to `out`
    Returns (G, M, N), `out` if given.
    """
    if a.device.type == "meta":
        shape = (*a.shape[:2], b.shape[2])
        return torch.empty(shape, dtype=dtype, device=a.device) if out is None else out
    if a.device.type != "cuda":
        made = torch.bmm(a.float(), b.float())
        if out is None:
            return made.to(dtype)
        return out.copy_(out.float() + made if add else made)
    if a.dtype == dtype:
        if add:
            return torch.baddbmm(out, a, b, out=out)
        return torch.bmm(a, b) if out is None else torch.bmm(a, b, out=out)
    if out is None:
        return torch.bmm(a, b, out_dtype=dtype)
    if add:
        return torch.ops.aten.baddbmm.dtype_out(out, a, b, dtype, out=out)
    return torch.ops.aten.bmm.dtype_out(a, b, dtype, out=out)
