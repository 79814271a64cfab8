"""Column moments of embeddings in one read, standardised rows, and the end of VISReg's gradient.

Moments are those of `visreg_core.losses._rows.centre`: the mean in two parts, `first` between the
smallest and the largest of the column and `rest` what rounding left of it, so that constant columns
centre to exactly 0; and the biased variance about it. A program takes a block of rows into
registers, where a second look is free, and blocks are joined in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from visreg_torch.kernels import _launch

_ROWS, _COLUMNS, _WARPS = 256, 64, 8
_TILE_ROWS, _TILE_COLUMNS = 64, 128


class Moments(NamedTuple):
    """Mean = first + rest, and biased variance, each (B, D) in float32."""

    first: torch.Tensor
    rest: torch.Tensor
    variance: torch.Tensor


@triton.jit
def _block_moments(
    z_ptr,  # (B, N, D), strides (batch_stride, row_stride, column_stride)
    keep_ptr,  # (N,) bytes, or None
    out_ptr,  # (B, blocks, 4, D) float32: first, Σ(z − first), Σ(z − first)², number of rows
    n,
    d,
    batch_stride,
    row_stride,
    column_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    batch = tl.program_id(2).to(tl.int64)
    block = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    row = block * ROWS + tl.arange(0, ROWS)[:, None]
    keep = row < n
    if keep_ptr is not None:
        keep = keep & (tl.load(keep_ptr + row, mask=keep, other=0) != 0)
    inside = keep & (column < d)
    at = z_ptr + batch * batch_stride + row.to(tl.int64) * row_stride
    z = tl.load(at + column.to(tl.int64) * column_stride, mask=inside, other=0.0).to(tl.float32)
    count = tl.sum(keep.to(tl.int32)).to(tl.float32)
    mean = tl.sum(z, axis=0)[None, :] / tl.maximum(count, 1.0)
    low = tl.min(tl.where(inside, z, float("inf")), axis=0)[None, :]
    high = tl.max(tl.where(inside, z, float("-inf")), axis=0)[None, :]
    # A comparison with NaN is false: a NaN mean stays.
    first = tl.where(mean < low, low, mean)
    first = tl.where(first > high, high, first)
    first = tl.where(count > 0, first, 0.0)
    shifted = tl.where(inside, z - first, 0.0)
    at = out_ptr + ((batch * tl.num_programs(1) + block) * 4) * d + column
    tl.store(at, first, mask=column < d)
    tl.store(at + d, tl.sum(shifted, axis=0)[None, :], mask=column < d)
    tl.store(at + 2 * d, tl.sum(shifted * shifted, axis=0)[None, :], mask=column < d)
    tl.store(at + 3 * d, tl.zeros([1, COLUMNS], tl.float32) + count, mask=column < d)


@triton.jit
def _joined_moments(
    blocks_ptr,  # (B, blocks, 4, D) float32
    first_ptr,  # (B, D) float32, and so the next two
    rest_ptr,
    variance_ptr,
    blocks,
    d,
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
    at = batch * d + column
    tl.store(first_ptr + at, first, mask=inside)
    tl.store(rest_ptr + at, rest.to(tl.float32), mask=inside)
    tl.store(variance_ptr + at, variance.to(tl.float32), mask=inside)


@triton.jit
def _combined(
    g_ptr,  # (B, N, D), strides (g_batch_stride, g_row_stride, g_column_stride); in and out
    z_ptr,  # (B, N, D), strides (batch_stride, row_stride, column_stride)
    keep_ptr,  # (N,) bytes, or None
    first_ptr,  # (B, D) float32, and so the next three
    on_g_ptr,
    on_shifted_ptr,
    constant_ptr,
    n,
    d,
    g_batch_stride,
    g_row_stride,
    g_column_stride,
    batch_stride,
    row_stride,
    column_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    batch = tl.program_id(2).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    live = (row < n) & (column < d)
    inside = live
    if keep_ptr is not None:
        inside = live & (tl.load(keep_ptr + row, mask=row < n, other=0) != 0)
    row, wide = row.to(tl.int64), column.to(tl.int64)
    g_at = g_ptr + batch * g_batch_stride + row * g_row_stride + wide * g_column_stride
    z_at = z_ptr + batch * batch_stride + row * row_stride + wide * column_stride
    g = tl.load(g_at, mask=inside, other=0.0).to(tl.float32)
    z = tl.load(z_at, mask=inside, other=0.0).to(tl.float32)
    here = batch * d + column
    first = tl.load(first_ptr + here, mask=column < d, other=0.0)
    on_g = tl.load(on_g_ptr + here, mask=column < d, other=0.0)
    on_shifted = tl.load(on_shifted_ptr + here, mask=column < d, other=0.0)
    constant = tl.load(constant_ptr + here, mask=column < d, other=0.0)
    gradient = g * on_g + ((z - first) * on_shifted + constant)
    gradient = tl.where(inside, gradient, 0.0)
    if g_ptr.dtype.element_ty == tl.float16:  # float16 ends at 65504
        gradient = tl.where(gradient > 65504.0, 65504.0, gradient)
        gradient = tl.where(gradient < -65504.0, -65504.0, gradient)
    tl.store(g_at, gradient.to(g_ptr.dtype.element_ty), mask=live)


@triton.jit
def _standardised(
    z_ptr,  # (B, N, D), strides (batch_stride, row_stride, column_stride)
    keep_ptr,  # (N,) bytes, or None
    first_ptr,  # (B, D) float32, and so the next two
    rest_ptr,
    scale_ptr,
    out_ptr,  # (B, N, D) contiguous
    n,
    d,
    batch_stride,
    row_stride,
    column_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    batch = tl.program_id(2).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    live = (row < n) & (column < d)
    inside = live
    if keep_ptr is not None:
        inside = live & (tl.load(keep_ptr + row, mask=row < n, other=0) != 0)
    row, wide = row.to(tl.int64), column.to(tl.int64)
    at = z_ptr + batch * batch_stride + row * row_stride + wide * column_stride
    z = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    here = batch * d + column
    first = tl.load(first_ptr + here, mask=column < d, other=0.0)
    rest = tl.load(rest_ptr + here, mask=column < d, other=0.0)
    scale = tl.load(scale_ptr + here, mask=column < d, other=0.0)
    standardised = tl.where(inside, (z - first - rest) * scale, 0.0)
    at = out_ptr + (batch * n + row) * d + column
    tl.store(at, standardised.to(out_ptr.dtype.element_ty), mask=live)


def column_moments(z: torch.Tensor, row_mask: torch.Tensor | None = None) -> Moments:
    """Mean and biased variance over the (kept) rows of each column, with one read of z.

    Parameters
    ----------
    z : tensor of shape (B, N, D)
        float32, bfloat16 or float16, any strides.
    row_mask : boolean tensor of shape (N,), optional
        Rows to keep; NaN comes out where it keeps none.

    Returns
    -------
    Moments
        Three tensors (B, D) in float32.

    Raises
    ------
    ValueError
        For shapes that do not fit.
    TypeError
        For a dtype that kernels do not know.
    """
    _check_batch("z", z)
    batch, n, d = z.shape
    keep = _launch.mask_bytes(row_mask, n)
    blocks = triton.cdiv(n, _ROWS)
    parts = torch.empty((batch, blocks, 4, d), dtype=torch.float32, device=z.device)
    out = [torch.empty((batch, d), dtype=torch.float32, device=z.device) for _ in range(3)]
    tiles = triton.cdiv(d, _COLUMNS)
    _launch.launch(
        _block_moments,
        (tiles, blocks, batch),
        z,
        keep,
        parts,
        n,
        d,
        *z.stride(),
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        num_warps=_WARPS,
    )
    _launch.launch(
        _joined_moments, (tiles, batch), parts, *out, blocks, d, COLUMNS=_COLUMNS, num_warps=2
    )
    return Moments(*out)


def standardised(
    z: torch.Tensor,
    first: torch.Tensor,
    rest: torch.Tensor,
    scale: torch.Tensor,
    row_mask: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """(z − first − rest) · scale in float32, rounded once to `out_dtype`; masked rows 0.

    Parameters
    ----------
    z : tensor of shape (B, N, D)
        float32, bfloat16 or float16, any strides.
    first, rest, scale : tensors of shape (B, D)
        In float32.
    row_mask : boolean tensor of shape (N,), optional
        Rows to keep.
    out_dtype : dtype
        Of the result.

    Returns
    -------
    tensor of shape (B, N, D)
        Contiguous.

    Raises
    ------
    ValueError
        For shapes that do not fit.
    TypeError
        For a dtype that kernels do not know.
    """
    _check_batch("z", z)
    batch, n, d = z.shape
    columns = {"first": first, "rest": rest, "scale": scale}
    for name, column in columns.items():
        _launch.check_shape(name, column, batch, d)
    out = torch.empty(z.shape, dtype=out_dtype, device=z.device)
    _launch.launch(
        _standardised,
        (triton.cdiv(d, _TILE_COLUMNS), triton.cdiv(n, _TILE_ROWS), batch),
        z,
        _launch.mask_bytes(row_mask, n),
        *(column.float().contiguous() for column in columns.values()),
        out,
        n,
        d,
        *z.stride(),
        ROWS=_TILE_ROWS,
        COLUMNS=_TILE_COLUMNS,
        num_warps=_WARPS,
    )
    return out


def combine_(
    g: torch.Tensor,
    z: torch.Tensor,
    first: torch.Tensor,
    on_g: torch.Tensor,
    on_shifted: torch.Tensor,
    constant: torch.Tensor,
    row_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Overwrite g by g · on_g + (z − first) · on_shifted + constant; masked rows become 0.

    Parameters
    ----------
    g, z : tensors of shape (B, N, D)
        float32, bfloat16 or float16, any strides; computed in float32.
    first, on_g, on_shifted, constant : tensors of shape (B, D)
        In float32.
    row_mask : boolean tensor of shape (N,), optional
        Rows to keep.

    Returns
    -------
    tensor
        `g`.

    Raises
    ------
    ValueError
        For shapes that do not fit.
    TypeError
        For a dtype that kernels do not know.
    """
    _check_batch("z", z)
    _launch.check_dtype("g", g)
    _launch.check_shape("g", g, *z.shape)
    batch, n, d = z.shape
    columns = [first, on_g, on_shifted, constant]
    for name, column in zip(("first", "on_g", "on_shifted", "constant"), columns, strict=True):
        _launch.check_shape(name, column, batch, d)
    _launch.launch(
        _combined,
        (triton.cdiv(d, _TILE_COLUMNS), triton.cdiv(n, _TILE_ROWS), batch),
        g,
        z,
        _launch.mask_bytes(row_mask, n),
        *(column.float().contiguous() for column in columns),
        n,
        d,
        *g.stride(),
        *z.stride(),
        ROWS=_TILE_ROWS,
        COLUMNS=_TILE_COLUMNS,
        num_warps=_WARPS,
    )
    return g


def _check_batch(name: str, z: torch.Tensor) -> None:
    _launch.check_dtype(name, z)
    if z.ndim != 3 or 0 in z.shape:
        raise ValueError(f"expected {name} of shape (B, N, D); found {tuple(z.shape)}")
