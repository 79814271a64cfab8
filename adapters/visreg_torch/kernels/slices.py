"""Random directions, from counters to columns of length 1, by one launch.

A program owns a few columns. It draws the words of all their counters twice: first for the sum of
squares, which takes no sine (the normals of a counter are r cos θ and r sin θ, whose squares add
up to r² = −2 log u₀), then for the normals, which it scales and writes. Twenty rounds again are
seventy integer operations, which take a large GPU about as long as reading the normals back (an
estimate); but no unrounded copy of 16-bit slices is stored. All columns are summed in the
same order, so that ranges of slices agree bit by bit.

Words are those of `visreg_core.slices`, bit by bit. Logarithm and sines are libdevice's, right to a
unit or two in the last place; root and quotient are rounded, which triton's usual ones are not.

Bottleneck: instructions, some 200 a pair of numbers, for 2 or 4 bytes written each: 6 µs at D256
K4096 (expected). Exact: words bit by bit; numbers to the last places. Worst case: few slices of
many dimensions, which few programs walk. Rejected: torch's generator, whose numbers depend on the
device and cannot be drawn from the middle.

Reference implementation: `visreg_core.slices.random_slices`.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from visreg_core.slices import DOMAIN_SLICES
from visreg_torch.kernels import _launch

# A program's part of a row is whole sectors of memory, of 32 bytes. How many counters are worked on
# at a time decides in which order they are summed: it must not depend on the number of slices.
_COLUMNS, _PAIRS = 16, 64
_PER_WARP = 128

_DOMAIN = tl.constexpr(DOMAIN_SLICES << 28)
_UNIT = tl.constexpr(2.0**-23)
_TURN = tl.constexpr(2 * math.pi)


@triton.jit
def word_of(x):
    """The low 32 bits of an integer, or of the one at a pointer."""
    if x.dtype.is_ptr():
        return tl.load(x).to(tl.uint32)
    else:
        return x.to(tl.uint32)


@triton.jit
def mixed(x0, x1, ROTATION: tl.constexpr):
    """One round."""
    x0 = x0 + x1
    x1 = (x1 << ROTATION) | (x1 >> (32 - ROTATION))
    return x0, x1 ^ x0


@triton.jit
def mixed_by_four(x0, x1, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, D: tl.constexpr):
    """Four rounds."""
    x0, x1 = mixed(x0, x1, A)
    x0, x1 = mixed(x0, x1, B)
    x0, x1 = mixed(x0, x1, C)
    return mixed(x0, x1, D)


@triton.jit
def threefry2x32(key0, key1, counter0, counter1):
    """Threefry-2x32 with 20 rounds, on uint32; as `visreg_core.slices.threefry2x32`."""
    key2 = key0 ^ key1 ^ 0x1BD11BDA
    x0, x1 = mixed_by_four(counter0 + key0, counter1 + key1, 13, 15, 26, 6)
    x0, x1 = mixed_by_four(x0 + key1, x1 + key2 + 1, 17, 29, 16, 24)
    x0, x1 = mixed_by_four(x0 + key2, x1 + key0 + 2, 13, 15, 26, 6)
    x0, x1 = mixed_by_four(x0 + key0, x1 + key1 + 3, 17, 29, 16, 24)
    x0, x1 = mixed_by_four(x0 + key1, x1 + key2 + 4, 13, 15, 26, 6)
    return x0 + key2, x1 + key0 + 5


@triton.jit
def polar(seed, step, k, m):
    """r² and θ of the normals r cos θ and r sin θ that the counter of slice k and pair m makes."""
    word0, word1 = threefry2x32(seed, step, k, m.to(tl.uint32) + _DOMAIN)
    u0 = ((word0 >> 9).to(tl.float32) + 0.5) * _UNIT
    u1 = ((word1 >> 9).to(tl.float32) + 0.5) * _UNIT
    return -2.0 * tl.log(u0), u1 * _TURN


@triton.jit(do_not_specialize=["seed", "step", "start"])
def _kernel(
    out_ptr,  # (dim, n_slices) contiguous
    seed,  # a word as int32, or a pointer to an integer; and so step
    step,
    start,  # a word as int32
    dim,
    n_slices,
    COLUMNS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    pair = tl.arange(0, PAIRS)[:, None]
    seed, step = word_of(seed), word_of(step)
    k = word_of(start) + column.to(tl.uint32)
    whole = dim // 2
    squares = tl.zeros([1, COLUMNS], tl.float32)
    for first in range(0, whole, PAIRS):
        m = first + pair
        square, _ = polar(seed, step, k, m)
        squares += tl.sum(tl.where(m < whole, square, 0.0), axis=0)[None, :]
    if dim % 2 == 1:  # of the last counter only the cosine
        square, angle = polar(seed, step, k, whole + tl.zeros([1, COLUMNS], tl.int32))
        last = tl.sqrt_rn(square) * tl.cos(angle)
        squares += last * last
    norm = tl.sqrt_rn(squares)
    inside = column < n_slices
    at = out_ptr + column
    for first in range(0, dim - whole, PAIRS):
        row = 2 * (first + pair)
        square, angle = polar(seed, step, k, first + pair)
        radius = tl.sqrt_rn(square)
        here = at + row.to(tl.int64) * n_slices
        even = tl.div_rn(radius * tl.cos(angle), norm)
        odd = tl.div_rn(radius * tl.sin(angle), norm)
        tl.store(here, even.to(out_ptr.dtype.element_ty), mask=inside & (row < dim))
        tl.store(here + n_slices, odd.to(out_ptr.dtype.element_ty), mask=inside & (row + 1 < dim))


def gaussian_slices(
    dim: int,
    n_slices: int,
    *,
    seed: int | torch.Tensor = 0,
    step: int | torch.Tensor = 0,
    start: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Slices start … start + n_slices - 1 of the sampler "gaussian".

    dim, n_slices : dimensions and slices, in the core's ranges
    seed, step : int or integer 0-d tensor; 0 … 2³² − 1. A tensor's low 32 bits are read on the
        device
    start : index of the first slice
    dtype : float32, bfloat16 or float16: computed in float32, rounded last
    device : where to draw; torch's default device if not given
    Returns unit columns (dim, n_slices), contiguous.
    No integer has a kernel compiled for its value, but `dim` and `n_slices` for being 1 or a
    multiple of 16.
    """
    out = _launch.empty((dim, n_slices), dtype, device)
    _launch.check_dtype("slices", out)
    pairs = min(_PAIRS, triton.next_power_of_2((dim + 1) // 2))
    _launch.launch(
        _kernel,
        (triton.cdiv(n_slices, _COLUMNS),),
        out,
        _argument(seed, out.device),
        _argument(step, out.device),
        _as_int32(start),
        dim,
        n_slices,
        COLUMNS=_COLUMNS,
        PAIRS=pairs,
        num_warps=max(1, pairs * _COLUMNS // _PER_WARP),
        sanitize_overflow=False,  # words wrap, in triton's debug mode, too
    )
    return out


def _argument(word: int | torch.Tensor, device: torch.device) -> int | torch.Tensor:
    return word.to(device) if isinstance(word, torch.Tensor) else _as_int32(word)


def _as_int32(word: int) -> int:
    """The same 32 bits with a sign: triton has a type of its own for what is beyond."""
    return word - (1 << 32) if word >> 31 else word
