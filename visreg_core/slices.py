"""Random directions that are the same on every array library, at any world size, after any resume.

A counter-based generator (Threefry-2x32 with 20 rounds; Salmon, Moraes, Dror & Shaw 2011, "Parallel
random numbers: as easy as 1, 2, 3") maps a key and a counter to two 32-bit words, so that every
element can be computed alone. Layout of the stream:

======== ===================================== =======================================
word     holds                                 range
======== ===================================== =======================================
key 0    ``seed``                              0 … 2³² − 1
key 1    ``step``                              0 … 2³² − 1
counter0 slice k (or sample, walker, row, …)   0 … 2³² − 1
counter1 domain · 2²⁸ + ⌊d / 2⌋                domain 0 … 15, dimension d < 2²⁹
======== ===================================== =======================================

The two words of one counter make, by Box-Muller, the normals of dimensions 2m and 2m + 1. Each use
of the stream has a domain of its own (``DOMAIN_*``), so that no two draw the same words.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from visreg_core import _xp, checks
from visreg_core._xp import slices_numpy
from visreg_core._xp.threefry import threefry2x32
from visreg_core.typing import Array, Device, DType, Namespace, Scalar

DOMAIN_SLICES = 0
DOMAIN_WALKS = 1
DOMAIN_ROWS = 2
DOMAIN_TARGETS = 3
DOMAIN_SIGNS = 4

SAMPLERS = ("gaussian", "orthogonal")

_WORD = 1 << 32

# Columns are drawn and factored in groups of so many, counted from slice 0, or from a block's first
# one: vectorised loops end in loops of another kind, and matrix products depend on shapes, so that
# else a column's last bits would depend on its position among the requested ones.
_GROUP = 32

# Of so few numbers NumPy draws so many successive steps at once: a step is 150 calls of NumPy.
_FEW, _STEPS = 1 << 11, 8


def uniforms(
    xp: Namespace,
    seed: Scalar,
    step: Scalar,
    counter0: Array,
    counter1: Array,
    *,
    dtype: DType,
) -> tuple[Array, Array]:
    """Two uniforms in (0, 1) per counter, multiples of 2⁻²³ plus 2⁻²⁴: exact in float32."""
    key0, key1 = _key(xp, "seed", seed, counter0), _key(xp, "step", step, counter0)
    words = threefry2x32(key0, key1, counter0, counter1)
    u0, u1 = (xp.astype((w >> 9) & 0x7FFFFF, dtype) for w in words)
    return (u0 + 0.5) * 2.0**-23, (u1 + 0.5) * 2.0**-23


def random_slices(
    dim: int,
    n_slices: int,
    *,
    seed: Scalar = 0,
    step: Scalar = 0,
    start: int = 0,
    sampler: str = "gaussian",
    xp: Namespace = None,
    dtype: DType = None,
    device: Device = None,
) -> Array:
    """Unit directions on the sphere in `dim` dimensions: slices ``start … start + n_slices - 1``.

    Column k depends on (seed, step, k) alone, to the last bit on one library and machine: any
    process can draw any range by itself, the union over processes is what one process would draw,
    and a resumed run draws what the uninterrupted one would have drawn.

    Parameters
    ----------
    dim : int
        Dimension D of the embeddings, 1 … 2²⁹.
    n_slices : int
        Number K of directions.
    seed, step : int or 0-d integer array
        0 … 2³² − 1. Pass the training step as `step` for fresh directions at each. Under
        ``jax.jit`` and ``torch.compile`` they may be traced.
    start : int
        Index of the first slice.
    sampler : {"gaussian", "orthogonal"}
        "gaussian": independent uniform directions. "orthogonal": successive blocks of `dim`
        orthonormal columns, each block Haar distributed (lower variance at equal K).
    xp : namespace, optional
        ``numpy`` (default), ``torch``, ``jax.numpy``, ``cupy``, ``array_api_strict`` or a wrapper
        of one by array-api-compat.
    dtype : dtype, optional
        Floating dtype of the library; its default one if not given. Directions are computed and
        normalised in float32 or wider and cast last.
    device : device, optional
        Device of the library.

    Returns
    -------
    array of shape (dim, n_slices)
        Unit columns. The random words are bit-identical on all libraries, the directions agree to
        a few units in the last place ("orthogonal": times the condition number of a block).

    Raises
    ------
    ValueError
        Where a count is not positive, a range is exceeded, or the sampler is unknown.

    Notes
    -----
    Source: VISReg Algorithm 1 (normalised Gaussian columns). "orthogonal" is the QR factorisation
    of a Gaussian block with the signs that make R's diagonal positive (Mezzadri 2007), by panels of
    32 columns that are freed of those before them by Gram and Schmidt's method twice (Giraud et al.
    2005, "Rounding error analysis of the classical Gram-Schmidt orthogonalization process"), so
    that no column depends on those after its panel. Whole groups of 32 columns are drawn, however
    few of them are requested.

    Examples
    --------
    >>> import numpy as np
    >>> w = random_slices(8, 5, seed=1, step=3)
    >>> w.shape
    (8, 5)
    >>> bool(np.all(w[:, 2:4] == random_slices(8, 2, seed=1, step=3, start=2)))
    True
    """
    check_range(dim, n_slices, start, sampler)
    dim = int(dim)
    xp = _xp.as_namespace(xp)
    dtype = _xp.default_float(xp) if dtype is None else dtype
    checks.dtype("dtype", dtype, xp)
    work = xp.float64 if _xp.dtype_name(dtype) == "float64" else xp.float32
    where = {} if device is None else {"device": device}

    def gaussian_columns(first: int, count: int) -> Array:
        return _gaussian(xp, dim, first, count, seed, step, dtype=work, where=where)

    if sampler == "gaussian" and _xp.works_in_tiles(xp):
        key = key_word(xp, "seed", seed), key_word(xp, "step", step)
        w = unit_columns_numpy(dim, n_slices, start, *key, work)
    elif sampler == "gaussian":
        first, count, inside = _drawn(start, n_slices)
        w = _normalised(xp, gaussian_columns(first, count), dim)[:, inside]
    else:
        w = orthogonal_columns(xp, dim, start, n_slices, gaussian_columns)
    return _xp.cast(xp, w, dtype)


def slices_for(dim: int, error: float, *, sampler: str = "gaussian") -> int:
    """How many slices leave a relative error of the gradient, before anything is trained.

    Parameters
    ----------
    dim : int
        Dimension D of the embeddings.
    error : float
        Root mean square of ‖g_K − g‖/‖g‖ over random slices, where g is the gradient of infinitely
        many; positive.
    sampler : {"gaussian", "orthogonal"}
        As of `random_slices`.

    Returns
    -------
    int
        ⌈(D − 1)/error²⌉ independent slices, or ⌈D/(1 + error²)⌉ orthogonal ones.

    Raises
    ------
    ValueError
        For a dimension or an error that is not positive, or an unknown sampler.

    Notes
    -----
    Exact where each slice's gradient is linear in its projections, as `gaussian_sliced_wasserstein`
    has it of Gaussian embeddings of another scale: Σ_k p_k w_k D/K estimates z with the squared
    error (D − 1)/K of independent w_k, (D − K)/K of orthogonal ones up to K = D and none at K = D.
    Departures of other kinds leave more, in proportion to 1/K; SIGReg's gradient of Gaussian
    embeddings 1.3 times too large 2.3 times as much of independent slices. The benchmark of slices
    has both samplers on several losses.

    Examples
    --------
    >>> slices_for(256, 0.5), slices_for(256, 0.5, sampler="orthogonal")
    (1020, 205)
    """
    checks.positive_int("dim", dim)
    checks.positive("error", error)
    checks.choice("sampler", sampler, SAMPLERS)
    independent = sampler == "gaussian"
    exact = (dim - 1) / error**2 if independent else dim / (1 + error**2)
    return max(1, math.ceil(exact * (1 - 1e-12)))  # less what rounding adds


def unit_columns_numpy(
    dim: int, n_slices: int, start: int, seed: int, step: int, dtype: DType
) -> np.ndarray:
    """Slices of the sampler "gaussian" in float32 or float64, from checked arguments."""
    first, count, inside = _drawn(start, n_slices)
    if dim * count > _FEW:
        return _normalised(np, _normals_numpy(dim, count, first, seed, step, dtype), dim)[:, inside]
    steps = _of_successive_steps(dim, count, first, seed, step // _STEPS, dtype)
    return steps[step % _STEPS, :, inside].copy()


@functools.lru_cache(maxsize=8)
def _of_successive_steps(
    dim: int, count: int, first: int, seed: int, block: int, dtype: DType
) -> np.ndarray:
    """Unit columns (S, dim, count) of steps S · block, …: few numbers cost less than the calls."""
    steps = np.arange(block * _STEPS, (block + 1) * _STEPS)
    return _normalised(np, _normals_numpy(dim, count, first, seed, steps, dtype), dim)


def _drawn(start: int, n_slices: int) -> tuple[int, int, slice]:
    """First and number of the columns of whole groups, and where those asked for are."""
    first = start - start % _GROUP
    end = start + n_slices - first
    return first, _whole_groups(end), slice(start - first, end)


def _normalised(xp: Namespace, w: Array, dim: int) -> Array:
    """Columns (..., dim, count) divided by their length."""
    return w / xp.sqrt(_column_sums(xp, w * w, dim))


def check_range(dim: int, n_slices: int, start: int, sampler: str) -> None:
    """ValueError where there are no such directions, or the numbers are traced arrays."""
    checks.positive_int("dim", dim)
    checks.positive_int("n_slices", n_slices)
    checks.positive_int("start", start, minimum=0)
    checks.choice("sampler", sampler, SAMPLERS)
    if dim > 1 << 29:
        raise ValueError(f"expected dim <= 2**29; found {dim}")
    if start + n_slices > _WORD:
        raise ValueError(f"expected start + n_slices <= 2**32; found {start + n_slices}")


def orthogonal_columns(
    xp: Namespace, dim: int, start: int, n_slices: int, normals: Callable[[int, int], Array]
) -> Array:
    """Slices of the sampler "orthogonal", of standard normals(first, count) in (dim, count)."""
    blocks = []
    for first in range(start - start % dim, start + n_slices, dim):
        last = min(first + dim, start + n_slices)
        y = normals(first, _whole_groups(last - first))
        q = _orthonormal_panels(xp, y, dim, last - first)
        blocks.append(q[:, max(start - first, 0) : last - first])
    return blocks[0] if len(blocks) == 1 else xp.concat(blocks, axis=1)


def _orthonormal_panels(xp: Namespace, y: Array, dim: int, count: int) -> Array:
    """Q of the QR factorisation of y (D, …), R's diagonal positive, of `count` columns or more."""
    q = orthonormal_columns(xp, y[:, : min(_GROUP, dim)])
    for begin in range(_GROUP, count, _GROUP):
        panel = y[:, begin : min(begin + _GROUP, dim)]
        for _ in range(2):
            panel = panel - q @ (xp.matrix_transpose(q) @ panel)
            panel = orthonormal_columns(xp, panel)
        q = xp.concat([q, panel], axis=1)
    return q


