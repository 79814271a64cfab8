"""VISReg: centre, scale and shape of the embeddings, their sum, and the prediction loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from visreg_core import _checks, _tiles, _xp
from visreg_core._typing import Array, DType, Namespace, Scalar
from visreg_core.losses import _rows
from visreg_core.losses._differentiable import differentiated_by, gradient_like, times
from visreg_core.losses._execution import PLAIN, Execution
from visreg_core.losses._sliced import projection_dtype_for
from visreg_core.losses.gaussian_sliced_wasserstein import REDUCTIONS, sliced_gaussian

EPS = 1e-6
_BLOCK_BYTES = 1 << 19
_DEVICE_BLOCK_BYTES = 1 << 26


class VISRegTerms(NamedTuple):
    """Terms of `visreg_loss`; `total` is their weighted sum, the others are not weighted."""

    total: Array
    scale: Array
    shape: Array
    center: Array


# --- the terms, from moments ----------------------------------------------------------------------


def center_from_mean(xp: Namespace, mean: Array, reduction: str = "mean") -> Array:
    """Centre loss of a batch mean (..., 1, D)."""
    return xp.mean(mean * mean) * (1 if reduction == "mean" else mean.shape[-1])


def scale_from_deviation(xp: Namespace, sigma: Array) -> Array:
    """Scale loss of biased standard deviations (..., 1, D)."""
    return xp.mean((1 - sigma) * (1 - sigma))


class _Shape(NamedTuple):
    """What the shape term keeps for its gradient; G = ds/dz̃ of s = Σ_n (sort(z̃ w)_n − q_n)².

    total : mean of s over batch and slices; divisor : σ + ε, (..., 1, D); gradient : G (..., N, D);
    along : Σ_n G ẑ, where the divisor is not held constant. The last two are None without a
    gradient.
    """

    total: Array
    divisor: Array
    gradient: Array = None
    along: Array = None


def _shape_term(
    z: Array,
    slices: Array,
    row_mask: Array | None,
    *,
    detach_scale: bool,
    eps: float,
    need_grad: bool,
    chunk_size: int | None,
    projection_dtype: DType,
    execution: Execution,
) -> tuple[_rows.Rows, Array, _Shape]:
    """The rows of z, their standard deviations (..., 1, D), and the shape that these two leave."""
    xp = _xp.namespace(z, slices, row_mask)
    _checks.embeddings("z", z)
    _checks.slices(slices, z)
    _checks.row_mask(row_mask, z)
    _checks.flag("detach_scale", detach_scale)
    _checks.not_negative("eps", eps)
    rows, centred = _rows.centre(xp, z, row_mask, execution.shards)
    sigma = _rows.standard_deviation(rows, centred)
    divisor = (_xp.stop_gradient(sigma) if detach_scale else sigma) + eps
    if _xp.name(xp) == "numpy" or (_xp.name(xp) == "torch" and not _xp.requires_grad(centred)):
        centred /= divisor  # nobody needs them again
    else:
        centred = centred / divisor
    total, gradient = sliced_gaussian(
        xp,
        centred,
        slices,
        rows.n,
        row_mask,
        need_grad=need_grad,
        chunk_size=chunk_size,
        projection_dtype=projection_dtype_for(xp, z, projection_dtype),
        execution=execution,
    )
    if gradient is None:
        return rows, sigma, _Shape(total, divisor)
    gradient = _rows.kept(xp, rows.keep, xp.reshape(gradient, z.shape))
    along = None if detach_scale else rows.sum(gradient * rows.centred())
    return rows, sigma, _Shape(total, divisor, gradient, along)


def _gradient(
    rows: _rows.Rows,
    sigma: Array,
    *,
    center: Scalar = 0.0,
    scale: Scalar = 0.0,
    on_shape: Scalar = 0.0,
    shape: _Shape | None = None,
    donated: bool = False,
) -> Array:
    """Gradient with respect to z of center · Σ_j μ_j² + scale · Σ_j (1 − σ_j)² + on_shape · s(z̃).

    With G = ds/dz̃, columns a, f and a row r it is G a + ẑ f + r, so that every pass over (N, D)
    beyond this sum is gone:

    - centre: dμ/dz_n = 1/N, a row;
    - scale: dσ/dz_n = ẑ_n / (N σ), a multiple of ẑ;
    - shape: z̃ = ẑ / divisor, whose centring takes nothing away, because the projections of centred
      rows and the quantiles both sum to 0, and so do G's columns; with the divisor σ + ε not held
      constant, the multiple of ẑ that σ brings.
    """
    xp = rows.xp
    per_deviation = _rows.safe_reciprocal(xp, sigma) / rows.n
    on_centred = (2 * scale) * (sigma - 1) * per_deviation
    on_all = (2 * center) * rows.mean() / rows.n
    if shape is not None:
        of_shape = on_shape / shape.divisor
        if shape.along is not None:
            on_centred = on_centred - of_shape / shape.divisor * shape.along * per_deviation
    # ẑ f + r = (ẑ + rest) f + (r − rest f): the centred rows are not made again
    on_all = on_all - rows.rest * on_centred
    if shape is None:
        return _rows.kept(xp, rows.keep, rows.shifted() * on_centred + on_all)
    if _xp.name(xp) == "numpy" and rows.keep is None:
        return _combined(rows, shape.gradient, of_shape, on_centred, on_all, donated)
    if _xp.name(xp) == "torch" and not _xp.requires_grad(shape.gradient):
        return _added(rows, times(shape.gradient, of_shape, donated), on_centred, on_all)
    gradient = shape.gradient * of_shape + (rows.shifted() * on_centred + on_all)
    return _rows.kept(xp, rows.keep, gradient)


def _added(rows: _rows.Rows, g: Array, f: Array, r: Array) -> Array:
    """g + (z − first) f + r on torch, in g's own memory and in blocks of rows."""
    xp, size = rows.xp, rows.z.shape[-2]
    block = max(1, _DEVICE_BLOCK_BYTES * size // (g.itemsize * math.prod(g.shape)))
    for start in range(0, size, block):
        n = slice(start, start + block)
        part = _xp.cast(xp, rows.z[..., n, :], g.dtype) - rows.first
        part *= f
        part += r
        own = g[..., n, :]
        own += _rows.kept(xp, None if rows.keep is None else rows.keep[n, :], part)
    return g


def _combined(
    rows: _rows.Rows, g: np.ndarray, a: np.ndarray, f: np.ndarray, r: np.ndarray, donated: bool
) -> np.ndarray:
    """G a + (z − first) f + r on NumPy, in blocks of rows: no array of z's size in between."""
    out = g if donated else np.empty_like(g)
    flat = [x.reshape(-1, *x.shape[-2:]) for x in (out, g, rows.z, a, f, r, rows.first)]
    block = max(1, _BLOCK_BYTES // (g.itemsize * g.shape[-1]))

    def work(items: Sequence[tuple[int, int]]) -> None:
        for b, start in items:
            n = slice(start, start + block)
            o, g_b, z_b, a_b, f_b, r_b, first = (x[b] for x in flat)
            shifted = z_b[n].astype(out.dtype) - first
            shifted *= f_b
            shifted += r_b
            np.multiply(g_b[n], a_b, out=o[n])
            o[n] += shifted

    starts = range(0, g.shape[-2], block)
    _tiles.spread(work, [(b, s) for b in range(len(flat[0])) for s in starts], g.nbytes)
    return out


# --- public losses -------------------------------------------------------------------------------


def _center_loss(
    z: Array,
    *,
    reduction: str = "mean",
    row_mask: Array | None = None,
    need_grad: bool,
    execution: Execution = PLAIN,
) -> tuple[Array, Callable[..., Array]]:
    xp = _xp.namespace(z, row_mask)
    _checks.embeddings("z", z)
    _checks.row_mask(row_mask, z)
    _checks.choice("reduction", reduction, REDUCTIONS)
    rows, _ = _rows.centre(xp, z, row_mask, execution.shards)

    def vjp(cotangent: Scalar) -> Array:
        size = math.prod(rows.mean().shape[: None if reduction == "mean" else -1])
        sigma = xp.zeros_like(rows.mean())
        return gradient_like(xp, _gradient(rows, sigma, center=cotangent / size), z)

    return center_from_mean(xp, rows.mean(), reduction), vjp


@differentiated_by(_center_loss)
def center_loss(z: Array, *, reduction: str = "mean", row_mask: Array | None = None) -> Array:
    """Mean over dimensions of the squared batch mean, mean_j μ_j².

    Parameters
    ----------
    z : array of shape (..., N, D)
        Embeddings; the loss is the mean over the leading axes.
    reduction : {"mean", "sum"}
        Over the dimensions: "mean" as in Algorithm 1, "sum" as in the paper's formula ‖μ‖².
    row_mask : boolean array of shape (N,), optional
        Rows to keep.

    Returns
    -------
    array of no axes
        float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit, N < 2 or an unknown reduction.
    TypeError
        For a dtype that is not floating.

    Notes
    -----
    Source: VISReg Algorithm 1, ``L_center``.

    Examples
    --------
    >>> import numpy as np
    >>> float(center_loss(np.array([[1.0, 2.0], [3.0, 2.0]])))
    4.0
    """
    return _center_loss(z, reduction=reduction, row_mask=row_mask, need_grad=False)[0]


def _scale_loss(
    z: Array,
    *,
    row_mask: Array | None = None,
    need_grad: bool,
    execution: Execution = PLAIN,
) -> tuple[Array, Callable[..., Array]]:
    xp = _xp.namespace(z, row_mask)
    _checks.embeddings("z", z)
    _checks.row_mask(row_mask, z)
    rows, centred = _rows.centre(xp, z, row_mask, execution.shards)
    sigma = _rows.standard_deviation(rows, centred)

    def vjp(cotangent: Scalar) -> Array:
        size = math.prod(sigma.shape)
        return gradient_like(xp, _gradient(rows, sigma, scale=cotangent / size), z)

    return scale_from_deviation(xp, sigma), vjp


@differentiated_by(_scale_loss)
def scale_loss(z: Array, *, row_mask: Array | None = None) -> Array:
    """Mean over dimensions of the squared distance of the standard deviation from 1.

    Parameters
    ----------
    z : array of shape (..., N, D)
        Embeddings; the loss is the mean over the leading axes.
    row_mask : boolean array of shape (N,), optional
        Rows to keep.

    Returns
    -------
    array of no axes
        mean_j (1 − σ_j)² with the biased σ; float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit or N < 2.
    TypeError
        For a dtype that is not floating.

    Notes
    -----
    Source: VISReg, "Scale Regularization" and Algorithm 1. As the embeddings collapse the norm of
    its gradient tends to 2/√(ND); at exactly constant columns the subgradient 0 is taken.

    Examples
    --------
    >>> import numpy as np
    >>> float(scale_loss(np.array([[3.0], [-3.0]])))
    4.0
    """
    return _scale_loss(z, row_mask=row_mask, need_grad=False)[0]


def _shape_loss(
    z: Array,
    slices: Array,
    *,
    detach_scale: bool = True,
    eps: float = EPS,
    reduction: str = "mean",
    row_mask: Array | None = None,
    chunk_size: int | None = None,
    projection_dtype: DType = None,
    need_grad: bool,
    execution: Execution = PLAIN,
) -> tuple[Array, Callable[..., Array]]:
    _checks.choice("reduction", reduction, REDUCTIONS)
    rows, sigma, shape = _shape_term(
        z,
        slices,
        row_mask,
        detach_scale=detach_scale,
        eps=eps,
        need_grad=need_grad,
        chunk_size=chunk_size,
        projection_dtype=projection_dtype,
        execution=execution,
    )
    samples = rows.n if reduction == "mean" else 1.0

    def vjp(cotangent: Scalar, *, donated: bool = False) -> Array:
        on_shape = cotangent / samples
        gradient = _gradient(rows, sigma, on_shape=on_shape, shape=shape, donated=donated)
        return gradient_like(rows.xp, gradient, z)

    return shape.total / samples, vjp


@differentiated_by(_shape_loss)
def shape_loss(
    z: Array,
    slices: Array,
    *,
    detach_scale: bool = True,
    eps: float = EPS,
    reduction: str = "mean",
    row_mask: Array | None = None,
    chunk_size: int | None = None,
    projection_dtype: DType = None,
) -> Array:
    """Sliced distance of the standardised embeddings from the standard Gaussian's quantiles.

    mean_{k,n} (sort(z̃ w_k)_n − q_n)² with z̃ = (z − μ) / (sg(σ) + ε) and q = `normal_quantiles`.

    Parameters
    ----------
    z : array of shape (..., N, D)
        Embeddings; the loss is the mean over the leading axes.
    slices : array of shape (D, K) or (..., D, K)
        Unit directions, from `random_slices`.
    detach_scale : bool
        Hold σ constant in the gradient (the paper's stop-gradient); False for the ablation.
    eps : float
        Added to σ.
    reduction : {"mean", "sum"}
        Over the samples of a slice: "mean" as in Algorithm 1, "sum" as in the paper's ‖·‖².
    row_mask : boolean array of shape (N,), optional
        Rows to keep.
    chunk_size : int, optional
        Slices projected at once; bounds memory and changes nothing else.
    projection_dtype : dtype, optional
        Dtype of the product ``z̃ @ slices``; float32, and float64 for float64 z, if not given.

    Returns
    -------
    array of no axes
        float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit, N < 2, unknown options, or slices that require a gradient.
    TypeError
        For dtypes that are not floating, or arrays of two libraries.

    Notes
    -----
    Source: VISReg, "Shape Regularization" and Algorithm 1. Ties take their targets in index
    order, so that collapsed embeddings have a gradient, and it is the same on every library.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core import random_slices
    >>> z = np.random.default_rng(0).standard_normal((512, 8))
    >>> bool(shape_loss(z, random_slices(8, 64)) < 0.05)
    True
    """
    return _shape_loss(
        z,
        slices,
        detach_scale=detach_scale,
        eps=eps,
        reduction=reduction,
        row_mask=row_mask,
        chunk_size=chunk_size,
        projection_dtype=projection_dtype,
        need_grad=False,
    )[0]


def _visreg_loss(
    z: Array,
    slices: Array,
    weights: tuple[Scalar, Scalar, Scalar] = (1, 1, 1),
    *,
    detach_scale: bool = True,
    eps: float = EPS,
    row_mask: Array | None = None,
    chunk_size: int | None = None,
    projection_dtype: DType = None,
    need_grad: bool,
    execution: Execution = PLAIN,
) -> tuple[VISRegTerms, Callable[..., Array]]:
    w_scale, w_shape, w_center = _checks.weights("weights", weights, VISRegTerms._fields[1:])
    rows, sigma, shape = _shape_term(
        z,
        slices,
        row_mask,
        detach_scale=detach_scale,
        eps=eps,
        need_grad=need_grad,
        chunk_size=chunk_size,
        projection_dtype=projection_dtype,
        execution=execution,
    )
    xp, shape_value = rows.xp, shape.total / rows.n
    scale, center = scale_from_deviation(xp, sigma), center_from_mean(xp, rows.mean())
    total = w_scale * scale + w_shape * shape_value + w_center * center

    def vjp(
        on_total: Scalar,
        on_scale: Scalar,
        on_shape: Scalar,
        on_center: Scalar,
        *,
        donated: bool = False,
    ) -> Array:
        size = math.prod(sigma.shape)
        gradient = _gradient(
            rows,
            sigma,
            center=(on_total * w_center + on_center) / size,
            scale=(on_total * w_scale + on_scale) / size,
            on_shape=(on_total * w_shape + on_shape) / rows.n,
            shape=shape,
            donated=donated,
        )
        return gradient_like(xp, gradient, z)

    return VISRegTerms(total, scale, shape_value, center), vjp


@differentiated_by(_visreg_loss)
def visreg_loss(
    z: Array,
    slices: Array,
    weights: tuple[Scalar, Scalar, Scalar] = (1, 1, 1),
    *,
    detach_scale: bool = True,
    eps: float = EPS,
    row_mask: Array | None = None,
    chunk_size: int | None = None,
    projection_dtype: DType = None,
) -> VISRegTerms:
    """VISReg's regulariser: λ_scale · scale + λ_shape · shape + λ_center · center.

    Parameters
    ----------
    z : array of shape (..., N, D)
        Embeddings; the loss is the mean over the leading axes (views).
    slices : array of shape (D, K) or (..., D, K)
        Unit directions, from `random_slices`.
    weights : three numbers
        λ_scale, λ_shape, λ_center.
    detach_scale, eps, row_mask, chunk_size, projection_dtype
        As in `shape_loss`.

    Returns
    -------
    VISRegTerms
        ``total, scale, shape, center``: arrays of no axes, float64 for float64 embeddings, else
        float32.

    Raises
    ------
    ValueError
        For shapes that do not fit, N < 2, or slices that require a gradient.
    TypeError
        For dtypes that are not floating, or arrays of two libraries.

    Notes
    -----
    Source: VISReg Proposition 3 and Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core import random_slices
    >>> z = np.random.default_rng(0).standard_normal((2, 256, 8))
    >>> terms = visreg_loss(z, random_slices(8, 64))
    >>> bool(abs(terms.total - (terms.scale + terms.shape + terms.center)) < 1e-12)
    True
    """
    return _visreg_loss(
        z,
        slices,
        weights,
        detach_scale=detach_scale,
        eps=eps,
        row_mask=row_mask,
        chunk_size=chunk_size,
        projection_dtype=projection_dtype,
        need_grad=False,
    )[0]
