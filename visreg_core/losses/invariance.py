"""The prediction loss between views, and its combination with a regulariser."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core.losses import rows as _rows
from visreg_core.losses.declaration import Example, Inputs, declare_loss
from visreg_core.losses.execution import Execution
from visreg_core.losses.gaussian_sliced_wasserstein import REDUCTIONS
from visreg_core.typing import Array, Namespace, Scalar


class InvarianceSaved(NamedTuple):
    """n : number of kept rows of all shards, () or None."""

    n: Array | None


def _difference(
    xp: Namespace, z: Array, n_global: int | None, detach_center: bool, row_mask: Array | None
) -> Array:
    """Views less the mean of the global ones; masked rows 0."""
    keep = _rows.keep_column(row_mask)
    wide = _rows.kept(xp, keep, _xp.cast(xp, z, _xp.compute_dtype(xp, z)))
    center = xp.mean(wide[..., :n_global, :, :], axis=-3, keepdims=True)
    return wide - (_xp.stop_gradient(center) if detach_center else center)


def _share(execution: Execution, z: Array, n: Array | None, reduction: str) -> Scalar:
    """Factor of the sum of squares: one over the number of entries averaged over."""
    rows = z.shape[-2] * execution.shards.size if n is None else n
    return 1 / (rows * math.prod(z.shape[:-2]) * (1 if reduction == "sum" else z.shape[-1]))


def _magnitude(z: np.ndarray, *, n_global: int | None = None, **_: bool) -> tuple[float, ...]:
    """mean (|z_v| + |c|)², c the mean of the global views."""
    return (float(np.mean((np.abs(z) + np.abs(z[:n_global].mean(axis=0))) ** 2)),)


@declare_loss(
    differentiated=("z",),
    row_axes={"z": -2, "row_mask": -1},
    saved=InvarianceSaved,
    min_rows=1,
    magnitude=_magnitude,
    examples=(
        Example(arrays={"z": "views"}),
        Example("n_global=2", {"z": "views"}, {"n_global": 2}),
    ),
)
def invariance_loss(
    execution: Execution,
    z: Array,
    n_global: int | None = None,
    *,
    detach_center: bool = False,
    reduction: str = "mean",
    row_mask: Array | None = None,
) -> tuple[Array, InvarianceSaved]:
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
    0-d array
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
    xp = _xp.namespace(z, row_mask)
    checks.embeddings("z", z, min_rows=1, shape="(V, N, D)")
    checks.row_mask(row_mask, z)
    checks.choice("reduction", reduction, REDUCTIONS)
    checks.flag("detach_center", detach_center)
    if z.ndim < 3 or z.shape[-3] < 2:
        raise ValueError(
            f"expected z of shape (..., V, N, D) with V >= 2 views; found shape {tuple(z.shape)}"
        )
    if n_global is not None:
        checks.positive_int("n_global", n_global)
        if n_global > z.shape[-3]:
            raise ValueError(f"expected n_global <= {z.shape[-3]} views; found {n_global}")
    n, shards = None, execution.shards
    if row_mask is not None:
        n = shards.sum(xp.sum(xp.astype(row_mask, _xp.compute_dtype(xp, z))))
    difference = _difference(xp, z, n_global, detach_center, row_mask)
    value = shards.sum(xp.sum(difference * difference)) * _share(execution, z, n, reduction)
    return value, InvarianceSaved(n)


@invariance_loss.backward
def _backward(
    execution: Execution, inputs: Inputs, saved: InvarianceSaved, cotangent: Scalar
) -> Array:
    z, n_global, detached = inputs["z"], inputs["n_global"], inputs["detach_center"]
    xp = _xp.namespace(z)
    gradient = _difference(xp, z, n_global, detached, inputs["row_mask"])
    if not detached:
        n_global = z.shape[-3] if n_global is None else n_global
        through = xp.sum(gradient, axis=-3, keepdims=True) / n_global
        local = xp.zeros_like(gradient[..., n_global:, :, :])
        spread = xp.broadcast_to(through, gradient[..., :n_global, :, :].shape)
        gradient = gradient - xp.concat([spread, local], axis=-3)
    return gradient * (cotangent * _share(execution, z, saved.n, inputs["reduction"]) * 2)


def joint_objective(invariance: Scalar, regularizer: Scalar, lam: Scalar) -> Scalar:
    """(1 − λ) · invariance + λ · regularizer.

    Parameters
    ----------
    invariance, regularizer : number or 0-d array
        Losses; of a loss with components pass ``terms.total``.
    lam : number or 0-d array
        λ; the paper trains ImageNet-1K with 0.9 (ViT-B) and small data sets with 0.6. Outside
        [0, 1] one of the two is rewarded for growing.

    Returns
    -------
    number or 0-d array

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
