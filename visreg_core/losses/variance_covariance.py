"""VICReg's variance and covariance: losses of one array, and terms of losses of several views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core.losses import rows as _rows
from visreg_core.losses.declaration import Example, Inputs, declare_loss
from visreg_core.losses.execution import Execution, Shards
from visreg_core.typing import Array, Namespace, Scalar

# How many times what is left the diagonal may be that is taken from a Gram matrix's squares.
_MOST_CANCELLED = 4


class BranchSaved(NamedTuple):
    """What the variance and the covariance of one branch save; None for a term not computed.

    first, rest : the batch mean in two parts, (..., 1, D); n : kept rows, () or None; deviation :
    sqrt(Var + ε), (..., 1, D); scale : a power of two, (..., 1, 1), by which the centred rows are
    divided to u; product : uᵀu without its diagonal (..., D, D), or where N < D the Gram matrix
    (..., N, N) of u, or of its light columns. Of the latter also squares : squared norms of the
    columns of u (..., 1, D); apart : whether the heavy ones are left out, (); every : u of all
    shards, None on one.
    """

    first: Array
    rest: Array
    n: Array | None
    deviation: Array | None
    scale: Array | None
    product: Array | None
    squares: Array | None
    apart: Array | None
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
    squares: tuple[Array | None, ...]
    apart: tuple[Array | None, ...]
    every: tuple[Array | None, ...]
    n_rows: Array | None = None
    difference: Array | None = None

    @classmethod
    def of(cls, branches: list[BranchSaved], *others: Array | None) -> VICRegSaved:
        """The branches' fields side by side."""
        return cls(*zip(*branches, strict=True), *others)

    def branches(self) -> list[BranchSaved]:
        """The branches one by one."""
        return [BranchSaved(*fields) for fields in zip(*self[:9], strict=True)]


def hinge_from_deviation(xp: Namespace, deviation: Array, gamma: float) -> Array:
    """max(0, γ − deviation); the variance loss is its mean, with deviation = sqrt(Var + ε)."""
    return xp.where(deviation >= gamma, xp.zeros_like(deviation), gamma - deviation)


def branch_forward(
    xp: Namespace,
    moments: _rows.Moments,
    *,
    variance: tuple[float, int] | None = None,
    covariance: bool = False,
) -> tuple[Array, Array, BranchSaved]:
    """Variance and covariance of rows from their moments, each None where not requested.

    variance : γ and power of mean_j max(0, γ − sqrt(Var_j + ε))^power.
    """
    rows, centred, deviation = moments
    of_variance = of_covariance = None
    saved = BranchSaved(rows.first, rows.rest, rows.masked_n(), *[None] * 6)
    if variance is not None:
        gamma, power = variance
        of_variance = _rows.mean_of(xp, hinge_from_deviation(xp, deviation, gamma) ** power)
        saved = saved._replace(deviation=deviation)
    if covariance:
        of_covariance, saved = _covariance(xp, rows, centred, saved)
    return of_variance, of_covariance, saved


