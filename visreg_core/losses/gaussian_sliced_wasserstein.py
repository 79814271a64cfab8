"""Sliced Wasserstein distance of one sample to the standard Gaussian."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core.gaussian import masked_normal_quantiles, normal_quantiles
from visreg_core.losses import rows as _rows
from visreg_core.losses.declaration import Example, Inputs, declare_loss, times
from visreg_core.losses.execution import Execution
from visreg_core.losses.sliced import (
    flat_batch,
    flat_slices,
    projection_dtype_for,
    sliced_sorting,
)
from visreg_core.typing import Array, DType, Namespace, Scalar

REDUCTIONS = ("mean", "sum")


class SlicedGaussianSaved(NamedTuple):
    """What the forward pass saves.

    gradient : of the mean over slices of Σ_n (sort(z w)_n − q_n)², (..., N, D); n : kept rows, ()
    or None.
    """

    gradient: Array | None
    n: Array | None


def quantiles_like(xp: Namespace, size: int, z: Array, n: Scalar, masked: bool) -> Array:
    """Gaussian quantiles for `size` rows, of which `n` are kept, in z's dtype and on its device."""
    if not masked:
        return normal_quantiles(size, xp=xp, dtype=z.dtype, device=_xp.on_device(z).get("device"))
    return masked_normal_quantiles(xp, size, n, dtype=z.dtype)


def gaussian_term(
    xp: Namespace,
    p: Array,
    q: Array,
    row_mask: Array | None,
    need_grad: bool,
    slope: float = 2.0,
) -> tuple[Array, ...]:
    """Σ_n (sort(p)_n − q_n)² of each row of p (R, N) and, if needed, slope / 2 times its gradient.

    Masked samples sort behind the kept ones, whose quantiles come first in `q`.
    """
    if row_mask is not None:
        row_mask = row_mask[None, :]
        kept = xp.where(row_mask, p, xp.zeros_like(p))
        p = xp.where(row_mask, p, xp.inf * xp.ones_like(p))
    if not need_grad:
        ordered = _xp.sorted_values(xp, p)
        if row_mask is not None:
            rank = xp.arange(p.shape[-1], **_xp.on_device(p))
            inside = rank < xp.sum(xp.astype(row_mask, rank.dtype))
            ordered = xp.where(inside[None, :], ordered, xp.zeros_like(ordered))
            # A NaN among the kept samples sorts behind the masked ones, but must reach the value.
            ordered = ordered + 0 * xp.sum(kept, axis=-1, keepdims=True)
        difference = ordered - q[None, :]
        return (xp.sum(difference * difference, axis=-1),)
    targets = _xp.targets_by_rank(xp, p, q)
    if row_mask is not None:
        p = xp.where(row_mask, p, targets)
    difference = p - targets
    return xp.sum(difference * difference, axis=-1), slope * difference


def sliced_gaussian(
    xp: Namespace,
    z: Array,
    slices: Array,
    n: Scalar,
    row_mask: Array | None,
    execution: Execution,
    *,
    chunk_size: int | None,
    projection_dtype: DType,
) -> tuple[Array, Array | None]:
    """Mean over batch and slices of Σ_n (sort(z w)_n − q_n)², and its gradient (B, N, D)."""
    shards = execution.shards
    quantiles = execution.kernels.get("quantiles", quantiles_like)
    q = quantiles(xp, z.shape[-2] * shards.size, z, n, row_mask is not None)
    mask = None if row_mask is None else shards.gather(row_mask, axis=0)
    size = math.prod(z.shape[:-2]) * slices.shape[-1]
    row_term = execution.kernels.get("gaussian_term", gaussian_term)
    values, gradient = sliced_sorting(
        xp,
        flat_batch(xp, z),
        flat_slices(xp, slices, z),
        lambda gradients, p: row_term(xp, p, q, mask, gradients, 2 / size),
        execution,
        chunk_size=chunk_size,
        projection_dtype=projection_dtype,
    )
    return _rows.mean_of(xp, values), gradient


def distance_to_quantiles(
    z: np.ndarray, slices: np.ndarray, *, reduction: str = "mean"
) -> tuple[float, ...]:
    """The magnitude mean_{k,n} (|p_nk| + |q_n|)² of sorted projections p."""
    p = np.sort(z @ slices, axis=0)
    squares = (np.abs(p) + np.abs(normal_quantiles(z.shape[0]))[:, None]) ** 2
    return (float(np.mean(squares)) * (z.shape[0] if reduction == "sum" else 1),)


@declare_loss(
    differentiated=("z",),
    row_axes={"z": -2, "row_mask": -1},
    shape_only=("slices",),
    saved=SlicedGaussianSaved,
    sorts=True,
    magnitude=distance_to_quantiles,
    examples=(Example(), Example("equal keys", inputs="ties", differentiable=False)),
)
def gaussian_sliced_wasserstein(
    execution: Execution,
    z: Array,
    slices: Array,
    *,
    reduction: str = "mean",
    row_mask: Array | None = None,
    chunk_size: int | None = None,
    projection_dtype: DType = None,
) -> tuple[Array, SlicedGaussianSaved]:
    """Squared sliced 2-Wasserstein distance to the standard Gaussian, on its quantiles.

    mean_{k,n} (sort(z w_k)_n − q_n)²: `shape_loss` without centring or normalising.

    Parameters
    ----------
    z : array of shape (..., N, D)
        Embeddings; the loss is the mean over the leading axes.
    slices : array of shape (D, K) or (..., D, K)
        Unit directions, from `random_slices`.
    reduction : {"mean", "sum"}
        Over the samples of a slice.
    row_mask, chunk_size, projection_dtype
        As in `shape_loss`.

    Returns
    -------
    0-d array
        float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError, TypeError
        As `shape_loss`.

    Notes
    -----
    Source: VISReg, the baseline "SWD"; Lemma 2 with p = 2.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core import random_slices
    >>> z = np.random.default_rng(0).standard_normal((256, 16))
    >>> bool(gaussian_sliced_wasserstein(z, random_slices(16, 64)) < 0.1)
    True
    """
    xp = _xp.namespace(z, slices, row_mask)
    checks.embeddings("z", z)
    checks.slices(slices, z)
    checks.row_mask(row_mask, z)
    checks.choice("reduction", reduction, REDUCTIONS)
    n = _rows.count(xp, z, row_mask, execution.shards)
    wide = _xp.cast(xp, z, _xp.compute_dtype(xp, z))
    value, gradient = sliced_gaussian(
        xp,
        _rows.kept(xp, _rows.keep_column(row_mask), wide),
        slices,
        n,
        row_mask,
        execution,
        chunk_size=chunk_size,
        projection_dtype=projection_dtype_for(xp, z, projection_dtype),
    )
    if gradient is not None:
        gradient = xp.reshape(gradient, z.shape)
    saved = SlicedGaussianSaved(gradient, None if row_mask is None else n)
    return (value / n if reduction == "mean" else value), saved


@gaussian_sliced_wasserstein.backward
def _backward(
    execution: Execution, inputs: Inputs, saved: SlicedGaussianSaved, cotangent: Scalar
) -> Array:
    if inputs["reduction"] == "mean":
        size = inputs["z"].shape[-2] * execution.shards.size
        cotangent = cotangent / (size if saved.n is None else saved.n)
    return times(saved.gradient, cotangent, execution.donated)
