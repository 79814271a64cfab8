"""The D × D product of columns without its diagonal, where Gram matrices of rows cancel (N < D).

Σ_{i≠j} C_ij² = ⟨G, G'⟩ − Σ_i C_ii² is exact to the rounding of ‖G‖ ‖G'‖, whatever is left of it.
Where that is more than `MOST` times the result, as with a few heavy columns that do not correlate,
or with views of unlike rows, C itself is made, a tile at a time, and the diagonal left out, which
cannot cancel. Every program decides that by the same sums, in the same order: the host is not
asked.

Bottleneck: where the Gram matrices do, which is nearly always, latency: each program reads
D + N² / 4096 numbers from cache, 3 µs at N256 D8192. Else operations: 4 N D² a view, each product
three of TF32, D / N times what the Gram matrices take (about 2.3 ms there, at 60 TFLOP/s), and
2 D / 64 times the second product through the cache. Exact: to 2⁻²¹ of the columns' lengths, as
float32. Worst case: N a little below D, where each column is read D / 64 times. Rejected: taking
out a fixed number of the heaviest columns, since one more cancels; a product by the vendor's
library, which cannot be left out without asking the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from visreg_torch.kernels import _launch
from visreg_torch.kernels.barlow_ends import diagonal_at
from visreg_torch.kernels.ends import sum_of
from visreg_torch.kernels.pair_columns import rows_at, view_of
from visreg_torch.kernels.pair_products import LANES

MOST = tl.constexpr(4.0)
_ROWS, _BLOCK = 16, 64  # more rows at a time do not fit the registers, nor do stages


@triton.jit
def own_product_at(stats_ptr, scale_ptr, view, at, n, d, eps):
    """Σ_n of columns with themselves, or of standardised ones with the other view's."""
    if scale_ptr is None:
        return diagonal_at(stats_ptr, at, n, d, eps) * n
    else:
        scale = tl.load(scale_ptr + view)
        squares = tl.load(stats_ptr + (3 * view + 2) * d + at, mask=at < d, other=0.0)
        return squares / (scale * scale)


