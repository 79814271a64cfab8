"""Orthogonal directions for the price of independent ones: fast transforms between random signs."""

from __future__ import annotations

import functools
import math

import numpy as np

from visreg_core import _xp, checks
from visreg_core.slices import DOMAIN_SIGNS, check_range, uniforms
from visreg_core.typing import Array, Device, DType, Namespace, Scalar

_ROUNDS = 3


def structured_slices(
    dim: int,
    n_slices: int,
    *,
    seed: Scalar = 0,
    step: Scalar = 0,
    xp: Namespace = None,
    dtype: DType = None,
    device: Device = None,
) -> Array:
    """Blocks of `dim` orthonormal columns T S₁ T S₂ T S₃, with random signs S and a fast T.

    Parameters
    ----------
    dim, n_slices, seed, step, xp, dtype, device
        As in `random_slices`.

    Returns
    -------
    array of shape (dim, n_slices)
        Unit columns, the same on all libraries to a few units in the last place.

    Raises
    ------
    ValueError
        Where a count is not positive or a range is exceeded.

    Notes
    -----
    Source: structured orthogonal random features (Yu et al. 2016), with T = C_p ⊗ C_q, p q = D, of
    cosine transforms in place of Hadamard's, so that D need not be a power of two. A block takes
    4 D² (p + q) multiplications, as long as D normals a column; D with no divisor near √D takes
    more, up to a QR's time where D is prime. A column's direction is one of a finite number and
    uniform only in approximation: its mean is 0 and its covariance I/D exactly, for D below 16 take
    ``random_slices(..., sampler="orthogonal")``.

    Examples
    --------
    >>> import numpy as np
    >>> w = structured_slices(24, 24, step=3)
    >>> bool(np.allclose(w.T @ w, np.eye(24)))
    True
    """
    check_range(dim, n_slices, 0, "orthogonal")
    dim = int(dim)
    xp = _xp.as_namespace(xp)
    dtype = _xp.default_float(xp) if dtype is None else dtype
    checks.dtype("dtype", dtype, xp)
    work = xp.float64 if _xp.dtype_name(dtype) == "float64" else xp.float32
    where = {} if device is None else {"device": device}
    p = max(d for d in range(1, math.isqrt(dim) + 1) if dim % d == 0)
    a, b = (xp.asarray(_cosines(size), dtype=work, **where) for size in (p, dim // p))
    signs = _signs(xp, dim, _ROUNDS * -(-n_slices // dim), seed, step, work, where)
    blocks = []
    for i, first in enumerate(range(0, n_slices, dim)):
        count = min(dim, n_slices - first)
        *outer, last = (signs[_ROUNDS * i + j, :] for j in range(_ROUNDS))
        w = xp.reshape(a[:, None, :, None] * b[None, :, None, :], (dim, dim))[:, :count]
        w = w * last[None, :count]
        for sign in reversed(outer):
            w = xp.matmul(a, xp.reshape(sign[:, None] * w, (p, -1)))
            w = xp.reshape(xp.matmul(b, xp.reshape(w, (p, dim // p, count))), (dim, count))
        blocks.append(w)
    w = blocks[0] if len(blocks) == 1 else xp.concat(blocks, axis=1)
    return _xp.cast(xp, w, dtype)


@functools.lru_cache(maxsize=32)
def _cosines(size: int) -> np.ndarray:
    """The orthonormal cosine transform (DCT-II) of `size` numbers, a row a frequency."""
    k = np.arange(size)
    angle = np.pi / (2 * size) * (np.outer(k, 2 * k + 1) % (4 * size))
    rows = np.cos(angle) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows


def _signs(
    xp: Namespace,
    dim: int,
    rows: int,
    seed: Scalar,
    step: Scalar,
    dtype: DType,
    where: dict[str, Device],
) -> Array:
    """−1 and 1, (rows, dim): two of a counter."""
    pairs = (dim + 1) // 2
    row = xp.arange(rows, dtype=xp.int32, **where)[:, None]
    pair = xp.arange(pairs, dtype=xp.int32, **where)[None, :] + (DOMAIN_SIGNS << 28)
    both = xp.stack(uniforms(xp, seed, step, row, pair, dtype=dtype), axis=-1)
    both = xp.reshape(both, (rows, 2 * pairs))[:, :dim]
    return 1 - 2 * xp.astype(both < 0.5, dtype)
