"""Epps-Pulley statistic of rows of projections, and its gradient; nothing of size knots is stored.

The integral has equally spaced knots, so that cosines and sines of all of them are rotations of
the first, in registers. A knot's sums over the row give its two coefficients of the gradient, a
trigonometric polynomial, so that one loop over the knots makes value and gradient while a row's
angles stay in registers (`_short`, up to `SHORT` samples). Longer rows take three launches: sums of
parts, values and coefficients, polynomials.

Bottleneck: arithmetic, eight instructions a knot and element beside a sine and a cosine: 190 for 17
knots, 0.14 ms of an H200's lanes at V10 N512 K4096, against 0.03 ms for 4 bytes read and 2 written.
Exact: a rotation keeps its accuracy at small angles, where three-term recurrences lose it. Worst
case: short rows, whose sums across lanes weigh more. Rejected: two passes with stored sums for
short rows (sine and cosine twice), Chebyshev's recurrence (half the instructions, and wrong where
embeddings collapse).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from visreg_torch.kernels import _launch
from visreg_torch.kernels.epps_pulley_rows import rotate
from visreg_torch.kernels.sorted_rows import gradient_at, load_projection, store_gradient

SHORT = 4096
_PER_WARP = 512
_BLOCK, _SPAN = 512, 8192


@triton.jit
def cos_sin(x):
    """Cosine and sine to 1e-7, in half the instructions of the library's two.

    Whole turns come off first, in three pieces of 2π, then quarters; polynomials are those of
    float32 on ± π/4. From 1e6 on an angle's own rounding is more than its digits.
    """
    turns = tl.floor(tl.fma(x, 0.15915494309189535, 0.5))
    x = tl.fma(turns, -6.2831840515136719, x)
    x = tl.fma(turns, -1.2556659157498064e-06, x)
    x = tl.fma(turns, -2.156121011983106e-14, x)
    magic = tl.fma(x, 0.63661977236758138, 12582912.0)  # rounds; the last bits are the quarter
    quarter = magic.to(tl.int32, bitcast=True)
    k = magic - 12582912.0
    x = tl.fma(k, -1.5707963705062866, x)
    x = tl.fma(k, 4.3711388286737929e-08, x)
    y = x * x
    sin = tl.fma(y, -1.9515295891e-4, 8.3321608736e-3)
    sin = tl.fma(y, sin, -1.6666654611e-1)
    sin = tl.fma(x * y, sin, x)
    cos = tl.fma(y, 2.443315711809948e-5, -1.388731625493765e-3)
    cos = tl.fma(y, cos, 4.166664568298827e-2)
    cos = tl.fma(y * y, cos, tl.fma(y, -0.5, 1.0))
    odd = (quarter & 1) != 0
    first = tl.where(odd, sin, cos)
    second = tl.where(odd, cos, sin)
    first = tl.where(((quarter + 1) & 2) != 0, -first, first)
    return first, tl.where((quarter & 2) != 0, -second, second)


@triton.jit
def _short(
    p_ptr,  # (G, K, padded) float32, rows (slice, view) of N numbers
    scale_ptr,  # (G, padded) float32, or None
    keep_ptr,  # (N,) bytes, or None
    knots_ptr,  # (3, m) float32: weights, targets, 2 weight · knot
    value_ptr,  # (G · K · together,) float32
    out_ptr,  # (G, BACK · K, padded) bfloat16, or None
    rows,
    n,
    k,
    padded,
    together,
    factor,
    step,
    m,
    BACK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    live = (row < rows) & (column < n)
    inside = live
    count = n * 1.0
    if keep_ptr is not None:
        keep = tl.load(keep_ptr + column, mask=column < n, other=0).to(tl.int32)
        inside = live & (keep != 0)
        count = tl.sum(keep).to(tl.float32)
        count = tl.where(count < 2, float("nan"), count)
    safe = tl.minimum(row, rows - 1)
    p = load_projection(
        p_ptr, scale_ptr, None, safe, column, inside, n, k, padded, together, factor
    )
    angle = step * p
    first_cos, first_sin = cos_sin(angle)
    # A vector of length 0 stays one however it is rotated.
    cos, sin = tl.where(inside, first_cos, 0.0), tl.where(inside, first_sin, 0.0)
    gradient = tl.zeros([ROWS, BLOCK], tl.float32)
    value = tl.zeros([ROWS, 1], tl.float32)
    for j in range(m):
        weight = tl.load(knots_ptr + j)
        real = tl.sum(cos, axis=1)[:, None] / count - tl.load(knots_ptr + m + j)
        imaginary = tl.sum(sin, axis=1)[:, None] / count
        value += weight * (real * real + imaginary * imaginary)
        if out_ptr is not None:
            slope = tl.load(knots_ptr + 2 * m + j)
            gradient = tl.fma(cos, slope * imaginary, gradient)
            gradient = tl.fma(sin, -slope * real, gradient)
        cos, sin = rotate(cos, sin, first_cos, first_sin)
    tl.store(value_ptr + row, value * count, mask=row < rows)
    if out_ptr is not None:
        at, part = gradient_at(out_ptr, safe, n, k, padded, together, BACK)
        store_gradient(at + column, part, gradient, live, BACK)


@triton.jit
def _sums(
    p_ptr,  # (G, K, padded) float32, rows (slice, view) of N numbers
    scale_ptr,  # (G, padded) float32, or None
    keep_ptr,  # (N,) bytes, or None
    sums_ptr,  # (rows, splits, 2, KNOTS) float32
    n,
    k,
    padded,
    together,
    factor,
    step,
    m,
    span,
    BLOCK: tl.constexpr,
    KNOTS: tl.constexpr,
):
    this = tl.program_id(0).to(tl.int64)
    row = this + tl.zeros([BLOCK], tl.int64)
    knot = tl.arange(0, KNOTS)
    cos_sums = tl.zeros([KNOTS], tl.float32)
    sin_sums = tl.zeros([KNOTS], tl.float32)
    begin = tl.program_id(1) * span
    for start in range(begin, tl.minimum(begin + span, n), BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < n
        if keep_ptr is not None:
            inside = inside & (tl.load(keep_ptr + column, mask=inside, other=0) != 0)
        p = load_projection(
            p_ptr, scale_ptr, None, row, column, inside, n, k, padded, together, factor
        )
        first_cos, first_sin = cos_sin(step * p)
        cos, sin = tl.where(inside, first_cos, 0.0), tl.where(inside, first_sin, 0.0)
        for j in range(m):
            cos_sums += tl.where(knot == j, tl.sum(cos), 0.0)
            sin_sums += tl.where(knot == j, tl.sum(sin), 0.0)
            cos, sin = rotate(cos, sin, first_cos, first_sin)
    at = sums_ptr + (this * tl.num_programs(1) + tl.program_id(1)) * (2 * KNOTS) + knot
    tl.store(at, cos_sums)
    tl.store(at + KNOTS, sin_sums)


@triton.jit
def _coefficients(
    sums_ptr,  # (rows, splits, 2, KNOTS) float32
    keep_ptr,  # (N,) bytes, or None
    knots_ptr,  # (3, m) float32: weights, targets, 2 weight · knot
    of_ptr,  # (rows, 2, KNOTS) float32: of cosines and of sines
    value_ptr,  # (rows,) float32
    n,
    m,
    splits,
    SPLITS: tl.constexpr,
    KNOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    count = n * 1.0
    if keep_ptr is not None:
        kept = tl.zeros([BLOCK], tl.int32)
        for start in range(0, n, BLOCK):
            column = start + tl.arange(0, BLOCK)
            kept += tl.load(keep_ptr + column, mask=column < n, other=0).to(tl.int32)
        count = tl.sum(kept).to(tl.float32)
        count = tl.where(count < 2, float("nan"), count)
    knot = tl.arange(0, KNOTS)
    split = tl.arange(0, SPLITS)[:, None]
    at = sums_ptr + (row * splits + split) * (2 * KNOTS) + knot[None, :]
    real = tl.sum(tl.load(at, mask=split < splits, other=0.0), axis=0) / count
    imaginary = tl.sum(tl.load(at + KNOTS, mask=split < splits, other=0.0), axis=0) / count
    weight = tl.load(knots_ptr + knot, mask=knot < m, other=0.0)
    real -= tl.load(knots_ptr + m + knot, mask=knot < m, other=0.0)
    slope = tl.load(knots_ptr + 2 * m + knot, mask=knot < m, other=0.0)
    value = tl.sum(weight * (real * real + imaginary * imaginary))
    tl.store(value_ptr + row, value * count)
    tl.store(of_ptr + row * (2 * KNOTS) + knot, slope * imaginary)
    tl.store(of_ptr + row * (2 * KNOTS) + KNOTS + knot, -slope * real)


@triton.jit
def _polynomial(
    p_ptr,  # (G, K, padded) float32, rows (slice, view) of N numbers
    scale_ptr,  # (G, padded) float32, or None
    keep_ptr,  # (N,) bytes, or None
    of_ptr,  # (rows, 2, KNOTS) float32
    out_ptr,  # (G, BACK · K, padded) bfloat16
    n,
    k,
    padded,
    together,
    factor,
    step,
    m,
    BACK: tl.constexpr,
    BLOCK: tl.constexpr,
    KNOTS: tl.constexpr,
):
    this = tl.program_id(0).to(tl.int64)
    row = this + tl.zeros([BLOCK], tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = column < n
    inside = live
    if keep_ptr is not None:
        inside = live & (tl.load(keep_ptr + column, mask=live, other=0) != 0)
    p = load_projection(p_ptr, scale_ptr, None, row, column, inside, n, k, padded, together, factor)
    cos, sin = cos_sin(step * p)
    # Σ_j (of_cos_j − i of_sin_j) e^{ijθ} by Horner's rule: four instructions a knot.
    re = tl.zeros([BLOCK], tl.float32)
    im = tl.zeros([BLOCK], tl.float32)
    of = of_ptr + this * (2 * KNOTS)
    for i in range(m):
        j = m - 1 - i
        re, im = re + tl.load(of + j), im - tl.load(of + KNOTS + j)
        re, im = tl.fma(re, cos, -im * sin), tl.fma(re, sin, im * cos)
    at, part = gradient_at(out_ptr, row, n, k, padded, together, BACK)
    store_gradient(at + column, part, tl.where(inside, re, 0.0), live, BACK)


def characteristic_rows(
    p: torch.Tensor,
    knots: torch.Tensor,
    step: float,
    *,
    n: int,
    together: int,
    factor: float,
    scale: torch.Tensor | None,
    keep: torch.Tensor | None,
    back: int,
    values: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Epps-Pulley statistic of the rows x = p · factor · scale, and its gradient.

    p, n, together, factor, scale, keep, back, values : as in `sorted_rows`, with N of any size
    knots : (3, m); float32, of knots 1 … m: weights, targets, and twice weight times knot
    step : the knots' distance
    Returns values (G · K · together,) in float32, and the gradient (G, back · K, padded) in
    bfloat16 or None. What is beyond together · N is not written.
    """
    groups, k, padded = p.shape
    rows, m = groups * k * together, knots.shape[1]
    if values is None:
        values = _launch.empty(rows, torch.float32, p.device)
    out = None
    if back:
        out = _launch.empty((groups, back * k, padded), torch.bfloat16, p.device)
    sizes = (n, k, padded, together, factor, step, m)
    if n <= SHORT:
        block = max(2, triton.next_power_of_2(n))
        at_once = max(1, _PER_WARP // block)
        _launch.launch(
            _short,
            (triton.cdiv(rows, at_once),),
            p,
            scale,
            keep,
            knots,
            values,
            out,
            rows,
            *sizes,
            BACK=back,
            ROWS=at_once,
            BLOCK=block,
            num_warps=max(1, at_once * block // _PER_WARP),
        )
        return values, out
    splits, width = triton.cdiv(n, _SPAN), triton.next_power_of_2(m)
    sums = _launch.empty((rows, splits, 2, width), torch.float32, p.device)
    of = _launch.empty((rows, 2, width), torch.float32, p.device)
    _launch.launch(
        _sums,
        (rows, splits),
        p,
        scale,
        keep,
        sums,
        *sizes,
        _SPAN,
        BLOCK=_BLOCK,
        KNOTS=width,
        num_warps=1,
    )
    _launch.launch(
        _coefficients,
        (rows,),
        sums,
        keep,
        knots,
        of,
        values,
        n,
        m,
        splits,
        SPLITS=triton.next_power_of_2(splits),
        KNOTS=width,
        BLOCK=_BLOCK,
        num_warps=1,
    )
    if back:
        _launch.launch(
            _polynomial,
            (rows, triton.cdiv(n, _BLOCK)),
            p,
            scale,
            keep,
            of,
            out,
            *sizes,
            BACK=back,
            BLOCK=_BLOCK,
            KNOTS=width,
            num_warps=1,
        )
    return values, out
