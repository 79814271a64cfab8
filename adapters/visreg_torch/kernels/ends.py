"""Ends of the sliced losses: their values from rows' values and moments, and their gradient.

One program adds up the rows' values and the terms of the moments, always in the same order, and
makes the weighted total, in place of a dozen launches on single numbers. The backward pass is one
launch, which combines the shape's gradient with those of scale and centre.

Bottleneck: `_terms` latency, one program's walk through K · B numbers (41,000 at V10 K4096: 5 µs);
`_combined` bytes, two arrays read and one written, once. Exact: sums in float32 lanes of 1024,
then a tree. Worst case: many thousand slices of many views, which one program adds
up. Rejected: atomics into the terms, whose order, and last bits, change from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from visreg_torch.kernels import _launch

_LANES = 2048
_TILE_ROWS, _TILE_COLUMNS = 32, 128


@triton.jit
def number_of(x_ptr, x):
    """The number at a pointer, as float32; without a pointer, x."""
    if x_ptr is None:
        return x * 1.0
    else:
        return tl.load(x_ptr).to(tl.float32)


@triton.jit
def sum_of(x_ptr, size, LANES: tl.constexpr):
    """Sum of consecutive numbers."""
    total = tl.zeros([LANES], tl.float32)
    for start in range(0, size, LANES):
        at = start + tl.arange(0, LANES)
        total += tl.load(x_ptr + at, mask=at < size, other=0.0)
    return tl.sum(total)


@triton.jit
def _terms(
    value_ptr,  # (rows,) float32
    moments_ptr,  # (3, B · D) float32: first, rest, σ
    total_ptr,  # 0-d float32; and so the next three
    scale_ptr,
    shape_ptr,
    center_ptr,
    scalars_ptr,  # (5,) float32: the weights, ε and n, for the backward pass
    w_scale_ptr,  # a number's place, or None and the number below; and so the next three
    w_shape_ptr,
    w_center_ptr,
    n_ptr,
    w_scale,
    w_shape,
    w_center,
    n,
    eps,
    rows,
    columns,
    LANES: tl.constexpr,
):
    n = number_of(n_ptr, n)
    shape = sum_of(value_ptr, rows, LANES) / rows / n
    scales = tl.zeros([LANES], tl.float32)
    squares = tl.zeros([LANES], tl.float32)
    for start in range(0, columns, LANES):
        at = start + tl.arange(0, LANES)
        inside = at < columns
        mean = tl.load(moments_ptr + at, mask=inside, other=0.0)
        mean += tl.load(moments_ptr + columns + at, mask=inside, other=0.0)
        off = 1.0 - tl.load(moments_ptr + 2 * columns + at, mask=inside, other=1.0)
        squares += mean * mean
        scales += off * off
    scale, center = tl.sum(scales) / columns, tl.sum(squares) / columns
    w_scale = number_of(w_scale_ptr, w_scale)
    w_shape = number_of(w_shape_ptr, w_shape)
    w_center = number_of(w_center_ptr, w_center)
    tl.store(total_ptr, w_scale * scale + w_shape * shape + w_center * center)
    tl.store(scale_ptr, scale)
    tl.store(shape_ptr, shape)
    tl.store(center_ptr, center)
    tl.store(scalars_ptr, w_scale)
    tl.store(scalars_ptr + 1, w_shape)
    tl.store(scalars_ptr + 2, w_center)
    tl.store(scalars_ptr + 3, eps)
    tl.store(scalars_ptr + 4, n)


@triton.jit
def _mean(
    value_ptr,  # (rows,) float32
    out_ptr,  # 0-d float32
    divisor_ptr,  # (1,) float32, for the backward pass
    from_ptr,  # a number's place, or None and the number below
    divisor,
    rows,
    LANES: tl.constexpr,
):
    divisor = number_of(from_ptr, divisor)
    tl.store(out_ptr, sum_of(value_ptr, rows, LANES) / rows / divisor)
    tl.store(divisor_ptr, divisor)


@triton.jit
def cotangent(x_ptr):
    """A field's cotangent; 0 where there is none."""
    if x_ptr is None:
        return 0.0
    else:
        return tl.load(x_ptr).to(tl.float32)


