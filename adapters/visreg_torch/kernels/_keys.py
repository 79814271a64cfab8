"""Floats as integers of the same order, for kernels that sort or count them.

The sign and magnitude of an IEEE number, read as an integer, order as the numbers do, and both
zeros become 0, so that they tie. NaN, of either sign, comes behind everything.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def key_of(x):
    """Order-preserving int32 of a float32, bfloat16 or float16; 16-bit keys fit 16 bits."""
    if x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        key = tl.where(bits < 0, -magnitude, magnitude)
        return tl.where(magnitude > 0x7F800000, 0x7FFFFFFF, key)
    else:
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
        magnitude = bits & 0x7FFF
        key = tl.where(bits < 0, -magnitude, magnitude)
        if x.dtype == tl.bfloat16:
            return tl.where(magnitude > 0x7F80, 0x7FFF, key)
        else:
            return tl.where(magnitude > 0x7C00, 0x7FFF, key)


@triton.jit
def float_of(key, dtype: tl.constexpr):
    """The number of a key that `key_of` made from `dtype`, as float32."""
    if dtype == tl.float32:
        return tl.where(key < 0, -key | -0x80000000, key).to(tl.float32, bitcast=True)
    else:
        bits = tl.where(key < 0, -key | -0x8000, key)
        return bits.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)


@triton.jit
def pack(key, index, dtype: tl.constexpr):
    """Key above index in one integer: 32 bits for 16-bit numbers (index < 65535), else 64."""
    if dtype == tl.float32:
        return (key.to(tl.int64) << 32) | index.to(tl.int64)
    else:
        return (key << 16) | index


@triton.jit
def unpack(packed, dtype: tl.constexpr):
    """Key and index of `pack`."""
    if dtype == tl.float32:
        return (packed >> 32).to(tl.int32), packed.to(tl.int32)
    else:
        return packed >> 16, packed & 0xFFFF


@triton.jit
def behind(packed, inside, dtype: tl.constexpr):
    """`packed`, with what is not inside sorted after everything else, NaN included."""
    if dtype == tl.float32:
        return tl.where(inside, packed, 0x7FFFFFFFFFFFFFFF)
    else:
        return tl.where(inside, packed, 0x7FFFFFFF)
