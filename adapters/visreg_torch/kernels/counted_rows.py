"""Long rows of projections against Gaussian quantiles by counting fixed-point keys, no sort.

A key is a sample's place among 2¹⁶ between the row's least and greatest. Samples of one key hold
consecutive ranks a … b − 1 and share the mean of these quantiles, (Q_b − Q_a) / (b − a) with Q the
quantiles' prefix sums. Where all samples have one key (collapse) they take their quantiles in index
order instead, so that the gradient pulls them apart.

Programs stay: each has counts of its own, 256 KB that stay in L2, and works through rows, four
passes over each: range, counts, targets, differences. Bottleneck: L2, about 1.6 MB of streams and
100,000 single accesses a row of 50,000, a microsecond for each of 132 programs at work; device
memory sees a row once in (4 bytes) and once out (2 bytes). Exact: the order of the keys is that of
the samples; of those that share a key each target is off by at most half the key's width, 7e-5 for
Gaussian samples, against |p − q| of 4e-3 where they are as Gaussian as chance allows. Worst case:
a row with an outlier a thousand times the rest, which leaves the rest few keys. Rejected: bfloat16
keys (128 an octave, five times coarser where the data are), one launch a pass with counts of all
rows in device memory, and a sort (four times the traffic).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from visreg_torch.kernels import _launch
from visreg_torch.kernels.sorted_rows import gradient_at, load_projection, store_gradient

KEYS = 1 << 16
_PROGRAMS, _WARPS = 132, 16
_BLOCK, _KEY_BLOCK = 4096, 4096


@triton.jit
def keys_of(p, low, up, KEYS: tl.constexpr):
    """Fixed-point keys 0 … KEYS − 1 between the row's least and greatest."""
    key = ((p - low) * up + 0.5).to(tl.int32)
    return tl.minimum(tl.maximum(key, 0), KEYS - 1)


