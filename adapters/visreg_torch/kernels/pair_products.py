"""Between the two products of a pair's loss: squares of the first, and operands of the second.

The first product comes as a batch of its 16-bit parts, which are added up here, a tile and its
mirror at a time, so that the symmetric half hi·lo is computed once. The sum of its squares is the
loss's term, and its parts are the second product's operand.

Bottleneck: bytes; at D = 2048 two batches of 16.8 MB a view in, 6 bytes an element out: 25 µs.
Exact: sums of tiles are written apart and added in one order. Worst case: N < D where taking the
diagonal off the sum cancels, which `pair_direct` finds out and mends. Rejected: an epilogue in the
product, which the vendor's libraries have for sums of a row at most.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from visreg_torch.kernels import _launch
from visreg_torch.kernels.operands import halves

_TILE = 64

# Of the kernels that end a loss: columns that one program adds up, and a tile of a gradient.
LANES = 1024
TILE_ROWS, TILE_COLUMNS = 16, 128


@triton.jit
def product_at(
    q_ptr,
    view,
    row,
    column,
    padded,
    pitch,
    inside,
    PARTS: tl.constexpr,
    VIEWS_FIRST: tl.constexpr,
):
    """Σ of the parts of a product's batch: (PARTS, 2, padded, pitch), or views first."""
    at = q_ptr + row.to(tl.int64) * pitch + column
    found = tl.zeros([1, 1], tl.float32)
    for part in tl.static_range(PARTS):
        if VIEWS_FIRST:
            block = view * PARTS + part
        else:
            block = 2 * part + view
        # In 64 bits.
        found += tl.load(at + (row.to(tl.int64) * 0 + block) * padded * pitch, inside, other=0.0)
    return found


@triton.jit
def tile_at(p_ptr, batch, row, column, size):
    """A tile of one of the batch's square matrices."""
    inside = (row < size) & (column < size)
    return tl.load(p_ptr + (batch * size + row) * size + column, mask=inside, other=0.0)


@triton.jit
def store_square(out_ptr, batches, view, row, column, size, x, LAYOUT: tl.constexpr):
    """Write x as (hi, hi, lo), or (hi, hi, lo, hi), or (hi) of batches of matrices."""
    stored = (row < size) & (column < size)
    wide = row.to(tl.int64)
    at = out_ptr + (view * size + wide) * size + column
    block = (batches + wide * 0) * size * size
    hi, lo = halves(x, tl.bfloat16)
    tl.store(at, hi, mask=stored)
    if LAYOUT > 1:
        tl.store(at + block, hi, mask=stored)
        tl.store(at + 2 * block, lo, mask=stored)
    if LAYOUT > 3:
        tl.store(at + 3 * block, hi, mask=stored)


@triton.jit
def _symmetric(
    p_ptr,  # (PARTS · 2, size, size) float32: hi·hi of both views, then hi·lo
    out_ptr,  # (3 or 1, 2, size, size) bfloat16, or None
    sums_ptr,  # (2, tiles) float32; SWAPPED: (4, tiles), the last two the views' own
    size,
    divisor,
    PARTS: tl.constexpr,
    DIAGONAL: tl.constexpr,
    SWAPPED: tl.constexpr,
    TILE: tl.constexpr,
):
    view = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1) * TILE + tl.arange(0, TILE)[:, None]
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)[None, :]
    mirror_row = tl.program_id(0) * TILE + tl.arange(0, TILE)[:, None]
    mirror_column = tl.program_id(1) * TILE + tl.arange(0, TILE)[None, :]
    c = tile_at(p_ptr, view, row, column, size)
    if PARTS > 1:
        c += tile_at(p_ptr, 2 + view, row, column, size)
        c += tl.trans(tile_at(p_ptr, 2 + view, mirror_row, mirror_column, size))
    if not DIAGONAL:
        c = tl.where(row == column, 0.0, c)
    tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tiles = tl.num_programs(0) * tl.num_programs(1)
    if SWAPPED:  # Σ of both views' products, and each the other's operand
        other = tile_at(p_ptr, 1 - view, row, column, size)
        if PARTS > 1:
            other += tile_at(p_ptr, 3 - view, row, column, size)
            other += tl.trans(tile_at(p_ptr, 3 - view, mirror_row, mirror_column, size))
        tl.store(sums_ptr + view * tiles + tile, tl.sum(c * other))
        tl.store(sums_ptr + (2 + view) * tiles + tile, tl.sum(c * c))
        view = 1 - view
    else:
        tl.store(sums_ptr + view * tiles + tile, tl.sum(c * c))
    if out_ptr is not None:
        LAYOUT: tl.constexpr = 3 if PARTS > 1 else 1
        store_square(out_ptr, 2, view, row, column, size, c / divisor, LAYOUT)


