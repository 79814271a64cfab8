"""Ends of VICReg and SAG-VICReg: terms from sums, and gradients from products, one launch each.

Bottleneck: `vicreg_terms` latency, one program's walk through D columns; the gradient bytes, a
product's three parts in float32, both views in, and one gradient out: 120 MB at N = D = 2048, 30 µs
of an H200. Exact: scales are powers of two, and fourth powers of them are taken in two steps, so
that 1e8 does not overflow where the result does not. Worst case: a drawn pair that all rows share:
its row's gradient is then a walk through all of them (SAG-VICReg).
Rejected: atomics into that row, whose last bits change from run to run.
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

_BLOCK = 128


@triton.jit
def _vicreg_terms(
    stats_ptr,  # (8, D) float32
    scale_ptr,  # (2,) float32
    sums_ptr,  # (2, sums) float32
    more_ptr,  # (2, more) float32, or None; and so the next
    direct_ptr,  # (2,) int32
    total_ptr,  # 0-d float32; and so the next three
    invariance_ptr,
    variance_ptr,
    covariance_ptr,
    scalars_ptr,  # (3,) float32: the weights, for the backward pass
    w_invariance_ptr,  # a number's place, or None and the number below; and so the next two
    w_variance_ptr,
    w_covariance_ptr,
    w_invariance,
    w_variance,
    w_covariance,
    n,
    d,
    sums,
    more,
    gamma,
    eps,
    per_invariance,
    per_variance,
    LANES: tl.constexpr,
):
    paired = sum_of(stats_ptr + 7 * d, d, LANES)
    invariance = paired / d / n * per_invariance
    variance = 0.0
    covariance = 0.0
    for view in tl.static_range(2):
        hinges = tl.zeros([LANES], tl.float32)
        for start in range(0, d, LANES):
            at = start + tl.arange(0, LANES)
            of_column = tl.load(stats_ptr + (3 * view + 2) * d + at, mask=at < d, other=0.0)
            deviation = tl.sqrt_rn(of_column / (n - 1) + eps)
            hinge = tl.where(deviation >= gamma, 0.0, gamma - deviation)
            hinges += tl.where(at < d, hinge, 0.0)
        variance += tl.sum(hinges) / d
        squares = sum_of(sums_ptr + view * sums, sums, LANES)
        if more_ptr is not None:
            squares = tl.where(tl.load(direct_ptr + view) != 0, 0.0, squares)
            squares += sum_of(more_ptr + view * more, more, LANES)
        scale = tl.load(scale_ptr + view)
        square = scale * scale
        covariance += squares / d / (n - 1) / (n - 1) * square * square
    variance = variance * per_variance
    w_invariance = number_of(w_invariance_ptr, w_invariance)
    w_variance = number_of(w_variance_ptr, w_variance)
    w_covariance = number_of(w_covariance_ptr, w_covariance)
    total = w_invariance * invariance + w_variance * variance + w_covariance * covariance
    tl.store(total_ptr, total)
    tl.store(invariance_ptr, invariance)
    tl.store(variance_ptr, variance)
    tl.store(covariance_ptr, covariance)
    tl.store(scalars_ptr, w_invariance)
    tl.store(scalars_ptr + 1, w_variance)
    tl.store(scalars_ptr + 2, w_covariance)


@triton.jit
def _vicreg_gradient(
    a_ptr,  # (N, D), strides (row_stride, 1)
    b_ptr,
    q_ptr,  # (PARTS · 2, padded, pitch) float32
    stats_ptr,  # (8, D) float32
    scale_ptr,  # (2,) float32
    direct_ptr,  # (2,) int32: whether q is without the diagonal; None: it is
    scalars_ptr,  # (3,) float32
    pairs_ptr,  # (N,) integers, or None; and so the next three
    pair_weight_ptr,  # (N,) floating
    order_ptr,  # (N,) int32: rows of a by their pairs
    starts_ptr,  # (N + 1,) int32: where each pair's rows start in that order
    on_total_ptr,  # 0-d float32, or None; and so the next three
    on_invariance_ptr,
    on_variance_ptr,
    on_covariance_ptr,
    grad_a_ptr,  # (N, D) contiguous
    grad_b_ptr,
    n,
    d,
    padded,
    pitch,
    a_stride,
    b_stride,
    gamma,
    eps,
    per_invariance,
    per_variance,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    view = tl.program_id(2)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = (row < n) & (column < d)
    wide = row.to(tl.int64)
    stride = tl.where(view == 0, a_stride, b_stride).to(tl.int64)
    other_stride = tl.where(view == 0, b_stride, a_stride).to(tl.int64)
    z_ptr = view_of(a_ptr, b_ptr, view)
    other_ptr = view_of(a_ptr, b_ptr, 1 - view)
    on_total = cotangent(on_total_ptr)
    on_invariance = on_total * tl.load(scalars_ptr) + cotangent(on_invariance_ptr)
    on_variance = on_total * tl.load(scalars_ptr + 1) + cotangent(on_variance_ptr)
    on_covariance = on_total * tl.load(scalars_ptr + 2) + cotangent(on_covariance_ptr)

    z = tl.load(z_ptr + wide * stride + column, mask=inside, other=0.0).to(tl.float32)
    here = stats_ptr + 3 * view * d
    mean = tl.load(here + column, mask=column < d, other=0.0)
    rest = tl.load(here + d + column, mask=column < d, other=0.0)
    squares = tl.load(here + 2 * d + column, mask=column < d, other=0.0)
    scale = tl.load(scale_ptr + view)
    inverse = 1.0 / scale  # a power of two
    centred = tl.where(inside, z - mean - rest, 0.0)

    # Covariance: 4 C u, with C from the product.
    of_covariance = product_at(q_ptr, view, row, column, padded, pitch, inside, PARTS, False)
    if direct_ptr is not None:
        diagonal = centred * inverse * (squares / (scale * scale))
        of_covariance -= tl.where(tl.load(direct_ptr + view) != 0, 0.0, diagonal)
    factor = 4 * on_covariance / d / (n - 1) / (n - 1)
    gradient = of_covariance * (factor * (scale * scale) * scale)

    deviation = tl.sqrt_rn(squares / (n - 1) + eps)
    safe = tl.where(deviation == 0, 1.0, deviation)
    slope = tl.where((deviation < gamma) & (deviation > 0), -1.0 / safe, 0.0)
    gradient += centred * (slope * (on_variance * per_variance / d / (n - 1)))

    of_pair = 2 * on_invariance * per_invariance / n / d
    if pairs_ptr is None:
        y = tl.load(other_ptr + wide * other_stride + column, mask=inside, other=0.0)
        gradient += (z - y.to(tl.float32)) * of_pair
    elif view == 0:
        pair = tl.load(pairs_ptr + row, mask=row < n, other=0).to(tl.int64)
        weight = tl.load(pair_weight_ptr + row, mask=row < n, other=0.0).to(tl.float32)
        y = tl.load(other_ptr + pair * other_stride + column, mask=inside, other=0.0)
        gradient += (z - y.to(tl.float32)) * (weight * of_pair)
    else:
        first = tl.load(starts_ptr + row, mask=row < n, other=0)
        count = tl.load(starts_ptr + row + 1, mask=row < n, other=0) - first
        for i in range(tl.max(count)):
            here_too = i < count
            from_row = tl.load(order_ptr + first + i, mask=here_too, other=0).to(tl.int64)
            weight = tl.load(pair_weight_ptr + from_row, mask=here_too, other=0.0)
            x = tl.load(
                other_ptr + from_row * other_stride + column, mask=here_too & inside, other=0.0
            )
            off = tl.where(here_too, z - x.to(tl.float32), 0.0)
            gradient += off * (weight.to(tl.float32) * of_pair)
    out_ptr = view_of(grad_a_ptr, grad_b_ptr, view)
    tl.store(out_ptr + wide * d + column, gradient.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _inverse_pairs(
    pairs_ptr,  # (N,) integers
    order_ptr,  # (N,) int32
    starts_ptr,  # (N + 1,) int32
    n,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    own = tl.load(pairs_ptr + row, mask=row < n, other=0).to(tl.int32)
    before = tl.zeros([ROWS, 1], tl.int32)
    below = tl.zeros([ROWS, 1], tl.int32)
    for start in range(0, n, BLOCK):
        other_row = start + tl.arange(0, BLOCK)[None, :]
        inside = other_row < n
        pair = tl.load(pairs_ptr + other_row, mask=inside, other=0).to(tl.int32)
        earlier = inside & ((pair < own) | ((pair == own) & (other_row < row)))
        before += tl.sum(earlier.to(tl.int32), axis=1)[:, None]
        below += tl.sum((inside & (pair < row)).to(tl.int32), axis=1)[:, None]
    tl.store(order_ptr + before, row, mask=row < n)
    tl.store(starts_ptr + row, below, mask=row <= n)


def vicreg_terms(
    stats: torch.Tensor,
    scale: torch.Tensor,
    sums: torch.Tensor,
    more: torch.Tensor | None,
    direct: torch.Tensor | None,
    weights: tuple[Any, Any, Any],
    n: int,
    *,
    gamma: float,
    eps: float,
    per_invariance: float,
    per_variance: float,
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Total, invariance, variance and covariance, 0-d, and the weights as a tensor, (3,)."""
    out = numbers(4, stats.device)
    scalars = _launch.empty(3, torch.float32, stats.device)
    _launch.launch(
        _vicreg_terms,
        (1,),
        stats,
        scale,
        sums,
        more,
        direct,
        *out,
        scalars,
        *places(*weights),
        n,
        stats.shape[1],
        sums.shape[1],
        0 if more is None else more.shape[1],
        gamma,
        eps,
        per_invariance,
        per_variance,
        LANES=LANES,
        num_warps=8,
    )
    return out, scalars


