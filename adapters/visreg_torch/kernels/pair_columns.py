"""Statistics of two views' columns, and their rows as bfloat16 parts, for losses of pairs.

`columns` walks a block of columns three times, the second and third time from cache: ranges and
sums, the rounding error of the mean, squares. `scales` finds each view's scale, a power of two.
`parts` centres and writes hi and lo of every number: float32 embeddings are then multiplied on
tensor cores, hi·hi + hi·lo + lo·hi, to 2⁻¹⁷.

Bottleneck: bytes. At N = D = 2048 both views are 34 MB in float32: read twice, and 8 bytes an
element written, 25 µs of an H200. Exact: the mean lies within its column, so that constant columns
centre to exactly 0. Worst case: few columns of many rows, which few programs walk. Rejected: one
launch for all three, which needs every program to wait for every other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from visreg_torch.kernels import _launch
from visreg_torch.kernels.operands import halves

# Rows of the statistics (8, D).
A, B, CROSS, PAIRED = 0, 3, 6, 7
_ROWS, _COLUMNS = 256, 16
_TILE_ROWS, _TILE_COLUMNS = 32, 128


@triton.jit
def view_of(a_ptr, b_ptr, view):
    """Pointer to a view."""
    if view == 0:
        base = a_ptr
    else:
        base = b_ptr
    return base


@triton.jit
def _columns(
    a_ptr,  # (N, D), strides (row_stride, 1)
    b_ptr,  # likewise
    pairs_ptr,  # (N,) integers, or None
    pair_weight_ptr,  # (N,) floating
    stats_ptr,  # (8, D) float32: first, rest, squares of a, of b; Σ âb̂; Σ w (a − b)²
    n,
    d,
    a_stride,
    b_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside_d = column < d
    sum_a = tl.zeros([1, COLUMNS], tl.float32)
    sum_b = tl.zeros([1, COLUMNS], tl.float32)
    paired = tl.zeros([1, COLUMNS], tl.float32)
    low_a = tl.full([1, COLUMNS], float("inf"), tl.float32)
    high_a = tl.full([1, COLUMNS], float("-inf"), tl.float32)
    low_b = tl.full([1, COLUMNS], float("inf"), tl.float32)
    high_b = tl.full([1, COLUMNS], float("-inf"), tl.float32)
    for start in range(0, n, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        inside = (row < n) & inside_d
        wide = row.to(tl.int64)
        a = tl.load(a_ptr + wide * a_stride + column, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + wide * b_stride + column, mask=inside, other=0.0).to(tl.float32)
        sum_a += tl.sum(a, axis=0)[None, :]
        sum_b += tl.sum(b, axis=0)[None, :]
        low_a = tl.minimum(low_a, tl.min(tl.where(inside, a, float("inf")), axis=0)[None, :])
        high_a = tl.maximum(high_a, tl.max(tl.where(inside, a, float("-inf")), axis=0)[None, :])
        low_b = tl.minimum(low_b, tl.min(tl.where(inside, b, float("inf")), axis=0)[None, :])
        high_b = tl.maximum(high_b, tl.max(tl.where(inside, b, float("-inf")), axis=0)[None, :])
        if pairs_ptr is None:
            off = a - b
            paired += tl.sum(off * off, axis=0)[None, :]
        else:
            other = tl.load(pairs_ptr + row, mask=row < n, other=0).to(tl.int64)
            weight = tl.load(pair_weight_ptr + row, mask=row < n, other=0.0).to(tl.float32)
            off = a - tl.load(b_ptr + other * b_stride + column, mask=inside, other=0.0).to(
                tl.float32
            )
            paired += tl.sum(weight * off * off, axis=0)[None, :]
    first_a, first_b = sum_a / n, sum_b / n
    # A comparison with NaN is false: a NaN mean stays.
    first_a = tl.where(first_a < low_a, low_a, first_a)
    first_a = tl.where(first_a > high_a, high_a, first_a)
    first_b = tl.where(first_b < low_b, low_b, first_b)
    first_b = tl.where(first_b > high_b, high_b, first_b)
    rest_a = tl.zeros([1, COLUMNS], tl.float32)
    rest_b = tl.zeros([1, COLUMNS], tl.float32)
    for start in range(0, n, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        inside = (row < n) & inside_d
        wide = row.to(tl.int64)
        a = tl.load(a_ptr + wide * a_stride + column, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + wide * b_stride + column, mask=inside, other=0.0).to(tl.float32)
        rest_a += tl.sum(tl.where(inside, a - first_a, 0.0), axis=0)[None, :]
        rest_b += tl.sum(tl.where(inside, b - first_b, 0.0), axis=0)[None, :]
    rest_a, rest_b = rest_a / n, rest_b / n
    squares_a = tl.zeros([1, COLUMNS], tl.float32)
    squares_b = tl.zeros([1, COLUMNS], tl.float32)
    cross = tl.zeros([1, COLUMNS], tl.float32)
    for start in range(0, n, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        inside = (row < n) & inside_d
        wide = row.to(tl.int64)
        a = tl.load(a_ptr + wide * a_stride + column, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + wide * b_stride + column, mask=inside, other=0.0).to(tl.float32)
        a = tl.where(inside, a - first_a - rest_a, 0.0)
        b = tl.where(inside, b - first_b - rest_b, 0.0)
        squares_a += tl.sum(a * a, axis=0)[None, :]
        squares_b += tl.sum(b * b, axis=0)[None, :]
        cross += tl.sum(a * b, axis=0)[None, :]
    at = stats_ptr + column
    tl.store(at, first_a, mask=inside_d)
    tl.store(at + d, rest_a, mask=inside_d)
    tl.store(at + 2 * d, squares_a, mask=inside_d)
    tl.store(at + 3 * d, first_b, mask=inside_d)
    tl.store(at + 4 * d, rest_b, mask=inside_d)
    tl.store(at + 5 * d, squares_b, mask=inside_d)
    tl.store(at + 6 * d, cross, mask=inside_d)
    tl.store(at + 7 * d, paired, mask=inside_d)


@triton.jit
def _scales(
    stats_ptr,  # (8, D) float32
    scale_ptr,  # (2,) float32: a power of two about the largest standard deviation
    n,
    d,
    LANES: tl.constexpr,
):
    view = tl.program_id(0)
    most = tl.zeros([LANES], tl.float32)
    for start in range(0, d, LANES):
        at = start + tl.arange(0, LANES)
        squares = tl.load(stats_ptr + (3 * view + 2) * d + at, mask=at < d, other=0.0)
        most = tl.maximum(most, squares)
    # The exponent of the largest deviation; 2⁰ where there is none, or no number.
    largest = tl.sqrt(tl.max(most) / n)
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 0xFF
    exponent = tl.where((exponent < 16) | (exponent > 238), 127, exponent)
    tl.store(scale_ptr + view, (exponent << 23).to(tl.float32, bitcast=True))


@triton.jit
def rows_at(z_ptr, stats_ptr, scale_ptr, view, row, column, stride, n, d, eps):
    """A tile of a view's centred rows, over its scale; without scales standardised."""
    inside = (row < n) & (column < d)
    z = tl.load(z_ptr + row.to(tl.int64) * stride + column, mask=inside, other=0.0).to(tl.float32)
    here = stats_ptr + 3 * view * d + column
    z -= tl.load(here, mask=column < d, other=0.0)
    z -= tl.load(here + d, mask=column < d, other=0.0)
    if scale_ptr is None:
        variance = tl.load(here + 2 * d, mask=column < d, other=0.0) / n + eps
        safe = tl.where(variance == 0, 1.0, variance)
        z = tl.where(variance == 0, 0.0, z / tl.sqrt_rn(safe))
    else:
        z = z / tl.load(scale_ptr + view)
    return tl.where(inside, z, 0.0)