@triton.jit
def _direct(
    a_ptr,  # (N, D), strides (row_stride, 1)
    b_ptr,
    stats_ptr,  # (8, D) float32
    scale_ptr,  # (2,) float32, or None: standardised, and products of the two views
    sums_ptr,  # (2 or 4, tiles) float32, of `symmetric`
    q_ptr,  # (PARTS · 2, padded, pitch) float32, or None
    more_ptr,  # (2, blocks) float32: the sum, or what the diagonal adds to that of `symmetric`
    direct_ptr,  # (2,) int32: whether it is the sum
    n,
    d,
    tiles,
    padded,
    pitch,
    a_stride,
    b_stride,
    eps,
    divisor,
    PARTS: tl.constexpr,
    ROUNDED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    view = tl.program_id(1)
    other = view
    total = sum_of(sums_ptr + view * tiles, tiles, LANES)
    size = total
    if scale_ptr is None:  # both views decide alike, by the same numbers
        total = sum_of(sums_ptr, tiles, LANES)
        size = tl.sqrt_rn(sum_of(sums_ptr + 2 * tiles, tiles, LANES))
        size *= tl.sqrt_rn(sum_of(sums_ptr + 3 * tiles, tiles, LANES))
        other = 1 - view
    squares = tl.zeros([LANES], tl.float32)
    for start in range(0, d, LANES):
        own = own_product_at(stats_ptr, scale_ptr, view, start + tl.arange(0, LANES), n, d, eps)
        squares += own * own
    direct = size > MOST * (total - tl.sum(squares))  # False of NaN, which is then in the sum
    if tl.program_id(0) == 0:
        tl.store(direct_ptr + view, direct.to(tl.int32))

    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    more_ptr += view * tl.num_programs(0) + tl.program_id(0)
    z_ptr, y_ptr = view_of(a_ptr, b_ptr, view), view_of(a_ptr, b_ptr, other)
    stride = tl.where(view == 0, a_stride, b_stride).to(tl.int64)
    y_stride = tl.where(other == 0, a_stride, b_stride).to(tl.int64)
    if direct:
        found = tl.zeros([1, BLOCK], tl.float32)
        for start in range(0, d, BLOCK):
            from_column = start + tl.arange(0, BLOCK)
            c = tl.zeros([BLOCK, BLOCK], tl.float32)
            for first in range(0, n, ROWS):
                row = first + tl.arange(0, ROWS)
                y = rows_at(
                    *(y_ptr, stats_ptr, scale_ptr, other),
                    *(row[None, :], from_column[:, None], y_stride, n, d, eps),
                )
                z = rows_at(
                    *(z_ptr, stats_ptr, scale_ptr, view, row[:, None], column, stride, n, d, eps),
                )
                c = tl.dot(y, z, c, input_precision="tf32x3")
            c = tl.where(from_column[:, None] == column, 0.0, c)
            found += tl.sum(c * c, axis=0)[None, :]
            if q_ptr is not None:
                c = c / divisor
                for first in range(0, n, ROWS):
                    row = first + tl.arange(0, ROWS)[:, None]
                    stored = (row < n) & (column < d)
                    at = q_ptr + (view.to(tl.int64) * padded + row) * pitch + column
                    q = tl.load(at, mask=stored & (start > 0), other=0.0)
                    y = rows_at(
                        *(y_ptr, stats_ptr, scale_ptr, other),
                        *(row, from_column[None, :], y_stride, n, d, eps),
                    )
                    tl.store(at, tl.dot(y, c, q, input_precision="tf32x3"), mask=stored)
                    for part in tl.static_range(1, PARTS):
                        beyond = (row.to(tl.int64) * 0 + 2 * part) * padded * pitch
                        tl.store(at + beyond, 0.0, mask=stored & (start == 0))
                tl.debug_barrier()  # q's numbers may be of other threads in the next turn
        tl.store(more_ptr, tl.sum(found))
    else:
        own = own_product_at(stats_ptr, scale_ptr, view, column, n, d, eps)
        if ROUNDED:  # as the Gram matrices have it
            own = tl.zeros([1, BLOCK], tl.float32)
            for first in range(0, n, ROWS):
                row = first + tl.arange(0, ROWS)[:, None]
                z = rows_at(z_ptr, stats_ptr, scale_ptr, view, row, column, stride, n, d, eps)
                y = rows_at(y_ptr, stats_ptr, scale_ptr, other, row, column, y_stride, n, d, eps)
                z, y = z.to(tl.bfloat16).to(tl.float32), y.to(tl.bfloat16).to(tl.float32)
                own += tl.sum(z * y, axis=0)[None, :]
        tl.store(more_ptr, -tl.sum(own * own))


def direct(
    a: torch.Tensor,
    b: torch.Tensor,
    stats: torch.Tensor,
    scale: torch.Tensor | None,
    sums: torch.Tensor,
    q: torch.Tensor | None,
    *,
    eps: float = 0.0,
    divisor: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of squares off the diagonal and second products, where those by Gram matrices cancel.

    a, b : (N, D)
    stats : (8, D)
    scale : (2,); of each view's own product; without it that of both views, standardised with eps
    sums : (2 or 4, tiles), as of `pair_products.symmetric`
    q : (parts · 2, padded N, pitch), the second products, written over where they cancel; or None
    divisor : what the first product is divided by in the second
    Returns `more` (2, blocks), to be added to the sums, or to take their place where `direct` is;
    and `direct` (2,) int32. Where that is 0 the second product has the diagonal, else it has not.
    """
    n, d = a.shape
    blocks = triton.cdiv(d, _BLOCK)
    more = _launch.empty((2, blocks), torch.float32, a.device)
    found = _launch.empty(2, torch.int32, a.device)
    _launch.launch(
        _direct,
        (blocks, 2),
        a,
        b,
        stats,
        scale,
        sums,
        q,
        more,
        found,
        n,
        d,
        sums.shape[1],
        *((0, 0) if q is None else q.shape[1:]),
        a.stride(0),
        b.stride(0),
        eps,
        divisor,
        PARTS=1 if q is None else q.shape[0] // 2,
        ROUNDED=a.dtype != torch.float32,
        ROWS=_ROWS,
        BLOCK=_BLOCK,
        LANES=LANES,
        num_warps=8,
        num_stages=1,
    )
    return more, found
