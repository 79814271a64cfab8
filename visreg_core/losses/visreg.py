"""VISReg: centre, scale and shape of the embeddings, and their sum."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core.losses import rows as _rows
from visreg_core.losses.declaration import Example, Inputs, declare_loss, times
from visreg_core.losses.execution import Execution
from visreg_core.losses.gaussian_sliced_wasserstein import (
    REDUCTIONS,
    distance_to_quantiles,
    sliced_gaussian,
)
from visreg_core.losses.sliced import projection_dtype_for
from visreg_core.typing import Array, DType, Namespace, Scalar

EPS = 1e-6


class VISRegTerms(NamedTuple):
    """Terms of `visreg_loss`; `total` is their weighted sum, the others are not weighted."""

    total: Array
    scale: Array
    shape: Array
    center: Array


class VISRegSaved(NamedTuple):
    """What the losses of this module save for their gradient.

    first, rest : the batch mean in two parts, (..., 1, D); n : number of kept rows, () or None;
    sigma : standard deviations (..., 1, D); gradient : G = ds/dz̃ (..., N, D) of the shape term
    s = Σ_n (sort(z̃ w)_n − q_n)²; along : Σ_n G ẑ, (..., 1, D), where σ is not held constant.
    """

    first: Array
    rest: Array
    n: Array | None
    sigma: Array | None = None
    gradient: Array | None = None
    along: Array | None = None


# --- the terms, from moments ----------------------------------------------------------------------


def center_from_mean(xp: Namespace, mean: Array, reduction: str = "mean") -> Array:
    """Centre loss of a batch mean (..., 1, D)."""
    return _rows.mean_of(xp, mean * mean) * (1 if reduction == "mean" else mean.shape[-1])


def scale_from_deviation(xp: Namespace, sigma: Array) -> Array:
    """Scale loss of biased standard deviations (..., 1, D)."""
    return _rows.mean_of(xp, (1 - sigma) * (1 - sigma))


def _shape_term(
    execution: Execution,
    z: Array,
    slices: Array,
    row_mask: Array | None,
    *,
    detach_scale: bool,
    eps: float,
    chunk_size: int | None,
    projection_dtype: DType,
) -> tuple[_rows.Rows, Array, VISRegSaved]:
    """The rows of z, the mean of s over batch and slices, and what is saved."""
    xp = _xp.namespace(z, slices, row_mask)
    checks.embeddings("z", z)
    checks.slices(slices, z)
    checks.row_mask(row_mask, z)
    checks.flag("detach_scale", detach_scale)
    checks.positive("eps", eps)
    moments = execution.kernels.get("moments", _rows.moments)
    ((rows, centred, sigma),) = moments(xp, [z], row_mask, execution.shards)
    divisor = (_xp.stop_gradient(sigma) if detach_scale else sigma) + eps
    total, gradient = sliced_gaussian(
        xp,
        execution.kernels.get("divide", _divide)(centred, divisor),
        slices,
        rows.n,
        row_mask,
        execution,
        chunk_size=chunk_size,
        projection_dtype=projection_dtype_for(xp, z, projection_dtype),
    )
    along = None
    if gradient is not None:
        gradient = _rows.kept(xp, rows.keep, xp.reshape(gradient, z.shape))
        if not detach_scale:
            along = rows.sum(gradient * rows.centred())
    saved = VISRegSaved(rows.first, rows.rest, rows.masked_n(), sigma, gradient, along)
    return rows, total, saved


def _divide(x: Array, divisor: Array) -> Array:
    """The quotient; a kernel may overwrite x, which is not needed again."""
    return x / divisor


def _gradient(
    execution: Execution,
    inputs: Inputs,
    saved: VISRegSaved,
    *,
    center: Scalar = 0.0,
    scale: Scalar = 0.0,
    shape: Scalar = 0.0,
) -> Array:
    """Gradient with respect to z of center · Σ_j μ_j² + scale · Σ_j (1 − σ_j)² + shape · s(z̃).

    With G = ds/dz̃ it is G a + ẑ f + r for rows a, f and r (..., 1, D), so that one pass over (N, D)
    suffices:

    - centre: dμ/dz_n = 1/N, a row;
    - scale: dσ/dz_n = ẑ_n / (N σ), a multiple of ẑ;
    - shape: z̃ = ẑ / divisor. Centring changes nothing, because the projections of centred rows and
      the quantiles both sum to 0, and so do G's columns. Where the divisor σ + ε is not held
      constant, σ adds a multiple of ẑ.
    """
    z, row_mask = inputs["z"], inputs["row_mask"]
    xp = _xp.namespace(z)
    rows = _rows.again(xp, z, row_mask, execution.shards, saved.first, saved.rest, saved.n)
    constant = (2 * center) * rows.mean() / rows.n
    if saved.sigma is None:
        return _rows.kept(xp, rows.keep, xp.zeros_like(rows.shifted()) + constant)
    per_deviation = _rows.safe_reciprocal(xp, saved.sigma) / rows.n
    on_centred = (2 * scale) * (saved.sigma - 1) * per_deviation
    on_shape = None
    if saved.gradient is not None:
        divisor = saved.sigma + inputs["eps"]
        on_shape = shape / divisor
        if saved.along is not None:
            on_centred = on_centred - on_shape / divisor * saved.along * per_deviation
    # ẑ f + r = (ẑ + rest) f + (r − rest f): no need to centre again
    constant = constant - rows.rest * on_centred
    combine = execution.kernels.get("combine", _combine)
    return combine(rows, saved.gradient, on_shape, on_centred, constant, execution.donated)


def _combine(
    rows: _rows.Rows, g: Array | None, a: Array | None, f: Array, r: Array, donated: bool
) -> Array:
    """g a + (z − first) f + r, with masked rows 0; in g's own memory where it is `donated`."""
    own = rows.shifted() * f + r
    return _rows.kept(rows.xp, rows.keep, own if g is None else times(g, a, donated) + own)


