"""Squared distance of long float32 rows to Gaussian quantiles: the library's sort, then one pass.

The order is used where it lies: the differences are scattered by it, and no array of targets is
made. Reference implementation: `visreg_core.losses.gaussian_sliced_wasserstein.gaussian_term`.

Bottleneck: the library's sort, several passes over keys and 8-byte indices; the pass after it reads
16 bytes a number and writes 4 where the order says. Exact: the sort is stable. Worst case: few long
rows. Rejected: a sort of our own through memory, which `sorted_rows` has in shared memory for rows
that fit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from visreg_torch.kernels import _launch

_BLOCK = 2048


@triton.jit
def _kernel(
    sorted_ptr,  # (R, N) contiguous
    order_ptr,  # (R, N) int64, contiguous
    q_ptr,  # (N,) float32
    keep_ptr,  # (N,) bytes, or None
    partial_ptr,  # (R, blocks) float32
    out_ptr,  # (R, N), strides (out_row_stride, out_column_stride)
    n,
    out_row_stride,
    out_column_stride,
    slope,
    BLOCK: tl.constexpr,
    WRITE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    rank = block * BLOCK + tl.arange(0, BLOCK)
    live = rank < n
    p = tl.load(sorted_ptr + row * n + rank, mask=live, other=0.0).to(tl.float32)
    q = tl.load(q_ptr + rank, mask=live, other=0.0)
    difference = p - q
    if WRITE or keep_ptr is not None:
        index = tl.load(order_ptr + row * n + rank, mask=live, other=0)
    if keep_ptr is not None:
        # By index, not by rank: a NaN among the kept samples sorts behind the masked ones.
        keep = tl.load(keep_ptr + index, mask=live, other=0) != 0
        difference = tl.where(keep, difference, 0.0)
    value = tl.sum(difference * difference, axis=0)
    tl.store(partial_ptr + row * tl.num_programs(1) + block, value)
    if WRITE:
        at = out_ptr + row * out_row_stride + index * out_column_stride
        tl.store(at, (slope * difference).to(out_ptr.dtype.element_ty), mask=live)


def ordered_rows(
    p: torch.Tensor,
    q: torch.Tensor,
    row_mask: torch.Tensor | None = None,
    need_grad: bool = True,
    slope: float = 2.0,
) -> tuple[torch.Tensor, ...]:
    """Σ_n (sort(p)_n − q_n)² of each row and, if needed, slope / 2 times its gradient.

    p : (R, N); float32, bfloat16 or float16, any strides and length
    q, row_mask, need_grad, slope : as in `gaussian_rows`
    Returns the same.
    """
    _launch.check_rows("p", p)
    rows, n = p.shape
    _launch.check_shape("q", q, n)
    keep = _launch.mask_bytes(row_mask, n)
    gradient = _launch.gradient_rows(p, need_grad)
    p = p.contiguous()  # the results of a sort lie as what is sorted does
    ordered, order = torch.sort(
        p if row_mask is None else p.masked_fill(~row_mask, torch.inf), dim=-1, stable=True
    )
    blocks = triton.cdiv(n, _BLOCK)
    partial = torch.empty((rows, blocks), dtype=torch.float32, device=p.device)
    _launch.launch(
        _kernel,
        (rows, blocks),
        ordered,
        order,
        q.float().contiguous(),
        keep,
        partial,
        gradient,
        n,
        *gradient.stride(),
        slope,
        BLOCK=_BLOCK,
        WRITE=need_grad,
    )
    values = torch.sum(partial, dim=-1)
    return (values, gradient) if need_grad else (values,)