def branch_moments(
    execution: Execution, views: Sequence[Array], row_mask: Array | None, eps: float = 0.0
) -> list[_rows.Moments]:
    """Moments of views, with sqrt(Var + ε) for the deviation, Var unbiased."""
    xp = _xp.namespace(*views, row_mask)
    moments = execution.kernels.get("moments", _rows.moments)
    found: list[_rows.Moments] = moments(xp, views, row_mask, execution.shards, eps=eps, ddof=1)
    return found


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

    Taking the diagonal away cancels where a few columns that hardly correlate carry nearly all of
    the Gram matrix. Once the result tells, the N heaviest are multiplied with every column
    directly, and the Gram matrix is that of the light ones alone. That cannot cancel: let δ be the
    largest light square, L the sum of the light ones, and shrink the heavy columns to δ, which
    makes the result no larger. It is then (Nδ + L)²/N or more, for the Gram matrix has rank N,
    less Nδ² + δL for the diagonal: at least δL, which is at least the light diagonal.

    A shard gathers all rows, which are fewer numbers than the D × D product, and makes its own
    rows of the Gram matrix.
    """
    squares = shards.sum(xp.sum(u * u, axis=-2, keepdims=True))
    every = shards.gather(u, axis=-2)

    def of_gram(rows: Array, others: Array, diagonal: Array) -> tuple[Array, Array]:
        gram = rows @ xp.matrix_transpose(others)
        square = shards.sum(xp.sum(gram * gram, axis=(-2, -1), keepdims=True))
        return square - xp.sum(diagonal * diagonal, axis=-1, keepdims=True), gram

    def together() -> tuple[Array, Array]:
        return of_gram(u, every, squares)

    def cancels(value: Array, _: Array) -> Array:
        diagonal = xp.sum(squares * squares, axis=-1, keepdims=True)
        return xp.any(diagonal > _MOST_CANCELLED * value)

    def apart() -> tuple[Array, Array]:
        heavy, light = _heaviest(xp, squares, every.shape[-2])
        rest, nothing = xp.where(light, u, xp.zeros_like(u)), xp.zeros_like(squares)
        # The product of a matrix with itself takes NumPy half the time, though the heavy columns
        # of only one factor need to be 0.
        value, gram = of_gram(
            rest, rest if shards.size == 1 else every, xp.where(light, squares, nothing)
        )
        cross = _cross(xp, u, heavy, shards)
        # A light column meets a heavy one in two products, (i, j) and (j, i), which cross has once.
        times = 1 + xp.astype(light, u.dtype)
        return value + xp.sum(times * cross * cross, axis=(-2, -1), keepdims=True), gram

    if _xp.branches(xp):
        found = together()
        taken_apart = cancels(*found)
        found = _xp.either(xp, taken_apart, apart, lambda: found)
    else:  # at twice the work
        found, taken_apart = apart(), xp.ones((), dtype=xp.bool, **_xp.on_device(u))
    value, gram = found
    products = {"product": gram, "squares": squares, "apart": taken_apart}
    return value, {**products, "every": None if shards.size == 1 else every}


def _heaviest(xp: Namespace, squares: Array, n: int) -> tuple[Array, Array]:
    """Indices of the n columns of the largest `squares` (..., 1, D), and which are not of them."""
    order = xp.argsort(_xp.stop_gradient(squares), axis=-1, descending=True, stable=True)
    rank = xp.argsort(order, axis=-1)
    return order[..., : min(n, order.shape[-1])], rank >= n


def _cross(xp: Namespace, u: Array, heavy: Array, shards: Shards) -> Array:
    """Products of the heavy columns of u with all (..., H, D), 0 with themselves."""
    cross = shards.sum(xp.matrix_transpose(_columns(xp, u, heavy)) @ u)
    columns = xp.arange(u.shape[-1], dtype=heavy.dtype, **_xp.on_device(u))
    own = xp.matrix_transpose(heavy) == _xp.of_rank(xp, columns, u.ndim)
    return xp.where(own, xp.zeros_like(cross), cross)


def _columns(xp: Namespace, u: Array, heavy: Array) -> Array:
    """The heavy columns of u, (..., N, H)."""
    index = xp.broadcast_to(heavy, (*u.shape[:-1], heavy.shape[-1]))
    return _xp.take_last(xp, u, index)


def _heavy_gradient(
    xp: Namespace, centred: Array, saved: BranchSaved, shards: Shards
) -> tuple[Array, Array]:
    """What the Gram matrix lacks of the gradient, and what it has beyond in light columns' squares.

    The first, (..., N, D), is the heavy columns times their products with all.
    """
    assert saved.squares is not None
    assert saved.product is not None
    assert saved.scale is not None
    heavy, light = _heaviest(xp, saved.squares, saved.product.shape[-1])
    cross = _cross(xp, centred * (1 / saved.scale), heavy, shards)
    diagonal = xp.where(light, saved.squares, xp.zeros_like(saved.squares))
    return _columns(xp, centred, heavy) @ cross, diagonal


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

    Both are products of the centred rows with a row or a small matrix, which sum to 0 over the
    rows, so that centring changes nothing.
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
        if saved.squares is None:
            gradient = centred @ (saved.product * of_centred)
        else:
            alone = saved.every is None
            every = centred if alone else saved.every
            gradient = (saved.product * (of_centred if alone else of_centred * saved.scale)) @ every

            def apart() -> tuple[Array, Array]:
                lacking, diagonal = _heavy_gradient(xp, centred, saved, execution.shards)
                return gradient + lacking * of_centred, diagonal

            if _xp.branches(xp):
                whole = gradient, saved.squares
                gradient, diagonal = _xp.either(xp, saved.apart, apart, lambda: whole)
            else:
                gradient, diagonal = apart()
            of_diagonal = -diagonal * of_centred
            factor = of_diagonal if factor is None else factor + of_diagonal
    if gradient is None:
        return centred * factor
    if factor is not None:
        centred *= factor
        gradient += centred
    return gradient


def variance_magnitude(
    z: np.ndarray, *, gamma: float = 1.0, eps: float = 1e-4, power: int = 1
) -> tuple[float, ...]:
    """mean_j (γ + sqrt(Var_j + ε))."""
    return (float(np.mean((gamma + np.sqrt(z.var(axis=0, ddof=1) + eps)) ** power)),)


@declare_loss(
    differentiated=("z",),
    row_axes={"z": -2, "row_mask": -1},
    saved=VICRegSaved,
    magnitude=variance_magnitude,
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
    row_mask
        As in `center_loss`.

    Returns
    -------
    0-d array
        float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError, TypeError
        As `center_loss`.

    Notes
    -----
    Source: Bardes, Ponce & LeCun 2022, eq. 1.

    Examples
    --------
    >>> import numpy as np
    >>> float(variance_loss(np.array([[1.0], [-1.0]])))
    0.0
    """
    xp = _xp.namespace(z, row_mask)
    checks.not_negative("eps", eps)
    checks.number("gamma", gamma)
    checks.embeddings("z", z)
    checks.row_mask(row_mask, z)
    (moments,) = branch_moments(execution, [z], row_mask, eps)
    value, _, saved = branch_forward(xp, moments, variance=(gamma, 1))
    return value, VICRegSaved.of([saved])


