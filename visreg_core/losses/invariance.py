"""The prediction loss between views, and its combination with a regulariser."""

from __future__ import annotations

import math
from collections.abc import Callable

from visreg_core import _checks, _xp
from visreg_core._typing import Array, Scalar
from visreg_core.losses import _rows
from visreg_core.losses._differentiable import differentiated_by, gradient_like
from visreg_core.losses._execution import PLAIN, Execution
from visreg_core.losses.gaussian_sliced_wasserstein import REDUCTIONS


def _invariance_loss(
    z: Array,
    n_global: int | None = None,
    *,
    detach_center: bool = False,
    reduction: str = "mean",
    row_mask: Array | None = None,
    need_grad: bool,
    execution: Execution = PLAIN,
) -> tuple[Array, Callable[..., Array]]:
    xp = _xp.namespace(z, row_mask)
    _checks.embeddings("z", z, min_rows=1, shape="(V, N, D)")
    _checks.row_mask(row_mask, z)
    _checks.choice("reduction", reduction, REDUCTIONS)
    _checks.flag("detach_center", detach_center)
    if z.ndim < 3 or z.shape[-3] < 2:
        raise ValueError(
            f"expected z of shape (..., V, N, D) with V >= 2 views; found shape {tuple(z.shape)}"
        )
    views = z.shape[-3]
    n_global = views if n_global is None else n_global
    _checks.positive_int("n_global", n_global)
    if n_global > views:
        raise ValueError(f"expected n_global <= {views} views; found {n_global}")
    keep = _rows.keep_column(row_mask)
    shards = execution.shards
    # A mean over all entries; masked rows add 0 and are not counted.
    rows = z.shape[-2] * shards.size
    if row_mask is not None:
        rows = shards.sum(xp.sum(xp.astype(row_mask, _xp.compute_dtype(xp, z))))
    averaged = math.prod(z.shape[:-2]) * (1 if reduction == "sum" else z.shape[-1])
    scale = 1 / (rows * averaged)

    def difference() -> Array:
        wide = _rows.kept(xp, keep, _xp.cast(xp, z, _xp.compute_dtype(xp, z)))
        center = xp.mean(wide[..., :n_global, :, :], axis=-3, keepdims=True)
        return wide - (_xp.stop_gradient(center) if detach_center else center)

    of_views = difference()
    value = shards.sum(xp.sum(of_views * of_views)) * scale

    def vjp(cotangent: Scalar) -> Array:
        gradient = difference()
        if not detach_center:
            through = xp.sum(gradient, axis=-3, keepdims=True) / n_global
            local = xp.zeros_like(gradient[..., n_global:, :, :])
            spread = xp.broadcast_to(through, gradient[..., :n_global, :, :].shape)
            gradient = gradient - xp.concat([spread, local], axis=-3)
        return gradient_like(xp, gradient * (cotangent * scale * 2), z)

    return value, vjp


@differentiated_by(_invariance_loss)
def invariance_loss(
    z: Array,
    n_global: int | None = None,
    *,
    detach_center: bool = False,
    reduction: str = "mean",
    row_mask: Array | None = None,
) -> Array:
    """Mean squared distance of every view from the mean of the global views.

    Parameters
    ----------
    z : array of shape (V, N, D), or (..., V, N, D)
        Embeddings of V >= 2 views of N samples, the global views first.
    n_global : int, optional
        Number of global views; all if not given.
    detach_center : bool
        Hold the mean of the global views constant in the gradient.
    reduction : {"mean", "sum"}
        Over the dimensions; views and samples are always averaged.
    row_mask : boolean array of shape (N,), optional
        Samples to keep.

    Returns
    -------
    array of no axes
        float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError
        For a single view (the loss would be 0 whatever it holds), shapes that do not fit, or
        unknown options.
    TypeError
        For a dtype that is not floating.

    Notes
    -----
    Source: VISReg's and LeJEPA's L_pred.

    Examples
    --------
    >>> import numpy as np
    >>> z = np.stack([np.zeros((4, 3)), np.ones((4, 3))])
    >>> float(invariance_loss(z))
    0.25
    """
    return _invariance_loss(
        z,
        n_global,
        detach_center=detach_center,
        reduction=reduction,
        row_mask=row_mask,
        need_grad=False,
    )[0]


def joint_objective(invariance: Scalar, regularizer: Scalar, lam: Scalar) -> Scalar:
    """(1 − λ) · invariance + λ · regularizer.

    Parameters
    ----------
    invariance, regularizer : number or array of no axes
        Losses; of a loss with components pass ``terms.total``.
    lam : number or array of no axes
        λ; the paper trains ImageNet-1K with 0.9 (ViT-B) and small data sets with 0.6.

    Returns
    -------
    number or array of no axes

    Raises
    ------
    TypeError
        Where a tuple of components is passed for a loss.

    Notes
    -----
    Source: VISReg, "The full VISReg objective".

    Examples
    --------
    >>> joint_objective(2.0, 1.0, 0.75)
    1.25
    """
    for name, loss in (("invariance", invariance), ("regularizer", regularizer)):
        if isinstance(loss, tuple):
            raise TypeError(
                f"expected {name} to be one loss; found {type(loss).__name__}: pass its .total"
            )
    return (1 - lam) * invariance + lam * regularizer
