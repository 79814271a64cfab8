"""VICReg: variance, covariance and invariance of two or more views."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core.losses import rows as _rows
from visreg_core.losses.declaration import Example, Inputs, declare_loss
from visreg_core.losses.execution import Execution
from visreg_core.losses.variance_covariance import (
    BranchSaved,
    VICRegSaved,
    branch_forward,
    branch_gradient,
    branch_moments,
    covariance_magnitude,
    variance_magnitude,
)
from visreg_core.losses.views import (
    VIEWS,
    as_views,
    check_views,
    over_pairs,
    view_gradients,
    view_pairs,
    weighted_total,
)
from visreg_core.typing import Array, Namespace, Scalar

# What the published variants change: variance counted once per branch instead of averaged over
# branches; invariance summed over dimensions; squared hinge; views stacked into one batch.
CONVENTIONS = ("vicreg", "solo-learn", "paper", "visreg")


class VICRegTerms(NamedTuple):
    """Terms of `vicreg_loss`; `total` is their weighted sum, the others are not weighted."""

    total: Array
    invariance: Array
    variance: Array
    covariance: Array


def _batches(
    xp: Namespace, views: list[Array], row_mask: Array | None, convention: str
) -> tuple[list[Array], Array | None]:
    """The branches, and their row mask: the views, or all of them stacked into one batch."""
    if convention != "visreg":
        return views, row_mask
    mask = None if row_mask is None else xp.concat([row_mask] * len(views))
    return [xp.concat(views, axis=-2)], mask


def _shares(views: int, convention: str) -> tuple[float, float, int]:
    """Factors of a branch's variance and covariance, and the power of the hinge.

    A pair of views averages its two variances ("solo-learn" and "paper" add them) and adds its two
    covariances; the mean over pairs is then that multiple of the mean over views.
    """
    if convention == "visreg":
        return 1.0, 1.0, 2
    return (2 if convention in ("solo-learn", "paper") else 1) / views, 2 / views, 1


def branches_forward(
    execution: Execution,
    views: list[Array],
    gamma: float,
    eps: float,
    convention: str,
    row_mask: Array | None,
) -> tuple[Array, Array, list[BranchSaved]]:
    """Variance and covariance of the views."""
    xp = _xp.namespace(*views)
    batches, mask = _batches(xp, views, row_mask, convention)
    on_variance, on_covariance, power = _shares(len(views), convention)
    found = [
        branch_forward(xp, moments, variance=(gamma, power), covariance=True)
        for moments in branch_moments(execution, batches, mask, eps)
    ]
    variances, covariances, saved = zip(*found, strict=True)
    variance = sum(variances[1:], variances[0]) * on_variance
    return variance, sum(covariances[1:], covariances[0]) * on_covariance, list(saved)


def branches_gradient(
    execution: Execution,
    views: list[Array],
    inputs: Inputs,
    convention: str,
    saved: list[BranchSaved],
    on_variance: Scalar,
    on_covariance: Scalar,
) -> list[Array]:
    """Gradient for each view of a combination of the two."""
    xp = _xp.namespace(*views)
    batches, mask = _batches(xp, views, inputs["row_mask"], convention)
    per_variance, per_covariance, power = _shares(len(views), convention)
    gradients = [
        branch_gradient(
            execution,
            z,
            mask,
            branch,
            on_variance * per_variance,
            on_covariance * per_covariance,
            gamma=inputs["gamma"],
            power=power,
        )
        for z, branch in zip(batches, saved, strict=True)
    ]
    if convention != "visreg":
        return gradients
    size = views[0].shape[-2]
    return [gradients[0][..., v * size : (v + 1) * size, :] for v in range(len(views))]


def _invariance_share(
    execution: Execution, views: list[Array], n: Scalar, convention: str
) -> Scalar:
    """Factor of the squared differences summed over all pairs of views."""
    lead, dim = math.prod(views[0].shape[:-2]), views[0].shape[-1]
    entries = lead * (1 if convention == "paper" else dim) * len(view_pairs(len(views)))
    return 1 / (n * entries)


def _pair_magnitude(
    a: np.ndarray,
    b: np.ndarray,
    *,
    weights: tuple[float, ...] = (25, 25, 1),
    convention: str = "vicreg",
) -> tuple[float, ...]:
    """mean (|a| + |b|)², variance and covariance as the convention combines them."""
    squares = float(np.mean((np.abs(a) + np.abs(b)) ** 2))
    if convention == "visreg":
        both = np.concatenate([a, b])
        return weighted_total(
            weights, (squares, *variance_magnitude(both, power=2), *covariance_magnitude(both))
        )
    squares *= a.shape[1] if convention == "paper" else 1
    half = 0.5 if convention == "vicreg" else 1.0
    variances = half * (variance_magnitude(a)[0] + variance_magnitude(b)[0])
    return weighted_total(
        weights, (squares, variances, covariance_magnitude(a)[0] + covariance_magnitude(b)[0])
    )


@declare_loss(
    differentiated=("a", "b"),
    row_axes={"a": -2, "b": -2, "row_mask": -1},
    terms=VICRegTerms,
    saved=VICRegSaved,
    magnitude=over_pairs(_pair_magnitude),
    examples=(
        Example(),
        *(Example(c, options={"convention": c}) for c in CONVENTIONS[1:]),
        VIEWS,
    ),
)
def vicreg_loss(
    execution: Execution,
    a: Array,
    b: Array | None = None,
    weights: tuple[Scalar, Scalar, Scalar] = (25, 25, 1),
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
    convention: str = "vicreg",
    row_mask: Array | None = None,
) -> tuple[VICRegTerms, VICRegSaved]:
    """VICReg of two views, or the mean over all pairs of several.

    Parameters
    ----------
    a, b : arrays of shape (..., N, D)
        Embeddings of two views; or `a` alone of shape (V, N, D) with V >= 2 views. The loss is
        the mean over the leading axes of a and b.
    weights : three numbers
        Of invariance, variance and covariance. A negative one rewards what its term punishes.
    gamma, eps : float
        As in `variance_loss`.
    convention : {"vicreg", "solo-learn", "paper", "visreg"}
        "vicreg", the published code: invariance the mean over N and D, variance averaged over the
        two branches, covariance summed over them. "solo-learn": variance summed over the
        branches. "paper": as "solo-learn", and invariance summed over D. "visreg": squared hinge,
        variance and covariance those of all views stacked into one batch.
    row_mask : boolean array of shape (N,), optional
        Rows to keep.

    Returns
    -------
    VICRegTerms
        ``total, invariance, variance, covariance``: 0-d arrays, float64 for float64
        embeddings, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit, N < 2, a single view, or an unknown convention.
    TypeError
        For dtypes that are not floating or differ, or arrays of two libraries.

    Notes
    -----
    Source: Bardes, Ponce & LeCun 2022, eq. 6, and their published code.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.random.default_rng(0).standard_normal((32, 8))
    >>> terms = vicreg_loss(a, a)
    >>> float(terms.invariance)
    0.0
    """
    xp = _xp.namespace(a, b, row_mask)
    check_views(a, b)
    checks.row_mask(row_mask, a)
    checks.not_negative("eps", eps)
    checks.number("gamma", gamma)
    checks.choice("convention", convention, CONVENTIONS)
    w_invariance, w_variance, w_covariance = checks.weights(
        "weights", weights, VICRegTerms._fields[1:]
    )
    views, shards = as_views(xp, a, b), execution.shards
    n = _rows.count(xp, a, row_mask, shards)
    wide = [_rows.kept(xp, _rows.keep_column(row_mask), v) for v in views]
    squares = [xp.sum((wide[i] - wide[j]) ** 2) for i, j in view_pairs(len(wide))]
    invariance = shards.sum(sum(squares[1:], squares[0]))
    invariance = invariance * _invariance_share(execution, views, n, convention)
    variance, covariance, branches = branches_forward(
        execution, views, gamma, eps, convention, row_mask
    )
    total = w_invariance * invariance + w_variance * variance + w_covariance * covariance
    saved = VICRegSaved.of(branches, None if row_mask is None else n)
    return VICRegTerms(total, invariance, variance, covariance), saved


@vicreg_loss.backward
def _vicreg_backward(
    execution: Execution,
    inputs: Inputs,
    saved: VICRegSaved,
    on_total: Scalar,
    on_invariance: Scalar,
    on_variance: Scalar,
    on_covariance: Scalar,
) -> Any:
    a, b, convention = inputs["a"], inputs["b"], inputs["convention"]
    xp = _xp.namespace(a)
    views = as_views(xp, a, b)
    w_invariance, w_variance, w_covariance = inputs["weights"]
    gradients = branches_gradient(
        execution,
        views,
        inputs,
        convention,
        saved.branches(),
        on_total * w_variance + on_variance,
        on_total * w_covariance + on_covariance,
    )
    n = _rows.count(xp, a, None, execution.shards) if saved.n_rows is None else saved.n_rows
    share = 2 * _invariance_share(execution, views, n, convention)
    share = share * (on_total * w_invariance + on_invariance)
    wide = [_rows.kept(xp, _rows.keep_column(inputs["row_mask"]), v) for v in views]
    if len(wide) == 2:
        apart = (wide[0] - wide[1]) * share
        gradients = [gradients[0] + apart, gradients[1] - apart]
    else:
        whole = sum(wide[1:], wide[0])
        gradients = [
            g + (len(wide) * v - whole) * share for g, v in zip(gradients, wide, strict=True)
        ]
    return view_gradients(xp, gradients, b)
