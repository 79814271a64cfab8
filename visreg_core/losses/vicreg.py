"""VICReg: variance, covariance and invariance of two or more views."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from visreg_core import _checks, _xp
from visreg_core._typing import Array, Namespace, Scalar
from visreg_core.losses import rows as _rows
from visreg_core.losses.declaration import Example, Inputs, declare_loss
from visreg_core.losses.execution import Execution, Shards

# What the published variants change: variance counted once per branch instead of averaged over
# branches; invariance summed over dimensions; squared hinge; views stacked into one batch.
CONVENTIONS = ("vicreg", "solo-learn", "paper", "visreg")

# Columns whose scale may dominate the Gram matrix and are therefore left out of it.
_HEAVY = 8


class VICRegTerms(NamedTuple):
    """Terms of `vicreg_loss`; `total` is their weighted sum, the others are not weighted."""

    total: Array
    invariance: Array
    variance: Array
    covariance: Array


class BranchSaved(NamedTuple):
    """What the variance and the covariance of one branch save; None for a term that is not there.

    first, rest : the batch mean in two parts, (..., 1, D); n : kept rows, () or None; deviation :
    sqrt(Var + ε), (..., 1, D); scale : a power of two, (..., 1, 1), by which the centred rows are
    divided to u; product : uᵀu without its diagonal (..., D, D), or where N < D the Gram matrix
    (..., N, N) of u without its heavy columns. Of the latter also heavy : indices (..., 1, H) of
    the heavy columns; cross : their products with all columns (..., H, D); diagonal : squared norms
    of the light columns (..., 1, D); every : u of all shards, None on one.
    """

    first: Array
    rest: Array
    n: Array | None
    deviation: Array | None
    scale: Array | None
    product: Array | None
    heavy: Array | None
    cross: Array | None
    diagonal: Array | None
    every: Array | None


class VICRegSaved(NamedTuple):
    """The fields of `BranchSaved`, each with one entry a branch, and two more.

    n_rows : kept rows of a view, () or None; difference : a_i − b_j(i) of SAG-VICReg, (..., N, D),
    else None.
    """

    first: tuple[Array, ...]
    rest: tuple[Array, ...]
    n: tuple[Array | None, ...]
    deviation: tuple[Array | None, ...]
    scale: tuple[Array | None, ...]
    product: tuple[Array | None, ...]
    heavy: tuple[Array | None, ...]
    cross: tuple[Array | None, ...]
    diagonal: tuple[Array | None, ...]
    every: tuple[Array | None, ...]
    n_rows: Array | None = None
    difference: Array | None = None

    @classmethod
    def of(cls, branches: list[BranchSaved], *others: Array | None) -> VICRegSaved:
        """The branches' fields side by side."""
        return cls(*zip(*branches, strict=True), *others)

    def branches(self) -> list[BranchSaved]:
        """Each branch by itself."""
        return [BranchSaved(*fields) for fields in zip(*self[:10], strict=True)]


# --- the terms of one branch ----------------------------------------------------------------------


def hinge_from_deviation(xp: Namespace, deviation: Array, gamma: float) -> Array:
    """max(0, γ − deviation); the variance loss is its mean, with deviation = sqrt(Var + ε)."""
    return xp.where(deviation >= gamma, xp.zeros_like(deviation), gamma - deviation)


def branch_forward(
    execution: Execution,
    z: Array,
    row_mask: Array | None,
    *,
    variance: tuple[float, float, int] | None = None,
    covariance: bool = False,
) -> tuple[Array, Array, BranchSaved]:
    """Variance and covariance of the rows z (..., N, D), each None where it is not asked for.

    variance : γ, ε and power of mean_j max(0, γ − sqrt(Var_j + ε))^power.
    """
    xp = _xp.namespace(z, row_mask)
    centre = execution.kernels.get("centre", _rows.centre)
    rows, centred = centre(xp, z, row_mask, execution.shards)
    of_variance = of_covariance = deviation = None
    if variance is not None:
        gamma, eps, power = variance
        root = execution.kernels.get("standard_deviation", _rows.standard_deviation)
        deviation = root(rows, centred, eps=eps, ddof=1)
        of_variance = _rows.mean_of(xp, hinge_from_deviation(xp, deviation, gamma) ** power)
    saved = BranchSaved(rows.first, rows.rest, rows.masked_n(), deviation, *[None] * 6)
    if covariance:
        of_covariance, saved = _covariance(xp, rows, centred, saved)
    return of_variance, of_covariance, saved


