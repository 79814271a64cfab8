"""Weak SIGReg: the covariance of sketched embeddings to that of a sketched standard Gaussian."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core.losses import rows as _rows
from visreg_core.losses.declaration import Inputs, declare_loss
from visreg_core.losses.execution import Execution
from visreg_core.typing import Array, Scalar


class WeakSIGRegSaved(NamedTuple):
    """What the loss saves.

    first, rest : the mean in two parts, (..., 1, D); error : Sᵀ(C − I)S, (..., K, K); n : number of
    kept rows, () or None.
    """

    first: Array
    rest: Array
    error: Array
    n: Array | None


def _magnitude(z: np.ndarray, slices: np.ndarray) -> tuple[float, ...]:
    """mean_kl (|w_k|ᵀ (|C| + I) |w_l|)², with C of the absolute values of centred rows."""
    centred, w = np.abs(z - z.mean(axis=0)) @ np.abs(slices), np.abs(slices)
    return (float(np.mean((centred.T @ centred / z.shape[0] + w.T @ w) ** 2)),)


@declare_loss(
    differentiated=("z",),
    row_axes={"z": -2, "row_mask": -1},
    saved=WeakSIGRegSaved,
    magnitude=_magnitude,
)
def weak_sigreg_loss(
    execution: Execution, z: Array, slices: Array, *, row_mask: Array | None = None
) -> tuple[Array, WeakSIGRegSaved]:
    """Weak SIGReg: mean over pairs of slices of (w_kᵀ (C − I) w_l)², C the biased covariance.

    Parameters
    ----------
    z : array of shape (..., N, D)
        Embeddings; the loss is the mean over the leading axes.
    slices : array of shape (D, K) or (..., D, K)
        Unit directions, from `random_slices`: the sketch.
    row_mask : boolean array of shape (N,), optional
        Rows to keep.

    Returns
    -------
    0-d array
        float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit, N < 2, or slices that require a gradient.
    TypeError
        For dtypes that are not floating, or arrays of two libraries.

    Notes
    -----
    Source: Weak-SIGReg (Akbar 2026), which asks for the second moments alone, of a sketch, to be
    those of the Gaussian. The target is SᵀS, what the sketch makes of I: only of orthogonal slices
    is it I. The mean is left free. O(N D K) steps and no D × D array.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core import random_slices
    >>> z = np.random.default_rng(0).standard_normal((1000, 16))
    >>> w = random_slices(16, 8)
    >>> bool(weak_sigreg_loss(z + 3, w) < 0.01 < weak_sigreg_loss(2 * z, w))
    True
    """
    xp, shards = _xp.namespace(z, slices, row_mask), execution.shards
    checks.embeddings("z", z)
    checks.slices(slices, z)
    checks.row_mask(row_mask, z)
    rows, centred = _rows.centre(xp, z, row_mask, shards)
    w = _xp.of_rank(xp, _xp.cast(xp, slices, centred.dtype), z.ndim)
    p = xp.matmul(centred, w)
    moments = shards.sum(xp.matmul(xp.matrix_transpose(p), p))
    error = moments / rows.n - xp.matmul(xp.matrix_transpose(w), w)
    saved = WeakSIGRegSaved(rows.first, rows.rest, error, rows.masked_n())
    return _rows.mean_of(xp, error * error), saved


@weak_sigreg_loss.backward
def _backward(
    execution: Execution, inputs: Inputs, saved: WeakSIGRegSaved, cotangent: Scalar
) -> Array:
    z, xp = inputs["z"], _xp.namespace(inputs["z"])
    rows = _rows.again(
        xp, z, inputs["row_mask"], execution.shards, saved.first, saved.rest, saved.n
    )
    centred = rows.centred()
    w = _xp.of_rank(xp, _xp.cast(xp, inputs["slices"], centred.dtype), z.ndim)
    pull = xp.matmul(saved.error, xp.matrix_transpose(w))
    share = 4 * cotangent / (rows.n * math.prod(z.shape[:-2]) * w.shape[-1] ** 2)
    return share * xp.matmul(xp.matmul(centred, w), pull)
