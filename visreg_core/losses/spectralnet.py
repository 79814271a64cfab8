"""SpectralNet: the Laplacian's quadratic form and its orthogonality constraint."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core._xp import tiles
from visreg_core.losses import rows as _rows
from visreg_core.losses.declaration import Example, Inputs, declare_loss, times
from visreg_core.losses.execution import Execution
from visreg_core.losses.sliced import flat_batch
from visreg_core.slices import orthonormal_columns
from visreg_core.typing import Array, Scalar


class SpectralNetSaved(NamedTuple):
    """What the loss saves.

    gradient : Σ_j (W_ij + W_ji)(y_i − y_j), (..., N, D); scale : 1 / (B N²) of the kept rows, () or
    None.
    """

    gradient: Array | None
    scale: Array | None


def _magnitude(y: np.ndarray, affinity: np.ndarray) -> tuple[float, ...]:
    """(1/N²) Σ_ij W_ij ‖|y_i| + |y_j|‖²."""
    y = np.abs(y)
    squares = np.sum(y * y, axis=1)
    pairs = squares[:, None] + squares[None, :] + 2 * y @ y.T
    return (float(np.sum(affinity * pairs)) / y.shape[0] ** 2,)


@declare_loss(
    differentiated=("y",),
    row_axes={"y": -2, "row_mask": -1},
    constants=("affinity",),
    saved=SpectralNetSaved,
    sharded=False,
    magnitude=_magnitude,
    examples=(Example(arrays={"y": "z"}),),
)
def spectralnet_loss(
    execution: Execution, y: Array, affinity: Array, *, row_mask: Array | None = None
) -> tuple[Array, SpectralNetSaved]:
    """SpectralNet's loss (1/N²) Σ_ij W_ij ‖y_i − y_j‖².

    Parameters
    ----------
    y : array of shape (..., N, D)
        Embeddings, as a rule after `orthonormalize`; the loss is the mean over the leading axes.
    affinity : array of shape (N, N)
        Non-negative weights W, symmetric or not. A constant in the analytic gradient.
    row_mask : boolean array of shape (N,), optional
        Rows to keep, with their rows and columns of W.

    Returns
    -------
    0-d array
        float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit or N < 2.
    TypeError
        For dtypes that are not floating, or arrays of two libraries.

    Notes
    -----
    Source: SAG-VICReg eq. 1 (Shaham et al. 2018). It is summed over differences, in O(N² D) steps
    and without N² D memory, so that it keeps its digits where the rows that W joins meet. Under
    YᵀY = N I its minimiser spans the lowest eigenvectors of the Laplacian of (W + Wᵀ)/2.

    Examples
    --------
    >>> import numpy as np
    >>> float(spectralnet_loss(np.array([[0.0], [2.0]]), np.ones((2, 2))))
    2.0
    """
    xp = _xp.namespace(y, affinity, row_mask)
    checks.embeddings("y", y)
    checks.floating("affinity", affinity)
    checks.row_mask(row_mask, y)
    size = y.shape[-2]
    if tuple(affinity.shape) != (size, size):
        raise ValueError(
            f"expected affinity of shape ({size}, {size}) for y of shape {tuple(y.shape)}; "
            f"found {tuple(affinity.shape)}"
        )
    dtype = _xp.compute_dtype(xp, y)
    keep = _rows.keep_column(row_mask)
    n = _rows.count(xp, y, row_mask)
    wide = _rows.kept(xp, keep, _xp.cast(xp, flat_batch(xp, y), dtype))
    weights = _rows.kept(xp, keep, _xp.cast(xp, affinity, dtype))
    weights = _rows.kept(xp, row_mask, weights)[None, :, :, None]
    symmetric = weights + xp.permute_dims(weights, (0, 2, 1, 3))

    def body(columns: Array) -> tuple[list[Array], list[Array]]:
        # Differences, not degrees less affinities: where the rows that W joins are close to each
        # other, which is what the loss is for, those would cancel to nothing.
        difference = columns[:, :, None, :] - columns[:, None, :, :]
        square = xp.sum(weights * difference * difference, axis=2)
        square = xp.sum(square, axis=1)  # rows first: two short sums round less than a long one
        if not execution.need_gradient:
            return [square], []
        return [square, xp.sum(symmetric * difference, axis=2)], []

    chunk = tiles.default_chunk(xp, math.prod(wide.shape[:2]) * size * 8)
    found, _ = _xp.accumulate(xp, body, wide, min(chunk, y.shape[-1]))
    scale = 1 / (wide.shape[0] * n * n)
    gradient = xp.reshape(found[1], y.shape) if execution.need_gradient else None
    saved = SpectralNetSaved(gradient, None if row_mask is None else scale)
    return xp.sum(found[0]) * scale, saved


@spectralnet_loss.backward
def _backward(
    execution: Execution, inputs: Inputs, saved: SpectralNetSaved, cotangent: Scalar
) -> Array:
    y, scale = inputs["y"], saved.scale
    if scale is None:
        scale = 1 / (math.prod(y.shape[:-2]) * y.shape[-2] ** 2)
    return times(saved.gradient, 2 * scale * cotangent, execution.donated)


def orthonormalize(y: Array) -> Array:
    """The matrix with y's column space whose columns are orthogonal: YᵀY = N I.

    Parameters
    ----------
    y : array of shape (..., N, D)
        Embeddings with N >= D.

    Returns
    -------
    array of shape (..., N, D)
        √N times Q of the QR factorisation with positive diagonal of R, which is what SpectralNet's
        Cholesky layer computes; in y's dtype, computed in float32 or wider.

    Raises
    ------
    ValueError
        Where N < D.
    TypeError
        For a dtype that is not floating.

    Notes
    -----
    Source: SAG-VICReg eq. 2 (Shaham et al. 2018, the orthogonalisation layer).

    Examples
    --------
    >>> import numpy as np
    >>> y = orthonormalize(np.random.default_rng(0).standard_normal((10, 3)))
    >>> bool(np.allclose(y.T @ y, 10 * np.eye(3)))
    True
    """
    xp = _xp.namespace(y)
    checks.plain("y", y)
    checks.embeddings("y", y)
    if y.shape[-2] < y.shape[-1]:
        raise ValueError(f"expected y with N >= D; found shape {tuple(y.shape)}")
    wide = _xp.cast(xp, y, _xp.compute_dtype(xp, y))
    q = orthonormal_columns(xp, wide)
    return _xp.cast(xp, q * math.sqrt(y.shape[-2]), y.dtype)
