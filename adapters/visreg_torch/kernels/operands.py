"""Operands of the sliced losses' products: 16-bit parts side by side, for a single product.

A float32 number is hi + lo, two float16 numbers with 22 bits together. Parts lie side by side
along the product's inner axis, so that hi·hi + hi·lo + lo·hi is *one* product with float32 sums:
rows hold (hi, hi, lo), slices (hi, lo, hi). 16-bit embeddings are exact in one part, (hi, hi).
Everything is scaled by powers of two into float16's range.

Bottleneck: bytes; each kernel reads its input once (`_split_rows` twice, the second time from
cache) and writes 2 bytes a part. The price: 6 bytes an element written for 2 or 4 read, a few
microseconds at the sizes of a training step, for products on tensor cores. Exact because splitting
is (x − float(half(x)) is a float32 number). Worst case: entries below 2⁻²⁴ of their row's largest
vanish; they are below what the row's float32 sum resolves. Considered and rejected: bfloat16 parts
(16 bits instead of 22: ranks of close samples change), standardising inside the product's loop (a
third of the tensor cores' rate).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from visreg_torch.kernels import _launch

# Slices have length 1: 2⁸ keeps their low parts above float16's smallest numbers.
SLICE_SCALE = 256.0
_SLICES, _DIMS = 32, 64
_ROW_BLOCK = 1024


@triton.jit
def _slice_operands(
    w_ptr,  # (G, D, K), strides (group_stride, row_stride, column_stride)
    forward_ptr,  # (G, K, PARTS · pitch) float16 or bfloat16, or None
    back_ptr,  # (G, BACK · K, pitch) bfloat16, or None
    d,
    k,
    pitch,
    group_stride,
    row_stride,
    column_stride,
    scale,
    PARTS: tl.constexpr,
    BACK: tl.constexpr,
    SLICES: tl.constexpr,
    DIMS: tl.constexpr,
):
    group = tl.program_id(2).to(tl.int64)
    column = tl.program_id(0) * SLICES + tl.arange(0, SLICES)[None, :]
    row = tl.program_id(1) * DIMS + tl.arange(0, DIMS)[:, None]
    at = w_ptr + group * group_stride
    at += row.to(tl.int64) * row_stride + column.to(tl.int64) * column_stride
    # Rows from D to the pitch are written, as zeros.
    w = tl.load(at, mask=(row < d) & (column < k), other=0.0).to(tl.float32)
    w = tl.trans(w)
    column = tl.program_id(0).to(tl.int64) * SLICES + tl.arange(0, SLICES)[:, None]
    row = tl.program_id(1) * DIMS + tl.arange(0, DIMS)[None, :]
    stored = (row < pitch) & (column < k)
    if forward_ptr is not None:
        hi, lo = halves(w * scale, forward_ptr.dtype.element_ty)
        at = forward_ptr + (group * k + column) * (PARTS * pitch) + row
        tl.store(at, hi, mask=stored)
        if PARTS > 1:
            tl.store(at + pitch, lo, mask=stored)
        if PARTS > 2:
            tl.store(at + 2 * pitch, hi, mask=stored)
    if back_ptr is not None:
        hi, lo = halves(w, tl.bfloat16)
        at = back_ptr + (group * BACK * k + column) * pitch + row
        part = (column * 0 + k) * pitch
        tl.store(at, hi, mask=stored)
        if BACK > 1:
            tl.store(at + part, hi, mask=stored)
            tl.store(at + 2 * part, lo, mask=stored)


@triton.jit
def halves(x, dtype: tl.constexpr):
    """x in two 16-bit numbers, the second what rounding left of the first."""
    hi = x.to(dtype)
    return hi, (x - hi.to(tl.float32)).to(dtype)


@triton.jit
def store_parts(at, part, x, mask, PARTS: tl.constexpr):
    """Write x as (hi), (hi, hi) or (hi, hi, lo), `part` numbers apart."""
    hi, lo = halves(x, tl.float16)
    tl.store(at, hi, mask=mask)
    if PARTS > 1:
        tl.store(at + part, hi, mask=mask)
    if PARTS > 2:
        tl.store(at + 2 * part, lo, mask=mask)


@triton.jit
def _split_rows(
    z_ptr,  # (B, N, D), strides (batch_stride, row_stride, column_stride)
    keep_ptr,  # (N,) bytes, or None
    out_ptr,  # (groups · padded, PARTS · pitch) float16
    scale_ptr,  # (groups · padded,) float32: what a projection is to be multiplied by
    rows,
    n,
    d,
    pitch,
    together,
    padded,
    batch_stride,
    row_stride,
    column_stride,
    factor,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    live = row < rows
    sample = row % n
    inside_row = live
    if keep_ptr is not None:
        inside_row = live & (tl.load(keep_ptr + sample, mask=live, other=0) != 0)
    batch = row // n
    at = z_ptr + batch * batch_stride + sample * row_stride
    # Views of one group lie behind each other.
    to = (batch // together) * padded + (batch % together) * n + sample
    out = out_ptr + to * (PARTS * pitch)
    if WHOLE:
        column = tl.arange(0, BLOCK)[None, :]
        inside = inside_row & (column < d)
        z = tl.load(at + column.to(tl.int64) * column_stride, mask=inside, other=0.0)
        z = z.to(tl.float32)
        up, down = scales_of(tl.max(tl.abs(z), axis=1)[:, None])
        store_parts(out + column, pitch, z * up, live & (column < pitch), PARTS)
    else:
        largest = tl.zeros([ROWS, 1], tl.float32)
        for start in range(0, d, BLOCK):
            column = start + tl.arange(0, BLOCK)[None, :]
            inside = inside_row & (column < d)
            z = tl.load(at + column.to(tl.int64) * column_stride, mask=inside, other=0.0)
            largest = tl.maximum(largest, tl.max(tl.abs(z.to(tl.float32)), axis=1)[:, None])
        up, down = scales_of(largest)
        for start in range(0, pitch, BLOCK):
            column = start + tl.arange(0, BLOCK)[None, :]
            inside = inside_row & (column < d)
            z = tl.load(at + column.to(tl.int64) * column_stride, mask=inside, other=0.0)
            z = z.to(tl.float32) * up
            store_parts(out + column, pitch, z, live & (column < pitch), PARTS)
    tl.store(scale_ptr + to, down * factor, mask=live)


@triton.jit
def scales_of(largest):
    """2¹⁰ / 2ᵉ and 2ᵉ for the exponent e of the largest number; 1 for 0, Inf and the like."""
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 0xFF
    exponent = tl.where((exponent < 16) | (exponent > 253), 127, exponent)
    up = ((264 - exponent) << 23).to(tl.float32, bitcast=True)
    return up, (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["start_view"])
def _folded_slices(
    w_ptr,  # (D, K) of the group's, strides (group_stride, row_stride, column_stride)
    moments_ptr,  # (3, B, D) float32: first, rest, σ
    out_ptr,  # (PARTS, G, K, D) bfloat16
    offset_ptr,  # (G, K) float32: the mean's projection
    d,
    k,
    eps,
    start_view,
    moment_stride,
    part_stride,
    group_stride,
    row_stride,
    column_stride,
    PARTS: tl.constexpr,
    SLICES: tl.constexpr,
    DIMS: tl.constexpr,
):
    group = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * SLICES + tl.arange(0, SLICES)[None, :]
    slices = tl.program_id(0).to(tl.int64) * SLICES + tl.arange(0, SLICES)[:, None]
    w_at = w_ptr + group * group_stride + column.to(tl.int64) * column_stride
    offset = tl.zeros([SLICES, 1], tl.float32)
    lost = tl.zeros([SLICES, 1], tl.float32)
    for start in range(0, d, DIMS):
        row = start + tl.arange(0, DIMS)[:, None]
        inside = (row < d) & (column < k)
        w = tl.load(w_at + row.to(tl.int64) * row_stride, mask=inside, other=0.0).to(tl.float32)
        w = tl.trans(w)
        row = start + tl.arange(0, DIMS)[None, :]
        here = moments_ptr + (start_view + group) * d + row
        mean = tl.load(here, mask=row < d, other=0.0)
        mean += tl.load(here + moment_stride, mask=row < d, other=0.0)
        sigma = tl.load(here + 2 * moment_stride, mask=row < d, other=0.0)
        # A constant column centres to exactly 0: it takes no part, whatever ε.
        w = tl.where(sigma == 0, 0.0, w / (sigma + eps))
        stored = (row < d) & (slices < k)
        hi, lo = halves(w, out_ptr.dtype.element_ty)
        at = out_ptr + (group * k + slices) * d + row
        tl.store(at, hi, mask=stored)
        used = hi.to(tl.float32)
        if PARTS > 1:
            tl.store(at + part_stride, lo, mask=stored)
            used += lo.to(tl.float32)
        # A sum of what the product sees, block by block, with what each addition rounds off.
        term = tl.sum(mean * used, axis=1)[:, None]
        total = offset + term
        back = total - offset
        lost += (offset - (total - back)) + (term - back)
        offset = total
    tl.store(offset_ptr + group * k + slices, offset + lost, mask=slices < k)


def slice_operands(
    w: torch.Tensor,
    pitch: int,
    *,
    parts: int,
    back: int,
    dtype: torch.dtype = torch.float16,
    scale: float = SLICE_SCALE,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Slices as operands of the projection and of the backprojection.

    w : (G, D, K); slices, any strides, entries below 255
    pitch : D or more, a multiple of 8; the columns beyond D are zeros
    parts : 1, 2 or 3: (hi), (hi, lo) or (hi, lo, hi) of `dtype`; 0: none
    back : 1 or 3: (hi) or (hi, hi, lo) in bfloat16; 0: none
    dtype : float16 or bfloat16, of the projection's operand
    scale : factor of that operand
    Returns tensors (G, K, parts · pitch) and (G, back · K, pitch), or None.
    """
    groups, d, k = w.shape
    forward = backward = None
    if parts:
        forward = _launch.empty((groups, k, parts * pitch), dtype, w.device)
    if back:
        backward = _launch.empty((groups, back * k, pitch), torch.bfloat16, w.device)
    _launch.launch(
        _slice_operands,
        (triton.cdiv(k, _SLICES), triton.cdiv(pitch, _DIMS), groups),
        w,
        forward,
        backward,
        d,
        k,
        pitch,
        *w.stride(),
        scale,
        PARTS=parts,
        BACK=back,
        SLICES=_SLICES,
        DIMS=_DIMS,
        num_warps=4,
    )
    return forward, backward