@variance_loss.backward
def _variance_backward(
    execution: Execution, inputs: Inputs, saved: VICRegSaved, cotangent: Scalar
) -> Array:
    (branch,), z, mask = saved.branches(), inputs["z"], inputs["row_mask"]
    return branch_gradient(execution, z, mask, branch, cotangent, gamma=inputs["gamma"])


def covariance_magnitude(z: np.ndarray) -> tuple[float, ...]:
    """(1/D) Σ_ij C_ij², the diagonal included."""
    centred = z - z.mean(axis=0)
    n, d = z.shape
    product = centred @ centred.T if n < d else centred.T @ centred
    return (float(np.sum(product**2)) / (n - 1) ** 2 / d,)


@declare_loss(
    differentiated=("z",),
    row_axes={"z": -2, "row_mask": -1},
    saved=VICRegSaved,
    magnitude=covariance_magnitude,
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
    row_mask
        As in `center_loss`.

    Returns
    -------
    0-d array
        float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError, TypeError
        As `center_loss`.

    Notes
    -----
    Source: Bardes, Ponce & LeCun 2022, eq. 4. Where N < D it is computed through the N × N Gram
    matrix, Σ_ij C_ij² = ‖ẑẑᵀ‖²/(N−1)², and no D × D array is made. Where the diagonal is more than
    four times the rest, the N largest columns are multiplied with all directly, so that nothing
    cancels. With CuPy's and torch's arrays, for which a branch would wait, that is always so, at
    twice the work, unless `visreg_torch` is given tensors on a CPU. Its CUDA kernels of whole
    losses decide on the device, and then make the D × D product a tile at a time.

    Examples
    --------
    >>> import numpy as np
    >>> float(covariance_loss(np.array([[1.0, 1.0], [-1.0, -1.0]])))
    4.0
    """
    xp = _xp.namespace(z, row_mask)
    checks.embeddings("z", z)
    checks.row_mask(row_mask, z)
    (moments,) = branch_moments(execution, [z], row_mask)
    _, value, saved = branch_forward(xp, moments, covariance=True)
    return value, VICRegSaved.of([saved])


@covariance_loss.backward
def _covariance_backward(
    execution: Execution, inputs: Inputs, saved: VICRegSaved, cotangent: Scalar
) -> Array:
    (branch,), z, mask = saved.branches(), inputs["z"], inputs["row_mask"]
    return branch_gradient(execution, z, mask, branch, on_covariance=cotangent)
