"""Moments of the embeddings' columns, and standardised rows as 16-bit parts.

Moments are those of `visreg_core.losses.rows.centre`: the mean in two parts, `first` within the
range of the column and `rest`, its rounding error, so that constant columns centre to exactly 0;
and the biased standard deviation about it.

Up to `SHORT` rows a program holds whole columns in registers: one read of z gives moments and
standardised parts, in one launch. Longer columns are read in blocks, which are joined in float64.

Bottleneck: bytes. Short: z read once, 6 bytes an element written; at V10 N512 D256 that is 14 MB, 4
µs of an H200's bandwidth. Long: z read once more to standardise it. Exact: sums of a block are
trees in float32, about a number inside the column. Worst case: few columns of many rows, which few
programs walk. Rejected: E[z²] − E[z]², which cancels; one pass of Welford's, whose divisions cost
more than registers.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from visreg_torch.kernels import _launch
from visreg_torch.kernels.operands import SLICE_SCALE, store_parts

SHORT = 2048
_TILE = 8192  # numbers of a program that holds columns whole
# Rows of a block, rows and columns of its program's tile, warps.
_SPAN, _ROWS, _COLUMNS, _WARPS = 512, 16, 128, 4
_TILE_ROWS, _TILE_COLUMNS = 32, 128


@triton.jit
def _short_columns(
    z_ptr,  # (B, N, D), strides (batch_stride, row_stride, column_stride)
    keep_ptr,  # (N,) bytes, or None
    out_ptr,  # (groups · padded, PARTS · pitch) float16, or None
    moments_ptr,  # (3, B, D) float32
    n,
    d,
    pitch,
    together,
    padded,
    moment_stride,
    batch_stride,
    row_stride,
    column_stride,
    eps,
    scale,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    row = tl.arange(0, ROWS)[:, None]
    keep = row < n
    if keep_ptr is not None:
        keep = keep & (tl.load(keep_ptr + row, mask=keep, other=0) != 0)
    inside = keep & (column < d)
    at = z_ptr + batch * batch_stride + row.to(tl.int64) * row_stride
    z = tl.load(at + column.to(tl.int64) * column_stride, mask=inside, other=0.0).to(tl.float32)
    count = tl.sum(keep.to(tl.int32)).to(tl.float32)
    count = tl.where(count < 2, float("nan"), count)  # no statistic exists
    mean = tl.sum(z, axis=0)[None, :] / count
    low = tl.min(tl.where(inside, z, float("inf")), axis=0)[None, :]
    high = tl.max(tl.where(inside, z, float("-inf")), axis=0)[None, :]
    # A comparison with NaN is false: a NaN mean stays.
    first = tl.where(mean < low, low, mean)
    first = tl.where(first > high, high, first)
    first = tl.where(column < d, first, 0.0)
    z = tl.where(inside, z - first, 0.0)
    rest = tl.sum(z, axis=0)[None, :] / count
    z = tl.where(inside, z - rest, 0.0)
    sigma = tl.sqrt_rn(tl.sum(z * z, axis=0)[None, :] / count)
    at = moments_ptr + batch * d + column
    tl.store(at, first, mask=column < d)
    tl.store(at + moment_stride, rest, mask=column < d)
    tl.store(at + 2 * moment_stride, sigma, mask=column < d)
    if out_ptr is not None:
        z = tl.where(inside, z * (scale / (sigma + eps)), 0.0)
        to = (batch // together) * padded + (batch % together) * n + row
        store_parts(
            out_ptr + to * (PARTS * pitch) + column,
            pitch,
            z,
            (row < n) & (column < pitch),
            PARTS,
        )


@triton.jit
def _blocks(
    z_ptr,  # (B, N, D), strides (batch_stride, row_stride, column_stride)
    keep_ptr,  # (N,) bytes, or None
    out_ptr,  # (B, blocks, 4, D) float32: first, Σ(z − first), Σ(z − first)², number of rows
    n,
    d,
    batch_stride,
    row_stride,
    column_stride,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    batch = tl.program_id(2).to(tl.int64)
    begin = tl.program_id(1) * SPAN
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    at = z_ptr + batch * batch_stride + column.to(tl.int64) * column_stride
    # Differences from the block's first row: one read, and exact zeros in constant columns.
    start = begin
    if keep_ptr is not None:
        within = begin + tl.arange(0, SPAN)
        present = tl.load(keep_ptr + within, mask=within < n, other=0) != 0
        start = tl.min(tl.where(present, within, n))
    start_row = start + tl.zeros([1, 1], tl.int64)
    first = tl.load(at + start_row * row_stride, mask=(column < d) & (start_row < n), other=0.0)
    first = first.to(tl.float32)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([ROWS, COLUMNS], tl.float32)
    counts = tl.zeros([ROWS, 1], tl.int32)
    for offset in range(0, SPAN, ROWS):
        row = begin + offset + tl.arange(0, ROWS)[:, None]
        keep = row < n
        if keep_ptr is not None:
            keep = keep & (tl.load(keep_ptr + row, mask=keep, other=0) != 0)
        inside = keep & (column < d)
        z = tl.load(at + row.to(tl.int64) * row_stride, mask=inside, other=0.0).to(tl.float32)
        z = tl.where(inside, z - first, 0.0)
        sums += z
        squares += z * z
        counts += keep.to(tl.int32)
    count = tl.sum(counts).to(tl.float32)
    at = out_ptr + ((batch * tl.num_programs(1) + tl.program_id(1)) * 4) * d + column
    tl.store(at, first, mask=column < d)
    tl.store(at + d, tl.sum(sums, axis=0)[None, :], mask=column < d)
    tl.store(at + 2 * d, tl.sum(squares, axis=0)[None, :], mask=column < d)
    tl.store(at + 3 * d, tl.zeros([1, COLUMNS], tl.float32) + count, mask=column < d)


@triton.jit
def _joined(
    blocks_ptr,  # (B, blocks, 4, D) float32
    moments_ptr,  # (3, B, D) float32
    blocks,
    d,
    moment_stride,
    COLUMNS: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < d
    start = blocks_ptr + batch * blocks * 4 * d + column
    total = tl.zeros([COLUMNS], tl.float64)
    n = tl.zeros([COLUMNS], tl.float64)
    for block in range(blocks):
        at = start + block * 4 * d
        count = tl.load(at + 3 * d, mask=inside, other=1.0).to(tl.float64)
        total += count * tl.load(at, mask=inside, other=0.0).to(tl.float64)
        n += count
    n = tl.where(n < 2, float("nan"), n)
    first = (total / n).to(tl.float32)
    left = tl.zeros([COLUMNS], tl.float64)
    squares = tl.zeros([COLUMNS], tl.float64)
    for block in range(blocks):
        at = start + block * 4 * d
        count = tl.load(at + 3 * d, mask=inside, other=1.0).to(tl.float64)
        off = tl.load(at, mask=inside, other=0.0).to(tl.float64) - first.to(tl.float64)
        off = tl.where(count > 0, off, 0.0)
        sums = tl.load(at + d, mask=inside, other=0.0).to(tl.float64)
        left += sums + count * off
        squares += tl.load(at + 2 * d, mask=inside, other=0.0).to(tl.float64)
        squares += off * (2 * sums + count * off)
    rest = left / n
    variance = squares / n - rest * rest
    variance = tl.where(variance < 0, 0.0, variance)
    at = moments_ptr + batch * d + column
    tl.store(at, first, mask=inside)
    tl.store(at + moment_stride, rest.to(tl.float32), mask=inside)
    tl.store(at + 2 * moment_stride, tl.sqrt_rn(variance.to(tl.float32)), mask=inside)


@triton.jit(do_not_specialize=["start_view"])
def _standard_parts(
    z_ptr,  # (B, N, D), strides (batch_stride, row_stride, column_stride)
    keep_ptr,  # (N,) bytes, or None
    moments_ptr,  # (3, all views, D) float32
    out_ptr,  # (groups · padded, PARTS · pitch) float16
    n,
    d,
    pitch,
    start_view,
    together,
    padded,
    moment_stride,
    batch_stride,
    row_stride,
    column_stride,
    eps,
    scale,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    batch = tl.program_id(2).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = (row < n) & (column < d)
    if keep_ptr is not None:
        inside = inside & (tl.load(keep_ptr + row, mask=row < n, other=0) != 0)
    at = z_ptr + batch * batch_stride + row.to(tl.int64) * row_stride
    z = tl.load(at + column.to(tl.int64) * column_stride, mask=inside, other=0.0).to(tl.float32)
    here = moments_ptr + (start_view + batch) * d + column
    first = tl.load(here, mask=column < d, other=0.0)
    rest = tl.load(here + moment_stride, mask=column < d, other=0.0)
    sigma = tl.load(here + 2 * moment_stride, mask=column < d, other=1.0)
    z = tl.where(inside, (z - first - rest) * (scale / (sigma + eps)), 0.0)
    to = (batch // together) * padded + (batch % together) * n + row
    at = out_ptr + to * (PARTS * pitch) + column
    store_parts(at, pitch, z, (row < n) & (column < pitch), PARTS)


def scale_of(n: int) -> float:
    """A power of two that takes standardised numbers, at most √n, into float16's range."""
    return 2.0 ** min(10, math.floor(15.9 - 0.5 * math.log2(n)))