# --- public losses --------------------------------------------------------------------------------


@declare_loss(
    differentiated=("z",),
    row_axes={"z": -2, "row_mask": -1},
    saved=VISRegSaved,
    magnitude=lambda z, *, reduction="mean": (
        float(np.sum(np.mean(np.abs(z), axis=0) ** 2)) / (1 if reduction == "sum" else z.shape[1]),
    ),
)
def center_loss(
    execution: Execution,
    z: Array,
    *,
    reduction: str = "mean",
    row_mask: Array | None = None,
) -> tuple[Array, VISRegSaved]:
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
    0-d array
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
    xp = _xp.namespace(z, row_mask)
    checks.embeddings("z", z)
    checks.row_mask(row_mask, z)
    checks.choice("reduction", reduction, REDUCTIONS)
    rows, _ = _rows.centre(xp, z, row_mask, execution.shards)
    value = center_from_mean(xp, rows.mean(), reduction)
    return value, VISRegSaved(rows.first, rows.rest, rows.masked_n())


@center_loss.backward
def _center_backward(
    execution: Execution, inputs: Inputs, saved: VISRegSaved, cotangent: Scalar
) -> Array:
    size = math.prod(saved.first.shape[: None if inputs["reduction"] == "mean" else -1])
    return _gradient(execution, inputs, saved, center=cotangent / size)


