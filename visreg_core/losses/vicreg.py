"""VICReg: variance, covariance and invariance of two or more views."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from visreg_core import _checks, _xp
from visreg_core._typing import Array, Namespace, Scalar
from visreg_core.losses import _rows
from visreg_core.losses._differentiable import differentiated_by, gradient_like
from visreg_core.losses._execution import PLAIN, Execution, Shards

# What the published variants change: variance counted once per branch instead of averaged over
# branches; invariance summed over dimensions; squared hinge; views stacked into one batch.
CONVENTIONS = ("vicreg", "solo-learn", "paper", "visreg")

# Columns whose scale may dominate the Gram matrix and are therefore kept out of it.
_HEAVY = 8


class VICRegTerms(NamedTuple):
    """Terms of `vicreg_loss`; `total` is their weighted sum, the others are not weighted."""

    total: Array
    invariance: Array
    variance: Array
    covariance: Array


# cotangent -> gradient: the cotangent multiplies a row or a small matrix, never (N, D) entries
Pullback = Callable[[Scalar], Array]


# --- the terms of one branch, from its centred rows ----------------------------------------------


def hinge_from_deviation(xp: Namespace, deviation: Array, gamma: float) -> Array:
    """max(0, γ − deviation); the variance loss is its mean, with deviation = sqrt(Var + ε)."""
    return xp.where(deviation >= gamma, xp.zeros_like(deviation), gamma - deviation)


def _variance(
    xp: Namespace, rows: _rows.Rows, centred: Array, gamma: float, eps: float, power: int = 1
) -> tuple[Array, Pullback]:
    """Mean over dimensions of max(0, γ − sqrt(Var + ε))^power; gradient for the centred rows."""
    deviation = _rows.standard_deviation(rows, centred, eps=eps, ddof=1)
    hinge = hinge_from_deviation(xp, deviation, gamma)

    def pullback(cotangent: Scalar) -> Array:
        slope = -(2 * hinge if power == 2 else xp.astype(hinge > 0, hinge.dtype))
        share = cotangent / ((rows.n - 1) * math.prod(hinge.shape))
        return rows.centred() * (slope * _rows.safe_reciprocal(xp, deviation) * share)

    return xp.mean(hinge**power), pullback


def _covariance(xp: Namespace, rows: _rows.Rows, centred: Array) -> tuple[Array, Pullback]:
    """(1/D) Σ_{i≠j} C_ij² with the unbiased covariance C; gradient for the centred rows.

    The rows are scaled by a power of two first: fourth powers of 1e8 overflow in float32, those
    of 1e-10 vanish.
    """
    dim = centred.shape[-1]
    largest = xp.max(xp.abs(_xp.stop_gradient(centred)), axis=(-2, -1), keepdims=True)
    scale = _rows.power_of_two_below(xp, rows.shards.maximum(largest))
    u = centred / scale
    gram = u.shape[-2] * rows.shards.size < dim
    value, pullback = (_off_diagonal_gram if gram else _off_diagonal)(xp, u, rows.shards)
    divisor = math.prod(centred.shape[:-2]) * dim * (rows.n - 1) * (rows.n - 1)
    square = scale * scale
    return (
        xp.sum((value / divisor) * square * square),
        lambda cotangent: pullback((cotangent / divisor) * (square * scale)),
    )


def off_diagonal(xp: Namespace, matrix: Array) -> Array:
    """A square matrix with its diagonal set to 0; covariance loss: Σ off_diagonal(C)² / D."""
    eye = xp.eye(matrix.shape[-1], dtype=matrix.dtype, **_xp.on_device(matrix))
    return matrix * _xp.of_rank(xp, 1 - eye, matrix.ndim)


def _off_diagonal(xp: Namespace, u: Array, shards: Shards) -> tuple[Array, Pullback]:
    """Σ_{i≠j} (u_i · u_j)² over columns, (..., 1, 1), by the D × D product; gradient for u."""
    off = off_diagonal(xp, shards.sum(xp.matrix_transpose(u) @ u))
    return xp.sum(off * off, axis=(-2, -1), keepdims=True), lambda ct: u @ (off * (4 * ct))


def _off_diagonal_gram(xp: Namespace, u: Array, shards: Shards) -> tuple[Array, Pullback]:
    """The same by the N × N Gram matrix: Σ_ij (u_i · u_j)² = ‖u uᵀ‖², less the diagonal.

    Taking the diagonal away cancels only where a few columns carry nearly all of the Gram matrix.
    So the heaviest ones, h, are multiplied with every column directly, and the Gram matrix is that
    of the light ones alone, of which there are more than N. A shard gathers all rows, which are
    fewer numbers than the D × D product, and makes its own rows of the Gram matrix.
    """
    squares = shards.sum(xp.sum(u * u, axis=-2, keepdims=True))
    order = xp.argsort(_xp.stop_gradient(squares), axis=-1, descending=True, stable=True)
    heavy = order[..., : min(_HEAVY, u.shape[-1])]
    columns = xp.arange(u.shape[-1], dtype=heavy.dtype, **_xp.on_device(u))
    own = xp.matrix_transpose(heavy) == _xp.of_rank(xp, columns, u.ndim)  # (..., heavy, D)
    light = ~xp.any(own, axis=-2, keepdims=True)
    index = xp.broadcast_to(heavy, (*u.shape[:-1], heavy.shape[-1]))
    h = xp.take_along_axis(u, index, axis=-1)

    rest = xp.where(light, u, xp.zeros_like(u))
    every = shards.gather(u, axis=-2)
    # The product of a matrix with itself takes NumPy half the time, though the heavy columns of
    # only one factor need to be 0.
    gram = rest @ xp.matrix_transpose(rest if shards.size == 1 else every)
    cross = shards.sum(xp.matrix_transpose(h) @ u)
    cross = xp.where(own, xp.zeros_like(cross), cross)
    diagonal = xp.where(light, squares, xp.zeros_like(squares))
    # A light column meets a heavy one in two products, (i, j) and (j, i), which cross has once.
    times = 1 + xp.astype(light, u.dtype)
    value = shards.sum(xp.sum(gram * gram, axis=(-2, -1), keepdims=True)) + xp.sum(
        times * xp.sum(cross * cross, axis=-2, keepdims=True) - diagonal * diagonal,
        axis=-1,
        keepdims=True,
    )

    def pullback(ct: Array) -> Array:
        ct = 4 * ct
        return (gram * ct) @ every + h @ (cross * ct) - u * (diagonal * ct)

    return value, pullback


def _single(
    term: Callable[..., tuple[Array, Pullback]],
    z: Array,
    row_mask: Array | None,
    execution: Execution,
    *args: float,
) -> tuple[Array, Callable[..., Array]]:
    """Value and vjp of a loss that is one branch term of one array of embeddings."""
    xp = _xp.namespace(z, row_mask)
    _checks.embeddings("z", z)
    _checks.row_mask(row_mask, z)
    rows, centred = _rows.centre(xp, z, row_mask, execution.shards)
    value, pullback = term(xp, rows, centred, *args)

    def vjp(cotangent: Scalar) -> Array:
        return gradient_like(xp, pullback(cotangent), z)

    return value, vjp


def _variance_loss(
    z: Array,
    gamma: float = 1.0,
    eps: float = 1e-4,
    *,
    row_mask: Array | None = None,
    need_grad: bool,
    execution: Execution = PLAIN,
) -> tuple[Array, Callable[..., Array]]:
    _checks.not_negative("eps", eps)
    _checks.number("gamma", gamma)
    return _single(_variance, z, row_mask, execution, gamma, eps)


@differentiated_by(_variance_loss)
def variance_loss(
    z: Array, gamma: float = 1.0, eps: float = 1e-4, *, row_mask: Array | None = None
) -> Array:
    """VICReg's variance term: mean_j max(0, γ − sqrt(Var_j + ε)), Var unbiased.

    Parameters
    ----------
    z : array of shape (..., N, D)
        Embeddings; the loss is the mean over the leading axes.
    gamma : float
        Target of the standard deviation.
    eps : float
        Added to the variance.
    row_mask : boolean array of shape (N,), optional
        Rows to keep.

    Returns
    -------
    array of no axes
        float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit or N < 2.
    TypeError
        For a dtype that is not floating.

    Notes
    -----
    Source: Bardes, Ponce & LeCun 2022, eq. 1.

    Examples
    --------
    >>> import numpy as np
    >>> float(variance_loss(np.array([[1.0], [-1.0]])))
    0.0
    """
    return _variance_loss(z, gamma, eps, row_mask=row_mask, need_grad=False)[0]


def _covariance_loss(
    z: Array,
    *,
    row_mask: Array | None = None,
    need_grad: bool,
    execution: Execution = PLAIN,
) -> tuple[Array, Callable[..., Array]]:
    return _single(_covariance, z, row_mask, execution)


@differentiated_by(_covariance_loss)
def covariance_loss(z: Array, *, row_mask: Array | None = None) -> Array:
    """VICReg's covariance term: (1/D) Σ_{i≠j} C_ij² with the unbiased covariance C.

    Parameters
    ----------
    z : array of shape (..., N, D)
        Embeddings; the loss is the mean over the leading axes.
    row_mask : boolean array of shape (N,), optional
        Rows to keep.

    Returns
    -------
    array of no axes
        float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit or N < 2.
    TypeError
        For a dtype that is not floating.

    Notes
    -----
    Source: Bardes, Ponce & LeCun 2022, eq. 4. Where N < D it is computed through the N × N Gram
    matrix, Σ_ij C_ij² = ‖ẑẑᵀ‖²/(N−1)², and no D × D array is made.

    Examples
    --------
    >>> import numpy as np
    >>> float(covariance_loss(np.array([[1.0, 1.0], [-1.0, -1.0]])))
    4.0
    """
    return _covariance_loss(z, row_mask=row_mask, need_grad=False)[0]


# --- several branches ----------------------------------------------------------------------------


def as_views(xp: Namespace, a: Array, b: Array | None) -> list[Array]:
    """The views to compare, in the compute dtype: a and b, or those stacked in a (V, N, D).

    They are cast here, once: several casts would give automatic differentiation several paths
    through a 16-bit dtype, where overflows may cancel to NaN.
    """
    views = _given_views(a, b)
    return [_xp.cast(xp, v, _xp.compute_dtype(xp, v)) for v in views]


def _given_views(a: Array, b: Array | None) -> list[Array]:
    if b is not None:
        _checks.embeddings("a", a)
        _checks.embeddings("b", b)
        _checks.same_shape("a", a, "b", b)
        return [a, b]
    _checks.embeddings("views", a, shape="(V, N, D)")
    if a.ndim != 3 or a.shape[0] < 2:
        raise ValueError(
            "expected two embeddings, or views of shape (V, N, D) with V >= 2; "
            f"found one array of shape {tuple(a.shape)}"
        )
    return [a[v, ...] for v in range(a.shape[0])]


def view_gradients(xp: Namespace, gradients: list[Array], a: Array, b: Array | None) -> object:
    """Gradients of the views as the caller passed them: two arrays, or one stack."""
    if b is not None:
        return tuple(gradient_like(xp, g, z) for g, z in zip(gradients, (a, b), strict=True))
    return gradient_like(xp, xp.stack(gradients), a)


def view_pairs(views: int) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of views."""
    return [(i, j) for i in range(views) for j in range(i + 1, views)]