def inverse_pairs(pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows by their pairs, (N,) int32, and where each pair's rows start, (N + 1,) int32."""
    n = pairs.shape[0]
    order = _launch.empty(n, torch.int32, pairs.device)
    starts = _launch.empty(n + 1, torch.int32, pairs.device)
    _launch.launch(
        _inverse_pairs,
        (triton.cdiv(n + 1, 16),),
        pairs,
        order,
        starts,
        n,
        ROWS=16,
        BLOCK=_BLOCK,
        num_warps=4,
    )
    return order, starts


def vicreg_gradient(
    out: tuple[torch.Tensor, ...],
    a: torch.Tensor,
    b: torch.Tensor,
    q: torch.Tensor,
    stats: torch.Tensor,
    scale: torch.Tensor,
    direct: torch.Tensor | None,
    scalars: torch.Tensor,
    pairing: tuple[torch.Tensor | None, ...],
    cotangents: tuple[torch.Tensor | None, ...],
    *,
    gamma: float,
    eps: float,
    per_invariance: float,
    per_variance: float,
) -> None:
    """Write gradients (N, D) of VICReg with respect to a and b to two tensors `out`.

    `q` (parts · 2, padded N, pitch) is the second product; `pairing` pairs, their weights, and
    `inverse_pairs` of them, or four times None.
    """
    n, d = a.shape
    _launch.launch(
        _vicreg_gradient,
        (triton.cdiv(d, TILE_COLUMNS), triton.cdiv(n, TILE_ROWS), 2),
        a,
        b,
        q,
        stats,
        scale,
        direct,
        scalars,
        *pairing,
        *cotangents,
        *out,
        n,
        d,
        *q.shape[1:],
        a.stride(0),
        b.stride(0),
        gamma,
        eps,
        per_invariance,
        per_variance,
        PARTS=q.shape[0] // 2,
        ROWS=TILE_ROWS,
        COLUMNS=TILE_COLUMNS,
        num_warps=4,
    )
