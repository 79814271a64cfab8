"""Squared distance of short rows to Gaussian quantiles: sorted in registers, one read, one write.

Reference implementation: `visreg_core.losses.gaussian_sliced_wasserstein.gaussian_term`.

Bottleneck: instructions of the sort, log² N exchanges a number, for one read and one write. Exact:
what is sorted holds the index below the key, so that ties take ranks in index order. Worst case: N
one above a power of two, half of whose row is padding. Rejected: the library's sort, which reads
and writes keys and indices several times.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from visreg_torch.kernels import _launch
from visreg_torch.kernels._keys import behind, float_of, key_of, pack, unpack

# Rows longer than this spill registers: a warp sorts 512 pairs of key and index, sixteen a thread.
MAX_SAMPLES = 8192
_PER_WARP = 512


@triton.jit
def _kernel(
    p_ptr,  # (R, N), strides (row_stride, column_stride)
    q_ptr,  # (N,) float32
    keep_ptr,  # (N,) bytes, or None
    value_ptr,  # (R,) float32
    out_ptr,  # (R, N), strides (out_row_stride, out_column_stride)
    rows,
    n,
    row_stride,
    column_stride,
    out_row_stride,
    out_column_stride,
    slope,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WRITE: tl.constexpr,
):
    dtype: tl.constexpr = p_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    live = (row < rows) & (column < n)
    kept = n
    inside = live
    if keep_ptr is not None:
        keep = tl.load(keep_ptr + column, mask=column < n, other=0).to(tl.int32)
        kept = tl.sum(keep)
        inside = live & (keep != 0)
    p = tl.load(p_ptr + row * row_stride + column * column_stride, mask=inside, other=0.0)
    if WRITE and keep_ptr is not None:
        zeros = tl.zeros([ROWS, BLOCK], out_ptr.dtype.element_ty)
        at = out_ptr + row * out_row_stride + column * out_column_stride
        tl.store(at, zeros, mask=live & (keep == 0))
    packed = behind(pack(key_of(p), column, dtype), inside, dtype)
    # Column i now holds the sample of rank i, and where it was.
    key, index = unpack(tl.sort(packed), dtype)
    ranked = (row < rows) & (column < kept)
    q = tl.load(q_ptr + column, mask=column < n, other=0.0)
    difference = tl.where(ranked, float_of(key, dtype) - q, 0.0)
    value = tl.sum(difference * difference, axis=1)[:, None]
    tl.store(value_ptr + row, value, mask=row < rows)
    if WRITE:
        at = out_ptr + row * out_row_stride + index * out_column_stride
        tl.store(at, (slope * difference).to(out_ptr.dtype.element_ty), mask=ranked)


def gaussian_rows(
    p: torch.Tensor,
    q: torch.Tensor,
    row_mask: torch.Tensor | None = None,
    need_grad: bool = True,
    slope: float = 2.0,
) -> tuple[torch.Tensor, ...]:
    """Σ_n (sort(p)_n − q_n)² of each row and, if needed, slope / 2 times its gradient.

    p : (R, N); float32, bfloat16 or float16, any strides, N at most `MAX_SAMPLES`
    q : (N,); float32 quantiles, those of the kept samples first
    row_mask : boolean (N,); samples to keep; the others have gradient 0
    need_grad : whether to write the gradient
    slope : factor of the difference p − q_rank
    Returns the values (R,) in float32 and, with `need_grad`, the gradient.
    Ties take ranks in index order: the sorted integers hold the index below the key.
    """
    _launch.check_rows("p", p)
    rows, n = p.shape
    _launch.check_shape("q", q, n)
    if n > MAX_SAMPLES:
        raise ValueError(f"expected rows of at most {MAX_SAMPLES} samples; found {n}")
    keep = _launch.mask_bytes(row_mask, n)
    gradient = _launch.gradient_rows(p, need_grad)
    values = torch.empty(rows, dtype=torch.float32, device=p.device)
    block = max(2, triton.next_power_of_2(n))
    together = max(1, _PER_WARP // block)
    _launch.launch(
        _kernel,
        (triton.cdiv(rows, together),),
        p,
        q.float().contiguous(),
        keep,
        values,
        gradient,
        rows,
        n,
        *p.stride(),
        *gradient.stride(),
        slope,
        ROWS=together,
        BLOCK=block,
        WRITE=need_grad,
        num_warps=max(1, together * block // _PER_WARP),
    )
    return (values, gradient) if need_grad else (values,)