@triton.jit
def _parts(
    a_ptr,  # (N, D), strides (row_stride, 1)
    b_ptr,
    stats_ptr,  # (8, D) float32
    scale_ptr,  # (2,) float32, or None: standardise
    out_ptr,  # (blocks, 2, padded N, pitch) bfloat16
    n,
    d,
    padded,
    pitch,
    a_stride,
    b_stride,
    eps,
    PARTS: tl.constexpr,
    CROSSED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    view = tl.program_id(2)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    stride = tl.where(view == 0, a_stride, b_stride).to(tl.int64)
    z_ptr = view_of(a_ptr, b_ptr, view)
    z = rows_at(z_ptr, stats_ptr, scale_ptr, view, row, column, stride, n, d, eps)
    stored = (row < padded) & (column < pitch)
    block = (2 + tl.zeros([1, 1], tl.int64)) * padded * pitch
    at = out_ptr + (view.to(tl.int64) * padded + row) * pitch + column
    hi, lo = halves(z, tl.bfloat16)
    tl.store(at, hi, mask=stored)
    if PARTS > 1:
        if CROSSED:  # (hi, hi, lo) of a, (hi, lo, hi) of b
            tl.store(at + block, tl.where(view == 0, hi, lo), mask=stored)
            tl.store(at + 2 * block, tl.where(view == 0, lo, hi), mask=stored)
        else:  # (hi, hi) and (hi, lo) overlap, and (hi, lo, hi)
            tl.store(at + block, hi, mask=stored)
            tl.store(at + 2 * block, lo, mask=stored)
            tl.store(at + 3 * block, hi, mask=stored)


def columns(
    a: torch.Tensor,
    b: torch.Tensor,
    pairs: torch.Tensor | None = None,
    pair_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Statistics (8, D) in float32 of a and b (N, D), whose rows are contiguous.

    Returns (8, D): first and rest of the mean and Σ â² of a; of b; Σ â b̂; and Σ w (a − b)², of the
    rows of b that `pairs` (N,) names, with `pair_weights` (N,), if given.
    """
    n, d = a.shape
    stats = _launch.empty((8, d), torch.float32, a.device)
    _launch.launch(
        _columns,
        (triton.cdiv(d, _COLUMNS),),
        a,
        b,
        pairs,
        pair_weights,
        stats,
        n,
        d,
        a.stride(0),
        b.stride(0),
        ROWS=min(_ROWS, triton.next_power_of_2(n)),
        COLUMNS=_COLUMNS,
        num_warps=4,
    )
    return stats


def scales(stats: torch.Tensor, n: int) -> torch.Tensor:
    """Each view's scale (2,), a power of two."""
    scale = _launch.empty(2, torch.float32, stats.device)
    _launch.launch(_scales, (2,), stats, scale, n, stats.shape[1], LANES=1024, num_warps=4)
    return scale


def parts(
    a: torch.Tensor,
    b: torch.Tensor,
    stats: torch.Tensor,
    scale: torch.Tensor | None,
    *,
    split: bool,
    crossed: bool = False,
    eps: float = 0.0,
) -> torch.Tensor:
    """Centred rows as bfloat16 parts, padded with zeros to multiples of 8.

    a, b : (N, D)
    stats : (8, D)
    scale : (2,); what to divide by; without it, by sqrt(Σ â² / N + eps)
    split : whether there is a low part
    crossed : for the product of a with b
    Returns (blocks, 2, padded N, pitch). Split: hi, hi, lo, hi; crossed (hi, hi, lo) of a and (hi,
    lo, hi) of b. Else hi.
    """
    n, d = a.shape
    padded, pitch = -(-n // 8) * 8, -(-d // 8) * 8
    blocks = (3 if crossed else 4) if split else 1
    out = _launch.empty((blocks, 2, padded, pitch), torch.bfloat16, a.device)
    _launch.launch(
        _parts,
        (triton.cdiv(pitch, _TILE_COLUMNS), triton.cdiv(padded, _TILE_ROWS), 2),
        a,
        b,
        stats,
        scale,
        out,
        n,
        d,
        padded,
        pitch,
        a.stride(0),
        b.stride(0),
        eps,
        PARTS=3 if split else 1,
        CROSSED=crossed,
        ROWS=_TILE_ROWS,
        COLUMNS=_TILE_COLUMNS,
        num_warps=4,
    )
    return out