def factor_of(n: int) -> float:
    """What projections of standardised rows on operands of slices are to be multiplied by."""
    return 1 / (scale_of(n) * SLICE_SCALE)


def short_columns(
    z: torch.Tensor,
    keep: torch.Tensor | None,
    eps: float,
    pitch: int,
    *,
    parts: int,
    together: int = 1,
    padded: int = 0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Moments of at most `SHORT` rows and, if `parts`, the standardised rows as an operand.

    z : (B, N, D); float32, bfloat16 or float16, any strides
    keep : byte (N,); rows to keep; the others become zeros, and below two of them moments are NaN
    eps : added to σ
    pitch, parts, together, padded : as in `operands.split_rows`; no parts, no operand
    Returns moments (3, B, D) in float32: first, rest, σ; and the operand (B / together, padded,
    parts · pitch) or None. Projections of it are to be multiplied by `factor_of` (N).
    """
    batch, n, d = z.shape
    moments = _launch.empty((3, batch, d), torch.float32, z.device)
    out = None
    if parts:
        shape = (batch // together, padded, parts * pitch)
        out = _launch.empty(shape, torch.float16, z.device)
    rows = triton.next_power_of_2(n)
    columns = max(8, min(64, _TILE // rows))
    _launch.launch(
        _short_columns,
        (triton.cdiv(pitch if parts else d, columns), batch),
        z,
        keep,
        out,
        moments,
        n,
        d,
        pitch,
        together,
        padded,
        moments.stride(0),
        *z.stride(),
        eps,
        scale_of(n),
        PARTS=parts,
        ROWS=rows,
        COLUMNS=columns,
        num_warps=8 if rows * columns >= 4096 else 4,
    )
    return moments, out


def column_moments(z: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """Moments (3, B, D) in float32 of z (B, N, D) with one read of it: first, rest, σ.

    z : (B, N, D); float32, bfloat16 or float16, any strides and length
    keep : byte (N,); rows to keep; NaN comes out below two of them
    Returns (3, B, D) in float32.
    """
    batch, n, d = z.shape
    if n <= SHORT:
        return short_columns(z, keep, 0.0, d, parts=0)[0]
    blocks = triton.cdiv(n, _SPAN)
    parts = _launch.empty((batch, blocks, 4, d), torch.float32, z.device)
    moments = _launch.empty((3, batch, d), torch.float32, z.device)
    tiles = triton.cdiv(d, _COLUMNS)
    _launch.launch(
        _blocks,
        (tiles, blocks, batch),
        z,
        keep,
        parts,
        n,
        d,
        *z.stride(),
        SPAN=_SPAN,
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        num_warps=_WARPS,
    )
    _launch.launch(
        _joined,
        (triton.cdiv(d, 32), batch),
        parts,
        moments,
        blocks,
        d,
        moments.stride(0),
        COLUMNS=32,
        num_warps=1,
    )
    return moments


def standard_parts(
    z: torch.Tensor,
    keep: torch.Tensor | None,
    moments: torch.Tensor,
    first: int,
    eps: float,
    pitch: int,
    *,
    parts: int,
    together: int,
    padded: int,
) -> torch.Tensor:
    """Standardised rows as the operand that `short_columns` makes, for rows of any number.

    z : (b, N, D); the views first … first + b − 1 of those that `moments` (3, B, D) are of
    keep, eps, pitch, parts, together, padded : as in `short_columns`
    Returns (b / together, padded, parts · pitch) float16.
    """
    batch, n, d = z.shape
    shape = (batch // together, padded, parts * pitch)
    out = _launch.empty(shape, torch.float16, z.device)
    _launch.launch(
        _standard_parts,
        (triton.cdiv(pitch, _TILE_COLUMNS), triton.cdiv(n, _TILE_ROWS), batch),
        z,
        keep,
        moments,
        out,
        n,
        d,
        pitch,
        first,
        together,
        padded,
        moments.stride(0),
        *z.stride(),
        eps,
        scale_of(n),
        PARTS=parts,
        ROWS=_TILE_ROWS,
        COLUMNS=_TILE_COLUMNS,
        num_warps=4,
    )
    return out