def _covariance(
    xp: Namespace, rows: _rows.Rows, centred: Array, saved: BranchSaved
) -> tuple[Array, BranchSaved]:
    """(1/D) Σ_{i≠j} C_ij² with the unbiased covariance C.

    The rows are scaled by a power of two first: fourth powers of 1e8 overflow in float32, those
    of 1e-10 vanish.
    """
    shards = rows.shards
    scale = xp.max(rows.unit, axis=-1, keepdims=True)
    u = centred * (1 / scale)
    gram = u.shape[-2] * shards.size < u.shape[-1]
    value, products = (_off_diagonal_gram if gram else _off_diagonal)(xp, u, shards)
    square = scale * scale
    value = xp.sum((value / _divisor(rows)) * square * square)
    return value, saved._replace(scale=scale, **products)


def _divisor(rows: _rows.Rows) -> Scalar:
    shape = rows.z.shape
    return math.prod(shape[:-2]) * shape[-1] * (rows.n - 1) * (rows.n - 1)


def off_diagonal(xp: Namespace, matrix: Array) -> Array:
    """A square matrix with its diagonal set to 0; covariance loss: Σ off_diagonal(C)² / D."""
    eye = xp.eye(matrix.shape[-1], dtype=matrix.dtype, **_xp.on_device(matrix))
    return matrix * _xp.of_rank(xp, 1 - eye, matrix.ndim)


def _off_diagonal(xp: Namespace, u: Array, shards: Shards) -> tuple[Array, dict[str, Array]]:
    """Σ_{i≠j} (u_i · u_j)² over columns, (..., 1, 1), by the D × D product."""
    off = off_diagonal(xp, shards.sum(xp.matrix_transpose(u) @ u))
    return xp.sum(off * off, axis=(-2, -1), keepdims=True), {"product": off}


def _off_diagonal_gram(xp: Namespace, u: Array, shards: Shards) -> tuple[Array, dict[str, Array]]:
    """The same by the N × N Gram matrix: Σ_ij (u_i · u_j)² = ‖u uᵀ‖², less the diagonal.

    Taking the diagonal away cancels only where a few columns carry nearly all of the Gram matrix.
    So the heaviest ones, h, are multiplied with every column directly, and the Gram matrix is that
    of the light ones alone, of which there are more than N. A shard gathers all rows, which are
    fewer numbers than the D × D product, and makes its own rows of the Gram matrix.
    """
    squares = shards.sum(xp.sum(u * u, axis=-2, keepdims=True))
    order = xp.argsort(_xp.stop_gradient(squares), axis=-1, descending=True, stable=True)
    heavy = order[..., : min(_HEAVY, u.shape[-1])]
    own = _is_heavy(xp, heavy, u)
    light = ~xp.any(own, axis=-2, keepdims=True)
    rest = xp.where(light, u, xp.zeros_like(u))
    every = shards.gather(u, axis=-2)
    # The product of a matrix with itself takes NumPy half the time, though the heavy columns of
    # only one factor need to be 0.
    gram = rest @ xp.matrix_transpose(rest if shards.size == 1 else every)
    cross = shards.sum(xp.matrix_transpose(_columns(xp, u, heavy)) @ u)
    cross = xp.where(own, xp.zeros_like(cross), cross)
    diagonal = xp.where(light, squares, xp.zeros_like(squares))
    # A light column meets a heavy one in two products, (i, j) and (j, i), which cross has once.
    times = 1 + xp.astype(light, u.dtype)
    value = shards.sum(xp.sum(gram * gram, axis=(-2, -1), keepdims=True)) + xp.sum(
        times * xp.sum(cross * cross, axis=-2, keepdims=True) - diagonal * diagonal,
        axis=-1,
        keepdims=True,
    )
    products = {"product": gram, "heavy": heavy, "cross": cross, "diagonal": diagonal}
    return value, {**products, "every": None if shards.size == 1 else every}


def _is_heavy(xp: Namespace, heavy: Array, u: Array) -> Array:
    """Whether heavy column h is column d of u, (..., H, D)."""
    columns = xp.arange(u.shape[-1], dtype=heavy.dtype, **_xp.on_device(u))
    return xp.matrix_transpose(heavy) == _xp.of_rank(xp, columns, u.ndim)