@triton.jit
def _counted_rows(
    p_ptr,  # (G, K, padded) float32, rows (slice, view) of N numbers
    scale_ptr,  # (G, padded) float32, or None
    offset_ptr,  # (G, K) float32, or None
    q_ptr,  # (N,) float32
    prefix_ptr,  # (2, N + 1) float64: sums of the first quantiles, and of their squares
    keep_ptr,  # (N,) bytes, or None
    rank_ptr,  # (N,) int32, ranks in index order of the kept samples, or None
    counts_ptr,  # (programs, KEYS) int32
    value_ptr,  # (G · K · together,) float32
    out_ptr,  # (G, BACK · K, padded) bfloat16, or None
    rows,
    n,
    k,
    padded,
    together,
    factor,
    BACK: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
):
    counts = counts_ptr + tl.program_id(0).to(tl.int64) * KEYS
    for this in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = this + tl.zeros([BLOCK], tl.int64)
        least = tl.full([BLOCK], float("inf"), tl.float32)
        greatest = tl.full([BLOCK], float("-inf"), tl.float32)
        # Zeros, while the first pass waits for memory.
        for start in range(0, KEYS, KEY_BLOCK):
            tl.store(counts + start + tl.arange(0, KEY_BLOCK), tl.zeros([KEY_BLOCK], tl.int32))
        for start in range(0, n, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < n
            if keep_ptr is not None:
                inside = inside & (tl.load(keep_ptr + column, mask=inside, other=0) != 0)
            p = load_projection(
                p_ptr, scale_ptr, offset_ptr, row, column, inside, n, k, padded, together, factor
            )
            least = tl.minimum(least, tl.where(inside, p, float("inf")))
            greatest = tl.maximum(greatest, tl.where(inside, p, float("-inf")))
        low, high = tl.min(least), tl.max(greatest)
        spread = high - low
        up = tl.where(spread > 1e-30, (KEYS - 1) / tl.maximum(spread, 1e-30), 0.0)
        tl.debug_barrier()
        for start in range(0, n, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < n
            if keep_ptr is not None:
                inside = inside & (tl.load(keep_ptr + column, mask=inside, other=0) != 0)
            p = load_projection(
                p_ptr, scale_ptr, offset_ptr, row, column, inside, n, k, padded, together, factor
            )
            tl.atomic_add(counts + keys_of(p, low, up, KEYS), 1, mask=inside, sem="relaxed")
        tl.debug_barrier()
        # Counts become the bits of the keys' targets.
        within = tl.zeros([KEY_BLOCK], tl.float64)
        largest = 0
        before = 0
        for start in range(0, KEYS, KEY_BLOCK):
            at = counts + start + tl.arange(0, KEY_BLOCK)
            count = tl.load(at, cache_modifier=".cg")
            present = count > 0
            end = before + tl.cumsum(count)
            last = tl.load(prefix_ptr + end, mask=present, other=0.0)
            sums = last - tl.load(prefix_ptr + end - count, mask=present, other=0.0)
            target = sums / tl.maximum(count, 1).to(tl.float64)
            tl.store(at, target.to(tl.float32).to(tl.int32, bitcast=True), mask=present)
            # The spread of the quantiles that one key shares.
            several = count > 1
            squares = prefix_ptr + (n + 1) + end
            last = tl.load(squares, mask=several, other=0.0)
            squares_sum = last - tl.load(squares - count, mask=several, other=0.0)
            within += tl.where(several, squares_sum - sums * target, 0.0)
            largest = tl.maximum(largest, tl.max(count))
            before += tl.sum(count)
        single = largest == before
        tl.debug_barrier()
        value = tl.zeros([BLOCK], tl.float32)
        for start in range(0, n, BLOCK):
            column = start + tl.arange(0, BLOCK)
            live = column < n
            inside = live
            rank = column
            if keep_ptr is not None:
                inside = live & (tl.load(keep_ptr + column, mask=live, other=0) != 0)
                rank = tl.load(rank_ptr + column, mask=inside, other=0)
            p = load_projection(
                p_ptr, scale_ptr, offset_ptr, row, column, inside, n, k, padded, together, factor
            )
            bits = tl.load(counts + keys_of(p, low, up, KEYS), mask=inside, other=0)
            target = bits.to(tl.float32, bitcast=True)
            if single:
                target = tl.load(q_ptr + rank, mask=inside, other=0.0)
            difference = tl.where(inside, p - target, 0.0)
            value += difference * difference
            if out_ptr is not None:
                at, part = gradient_at(out_ptr, row, n, k, padded, together, BACK)
                store_gradient(at + column, part, difference, live, BACK)
        spread_within = tl.where(single, 0.0, tl.sum(within))
        tl.store(value_ptr + this, tl.sum(value) + spread_within.to(tl.float32))
        tl.debug_barrier()


def counted_rows(
    p: torch.Tensor,
    q: torch.Tensor,
    prefix: torch.Tensor,
    *,
    n: int,
    together: int,
    factor: float,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    keep: torch.Tensor | None,
    rank: torch.Tensor | None,
    back: int,
    values: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Σ_n (sort(x)_n − q_n)² of long rows x = p · factor · scale − offset, and x_n − q̄_n.

    p, q, n, together, factor, scale, offset, keep, back, values : as in `sorted_rows`, with N of
        any size
    prefix : (2, N + 1); float64: sums of the first 0 … N quantiles, and of their squares
    rank : int32 (N,), with `keep`; ranks of the kept samples in index order
    Returns as `sorted_rows`; q̄_n is the mean quantile of the samples with n's key.
    """
    groups, k, padded = p.shape
    rows = groups * k * together
    if values is None:
        values = _launch.empty(rows, torch.float32, p.device)
    out = None
    if back:
        out = _launch.empty((groups, back * k, padded), torch.bfloat16, p.device)
    programs = min(rows, _PROGRAMS)
    counts = _launch.empty((programs, KEYS), torch.int32, p.device)
    _launch.launch(
        _counted_rows,
        (programs,),
        p,
        scale,
        offset,
        q,
        prefix,
        keep,
        rank,
        counts,
        values,
        out,
        rows,
        n,
        k,
        padded,
        together,
        factor,
        BACK=back,
        KEYS=KEYS,
        BLOCK=_BLOCK,
        KEY_BLOCK=_KEY_BLOCK,
        num_warps=_WARPS,
    )
    return values, out