def split_rows(
    z: torch.Tensor,
    keep: torch.Tensor | None,
    pitch: int,
    *,
    parts: int,
    together: int,
    padded: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as operand of the projection, each scaled by a power of two of its own.

    z : (B, N, D); float32, bfloat16 or float16, any strides
    keep : byte (N,); rows that are not kept become zeros
    pitch : as in `slice_operands`
    parts : 1, 2 or 3: (hi), (hi, hi) or (hi, hi, lo)
    together : views that share slices, stored one after another
    padded : rows of such a group, together · N or more; those beyond are not written
    Returns the operand (B / together, padded, parts · pitch), float16, and what projections on
    operands of `slice_operands` are to be multiplied by, (B / together, padded) float32.
    """
    batch, n, d = z.shape
    shape = batch // together, padded
    out = _launch.empty((*shape, parts * pitch), torch.float16, z.device)
    scale = _launch.empty(shape, torch.float32, z.device)
    block = min(_ROW_BLOCK, triton.next_power_of_2(pitch))
    rows = max(1, 2048 // block)
    _launch.launch(
        _split_rows,
        (triton.cdiv(batch * n, rows),),
        z,
        keep,
        out,
        scale,
        batch * n,
        n,
        d,
        pitch,
        together,
        padded,
        *z.stride(),
        2.0**-10 / SLICE_SCALE,
        PARTS=parts,
        ROWS=rows,
        BLOCK=block,
        WHOLE=pitch <= block,
        num_warps=4,
    )
    return out, scale


def folded_slices(
    w: torch.Tensor, moments: torch.Tensor, eps: float, first: int, groups: int, *, parts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slices divided by σ + ε for each view, in 16-bit parts, and the mean's projections on them.

    w : (1 or groups, D, K); slices, any strides
    moments : (3, B, D); first and rest of the mean, and σ, in float32
    eps : added to σ; columns with σ = 0 get weight 0
    first, groups : the views to make them for
    parts : 1 (hi) or 2 (hi, then lo)
    Returns tensors (parts, groups, K, D) of bfloat16, whose range is float32's, and (groups, K) of
    float32.
    """
    d, k = w.shape[-2:]
    w = w.expand(groups, -1, -1)
    out = _launch.empty((parts, groups, k, d), torch.bfloat16, w.device)
    offset = _launch.empty((groups, k), torch.float32, w.device)
    _launch.launch(
        _folded_slices,
        (triton.cdiv(k, _SLICES), groups),
        w,
        moments,
        out,
        offset,
        d,
        k,
        eps,
        first,
        moments.stride(0),
        out.stride(0),
        *w.stride(),
        PARTS=parts,
        SLICES=_SLICES,
        DIMS=_DIMS,
        num_warps=4,
    )
    return out, offset