def _whole_groups(count: int) -> int:
    return -(-count // _GROUP) * _GROUP


def _column_sums(xp: Namespace, x: Array, dim: int) -> Array:
    """Sums over axis -2, kept, in an order that depends on its length `dim` alone."""
    size = 1 << (dim.bit_length() - 1)
    beyond = dim - size
    if beyond:
        x = xp.concat([x[..., :beyond, :] + x[..., size:, :], x[..., beyond:size, :]], axis=-2)
    while size > 1:
        size //= 2
        x = x[..., :size, :] + x[..., size:, :]
    return x


def orthonormal_columns(xp: Namespace, y: Array) -> Array:
    """Q of the QR factorisation whose R has a positive diagonal: y (..., N, D) with N >= D."""
    q, r = xp.linalg.qr(y)
    diagonal = xp.linalg.diagonal(r)[..., None, :]
    return xp.where(diagonal < 0, -q, q)


def _gaussian(
    xp: Namespace,
    dim: int,
    first: int,
    count: int,
    seed: Scalar,
    step: Scalar,
    *,
    dtype: DType,
    where: dict[str, Device],
) -> Array:
    """Standard normals (dim, count): column j is slice first + j."""
    if _xp.works_in_tiles(xp):
        key = key_word(xp, "seed", seed), key_word(xp, "step", step)
        return _normals_numpy(dim, count, first, *key, dtype)
    pairs = (dim + 1) // 2
    k = _int32_range(xp, first, count, where)[None, :]
    m = _int32_range(xp, DOMAIN_SLICES << 28, pairs, where)[:, None]
    u0, u1 = uniforms(xp, seed, step, k, m, dtype=dtype)
    radius = xp.sqrt(-2.0 * xp.log(u0))
    angle = (2.0 * math.pi) * u1
    normals = xp.stack([radius * xp.cos(angle), radius * xp.sin(angle)], axis=1)
    return xp.reshape(normals, (2 * pairs, count))[:dim, :]


def _normals_numpy(
    dim: int, count: int, first: int, seed: int, step: int | np.ndarray, dtype: DType
) -> np.ndarray:
    return slices_numpy.normals(
        dim,
        count,
        first=first,
        domain=DOMAIN_SLICES << 28,
        seed=seed,
        step=step,
        dtype=dtype,
    )


def _int32_range(xp: Namespace, first: int, count: int, where: dict[str, Device]) -> Array:
    """first, first + 1, … as wrapped int32 words."""
    return xp.arange(count, dtype=xp.int32, **where) + _signed(first)


def _key(xp: Namespace, argument: str, value: Scalar, beside: Array) -> Array:
    """A key word as an int32 array that broadcasts with the counters."""
    word = key_word(xp, argument, value)
    if isinstance(word, int):
        return xp.zeros_like(beside) + _signed(word)
    return xp.reshape(_xp.beside(xp, xp.astype(word, xp.int32), beside), (1, 1))


def key_word(xp: Namespace, argument: str, value: Scalar) -> int | Array:
    """A key word as a Python integer, which it always is for NumPy, or as a 0-d array."""
    if isinstance(value, (np.integer, np.ndarray)) and np.ndim(value) == 0:
        value = np.asarray(value).item()
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < _WORD:
            raise ValueError(f"expected {argument} in 0 ... 2**32 - 1; found {value}")
        return value
    if tuple(getattr(value, "shape", (0,))) != () or "int" not in _xp.dtype_name(value):
        raise TypeError(
            f"expected {argument} to be an integer or a 0-d integer array; "
            f"found {type(value).__name__}"
        )
    if _xp.library(value) != _xp.name(xp):
        raise TypeError(
            f"expected {argument} of {_xp.name(xp)} or a Python integer; "
            f"found an array of {_xp.library(value)}"
        )
    return value


def _signed(word: int) -> int:
    """The int32 with the bits of a 32-bit word."""
    return word - _WORD if word >= _WORD // 2 else word
