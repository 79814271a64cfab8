"""Sums of cos jθ and sin jθ over rows of angles θ, and trigonometric polynomials on them.

The two passes of the Epps-Pulley statistic, apart, so that the sums may be added up over processes
in between. A sample is read twice and its multiples are rotations in registers: nothing of shape
(R, N, knots) exists. Reference implementation: `visreg_core.losses.epps_pulley.Multiples`.

Bottleneck: arithmetic, a sine, a cosine and four to eight instructions a knot for 4 bytes read.
Exact: a rotation keeps its accuracy at small angles. Worst case: few rows, each of which the sums
split over programs and add in a second step. Rejected: one pass as in `characteristic_rows`, since
the sums must leave the process before the polynomial is known.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from visreg_torch.kernels import _launch

_TILE = 2048  # angles of a program at a time: four numbers each, sixteen of them a thread
_WARPS = 4


@triton.jit
def rotate(cos, sin, first_cos, first_sin):
    """cos and sin of one angle more."""
    return (
        tl.fma(cos, first_cos, -sin * first_sin),
        tl.fma(sin, first_cos, cos * first_sin),
    )


@triton.jit
def horner(re, im, of_cos, of_sin, first_cos, first_sin):
    """One step of Σ_j (of_cos_j − i of_sin_j) e^{ijθ}, from the last j to the first."""
    re, im = re + of_cos, im - of_sin
    return (
        tl.fma(re, first_cos, -im * first_sin),
        tl.fma(re, first_sin, im * first_cos),
    )


@triton.jit
def _sums(
    x_ptr,  # (R, N), strides (row_stride, column_stride)
    keep_ptr,  # (N,) bytes, or None
    out_ptr,  # (splits, 2, R, m) float32
    rows,
    n,
    m,
    span,
    row_stride,
    column_stride,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    KNOTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    knot = tl.arange(0, KNOTS)[None, :]
    cos_sums = tl.zeros([ROWS, KNOTS], tl.float32)
    sin_sums = tl.zeros([ROWS, KNOTS], tl.float32)
    begin = tl.program_id(1) * span
    for start in range(begin, tl.minimum(begin + span, n), BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = column < n
        if keep_ptr is not None:
            inside = inside & (tl.load(keep_ptr + column, mask=inside, other=0) != 0)
        inside = inside & (row < rows)
        at = x_ptr + row * row_stride + column.to(tl.int64) * column_stride
        angle = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        first_cos, first_sin = tl.cos(angle), tl.sin(angle)
        # A vector of length 0 stays one however it is rotated.
        cos, sin = tl.where(inside, first_cos, 0.0), tl.where(inside, first_sin, 0.0)
        for j in range(m):
            cos_sums = tl.where(knot == j, cos_sums + tl.sum(cos, axis=1)[:, None], cos_sums)
            sin_sums = tl.where(knot == j, sin_sums + tl.sum(sin, axis=1)[:, None], sin_sums)
            cos, sin = rotate(cos, sin, first_cos, first_sin)
    part = tl.program_id(1).to(tl.int64) * 2
    stored = (row < rows) & (knot < m)
    tl.store(out_ptr + (part * rows + row) * m + knot, cos_sums, mask=stored)
    tl.store(out_ptr + ((part + 1) * rows + row) * m + knot, sin_sums, mask=stored)


@triton.jit
def _polynomial(
    x_ptr,  # (R, N), strides (row_stride, column_stride)
    of_cos_ptr,  # (R, m) float32
    of_sin_ptr,  # (R, m) float32
    out_ptr,  # (R, N), strides (out_row_stride, out_column_stride)
    rows,
    n,
    m,
    row_stride,
    column_stride,
    out_row_stride,
    out_column_stride,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]).to(tl.int64)
    live = (row < rows) & (column < n)
    at = x_ptr + row * row_stride + column * column_stride
    angle = tl.load(at, mask=live, other=0.0).to(tl.float32)
    first_cos, first_sin = tl.cos(angle), tl.sin(angle)
    re = tl.zeros([ROWS, BLOCK], tl.float32)
    im = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in range(m):
        coefficient = row * m + (m - 1 - i)
        of_cos = tl.load(of_cos_ptr + coefficient, mask=row < rows, other=0.0)
        of_sin = tl.load(of_sin_ptr + coefficient, mask=row < rows, other=0.0)
        re, im = horner(re, im, of_cos, of_sin, first_cos, first_sin)
    at = out_ptr + row * out_row_stride + column * out_column_stride
    tl.store(at, re.to(out_ptr.dtype.element_ty), mask=live)


def _tile(n: int) -> tuple[int, int]:
    """Rows and columns of a program's tile of angles."""
    block = min(_TILE, max(32, triton.next_power_of_2(n)))
    return _TILE // block, block


def epps_pulley_sums(
    angle: torch.Tensor, m: int, row_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ_n cos jθ_n and Σ_n sin jθ_n, j = 1 … m, over each row's (kept) samples.

    angle : (R, N); θ: float32, bfloat16 or float16, any strides
    m : number of multiples, at least 1
    row_mask : boolean (N,); samples to keep
    Returns two (R, m) in float32.
    """
    _launch.check_rows("angle", angle)
    if m < 1:
        raise ValueError(f"expected m of at least 1; found {m}")
    rows, n = angle.shape
    keep = _launch.mask_bytes(row_mask, n)
    together, block = _tile(n)
    programs, blocks = triton.cdiv(rows, together), triton.cdiv(n, block)
    parts = _launch.splits(programs, blocks)
    out = torch.empty((parts, 2, rows, m), dtype=torch.float32, device=angle.device)
    _launch.launch(
        _sums,
        (programs, parts),
        angle,
        keep,
        out,
        rows,
        n,
        m,
        triton.cdiv(blocks, parts) * block,
        *angle.stride(),
        ROWS=together,
        BLOCK=block,
        KNOTS=triton.next_power_of_2(m),
        num_warps=_WARPS,
    )
    cos_sums, sin_sums = out[0] if parts == 1 else torch.sum(out, dim=0)
    return cos_sums, sin_sums


def epps_pulley_polynomial(
    angle: torch.Tensor, of_cos: torch.Tensor, of_sin: torch.Tensor
) -> torch.Tensor:
    """Σ_j of_cos_j cos jθ_n + of_sin_j sin jθ_n, with each row's coefficients.

    angle : (R, N); θ: float32, bfloat16 or float16, any strides
    of_cos, of_sin : (R, m); coefficients of j = 1 … m
    Returns (R, N) in float32, by Horner's rule.
    """
    _launch.check_rows("angle", angle)
    rows, n = angle.shape
    m = of_cos.shape[-1]
    _launch.check_shape("of_cos", of_cos, rows, m)
    _launch.check_shape("of_sin", of_sin, rows, m)
    out = _launch.gradient_rows(angle, need_grad=True)
    together, block = _tile(n)
    _launch.launch(
        _polynomial,
        (triton.cdiv(rows, together), triton.cdiv(n, block)),
        angle,
        of_cos.float().contiguous(),
        of_sin.float().contiguous(),
        out,
        rows,
        n,
        m,
        *angle.stride(),
        *out.stride(),
        ROWS=together,
        BLOCK=block,
        num_warps=_WARPS,
    )
    return out