def _invariance(
    xp: Namespace, views: list[Array], row_mask: Array | None, n: Scalar, shards: Shards
) -> tuple[Array, list[Pullback]]:
    """Mean over pairs of views of mean((a − b)²), and each view's gradient."""
    wide = [_rows.kept(xp, _rows.keep_column(row_mask), v) for v in views]
    pairs = view_pairs(len(wide))
    entries = math.prod(wide[0].shape[:-2]) * wide[0].shape[-1] * len(pairs)  # of one row
    scale = 1 / (n * entries)
    squares = [xp.sum((wide[i] - wide[j]) ** 2) for i, j in pairs]
    value = shards.sum(sum(squares[1:], squares[0])) * scale

    def of_view(v: int) -> Pullback:
        def pullback(cotangent: Scalar) -> Array:
            others = [wide[v] - wide[u] for u in range(len(wide)) if u != v]
            return sum(others[1:], others[0]) * (2 * scale * cotangent)

        return pullback

    return value, [of_view(v) for v in range(len(wide))]


def branch_terms(
    xp: Namespace,
    views: list[Array],
    gamma: float,
    eps: float,
    convention: str,
    row_mask: Array | None,
    shards: Shards,
) -> tuple[Array, Array, Callable[[Scalar, Scalar], list[Array]]]:
    """Variance and covariance of the views, and their pullback to a gradient for each view.

    A pair of views averages its two variances ("solo-learn" and "paper" add them) and adds its two
    covariances; the mean over pairs is then that multiple of the mean over views.
    """
    stacked = convention == "visreg"
    batches = [xp.concat(views, axis=-2)] if stacked else views
    mask = xp.concat([row_mask] * len(views)) if stacked and row_mask is not None else row_mask
    variances, covariances = [], []
    for z in batches:
        r, centred = _rows.centre(xp, z, mask, shards)
        variances.append(_variance(xp, r, centred, gamma, eps, power=2 if stacked else 1))
        covariances.append(_covariance(xp, r, centred))
    per_variance = (2 if convention in ("solo-learn", "paper") else 1) / len(batches)
    per_covariance = (1 if stacked else 2) / len(batches)

    def pullback(on_variance: Scalar, on_covariance: Scalar) -> list[Array]:
        gradients = []
        # Multiples of centred rows, so that their sum over the rows is 0 already.
        for (_, of_variance), (_, of_covariance) in zip(variances, covariances, strict=True):
            g = of_variance(on_variance * per_variance)
            gradients.append(g + of_covariance(on_covariance * per_covariance))
        if not stacked:
            return gradients
        size = views[0].shape[-2]
        return [gradients[0][..., v * size : (v + 1) * size, :] for v in range(len(views))]

    variance = sum((v for v, _ in variances[1:]), variances[0][0]) * per_variance
    covariance = sum((c for c, _ in covariances[1:]), covariances[0][0]) * per_covariance
    return variance, covariance, pullback