@declare_loss(
    differentiated=("z",),
    row_axes={"z": -2, "row_mask": -1},
    saved=VISRegSaved,
    magnitude=lambda z: (float(np.mean((1 + z.std(axis=0)) ** 2)),),
)
def scale_loss(
    execution: Execution, z: Array, *, row_mask: Array | None = None
) -> tuple[Array, VISRegSaved]:
    """Mean over dimensions of the squared distance of the standard deviation from 1.

    Parameters
    ----------
    z : array of shape (..., N, D)
        Embeddings; the loss is the mean over the leading axes.
    row_mask
        As in `center_loss`.

    Returns
    -------
    0-d array
        mean_j (1 − σ_j)² with the biased σ; float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError, TypeError
        As `center_loss`.

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
    xp = _xp.namespace(z, row_mask)
    checks.embeddings("z", z)
    checks.row_mask(row_mask, z)
    moments = execution.kernels.get("moments", _rows.moments)
    ((rows, _, sigma),) = moments(xp, [z], row_mask, execution.shards)
    saved = VISRegSaved(rows.first, rows.rest, rows.masked_n(), sigma)
    return scale_from_deviation(xp, sigma), saved


@scale_loss.backward
def _scale_backward(
    execution: Execution, inputs: Inputs, saved: VISRegSaved, cotangent: Scalar
) -> Array:
    return _gradient(execution, inputs, saved, scale=cotangent / math.prod(saved.first.shape))


def _shape_magnitude(
    z: np.ndarray, slices: np.ndarray, *, reduction: str = "mean", eps: float = EPS, **_: bool
) -> tuple[float, ...]:
    standard = (z - z.mean(axis=0)) / (z.std(axis=0) + eps)
    return distance_to_quantiles(standard, slices, reduction=reduction)


# The default holds σ fixed in the gradient, which differences of the value do not.
_DETACHED = Example(differentiable=False)


@declare_loss(
    differentiated=("z",),
    row_axes={"z": -2, "row_mask": -1},
    shape_only=("slices",),
    saved=VISRegSaved,
    sorts=True,
    magnitude=_shape_magnitude,
    examples=(_DETACHED, Example("detach_scale=False", options={"detach_scale": False})),
)
def shape_loss(
    execution: Execution,
    z: Array,
    slices: Array,
    *,
    detach_scale: bool = True,
    eps: float = EPS,
    reduction: str = "mean",
    row_mask: Array | None = None,
    chunk_size: int | None = None,
    projection_dtype: DType = None,
) -> tuple[Array, VISRegSaved]:
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
        Added to σ; above 0, for columns without variance.
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
    0-d array
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
    checks.choice("reduction", reduction, REDUCTIONS)
    rows, total, saved = _shape_term(
        execution,
        z,
        slices,
        row_mask,
        detach_scale=detach_scale,
        eps=eps,
        chunk_size=chunk_size,
        projection_dtype=projection_dtype,
    )
    return (total / rows.n if reduction == "mean" else total), saved


@shape_loss.backward
def _shape_backward(
    execution: Execution, inputs: Inputs, saved: VISRegSaved, cotangent: Scalar
) -> Array:
    if inputs["reduction"] == "mean":
        cotangent = cotangent / _n(execution, inputs, saved)
    return _gradient(execution, inputs, saved, shape=cotangent)


def _n(execution: Execution, inputs: Inputs, saved: VISRegSaved) -> Scalar:
    z = inputs["z"]
    return saved.n if saved.n is not None else z.shape[-2] * execution.shards.size


def _visreg_magnitude(
    z: np.ndarray, slices: np.ndarray, *, weights: tuple[float, ...] = (1, 1, 1), **_: bool
) -> tuple[float, ...]:
    scale, center = (loss.declaration.magnitude for loss in (scale_loss, center_loss))
    assert scale is not None and center is not None
    terms = (*scale(z), *_shape_magnitude(z, slices), *center(z))
    return (sum(w * t for w, t in zip(weights, terms, strict=True)), *terms)


@declare_loss(
    differentiated=("z",),
    row_axes={"z": -2, "row_mask": -1},
    shape_only=("slices",),
    terms=VISRegTerms,
    saved=VISRegSaved,
    sorts=True,
    magnitude=_visreg_magnitude,
    examples=(
        _DETACHED,
        Example("detach_scale=False", options={"detach_scale": False, "weights": (0.5, 2.0, 3.0)}),
    ),
)
def visreg_loss(
    execution: Execution,
    z: Array,
    slices: Array,
    weights: tuple[Scalar, Scalar, Scalar] = (1, 1, 1),
    *,
    detach_scale: bool = True,
    eps: float = EPS,
    row_mask: Array | None = None,
    chunk_size: int | None = None,
    projection_dtype: DType = None,
) -> tuple[VISRegTerms, VISRegSaved]:
    """VISReg's regulariser: λ_scale · scale + λ_shape · shape + λ_center · center.

    Parameters
    ----------
    z : array of shape (..., N, D)
        Embeddings; the loss is the mean over the leading axes (views).
    slices : array of shape (D, K) or (..., D, K)
        Unit directions, from `random_slices`.
    weights : three numbers
        λ_scale, λ_shape, λ_center. A negative one rewards what its term punishes.
    detach_scale, eps, row_mask, chunk_size, projection_dtype
        As in `shape_loss`.

    Returns
    -------
    VISRegTerms
        ``total, scale, shape, center``: 0-d arrays, float64 for float64 embeddings, else
        float32.

    Raises
    ------
    ValueError, TypeError
        As `shape_loss`.

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
    w_scale, w_shape, w_center = checks.weights("weights", weights, VISRegTerms._fields[1:])
    rows, total_shape, saved = _shape_term(
        execution,
        z,
        slices,
        row_mask,
        detach_scale=detach_scale,
        eps=eps,
        chunk_size=chunk_size,
        projection_dtype=projection_dtype,
    )
    xp, shape = rows.xp, total_shape / rows.n
    scale, center = scale_from_deviation(xp, saved.sigma), center_from_mean(xp, rows.mean())
    total = w_scale * scale + w_shape * shape + w_center * center
    return VISRegTerms(total, scale, shape, center), saved


@visreg_loss.backward
def _visreg_backward(
    execution: Execution,
    inputs: Inputs,
    saved: VISRegSaved,
    on_total: Scalar,
    on_scale: Scalar,
    on_shape: Scalar,
    on_center: Scalar,
) -> Array:
    w_scale, w_shape, w_center = inputs["weights"]
    size = math.prod(saved.first.shape)
    return _gradient(
        execution,
        inputs,
        saved,
        center=(on_total * w_center + on_center) / size,
        scale=(on_total * w_scale + on_scale) / size,
        shape=(on_total * w_shape + on_shape) / _n(execution, inputs, saved),
    )
