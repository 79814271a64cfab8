"""Ends of Barlow Twins: terms from sums, and gradients from products, one launch each.

Bottleneck: as in `vicreg_ends`, and the second product read twice, since its part along each column
(`along`) must be known before any gradient. Exact: C's diagonal from sums in float32 of centred
columns, not from the product's 16-bit parts. Worst case: few columns of many rows, which `along`
walks by few programs. Rejected: `along` in the gradient's launch, whose programs would have to wait
for each other.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from visreg_torch.kernels import _launch
from visreg_torch.kernels.ends import cotangent, number_of, numbers, places, sum_of
from visreg_torch.kernels.pair_columns import view_of
from visreg_torch.kernels.pair_products import LANES, TILE_COLUMNS, TILE_ROWS, product_at


@triton.jit
def _barlow_terms(
    stats_ptr,  # (8, D) float32
    sums_ptr,  # (sums,) float32
    more_ptr,  # (more,) float32, or None; and so the next
    direct_ptr,  # (2,) int32
    total_ptr,  # 0-d float32; and so the next two
    on_ptr,
    off_ptr,
    scalars_ptr,  # (1,) float32: the weight, for the backward pass
    weight_ptr,  # a number's place, or None and the number below
    weight,
    n,
    d,
    sums,
    more,
    per_sum,
    eps,
    LANES: tl.constexpr,
):
    on = tl.zeros([LANES], tl.float32)
    for start in range(0, d, LANES):
        at = start + tl.arange(0, LANES)
        c = diagonal_at(stats_ptr, at, n, d, eps)
        on += tl.where(at < d, (1 - c) * (1 - c), 0.0)
    on_diagonal = tl.sum(on)
    off = sum_of(sums_ptr, sums, LANES)
    if more_ptr is not None:
        off = tl.where(tl.load(direct_ptr) != 0, 0.0, off) + sum_of(more_ptr, more, LANES)
    off *= per_sum
    weight = number_of(weight_ptr, weight)
    tl.store(total_ptr, on_diagonal + weight * off)
    tl.store(on_ptr, on_diagonal)
    tl.store(off_ptr, off)
    tl.store(scalars_ptr, weight)


@triton.jit
def reciprocal_at(stats_ptr, view, at, n, d, eps):
    """1 / sqrt(Σ â² / n + eps) of columns, 0 at 0."""
    variance = tl.load(stats_ptr + (3 * view + 2) * d + at, mask=at < d, other=0.0) / n + eps
    safe = tl.where(variance == 0, 1.0, variance)
    return tl.where(variance == 0, 0.0, 1.0 / tl.sqrt_rn(safe))


@triton.jit
def diagonal_at(stats_ptr, at, n, d, eps):
    """C_jj of columns."""
    a, b = reciprocal_at(stats_ptr, 0, at, n, d, eps), reciprocal_at(stats_ptr, 1, at, n, d, eps)
    return tl.load(stats_ptr + 6 * d + at, mask=at < d, other=0.0) * a / n * b


@triton.jit
def standard_at(z_ptr, stats_ptr, view, row, column, stride, reciprocal, n, d):
    """A tile of the standardised rows of a view."""
    inside = (row < n) & (column < d)
    z = tl.load(z_ptr + row.to(tl.int64) * stride + column, mask=inside, other=0.0)
    here = stats_ptr + 3 * view * d + column
    z = z.to(tl.float32) - tl.load(here, mask=column < d, other=0.0)
    z -= tl.load(here + d, mask=column < d, other=0.0)
    return tl.where(inside, z * reciprocal, 0.0)


@triton.jit
def _along(
    a_ptr,  # (N, D), strides (row_stride, 1)
    b_ptr,
    q_ptr,  # (PARTS, 2, padded, pitch) float32, or views first
    stats_ptr,  # (8, D) float32
    out_ptr,  # (2, D) float32: Σ_n q x̂
    n,
    d,
    padded,
    pitch,
    a_stride,
    b_stride,
    eps,
    PARTS: tl.constexpr,
    VIEWS_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    view = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    stride = tl.where(view == 0, a_stride, b_stride).to(tl.int64)
    z_ptr = view_of(a_ptr, b_ptr, view)
    reciprocal = reciprocal_at(stats_ptr, view, column, n, d, eps)
    total = tl.zeros([1, COLUMNS], tl.float32)
    for start in range(0, n, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        inside = (row < n) & (column < d)
        x = standard_at(z_ptr, stats_ptr, view, row, column, stride, reciprocal, n, d)
        q = product_at(q_ptr, view, row, column, padded, pitch, inside, PARTS, VIEWS_FIRST)
        total += tl.sum(q * x, axis=0)[None, :]
    tl.store(out_ptr + view * d + column, total, mask=column < d)


@triton.jit
def _barlow_gradient(
    a_ptr,  # (N, D), strides (row_stride, 1)
    b_ptr,
    q_ptr,  # (PARTS, 2, padded, pitch) float32, or views first
    stats_ptr,  # (8, D) float32
    along_ptr,  # (2, D) float32
    direct_ptr,  # (2,) int32: whether q is without the diagonal; None: it is, and views first
    scalars_ptr,  # (1,) float32
    on_total_ptr,  # 0-d float32, or None; and so the next two
    on_diagonal_ptr,
    off_diagonal_ptr,
    grad_a_ptr,  # (N, D) contiguous
    grad_b_ptr,
    n,
    d,
    padded,
    pitch,
    a_stride,
    b_stride,
    eps,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    view = tl.program_id(2)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = (row < n) & (column < d)
    stride = tl.where(view == 0, a_stride, b_stride).to(tl.int64)
    other_stride = tl.where(view == 0, b_stride, a_stride).to(tl.int64)
    on_total = cotangent(on_total_ptr)
    on_scale = on_total + cotangent(on_diagonal_ptr)
    off_scale = on_total * tl.load(scalars_ptr) + cotangent(off_diagonal_ptr)
    own = reciprocal_at(stats_ptr, view, column, n, d, eps)
    others = reciprocal_at(stats_ptr, 1 - view, column, n, d, eps)
    x = standard_at(view_of(a_ptr, b_ptr, view), stats_ptr, view, row, column, stride, own, n, d)
    y = standard_at(
        view_of(a_ptr, b_ptr, 1 - view),
        stats_ptr,
        1 - view,
        row,
        column,
        other_stride,
        others,
        n,
        d,
    )
    c = diagonal_at(stats_ptr, column, n, d, eps)
    factor = 2 * off_scale / n
    on_other = (c - 1) * (2 * on_scale / n)
    if direct_ptr is not None:  # the Gram matrices' products have the diagonal
        on_other -= tl.where(tl.load(direct_ptr + view) != 0, 0.0, c * factor)
    VIEWS_FIRST: tl.constexpr = direct_ptr is None
    q = product_at(q_ptr, view, row, column, padded, pitch, inside, PARTS, VIEWS_FIRST)
    gradient = q * factor + y * on_other
    # Along x̂ itself the standardisation takes the gradient away; the centring takes nothing.
    along = tl.load(along_ptr + view * d + column, mask=column < d, other=0.0)
    gradient = (gradient - x * (along * factor / n + c * on_other)) * own
    out_ptr = view_of(grad_a_ptr, grad_b_ptr, view)
    at = out_ptr + row.to(tl.int64) * d + column
    tl.store(at, gradient.to(out_ptr.dtype.element_ty), mask=inside)


def barlow_terms(
    stats: torch.Tensor,
    sums: torch.Tensor,
    more: torch.Tensor | None,
    direct: torch.Tensor | None,
    weight: Any,
    n: int,
    *,
    eps: float,
    per_sum: float,
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Total, on and off diagonal, 0-d, and the weight as a tensor, (1,).

    `more` and `direct` are those of `pair_direct.direct`, None where the sums need nothing.
    """
    out = numbers(3, stats.device)
    scalars = _launch.empty(1, torch.float32, stats.device)
    _launch.launch(
        _barlow_terms,
        (1,),
        stats,
        sums,
        more,
        direct,
        *out,
        scalars,
        *places(weight),
        n,
        stats.shape[1],
        sums.numel(),
        0 if more is None else more.numel(),
        per_sum,
        eps,
        LANES=LANES,
        num_warps=8,
    )
    return out, scalars