def _vicreg_loss(
    a: Array,
    b: Array | None = None,
    weights: tuple[Scalar, Scalar, Scalar] = (25, 25, 1),
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
    convention: str = "vicreg",
    row_mask: Array | None = None,
    need_grad: bool,
    execution: Execution = PLAIN,
) -> tuple[VICRegTerms, Callable[..., object]]:
    xp = _xp.namespace(a, b, row_mask)
    views = as_views(xp, a, b)
    _checks.row_mask(row_mask, views[0])
    _checks.not_negative("eps", eps)
    _checks.number("gamma", gamma)
    _checks.choice("convention", convention, CONVENTIONS)
    w_invariance, w_variance, w_covariance = _checks.weights(
        "weights", weights, VICRegTerms._fields[1:]
    )
    shards = execution.shards
    n = _rows.count(xp, views[0], row_mask, shards)
    invariance, of_invariance = _invariance(xp, views, row_mask, n, shards)
    invariance_scale = views[0].shape[-1] if convention == "paper" else 1
    invariance = invariance * invariance_scale
    variance, covariance, of_branches = branch_terms(
        xp, views, gamma, eps, convention, row_mask, shards
    )
    total = w_invariance * invariance + w_variance * variance + w_covariance * covariance

    def vjp(
        on_total: Scalar, on_invariance: Scalar, on_variance: Scalar, on_covariance: Scalar
    ) -> object:
        branches = of_branches(
            on_total * w_variance + on_variance, on_total * w_covariance + on_covariance
        )
        scale = (on_total * w_invariance + on_invariance) * invariance_scale
        gradients = [
            g + pullback(scale) for g, pullback in zip(branches, of_invariance, strict=True)
        ]
        return view_gradients(xp, gradients, a, b)

    return VICRegTerms(total, invariance, variance, covariance), vjp


@differentiated_by(_vicreg_loss)
def vicreg_loss(
    a: Array,
    b: Array | None = None,
    weights: tuple[Scalar, Scalar, Scalar] = (25, 25, 1),
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
    convention: str = "vicreg",
    row_mask: Array | None = None,
) -> VICRegTerms:
    """VICReg of two views, or the mean over all pairs of several.

    Parameters
    ----------
    a, b : arrays of shape (..., N, D)
        Embeddings of two views; or `a` alone of shape (V, N, D) with V >= 2 views. The loss is
        the mean over the leading axes of a and b.
    weights : three numbers
        Of invariance, variance and covariance.
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
        ``total, invariance, variance, covariance``: arrays of no axes, float64 for float64
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
    return _vicreg_loss(
        a,
        b,
        weights,
        gamma=gamma,
        eps=eps,
        convention=convention,
        row_mask=row_mask,
        need_grad=False,
    )[0]
