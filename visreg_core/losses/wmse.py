"""W-MSE: the distance of views that are whitened by their own batch."""

from __future__ import annotations

import math

import numpy as np

from visreg_core import _xp, checks
from visreg_core.losses import rows as _rows
from visreg_core.losses.declaration import Example, declare_loss
from visreg_core.losses.execution import Execution
from visreg_core.losses.views import (
    VIEWS,
    StackSaved,
    check_views,
    of_stack,
    over_pairs,
    stack_backward,
)
from visreg_core.typing import Array


def _magnitude(a: np.ndarray, b: np.ndarray, **_: float) -> tuple[float, ...]:
    """(‖u‖ + ‖v‖)², whatever the rows."""
    return (4.0,)


@declare_loss(
    differentiated=("a", "b"),
    row_axes={"a": -2, "b": -2, "row_mask": -1},
    saved=StackSaved,
    magnitude=over_pairs(_magnitude),
    examples=(Example(), Example("N < D", inputs="wide"), VIEWS),
)
def wmse_loss(
    execution: Execution,
    a: Array,
    b: Array | None = None,
    *,
    eps: float = 1e-3,
    row_mask: Array | None = None,
) -> tuple[Array, StackSaved]:
    """W-MSE: mean over rows and pairs of views of ‖u − v‖², of whitened and normalised rows.

    A view is whitened by the Cholesky factor of its covariance, h = L⁻¹(z − μ) with LLᵀ = Σ, and
    u = h/‖h‖, so that a pair's distance is 2 − 2 cos.

    Parameters
    ----------
    a : array of shape (..., N, D), or (V, N, D) without `b`
        A view, or two or more of them.
    b : array of a's shape, optional
        The other view.
    eps : float
        Added to each diagonal entry of Σ, in units of that entry.
    row_mask : boolean array of shape (N,), optional
        Rows to keep.

    Returns
    -------
    0-d array
        float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit, N < 2, one view alone, or an eps that is not positive.
    TypeError
        For dtypes that are not floating, or arrays of two libraries.

    Notes
    -----
    Source: Ermolov, Siarohin, Sangineto & Sebe 2021, eqs. 4 to 6. ε is 0 there, where a batch
    of N ≤ D rows has no inverse; relative to the diagonal it leaves the loss independent of
    each column's scale. The paper whitens sub-batches of 2D rows and averages: call it on each.
    A row that whitening makes 0, as every row of a collapsed view, has cosine 0 with any other, and
    a constant column gradient 0. Σ and L are computed in float64 where the device has it. With
    several processes a D × D matrix is reduced, no rows are sent.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.random.default_rng(0).standard_normal((64, 8))
    >>> float(wmse_loss(a, 3 * a)) < 1e-12 < float(wmse_loss(a, a[::-1]))
    True
    """
    execution.namespace(a, b, row_mask)
    check_views(a, b)
    checks.row_mask(row_mask, a)
    checks.positive("eps", eps)
    return of_stack(execution, a, b, lambda z: _distance(execution, z, row_mask, eps))


wmse_loss.backward(stack_backward)


def _distance(
    execution: Execution, z: Array, row_mask: Array | None, eps: float
) -> tuple[Array, Array | None]:
    """Value and, if needed, gradient of views (V, ..., N, D)."""
    xp, shards, views = execution.namespace(z, row_mask), execution.shards, z.shape[0]
    rows, centred = _rows.centre(xp, z, row_mask, shards)
    constant = _xp.stop_gradient(rows.sum(xp.abs(centred))) == 0
    inverse_unit = xp.where(constant, xp.zeros_like(rows.unit), 1 / rows.unit)
    u = centred * inverse_unit
    eye = xp.eye(z.shape[-1], dtype=z.dtype, **_xp.on_device(z))
    eye = _xp.of_rank(xp, eye, z.ndim)
    inverse = _inverse_factor(rows, u, constant, eye, eps)
    h = xp.matmul(u, xp.matrix_transpose(inverse))
    over_norm = _rows.safe_reciprocal(
        xp, _rows.safe_root(xp, xp.sum(h * h, axis=-1, keepdims=True))
    )
    unit = h * over_norm
    # Σ_{i<j} ‖u_i − u_j‖² = V Σ_i ‖u_i − ū‖², and a row of zeros adds 1 to each of its pairs.
    apart = unit - xp.mean(unit, axis=0, keepdims=True)
    nothing = xp.astype(over_norm[..., 0] == 0, z.dtype)
    each = xp.sum(apart * apart, axis=-1) / (views - 1) + nothing / views
    each = _rows.kept(xp, row_mask, each)
    share = 2 / rows.n
    value = shards.sum(xp.sum(each)) * (share / math.prod(z.shape[1:-2]))
    if not execution.need_gradient:
        return value, None

    on_unit = apart * (2 * share / (views - 1))
    on_h = (on_unit - unit * xp.sum(unit * on_unit, axis=-1, keepdims=True)) * over_norm
    # dL = L Φ(L⁻¹ dΣ L⁻ᵀ), where Φ takes the lower triangle and half the diagonal.
    lower = xp.tril(shards.sum(xp.matmul(xp.matrix_transpose(on_h), h)), k=-1)
    diagonal = shards.sum(_xp.sum_rows(xp, on_h * h)) * eye
    symmetric = lower + xp.matrix_transpose(lower) + diagonal
    on_sigma = xp.matmul(xp.matmul(xp.matrix_transpose(inverse), symmetric), inverse) / -2
    on_moments = on_sigma * (1 + eps * eye) / (rows.n - 1)
    on_u = xp.matmul(on_h, inverse)
    on_u = on_u - rows.sum(on_u) / rows.n + 2 * xp.matmul(u, on_moments)
    return value, _rows.kept(xp, rows.keep, on_u * inverse_unit)


def _inverse_factor(rows: _rows.Rows, u: Array, constant: Array, eye: Array, eps: float) -> Array:
    """L⁻¹ of the covariance of centred rows, its diagonal times 1 + ε, or 1 where that is 0."""
    xp = rows.xp
    moments = rows.shards.sum(xp.matmul(xp.matrix_transpose(u), u)) / (rows.n - 1)
    instead = xp.astype(constant, u.dtype)
    return _xp.inverse_cholesky(xp, moments * (1 + eps * eye) + instead * eye)