def along(
    a: torch.Tensor,
    b: torch.Tensor,
    q: torch.Tensor,
    stats: torch.Tensor,
    eps: float,
    *,
    views_first: bool,
) -> torch.Tensor:
    """Σ_n q_nj x̂_nj of both views, (2, D) in float32; q views first if `views_first`."""
    n, d = a.shape
    out = _launch.empty((2, d), torch.float32, a.device)
    _launch.launch(
        _along,
        (triton.cdiv(d, 32), 2),
        a,
        b,
        q,
        stats,
        out,
        n,
        d,
        *q.shape[1:],
        a.stride(0),
        b.stride(0),
        eps,
        PARTS=q.shape[0] // 2,
        VIEWS_FIRST=views_first,
        ROWS=64,
        COLUMNS=32,
        num_warps=4,
    )
    return out


def barlow_gradient(
    out: tuple[torch.Tensor, ...],
    a: torch.Tensor,
    b: torch.Tensor,
    q: torch.Tensor,
    stats: torch.Tensor,
    of_along: torch.Tensor,
    direct: torch.Tensor | None,
    scalars: torch.Tensor,
    cotangents: tuple[torch.Tensor | None, ...],
    *,
    eps: float,
) -> None:
    """Write gradients (N, D) of Barlow Twins with respect to a and b to two tensors `out`.

    `direct` is that of `pair_direct.direct`, whose q comes parts first; None where q comes views
    first.
    """
    n, d = a.shape
    _launch.launch(
        _barlow_gradient,
        (triton.cdiv(d, TILE_COLUMNS), triton.cdiv(n, TILE_ROWS), 2),
        a,
        b,
        q,
        stats,
        of_along,
        direct,
        scalars,
        *cotangents,
        *out,
        n,
        d,
        *q.shape[1:],
        a.stride(0),
        b.stride(0),
        eps,
        PARTS=q.shape[0] // 2,
        ROWS=TILE_ROWS,
        COLUMNS=TILE_COLUMNS,
        num_warps=4,
    )
