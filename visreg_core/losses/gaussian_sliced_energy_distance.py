"""Sliced energy distance of one sample to the standard Gaussian."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from visreg_core import _xp
from visreg_core.losses.declaration import Inputs, declare_loss
from visreg_core.losses.execution import Execution
from visreg_core.losses.sliced_statistic import gradient_of_mean, mean_of_sorting
from visreg_core.typing import Array, DType, Namespace, Scalar


class EnergySaved(NamedTuple):
    """gradient : of the mean over slices, (..., N, D)."""

    gradient: Array | None


def energy_term(
    xp: Namespace, p: Array, n: Scalar, row_mask: Array | None, need_gradient: bool
) -> tuple[Array, ...]:
    """2 E|p − X| − E|X − X'| − mean |p_i − p_j| of each row of p (R, N), and its gradient.

    With c_i = (2i − n − 1)/n the last term is (2/n) Σ_i c_i p_(i), a sum over the sorted row.
    """
    i = xp.arange(1, p.shape[-1] + 1, dtype=p.dtype, **_xp.on_device(p))
    ranked = p
    if row_mask is not None:  # masked samples sort behind the others
        keep = row_mask[None, :]
        ranked = xp.where(keep, p, xp.inf * xp.ones_like(p))
    c = _xp.targets_by_rank(xp, _xp.stop_gradient(ranked), (2 * i - n - 1) / n)
    normal_cdf = _xp.erf(xp, p * math.sqrt(0.5))  # 2 Φ(p) − 1
    density = math.sqrt(2 / math.pi) * xp.exp(-0.5 * p * p)  # 2 φ(p)
    each = p * (normal_cdf - c) + density
    slope = normal_cdf - c
    if row_mask is not None:
        each, slope = (xp.where(keep, x, xp.zeros_like(x)) for x in (each, slope))
    value = (2 / n) * xp.sum(each, axis=-1) - 2 / math.sqrt(math.pi)
    return (value, (2 / n) * slope) if need_gradient else (value,)


def _magnitude(z: np.ndarray, slices: np.ndarray) -> tuple[float, ...]:
    """The three terms added, with |p_i − X| and |p_i − p_j| bounded by sums of |p| and |X|."""
    size = float(np.mean(np.abs(z @ slices)))
    return (4 * size + 2 * math.sqrt(2 / math.pi) + 2 / math.sqrt(math.pi),)


@declare_loss(
    differentiated=("z",),
    row_axes={"z": -2, "row_mask": -1},
    shape_only=("slices",),
    saved=EnergySaved,
    sorts=True,
    magnitude=_magnitude,
)
def gaussian_sliced_energy_distance(
    execution: Execution,
    z: Array,
    slices: Array,
    *,
    row_mask: Array | None = None,
    chunk_size: int | None = None,
    projection_dtype: DType = None,
) -> tuple[Array, EnergySaved]:
    """Squared sliced energy distance to the standard Gaussian.

    mean_k 2 E|p − X| − E|X − X'| − mean_ij |p_i − p_j| of the projections p = z w_k, with X, X'
    standard normal. It is 0 for the Gaussian alone and its gradient is bounded.

    Parameters
    ----------
    z : array of shape (..., N, D)
        Embeddings; the loss is the mean over the leading axes.
    slices : array of shape (D, K) or (..., D, K)
        Unit directions, from `random_slices`.
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
    Source: Székely & Rizzo 2013, the energy distance, with E|p − X| = p (2Φ(p) − 1) + 2φ(p) and
    E|X − X'| = 2/√π; the mean over pairs includes i = j, so that it is the distance of the
    empirical measure. The pairs are summed by sorting.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core import random_slices
    >>> z = np.random.default_rng(0).standard_normal((256, 16))
    >>> bool(gaussian_sliced_energy_distance(z, random_slices(16, 64)) < 0.01)
    True
    """
    value, gradient = mean_of_sorting(
        execution,
        energy_term,
        z,
        slices,
        row_mask,
        chunk_size=chunk_size,
        projection_dtype=projection_dtype,
    )
    return value, EnergySaved(gradient)


@gaussian_sliced_energy_distance.backward
def _backward(execution: Execution, inputs: Inputs, saved: EnergySaved, cotangent: Scalar) -> Array:
    return gradient_of_mean(execution, inputs, saved.gradient, cotangent)
