"""Projections sorted in registers against Gaussian quantiles: one read, one write.

A program sorts rows of projections as packed integers, the sample's index below a fixed-point key
over the row's own range [min, max]: 23 bits of key for rows of 512, 19 for rows of 8192. For
float32 embeddings neighbours in rank are then put in the order of the projections themselves. The
difference from the rank's quantile goes back to where the sample was through shared memory, and to
memory in order. Both ways share one array, so that a program of 8192 numbers needs 40 KiB with
what triton needs for the sort (48 are had without asking the driver for more).

Bottleneck: integer instructions and shuffles, (log² N + log N) / 2 compare-exchanges an element: 45
for N = 512, of which 30 stay within a thread (`_sorting`). At V10 N512 K4096 that is 21 million
elements; triton's own sort and stores of two scattered bytes took 0.24 ms of an H200 (three such
stores for float32: 0.39), where 4 bytes read and 2 written are 0.03 ms. By instructions counted in
the machine code this one takes about 0.15. Exact: equal projections have equal keys and take ranks
in index order; keys differ where projections differ by more than the row's range / 2²³ (N ≤ 512),
/ 2¹⁹ (N = 8192). Worst case: a row with one far outlier, whose range is wide: the others' order is
that of coarser keys, and their targets off by a key's width at most. Rejected: 64-bit
keys (1.2 ms for 2048 rows of 4096 by triton's sort), histograms (a row of 512 fills no bins), and
scattering by a second sort (as long again).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl

from visreg_torch.kernels import _launch
from visreg_torch.kernels._keys import float_of, key_of
from visreg_torch.kernels._sorting import rank_of, settled, sort_rows
from visreg_torch.kernels.operands import halves

_PER_WARP = 512  # numbers that a warp sorts, sixteen a thread


@triton.jit
def load_projection(
    p_ptr, scale_ptr, offset_ptr, row, column, inside, n, k, padded, together, factor
):
    """Projections of rows (group, slice, view), and where they lie: (G, K, padded)."""
    view = row % together
    line = row // together
    group = line // k
    at = view * n + column
    p = tl.load(p_ptr + line * padded + at, mask=inside, other=0.0) * factor
    if scale_ptr is not None:
        p *= tl.load(scale_ptr + group * padded + at, mask=inside, other=0.0)
    if offset_ptr is not None:
        p -= tl.load(offset_ptr + line, mask=row >= 0, other=0.0)
    return p


@triton.jit
def gradient_at(out_ptr, row, n, k, padded, together, BACK: tl.constexpr):
    """Where a row's gradient goes, (G, BACK · K, padded), and how far apart its parts are."""
    line = row // together
    at = (line // k) * BACK * k + line % k
    return out_ptr + at * padded + (row % together) * n, (line * 0 + k) * padded


@triton.jit
def store_gradient(at, part, g, mask, BACK: tl.constexpr):
    """Write g as (hi) or (hi, lo, hi) in bfloat16."""
    hi, lo = halves(g, tl.bfloat16)
    tl.store(at, hi, mask=mask)
    if BACK > 1:
        tl.store(at + part, lo, mask=mask)
        tl.store(at + 2 * part, hi, mask=mask)


@triton.jit
def placed(x, to, column, PLACE: tl.constexpr, CONSTRAINTS: tl.constexpr):
    """x (R, N) by places: element i of the tile goes to place `to`, through shared memory."""
    moved = tl.inline_asm_elementwise(
        PLACE,
        CONSTRAINTS,
        [to, x.to(tl.int32, bitcast=True), column],
        dtype=tl.int32,
        is_pure=False,
        pack=16,
    )
    return moved.to(tl.float32, bitcast=True)


@triton.jit
def _sorted_rows(
    p_ptr,  # (G, K, padded) float32, rows (slice, view) of N numbers
    scale_ptr,  # (G, padded) float32, or None
    offset_ptr,  # (G, K) float32, or None
    q_ptr,  # (BLOCK,) float32, by columns of the sorted tile, NaN where there is no rank
    keep_ptr,  # (N,) bytes, or None
    value_ptr,  # (G · K · together,) float32
    out_ptr,  # (G, BACK · K, padded) bfloat16, or None
    rows,
    n,
    k,
    padded,
    together,
    factor,
    BACK: tl.constexpr,
    EXACT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    INDEX_BITS: tl.constexpr,
    PLACE: tl.constexpr,
    PLACE_AGAIN: tl.constexpr,
    CONSTRAINTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    live = (row < rows) & (column < n)
    inside = live
    if keep_ptr is not None:
        inside = live & (tl.load(keep_ptr + column, mask=column < n, other=0) != 0)
    safe = tl.minimum(row, rows - 1)
    p = load_projection(
        p_ptr, scale_ptr, offset_ptr, safe, column, inside, n, k, padded, together, factor
    )
    BITS: tl.constexpr = 32 - INDEX_BITS if INDEX_BITS > 8 else 24
    LAST: tl.constexpr = 2**BITS - 1
    HALF: tl.constexpr = 2 ** (BITS - 1)
    low = tl.min(tl.where(inside, p, float("inf")), axis=1)[:, None]
    high = tl.max(tl.where(inside, p, float("-inf")), axis=1)[:, None]
    # NaN in a row makes its value and gradient NaN.
    low += tl.sum(tl.where(inside, p * 0.0, 0.0), axis=1)[:, None]
    spread = high - low
    up = tl.where(spread > 1e-30, LAST / tl.maximum(spread, 1e-30), 0.0)
    key = tl.minimum(tl.maximum(((p - low) * up + 0.5).to(tl.int32), 0), LAST) - HALF
    packed = tl.where(inside, (key << INDEX_BITS) | column, 0x7FFFFFFF)
    packed = sort_rows(packed, INDEX_BITS)
    index = packed & (BLOCK - 1)
    # By columns of the sorted tile, in which a rank's quantile stands where the rank does.
    q = tl.load(q_ptr + column)
    ranked = (row < rows) & (q == q)
    first = tl.arange(0, ROWS)[:, None] * BLOCK
    if EXACT:
        if PLACE is None:
            p = load_projection(
                p_ptr, scale_ptr, offset_ptr, safe, index, ranked, n, k, padded, together, factor
            )
        else:
            p = placed(p, first + column, first + index, PLACE, CONSTRAINTS)
        exact = tl.where(ranked, key_of(p), 0x7FFFFFFF)
        exact, index = settled(exact, index, INDEX_BITS)
        p = float_of(exact, tl.float32) + (low - low)
    else:
        p = low + ((packed >> INDEX_BITS) + HALF).to(tl.float32) * (spread / LAST)
    difference = tl.where(ranked, p - q, 0.0)
    value = tl.sum(difference * difference, axis=1)[:, None]
    tl.store(value_ptr + row, value, mask=row < rows)
    if out_ptr is not None:
        at, part = gradient_at(out_ptr, safe, n, k, padded, together, BACK)
        if PLACE is None:
            if keep_ptr is not None:
                zeros = tl.zeros([ROWS, BLOCK], tl.float32)
                store_gradient(at + column, part, zeros, live & (inside == 0), BACK)
            store_gradient(at + index, part, difference, ranked, BACK)
        else:
            to = tl.where(ranked, first + index, ROWS * BLOCK)
            MOVE: tl.constexpr = PLACE_AGAIN if EXACT else PLACE
            back = placed(difference, to, first + column, MOVE, CONSTRAINTS)
            store_gradient(at + column, part, tl.where(inside, back, 0.0), live, BACK)


def place_through_shared(numbers: int, warps: int) -> tuple[str, str, str]:
    """PTX that moves a tile's numbers to their places, sixteen a thread: once, and once more.

    And the operands' constraints: 16 results, 16 places to store at, 16 numbers, and 16 places to
    load from. Place `numbers` is nobody's. Triton has no scatter to shared memory of its own. The
    first move declares the array, for the rest of the kernel; the second waits until all threads
    have read what the first one left there. Triton's interpreter, which has no shared memory, goes
    through memory instead.
    """
    barrier = "bar.sync 0;" if warps > 1 else "bar.warp.sync 0xffffffff;"
    lines = ["{", ".reg .b32 base, at;", "mov.u32 base, places;"]
    for i in range(16):
        lines.append(f"mad.lo.u32 at, ${16 + i}, 4, base;")
        lines.append(f"st.shared.b32 [at], ${32 + i};")
    lines.append(barrier)
    for i in range(16):
        lines.append(f"mad.lo.u32 at, ${48 + i}, 4, base;")
        lines.append(f"ld.shared.b32 ${i}, [at];")
    lines.append("}")
    declared = f".shared .align 16 .b32 places[{numbers + 4}];"
    constraints = ",".join(["=&r"] * 16 + ["r"] * 48)
    return "\n".join([declared, *lines]), "\n".join([barrier, *lines]), constraints


@functools.lru_cache(maxsize=32)
def _options(n: int, on_device: bool) -> dict[str, Any]:
    """Constants of a launch for rows of n samples."""
    block = max(2, triton.next_power_of_2(n))
    rows = max(1, _PER_WARP // block)
    warps = rows * block // _PER_WARP
    place = place_through_shared(rows * block, warps) if on_device else (None, None, None)
    return {
        "ROWS": rows,
        "BLOCK": block,
        "INDEX_BITS": block.bit_length() - 1,
        "PLACE": place[0],
        "PLACE_AGAIN": place[1],
        "CONSTRAINTS": place[2],
        "num_warps": warps,
    }


def targets_by_column(q: torch.Tensor, count: torch.Tensor | None = None) -> torch.Tensor:
    """Quantiles (N,) where `sorted_rows` leaves their ranks; NaN beyond, or beyond `count`.

    The same for all rows of N samples: made once, and for masked rows from their number.
    """
    n = q.shape[0]
    block = max(2, triton.next_power_of_2(n))
    ranks = _ranks(block, q.device)
    padded = torch.nn.functional.pad(q.float(), (0, block - n), value=torch.nan)
    if count is not None:
        padded = torch.where(torch.arange(block, device=q.device) < count, padded, torch.nan)
    return padded[ranks]


@functools.lru_cache(maxsize=16)
def _ranks(block: int, device: torch.device) -> torch.Tensor:
    bits = block.bit_length() - 1
    return torch.tensor([rank_of(column, bits) for column in range(block)], device=device)


def sorted_rows(
    p: torch.Tensor,
    q: torch.Tensor,
    *,
    n: int,
    together: int,
    factor: float,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    keep: torch.Tensor | None,
    back: int,
    exact: bool,
    values: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Σ_n (sort(x)_n − q_n)² of the rows x = p · factor · scale − offset, and x_n − q_rank(n).

    p : (G, K, padded); float32; of each slice `together` rows of N projections, one after another
    q : (BLOCK,); of `targets_by_column`
    n, together : samples, at most `dispatch.MAX_SORTED`, and views
    scale : (G, padded)
    offset : (G, K); added to a product's sums to make projections
    keep : byte (N,); samples to keep; the others have gradient 0
    back : parts of the gradient: 0, 1 (hi) or 3 (hi, lo, hi)
    exact : whether samples of equal keys are ordered, too
    values : (G · K · together,); where to write
    Returns values (G · K · together,) in float32, and the gradient (G, back · K, padded) in
    bfloat16 or None. What is beyond together · N is not written.
    """
    groups, k, padded = p.shape
    rows = groups * k * together
    if values is None:
        values = _launch.empty(rows, torch.float32, p.device)
    out = None
    if back:
        out = _launch.empty((groups, back * k, padded), torch.bfloat16, p.device)
    options = _options(n, p.device.type != "cpu")
    _launch.launch(
        _sorted_rows,
        (triton.cdiv(rows, options["ROWS"]),),
        p,
        scale,
        offset,
        q,
        keep,
        values,
        out,
        rows,
        n,
        k,
        padded,
        together,
        factor,
        BACK=back,
        EXACT=exact,
        **options,
    )
    return values, out