@triton.jit
def _combined(
    g_ptr,  # (groups, padded, pitch) float32 or bfloat16
    z_ptr,  # (B, N, D), strides (batch_stride, row_stride, column_stride), or None
    keep_ptr,  # (N,) bytes, or None
    moments_ptr,  # (3, B, D) float32, or None
    scalars_ptr,  # (5,) or (1,) float32
    on_total_ptr,  # 0-d float32, or None; and so the next three
    on_scale_ptr,
    on_shape_ptr,
    on_center_ptr,
    out_ptr,  # (B, N, D) contiguous
    n,
    d,
    pitch,
    together,
    padded,
    moment_stride,
    batch_stride,
    row_stride,
    column_stride,
    per_row,  # of the mean over rows, and what the row's gradient lacks
    per_column,  # 2 / (B · D)
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
    at = (batch // together) * padded + (batch % together) * n + row
    g = tl.load(g_ptr + at * pitch + column, mask=inside, other=0.0).to(tl.float32)
    on_total = cotangent(on_total_ptr)
    if moments_ptr is None:
        gradient = g * (on_total * per_row / tl.load(scalars_ptr))
    else:
        on_scale = on_total * tl.load(scalars_ptr) + cotangent(on_scale_ptr)
        on_shape = on_total * tl.load(scalars_ptr + 1) + cotangent(on_shape_ptr)
        on_center = on_total * tl.load(scalars_ptr + 2) + cotangent(on_center_ptr)
        eps, count = tl.load(scalars_ptr + 3), tl.load(scalars_ptr + 4)
        here = moments_ptr + batch * d + column
        first = tl.load(here, mask=column < d, other=0.0)
        rest = tl.load(here + moment_stride, mask=column < d, other=0.0)
        sigma = tl.load(here + 2 * moment_stride, mask=column < d, other=1.0)
        gradient = g * (on_shape * per_row / count / (sigma + eps))
        if z_ptr is not None:
            at = z_ptr + batch * batch_stride + row.to(tl.int64) * row_stride
            at += column.to(tl.int64) * column_stride
            z = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            safe = tl.where(sigma == 0, 1.0, sigma)
            slope = tl.where(sigma == 0, 0.0, (sigma - 1.0) / safe)
            gradient += (z - first - rest) * (on_scale * per_column / count * slope)
            gradient += on_center * per_column / count * (first + rest)
    gradient = tl.where(inside, gradient, 0.0)
    at = out_ptr + (batch * n + row) * d + column
    tl.store(at, gradient.to(out_ptr.dtype.element_ty), mask=live)


def places(*numbers: Any) -> tuple[Any, ...]:
    """For kernels: the tensors, with None for each plain number; then the plain numbers."""
    tensors = [x if isinstance(x, torch.Tensor) else None for x in numbers]
    plain = [0.0 if isinstance(x, torch.Tensor) else float(x) for x in numbers]
    return *tensors, *plain


def numbers(count: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """0-d tensors that share no memory, as an operator's results must."""
    return tuple(_launch.empty((), torch.float32, device) for _ in range(count))


def terms(
    values: torch.Tensor,
    moments: torch.Tensor,
    weights: tuple[Any, Any, Any],
    eps: float,
    n: Any,
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Terms of VISReg, and the numbers that its backward pass needs.

    values : (rows,); Σ_n (sort(x)_n − q_n)² of each view and slice
    moments : (3, B, D)
    weights : three numbers, or tensors of one element; of scale, shape and centre
    n : number, or tensor of one element; kept samples
    Returns total, scale, shape and centre, 0-d tensors; and the weights, ε and n, (5,).
    """
    out = numbers(4, values.device)
    scalars = _launch.empty(5, torch.float32, values.device)
    _launch.launch(
        _terms,
        (1,),
        values,
        moments,
        *out,
        scalars,
        *places(*weights, n),
        eps,
        values.shape[0],
        moments.shape[1] * moments.shape[2],
        LANES=_LANES,
        num_warps=16,
    )
    return out, scalars


def mean(values: torch.Tensor, divisor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of the rows' values over a divisor, 0-d, and the divisor as a tensor (1,).

    values : (rows,)
    divisor : number, or tensor of one element
    """
    (out,) = numbers(1, values.device)
    scalar = _launch.empty(1, torch.float32, values.device)
    _launch.launch(
        _mean,
        (1,),
        values,
        out,
        scalar,
        *places(divisor),
        values.shape[0],
        LANES=_LANES,
        num_warps=16,
    )
    return out, scalar


def combined(
    g: torch.Tensor,
    z: torch.Tensor,
    keep: torch.Tensor | None,
    moments: torch.Tensor | None,
    scalars: torch.Tensor,
    cotangents: tuple[torch.Tensor | None, ...],
    *,
    together: int,
    per_row: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gradient of a sliced loss with respect to z.

    g : (B / together, padded, pitch); Σ_k of the rows' gradients times slices, float32 or bfloat16
    z : (B, N, D)
    keep : byte (N,); the gradient of other rows is 0
    moments : (3, B, D); where rows were standardised
    scalars : as `terms` or `mean` made it
    cotangents : four 0-d tensors or None; of total, scale, shape and centre; without moments the
        first alone counts
    per_row : factor of the rows' gradients
    out : (B, N, D); contiguous, where to write; may be the memory of `g`
    Returns (B, N, D) in z's dtype.
    """
    batch, n, d = z.shape
    if out is None:
        out = _launch.empty((batch, n, d), z.dtype, z.device)
    reads_z = moments is not None and not (
        cotangents[0] is None and cotangents[1] is None and cotangents[3] is None
    )
    _launch.launch(
        _combined,
        (triton.cdiv(d, _TILE_COLUMNS), triton.cdiv(n, _TILE_ROWS), batch),
        g,
        z if reads_z else None,
        keep,
        moments,
        scalars,
        *cotangents,
        out,
        n,
        d,
        g.shape[2],
        together,
        g.shape[1],
        0 if moments is None else moments.stride(0),
        *z.stride(),
        per_row,
        2 / (batch * d),
        ROWS=_TILE_ROWS,
        COLUMNS=_TILE_COLUMNS,
        num_warps=4,
    )
    return out