@triton.jit
def _correlation(
    p_ptr,  # (PARTS, size, size) float32
    out_ptr,  # (4 or 1, size, size) bfloat16, or None
    sums_ptr,  # (tiles,) float32
    size,
    divisor,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(1) * TILE + tl.arange(0, TILE)[:, None]
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)[None, :]
    first = row.to(tl.int64) * 0
    c = tile_at(p_ptr, first, row, column, size)
    if PARTS > 1:
        c += tile_at(p_ptr, first + 1, row, column, size)
        c += tile_at(p_ptr, first + 2, row, column, size)
    c = tl.where(row == column, 0.0, c / divisor)
    tl.store(sums_ptr + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), tl.sum(c * c))
    if out_ptr is not None:
        LAYOUT: tl.constexpr = 4 if PARTS > 1 else 1
        store_square(out_ptr, 1, first, row, column, size, c, LAYOUT)


def symmetric(
    p: torch.Tensor,
    *,
    split: bool,
    diagonal: bool,
    swapped: bool = False,
    divisor: float = 1.0,
    need_grad: bool,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Sums of squares of both views' symmetric products, and parts of these.

    p : (4 or 2, M, M); hi·hi of both views and, split, hi·lo of both
    split, diagonal : whether there is a low part; whether the diagonal counts
    swapped : sums of products of the two views, then squares; each view's parts become the other's
    divisor : what the parts are divided by
    need_grad : whether to make the parts
    Returns parts (3 or 1, 2, M, M) in bfloat16, (hi, hi, lo) or (hi), or None; and sums (2, tiles),
    swapped (4, tiles).
    """
    size = p.shape[1]
    tiles = triton.cdiv(size, _TILE)
    out = None
    if need_grad:
        shape = (3 if split else 1, 2, size, size)
        out = _launch.empty(shape, torch.bfloat16, p.device)
    sums = _launch.empty((4 if swapped else 2, tiles * tiles), torch.float32, p.device)
    _launch.launch(
        _symmetric,
        (tiles, tiles, 2),
        p,
        out,
        sums,
        size,
        float(divisor),
        PARTS=2 if split else 1,
        DIAGONAL=diagonal,
        SWAPPED=swapped,
        TILE=_TILE,
        num_warps=4,
    )
    return out, sums


def correlation(
    p: torch.Tensor, *, split: bool, divisor: float, need_grad: bool
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Σ of squares off the diagonal of a product (3 or 1, M, M) / divisor, and its parts.

    Returns parts (4 or 1, M, M) in bfloat16 without the diagonal, (hi, hi, lo, hi) or (hi), or
    None; and sums (tiles,).
    """
    size = p.shape[1]
    tiles = triton.cdiv(size, _TILE)
    out = None
    if need_grad:
        shape = (4 if split else 1, size, size)
        out = _launch.empty(shape, torch.bfloat16, p.device)
    sums = _launch.empty(tiles * tiles, torch.float32, p.device)
    _launch.launch(
        _correlation,
        (tiles, tiles),
        p,
        out,
        sums,
        size,
        float(divisor),
        PARTS=3 if split else 1,
        TILE=_TILE,
        num_warps=4,
    )
    return out, sums