def _columns(xp: Namespace, u: Array, heavy: Array) -> Array:
    """The heavy columns of u, (..., N, H)."""
    index = xp.broadcast_to(heavy, (*u.shape[:-1], heavy.shape[-1]))
    return _xp.take_last(xp, u, index)


def branch_gradient(
    execution: Execution,
    z: Array,
    row_mask: Array | None,
    saved: BranchSaved,
    on_variance: Scalar = 0.0,
    on_covariance: Scalar = 0.0,
    *,
    gamma: float = 1.0,
    power: int = 1,
) -> Array:
    """Gradient with respect to z of on_variance · variance + on_covariance · covariance.

    Both are products of the centred rows with a row or a small matrix, whose sum over the rows is
    0 already, so that centring takes nothing away.
    """
    xp = _xp.namespace(z)
    rows = _rows.again(xp, z, row_mask, execution.shards, saved.first, saved.rest, saved.n)
    centred = rows.centred()
    factor, gradient = None, None
    if saved.deviation is not None:
        hinge = hinge_from_deviation(xp, saved.deviation, gamma)
        slope = -(2 * hinge if power == 2 else xp.astype(hinge > 0, hinge.dtype))
        share = on_variance / ((rows.n - 1) * math.prod(hinge.shape))
        factor = slope * _rows.safe_reciprocal(xp, saved.deviation) * share
    if saved.scale is not None:
        # With u = centred / scale the gradient for u times scale³ is that for the rows.
        of_centred = (4 * on_covariance / _divisor(rows)) * saved.scale * saved.scale
        if saved.heavy is None:
            gradient = centred @ (saved.product * of_centred)
        else:
            alone = saved.every is None
            every = centred if alone else saved.every
            gradient = (saved.product * (of_centred if alone else of_centred * saved.scale)) @ every
            gradient += _columns(xp, centred, saved.heavy) @ (saved.cross * of_centred)
            assert saved.diagonal is not None
            of_diagonal = -saved.diagonal * of_centred
            factor = of_diagonal if factor is None else factor + of_diagonal
    if gradient is None:
        return centred * factor
    if factor is not None:
        centred *= factor
        gradient += centred
    return gradient


# --- losses of one array --------------------------------------------------------------------------


def _variance_magnitude(
    z: np.ndarray, *, gamma: float = 1.0, eps: float = 1e-4, power: int = 1
) -> tuple[float, ...]:
    """mean_j (γ + sqrt(Var_j + ε))."""
    return (float(np.mean((gamma + np.sqrt(z.var(axis=0, ddof=1) + eps)) ** power)),)


@declare_loss(
    differentiated=("z",),
    row_axes={"z": -2, "row_mask": -1},
    saved=VICRegSaved,
    magnitude=_variance_magnitude,
    examples=(Example("gamma=2", options={"gamma": 2.0}),),
)
def variance_loss(
    execution: Execution,
    z: Array,
    gamma: float = 1.0,
    eps: float = 1e-4,
    *,
    row_mask: Array | None = None,
) -> tuple[Array, VICRegSaved]:
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
    _xp.namespace(z, row_mask)
    _checks.not_negative("eps", eps)
    _checks.number("gamma", gamma)
    _checks.embeddings("z", z)
    _checks.row_mask(row_mask, z)
    value, _, saved = branch_forward(execution, z, row_mask, variance=(gamma, eps, 1))
    return value, VICRegSaved.of([saved])


@variance_loss.backward
def _variance_backward(
    execution: Execution, inputs: Inputs, saved: VICRegSaved, cotangent: Scalar
) -> Array:
    (branch,), z, mask = saved.branches(), inputs["z"], inputs["row_mask"]
    return branch_gradient(execution, z, mask, branch, cotangent, gamma=inputs["gamma"])


def _covariance_magnitude(z: np.ndarray) -> tuple[float, ...]:
    """(1/D) Σ_ij C_ij², the diagonal included."""
    centred = z - z.mean(axis=0)
    n, d = z.shape
    product = centred @ centred.T if n < d else centred.T @ centred
    return (float(np.sum(product**2)) / (n - 1) ** 2 / d,)


@declare_loss(
    differentiated=("z",),
    row_axes={"z": -2, "row_mask": -1},
    saved=VICRegSaved,
    magnitude=_covariance_magnitude,
    examples=(Example(), Example("N < D", inputs="wide")),
)
def covariance_loss(
    execution: Execution, z: Array, *, row_mask: Array | None = None
) -> tuple[Array, VICRegSaved]:
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
    _xp.namespace(z, row_mask)
    _checks.embeddings("z", z)
    _checks.row_mask(row_mask, z)
    _, value, saved = branch_forward(execution, z, row_mask, covariance=True)
    return value, VICRegSaved.of([saved])


