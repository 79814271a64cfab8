"""Squared distance of long 16-bit rows to Gaussian quantiles, without a sort.

A 16-bit float has 65,536 possible values. Counting them ranks a row: the samples of one value
occupy consecutive ranks a … b − 1, and share the mean of these quantiles, (Q_b − Q_a) / (b − a)
with Q the quantiles' prefix sums. Every exchange of equal samples is then averaged over, and

    min Σ_n (p_n − q_π(n))² = Σ_n p_n² − 2 Σ_n p_n q̄_n + Σ_n q_n²

is the same number that any order of the equal samples gives. A row with a single value would have
no gradient within it, and takes its quantiles in index order instead.

Bottleneck: latency of counting in the second-level cache, and 65,536 counts a row however long it
is. Exact: counts are integers, and quantiles' prefix sums float64. Worst case: rows whose samples
are few values, whose counts wait for each other; short rows, for which `dispatch` sorts. Rejected:
a sort of 16-bit keys by the library, which moves indices of four bytes and more.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from visreg_torch.kernels import _launch
from visreg_torch.kernels._keys import float_of, key_of

KEYS = 1 << 16
# The counts of all rows at work: what a large GPU's cache holds.
_SCRATCH_BYTES = 1 << 25
_COUNT_BLOCK = 2048
# A row's keys are walked block after block, each waiting for the one before, and so few rows are at
# work that nothing hides it: 16 steps. An estimate, not a measurement; 8 steps of twice the size
# would save as much waiting as they add arithmetic on keys that no sample has.
_KEY_BLOCK, _KEY_WARPS = 4096, 16


@triton.jit
def _count(
    p_ptr,  # (R, N), strides (row_stride, column_stride)
    keep_ptr,  # (N,) bytes, or None
    counts_ptr,  # (R, 65536) int32, zeros
    n,
    row_stride,
    column_stride,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < n
    if keep_ptr is not None:
        inside = inside & (tl.load(keep_ptr + column, mask=inside, other=0) != 0)
    at = p_ptr + row * row_stride + column.to(tl.int64) * column_stride
    key = key_of(tl.load(at, mask=inside, other=0.0)) + 32768
    tl.atomic_add(counts_ptr + row * 65536 + key, 1, mask=inside, sem="relaxed")


@triton.jit
def _targets(
    counts_ptr,  # (R, 65536) int32; counts above 0 become the bits of the keys' float32 targets
    prefix_ptr,  # (N + 1,) float64, Q
    squares_ptr,  # (1,) float64, Σ q²
    value_ptr,  # (R,) float32
    single_ptr,  # (R,) int32, whether the row has one key
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    value = tl.load(squares_ptr)
    largest = 0
    before = 0
    for start in range(0, 65536, BLOCK):
        key = start + tl.arange(0, BLOCK)
        at = counts_ptr + row * 65536 + key
        count = tl.load(at)
        here = tl.sum(count)
        if here > 0:  # of normal samples, a quarter to two thirds of the blocks
            present = count > 0
            end = before + tl.cumsum(count)
            of_end = tl.load(prefix_ptr + end, mask=present, other=0.0)
            of_start = tl.load(prefix_ptr + end - count, mask=present, other=0.0)
            targets = of_end - of_start
            mean = targets.to(tl.float32) / tl.maximum(count, 1).to(tl.float32)
            tl.store(at, mean.to(tl.int32, bitcast=True), mask=present)
            # Factored so that an infinite p makes an infinite value, not Inf − Inf.
            p = float_of(key - 32768, DTYPE).to(tl.float64)
            value += tl.sum(tl.where(present, p * (count.to(tl.float64) * p - 2 * targets), 0.0))
            largest = tl.maximum(largest, tl.max(count))
            before += here
    tl.store(value_ptr + row, value.to(tl.float32))
    tl.store(single_ptr + row, largest == before)


@triton.jit
def _differences(
    p_ptr,  # (R, N), strides (row_stride, column_stride)
    targets_ptr,  # (R, 65536) float32
    q_ptr,  # (N,) float32
    keep_ptr,  # (N,) bytes, or None
    rank_ptr,  # (N,) int32, ranks in index order of the kept samples, or None
    single_ptr,  # (R,) int32
    out_ptr,  # (R, N), strides (out_row_stride, out_column_stride)
    n,
    row_stride,
    column_stride,
    out_row_stride,
    out_column_stride,
    slope,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = column < n
    inside = live
    rank = column
    if keep_ptr is not None:
        inside = live & (tl.load(keep_ptr + column, mask=live, other=0) != 0)
        rank = tl.load(rank_ptr + column, mask=inside, other=0)
    wide = column.to(tl.int64)
    p = tl.load(p_ptr + row * row_stride + wide * column_stride, mask=inside, other=0.0)
    single = tl.broadcast_to(tl.load(single_ptr + row), [BLOCK])
    at = targets_ptr + row * 65536 + key_of(p) + 32768
    by_key = tl.load(at, mask=inside & (single == 0), other=0.0)
    by_index = tl.load(q_ptr + rank, mask=inside & (single != 0), other=0.0)
    target = tl.where(single != 0, by_index, by_key)
    gradient = tl.where(inside, slope * (p.to(tl.float32) - target), 0.0)
    at = out_ptr + row * out_row_stride + wide * out_column_stride
    tl.store(at, gradient.to(out_ptr.dtype.element_ty), mask=live)


def histogram_rows(
    p: torch.Tensor,
    q: torch.Tensor,
    row_mask: torch.Tensor | None = None,
    need_grad: bool = True,
    slope: float = 2.0,
) -> tuple[torch.Tensor, ...]:
    """Σ_n (sort(p)_n − q_n)² of each row and, if needed, slope / 2 times its mean gradient.

    p : (R, N); bfloat16 or float16, any strides
    q : (N,); float32 quantiles, those of the kept samples first, 0 behind them
    row_mask, need_grad, slope : as in `gaussian_rows`
    Returns the values (R,) in float32 and, with `need_grad`, the gradient slope (p − q̄), with q̄
    the mean quantile of the samples equal to p (in a row of equal samples: of its index's rank).
    """
    _launch.check_rows("p", p)
    if p.dtype == torch.float32:
        raise TypeError("expected p of 16 bits; found torch.float32")
    rows, n = p.shape
    _launch.check_shape("q", q, n)
    keep = _launch.mask_bytes(row_mask, n)
    gradient = _launch.gradient_rows(p, need_grad)
    values = torch.empty(rows, dtype=torch.float32, device=p.device)
    q = q.float().contiguous()
    rank = None if row_mask is None else torch.cumsum(row_mask, 0, dtype=torch.int32) - 1
    wide = q.double()
    prefix = torch.cat([wide.new_zeros(1), torch.cumsum(wide, 0)])
    squares = torch.sum(wide * wide).reshape(1)

    together = max(1, min(rows, _SCRATCH_BYTES // (4 * KEYS)))
    counts = torch.empty((together, KEYS), dtype=torch.int32, device=p.device)
    single = torch.empty(together, dtype=torch.int32, device=p.device)
    for first in range(0, rows, together):
        part = slice(first, min(first + together, rows))
        p_part, out_part = p[part], gradient[part]
        grid = (triton.cdiv(n, _COUNT_BLOCK), p_part.shape[0])
        counts.zero_()
        _launch.launch(_count, grid, p_part, keep, counts, n, *p.stride(), BLOCK=_COUNT_BLOCK)
        _launch.launch(
            _targets,
            (p_part.shape[0],),
            counts,
            prefix,
            squares,
            values[part],
            single,
            DTYPE=tl.bfloat16 if p.dtype == torch.bfloat16 else tl.float16,
            BLOCK=_KEY_BLOCK,
            num_warps=_KEY_WARPS,
        )
        if need_grad:
            _launch.launch(
                _differences,
                grid,
                p_part,
                counts.view(torch.float32),
                q,
                keep,
                rank,
                single,
                out_part,
                n,
                *p.stride(),
                *gradient.stride(),
                slope,
                BLOCK=_COUNT_BLOCK,
            )
    return (values, gradient) if need_grad else (values,)
