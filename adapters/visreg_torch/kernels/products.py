"""Products of 16-bit matrices with float32 sums, by the vendor's library.

cuBLAS has them with a float32 result (torch's ``out_dtype``), at the rate of the tensor cores.
Elsewhere, where only tests run them, 16-bit matrices are multiplied as float32.
"""

from __future__ import annotations

from typing import Any

import torch

from visreg_torch.kernels import _launch, _tape


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
    if out is None:
        out = _launch.empty((*a.shape[:2], b.shape[2]), dtype, a.device)
    made = _tape.recording()
    if made is None:
        _multiply(a, b, out, add)
    else:
        with made.step():
            _multiply(a, b, out, add)
        made.multiplied(_multiply, a, b, out, add)
    return out


def _multiply(a: torch.Tensor, b: torch.Tensor, out: Any, add: bool) -> None:
    if a.device.type == "cuda":
        if a.dtype == out.dtype:
            torch.baddbmm(out, a, b, out=out) if add else torch.bmm(a, b, out=out)
        elif add:
            torch.ops.aten.baddbmm.dtype_out(out, a, b, out.dtype, out=out)
        else:
            torch.ops.aten.bmm.dtype_out(a, b, out.dtype, out=out)
    elif a.device.type != "meta":
        made = torch.bmm(a.float(), b.float())
        out.copy_(out.float() + made if add else made)