@covariance_loss.backward
def _covariance_backward(
    execution: Execution, inputs: Inputs, saved: VICRegSaved, cotangent: Scalar
) -> Array:
    (branch,), z, mask = saved.branches(), inputs["z"], inputs["row_mask"]
    return branch_gradient(execution, z, mask, branch, on_covariance=cotangent)


# --- several branches ----------------------------------------------------------------------------


def as_views(xp: Namespace, a: Array, b: Array | None) -> list[Array]:
    """The views to compare, in the compute dtype: a and b, or those stacked in a (V, N, D).

    They are cast here, once: several casts would give automatic differentiation several paths
    through a 16-bit dtype, where overflows may cancel to NaN.
    """
    views = [a, b] if b is not None else [a[v, ...] for v in range(a.shape[0])]
    return [_xp.cast(xp, v, _xp.compute_dtype(xp, v)) for v in views]


def check_views(a: Array, b: Array | None) -> None:
    """Two embeddings of one shape, or one array (V, N, D) of at least two views."""
    if b is not None:
        _checks.embeddings("a", a)
        _checks.embeddings("b", b)
        _checks.same_shape("a", a, "b", b)
        return
    _checks.embeddings("views", a, shape="(V, N, D)")
    if a.ndim != 3 or a.shape[0] < 2:
        raise ValueError(
            "expected two embeddings, or views of shape (V, N, D) with V >= 2; "
            f"found one array of shape {tuple(a.shape)}"
        )


def view_gradients(xp: Namespace, gradients: list[Array], b: Array | None) -> Any:
    """Gradients of the views as the caller passed them: two arrays, or one stack."""
    return tuple(gradients) if b is not None else xp.stack(gradients)


def view_pairs(views: int) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of views."""
    return list(itertools.combinations(range(views), 2))


def _batches(
    xp: Namespace, views: list[Array], row_mask: Array | None, convention: str
) -> tuple[list[Array], Array | None]:
    """The branches, and their row mask: the views, or all of them stacked into one batch."""
    if convention != "visreg":
        return views, row_mask
    mask = None if row_mask is None else xp.concat([row_mask] * len(views))
    return [xp.concat(views, axis=-2)], mask


def _shares(views: int, convention: str) -> tuple[float, float, int]:
    """What a branch's variance and covariance are multiplied by, and the hinge's power.

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
    terms = (gamma, eps, power)
    found = [branch_forward(execution, z, mask, variance=terms, covariance=True) for z in batches]
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
    """What a squared difference counts for, summed over all pairs of views."""
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
            weights, (squares, *_variance_magnitude(both, power=2), *_covariance_magnitude(both))
        )
    squares *= a.shape[1] if convention == "paper" else 1
    half = 0.5 if convention == "vicreg" else 1.0
    variances = half * (_variance_magnitude(a)[0] + _variance_magnitude(b)[0])
    return weighted_total(
        weights, (squares, variances, _covariance_magnitude(a)[0] + _covariance_magnitude(b)[0])
    )


def weighted_total(weights: tuple[float, ...], terms: tuple[float, ...]) -> tuple[float, ...]:
    """Magnitudes of the total and of its terms."""
    return (sum(w * t for w, t in zip(weights, terms, strict=True)), *terms)


def over_pairs(magnitude: Any) -> Any:
    """The magnitude of two views as that of several: its mean over pairs."""

    def of_views(a: np.ndarray, b: np.ndarray | None = None, **options: Any) -> tuple[float, ...]:
        if b is not None:
            return tuple(magnitude(a, b, **options))
        pairs = [magnitude(x, y, **options) for x, y in itertools.combinations(a, 2)]
        return tuple(np.mean(pairs, axis=0).tolist())

    return of_views


VIEWS = Example("three views", {"a": "views", "b": None})


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
    xp = _xp.namespace(a, b, row_mask)
    check_views(a, b)
    _checks.row_mask(row_mask, a)
    _checks.not_negative("eps", eps)
    _checks.number("gamma", gamma)
    _checks.choice("convention", convention, CONVENTIONS)
    w_invariance, w_variance, w_covariance = _checks.weights(
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
