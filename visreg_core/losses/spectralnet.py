"""SpectralNet: the Laplacian's quadratic form and its orthogonality constraint."""

from __future__ import annotations

import math
from collections.abc import Callable

from visreg_core import _checks, _xp
from visreg_core._typing import Array, Scalar
from visreg_core.losses import _rows
from visreg_core.losses._differentiable import differentiated_by, gradient_like
from visreg_core.slices import orthonormal_columns


def _spectralnet_loss(
    y: Array, affinity: Array, *, need_grad: bool
) -> tuple[Array, Callable[..., Array]]:
    xp = _xp.namespace(y, affinity)
    _checks.embeddings("y", y)
    _checks.floating("affinity", affinity)
    size = y.shape[-2]
    if tuple(affinity.shape[-2:]) != (size, size) or affinity.ndim > y.ndim:
        raise ValueError(
            f"expected affinity of shape ({size}, {size}) beside y of shape {tuple(y.shape)}; "
            f"found {tuple(affinity.shape)}"
        )
    # Differences do not see the mean; without it the quadratic form does not cancel.
    _, centred = _rows.centre(xp, y, None)
    weights = _xp.cast(xp, affinity, centred.dtype)
    symmetric = weights + xp.matrix_transpose(weights)
    degrees = xp.sum(symmetric, axis=-1)[..., None]
    laplacian = degrees * centred - symmetric @ centred
    scale = 1 / (math.prod(y.shape[:-2]) * size * size)

    def vjp(cotangent: Scalar) -> Array:
        return gradient_like(xp, laplacian * (cotangent * (2 * scale)), y)

    return xp.sum(centred * laplacian) * scale, vjp


@differentiated_by(_spectralnet_loss)
def spectralnet_loss(y: Array, affinity: Array) -> Array:
    """SpectralNet's loss (1/N²) Σ_ij W_ij ‖y_i − y_j‖².

    Parameters
    ----------
    y : array of shape (..., N, D)
        Embeddings, as a rule after `orthonormalize`; the loss is the mean over the leading axes.
    affinity : array of shape (N, N)
        Non-negative weights W, symmetric or not. A constant in the analytic gradient.

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
    Source: SAG-VICReg eq. 1 (Shaham et al. 2018). Under YᵀY = N I its minimiser spans the lowest
    eigenvectors of the Laplacian of (W + Wᵀ)/2.

    Examples
    --------
    >>> import numpy as np
    >>> float(spectralnet_loss(np.array([[0.0], [2.0]]), np.ones((2, 2))))
    2.0
    """
    return _spectralnet_loss(y, affinity, need_grad=False)[0]


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
