"""Threefry-2x32 with 20 rounds (Salmon et al. 2011), for every library and in place for NumPy."""

from __future__ import annotations

import numpy as np

from visreg_core.typing import Array

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry2x32(key0: Array, key1: Array, counter0: Array, counter1: Array) -> tuple[Array, Array]:
    """Threefry-2x32, 20 rounds, on arrays of int32 words (two's complement), elementwise.

    Parameters
    ----------
    key0, key1, counter0, counter1 : array of int32
        Words; shapes broadcast. At least one of them must have an axis (scalars of NumPy warn when
        they wrap).

    Returns
    -------
    word0, word1 : array of int32
        The same bits on every library.

    Notes
    -----
    Signed arithmetic that wraps, with a mask after each right shift, is what every library has:
    unsigned 32-bit integers are not in torch, 64-bit ones not in JAX by default.

    Source: Salmon et al. 2011, Table 2 (rotations) and §4.2.

    Examples
    --------
    >>> import numpy as np
    >>> zero = np.zeros(1, dtype=np.int32)
    >>> [hex(int(w[0]) % 2**32) for w in threefry2x32(zero, zero, zero, zero)]
    ['0x6b200159', '0x99ba4efe']
    """
    keys = (key0, key1, key0 ^ key1 ^ _PARITY)
    x0, x1 = counter0 + key0, counter1 + key1
    for injection in range(5):
        for r in _ROTATIONS[injection % 2]:
            x0 = x0 + x1
            x1 = (x1 << r) | ((x1 >> (32 - r)) & ((1 << r) - 1))
            x1 = x1 ^ x0
        x0 = x0 + keys[(injection + 1) % 3]
        x1 = x1 + keys[(injection + 2) % 3] + (injection + 1)
    return x0, x1


def threefry2x32_in_place(
    key0: int, key1: int | np.ndarray, x0: np.ndarray, x1: np.ndarray
) -> None:
    """The same on two uint32 counters of one shape, which become the words.

    Nothing but one array is made, and unsigned words need no mask after a right shift.
    """
    keys = tuple(np.uint32(key) for key in (key0, key1, key0 ^ key1 ^ _PARITY))
    left = np.empty_like(x1)
    x0 += keys[0]
    x1 += keys[1]
    for injection in range(5):
        for r in _ROTATIONS[injection % 2]:
            x0 += x1
            np.left_shift(x1, r, out=left)
            x1 >>= 32 - r
            x1 |= left
            x1 ^= x0
        x0 += keys[(injection + 1) % 3]
        x1 += keys[(injection + 2) % 3]
        x1 += np.uint32(injection + 1)
