"""SpectralNet: the Laplacian's quadratic form and its orthogonality constraint."""

from __future__ import annotations

import math
from collections.abc import Callable

from visreg_core import _checks, _tiles, _xp
from visreg_core._typing import Array, Scalar
from visreg_core.losses import _rows
from visreg_core.losses._differentiable import differentiated_by, gradient_like
from visreg_core.losses._sliced import flat_batch
from visreg_core.slices import orthonormal_columns


def _spectralnet_loss(
    y: Array, affinity: Array, *, row_mask: Array | None = None, need_grad: bool
) -> tuple[Array, Callable[..., Array]]:
    xp = _xp.namespace(y, affinity, row_mask)
    _checks.embeddings("y", y)
    _checks.floating("affinity", affinity)
    _checks.row_mask(row_mask, y)
    size = y.shape[-2]
    if tuple(affinity.shape) != (size, size):
        raise ValueError(
            f"expected affinity of shape ({size}, {size}) beside y of shape {tuple(y.shape)}; "
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
        if not need_grad:
            return [square], []
        return [square, xp.sum(symmetric * difference, axis=2)], []

    chunk = _tiles.default_chunk(xp, math.prod(wide.shape[:2]) * size * 8)
    found, _ = _xp.accumulate(xp, body, wide, min(chunk, y.shape[-1]))
    scale = 1 / (wide.shape[0] * n * n)

    def vjp(cotangent: Scalar) -> Array:
        return gradient_like(xp, found[1] * (2 * scale * cotangent), y)

    return xp.sum(found[0]) * scale, vjp


@differentiated_by(_spectralnet_loss)
def spectralnet_loss(y: Array, affinity: Array, *, row_mask: Array | None = None) -> Array:
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
    array of no axes
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
    return _spectralnet_loss(y, affinity, row_mask=row_mask, need_grad=False)[0]


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
    _checks.embeddings("y", y)
    if y.shape[-2] < y.shape[-1]:
        raise ValueError(f"expected y with N >= D; found shape {tuple(y.shape)}")
    wide = _xp.cast(xp, y, _xp.compute_dtype(xp, y))
    q = orthonormal_columns(xp, wide)
    return _xp.cast(xp, q * math.sqrt(y.shape[-2]), y.dtype)
