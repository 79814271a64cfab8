"""Barlow Twins: the cross-correlation of two views should be the identity."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core.losses import rows as _rows
from visreg_core.losses.declaration import Example, Inputs, declare_loss
from visreg_core.losses.execution import Execution, Shards
from visreg_core.losses.variance_covariance import off_diagonal
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

# How many times the off-diagonal term what its rounding scales with may be.
_MOST_CANCELLED = 4


class BarlowTwinsTerms(NamedTuple):
    """Terms of `barlow_twins_loss`; `off_diagonal` is not weighted."""

    total: Array
    on_diagonal: Array
    off_diagonal: Array


class BarlowTwinsSaved(NamedTuple):
    """What Barlow Twins saves: each field but the last four has one entry a view.

    first, rest : the batch mean in two parts, (..., 1, D); reciprocal : 1/σ, 0 for σ = 0,
    (..., 1, D); gram : own rows of x̂x̂ᵀ, (..., N, ΣN), where N < D, else None; every : x̂ of all
    shards (..., ΣN, D), None on one; n : kept rows, () or None; diagonal : C_ii of each pair of
    views, (P, ..., 1, D); others : C without its diagonal, (P, ..., D, D), where N >= D, else None;
    cancels : whether the Gram matrices do not do, () or None.
    """

    first: tuple[Array, ...]
    rest: tuple[Array, ...]
    reciprocal: tuple[Array, ...]
    gram: tuple[Array | None, ...]
    every: tuple[Array | None, ...]
    n: Array | None
    diagonal: Array
    others: Array | None
    cancels: Array | None


def _magnitude(
    a: np.ndarray, b: np.ndarray, *, off_diagonal_weight: float = 0.0051
) -> tuple[float, ...]:
    """Σ_i (1 + |C|_ii)² and Σ_ij |C|_ij² with |C| = |â|ᵀ|b̂|/N."""
    standard = []
    for z in (a, b):
        deviation = z.std(axis=0)
        standard.append(np.abs(z - z.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0))
    a, b = standard
    n, d = a.shape
    on = float(np.sum((1 + np.mean(a * b, axis=0)) ** 2))
    off = np.sum((a @ a.T) * (b @ b.T)) if n < d else np.sum((a.T @ b) ** 2)
    return weighted_total((1, off_diagonal_weight), (on, float(off) / n**2))


@declare_loss(
    differentiated=("a", "b"),
    row_axes={"a": -2, "b": -2, "row_mask": -1},
    terms=BarlowTwinsTerms,
    saved=BarlowTwinsSaved,
    magnitude=over_pairs(_magnitude),
    examples=(Example(), Example("N < D", inputs="wide"), VIEWS),
)
def barlow_twins_loss(
    execution: Execution,
    a: Array,
    b: Array | None = None,
    off_diagonal_weight: Scalar = 0.0051,
    *,
    eps: float = 0.0,
    row_mask: Array | None = None,
) -> tuple[BarlowTwinsTerms, BarlowTwinsSaved]:
    """Barlow Twins of two views, or the mean over all pairs of several.

    Σ_i (1 − C_ii)² + λ Σ_{i≠j} C_ij², C the cross-correlation of the batch-standardised views.

    Parameters
    ----------
    a, b : arrays of shape (..., N, D)
        Embeddings of two views; or `a` alone of shape (V, N, D) with V >= 2 views. The loss is
        the mean over the leading axes of a and b.
    off_diagonal_weight : number
        λ.
    eps : float
        Added to the biased variance under the root. 0: a constant column standardises to 0 with
        zero gradient. 1e-5 gives the value of a BatchNorm layer.
    row_mask : boolean array of shape (N,), optional
        Rows to keep.

    Returns
    -------
    BarlowTwinsTerms
        ``total, on_diagonal, off_diagonal`` (the last not weighted): 0-d arrays, float64
        for float64 embeddings, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit, N < 2, or a single view.
    TypeError
        For dtypes that are not floating or differ, or arrays of two libraries.

    Notes
    -----
    Source: Zbontar et al. 2021, eq. 1 and 2. Where N < D it is computed through the N × N Gram
    matrices of the views, ‖ââᵀ‖‖b̂b̂ᵀ‖/N² times the rounding exact; where the term is less than a
    quarter of that, from N rows of C at a time. With CuPy's and torch's arrays it is the latter
    always, in D/N times the time, because the decision would wait for the device; except where
    `visreg_torch` is given tensors on a CPU, or its CUDA kernels compute the loss.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.random.default_rng(0).standard_normal((64, 4))
    >>> bool(barlow_twins_loss(a, a).on_diagonal < 1e-20)
    True
    """
    xp = _xp.namespace(a, b, row_mask)
    check_views(a, b)
    checks.row_mask(row_mask, a)
    checks.not_negative("eps", eps)
    checks.number("off_diagonal_weight", off_diagonal_weight)
    views, shards = as_views(xp, a, b), execution.shards
    moments = execution.kernels.get("moments", _rows.moments)
    rows, centred, deviations = zip(*moments(xp, views, row_mask, shards, eps=eps), strict=True)
    reciprocals = [_rows.safe_reciprocal(xp, deviation) for deviation in deviations]
    standard = [x * reciprocal for x, reciprocal in zip(centred, reciprocals, strict=True)]
    n, dim = rows[0].n, views[0].shape[-1]
    pairs = view_pairs(len(views))
    diagonal = _stacked(
        xp, [shards.sum(_xp.sum_rows(xp, standard[i] * standard[j])) / n for i, j in pairs]
    )
    on = xp.sum((1 - diagonal) ** 2, axis=(-2, -1))
    nothing: list[Array | None] = [None] * len(views)
    grams, every, others, cancels = nothing, nothing, None, None
    if views[0].shape[-2] * shards.size < dim:
        # Σ_ij C_ij² = ⟨ââᵀ, b̂b̂ᵀ⟩/n², and no D × D array is made. A shard gathers all rows, which
        # are fewer numbers, and makes its own rows of the Gram matrices.
        gathered = [shards.gather(x, axis=-2) for x in standard]
        own = [x @ xp.matrix_transpose(e) for x, e in zip(standard, gathered, strict=True)]
        products = [(own[i] * own[j], own[i] * own[i], own[j] * own[j]) for i, j in pairs]
        sums = xp.stack([xp.stack([xp.sum(x, axis=(-2, -1)) for x in p]) for p in products])
        sums = shards.sum(sums) / (n * n)
        off = sums[:, 0, ...] - xp.sum(diagonal * diagonal, axis=(-2, -1))
        # Rounding is of the size of ‖ââᵀ‖ ‖b̂b̂ᵀ‖, whatever their scalar product is.
        size = xp.sqrt(sums[:, 1, ...] * sums[:, 2, ...])
        cancels, by_gram = xp.any(size > _MOST_CANCELLED * off), off
        tiled = execution.kernels.get("barlow_tiles", _in_tiles)

        def in_tiles() -> Array:
            return xp.stack([tiled(xp, standard, p, n, shards)[0] for p in pairs])

        off = _xp.either(xp, cancels, in_tiles, lambda: by_gram) if _xp.branches(xp) else in_tiles()
        grams, every = own, nothing if shards.size == 1 else gathered
    else:
        others = _stacked(
            xp,
            [
                off_diagonal(xp, shards.sum(xp.matrix_transpose(standard[i]) @ standard[j]) / n)
                for i, j in pairs
            ],
        )
        off = xp.sum(others * others, axis=(-2, -1))
    on_diagonal, off_diagonal_ = (xp.sum(x) / math.prod(x.shape) for x in (on, off))
    total = on_diagonal + off_diagonal_weight * off_diagonal_
    saved = BarlowTwinsSaved(
        tuple(r.first for r in rows),
        tuple(r.rest for r in rows),
        tuple(reciprocals),
        tuple(grams),
        tuple(every),
        rows[0].masked_n(),
        diagonal,
        others,
        cancels,
    )
    return BarlowTwinsTerms(total, on_diagonal, off_diagonal_), saved


def _stacked(xp: Namespace, of_pairs: list[Array]) -> Array:
    """One array a pair, along a new first axis."""
    return of_pairs[0][None, ...] if len(of_pairs) == 1 else xp.stack(of_pairs)


@barlow_twins_loss.backward
def _backward(
    execution: Execution,
    inputs: Inputs,
    saved: BarlowTwinsSaved,
    on_total: Scalar,
    on_on: Scalar,
    on_off: Scalar,
) -> Any:
    a, b, mask = inputs["a"], inputs["b"], inputs["row_mask"]
    xp = _xp.namespace(a)
    views, shards = as_views(xp, a, b), execution.shards
    rows = [
        _rows.again(xp, view, mask, shards, first, rest, saved.n)
        for view, first, rest in zip(views, saved.first, saved.rest, strict=True)
    ]
    standard = [r.centred() * s for r, s in zip(rows, saved.reciprocal, strict=True)]
    n, pairs = rows[0].n, view_pairs(len(views))
    share = len(pairs) * math.prod(views[0].shape[:-2])
    # Factors go onto a row or the smaller matrix, not onto (N, D) entries.
    on_factor = 2 * ((on_total + on_on) / share) / n
    off_factor = 2 * ((on_total * inputs["off_diagonal_weight"] + on_off) / share) / n
    gradients: list[Array | None] = [None] * len(views)
    for p, (i, j) in enumerate(pairs):
        products, diagonal = _products(xp, saved, standard, p, (i, j), off_factor, n, shards)
        on_other = (saved.diagonal[p, ...] - 1) * on_factor - diagonal
        for v, other, g in ((i, j, products[0]), (j, i, products[1])):
            g += standard[other] * on_other
            gradients[v] = g if gradients[v] is None else gradients[v] + g
    through = []
    for r, x, s, g in zip(rows, standard, saved.reciprocal, gradients, strict=True):
        # x̂ = ẑ / sqrt(var + ε): standardisation removes the gradient's part along x̂. Centring
        # changes nothing: g and x̂ are combinations of centred columns.
        along = r.sum(g * x) / n
        through.append((g - x * along) * s)
    return view_gradients(xp, through, b)


def _products(
    xp: Namespace,
    saved: BarlowTwinsSaved,
    standard: list[Array],
    p: int,
    pair: tuple[int, int],
    factor: Scalar,
    n: Scalar,
    shards: Shards,
) -> tuple[tuple[Array, Array], Scalar]:
    """Gradients for both x̂ of factor n / 2 times Σ_ij C_ij² of pair p.

    And what the diagonal has in them, as a factor (..., 1, D) of the other view's x̂.
    """
    a, b = (standard[v] for v in pair)
    if saved.others is not None:
        scaled = saved.others[p, ...] * factor
        return (b @ xp.matrix_transpose(scaled), a @ scaled), 0.0

    def by_gram() -> tuple[tuple[Array, Array], Array]:
        i, j = pair
        rows = [x if e is None else e for x, e in zip(standard, saved.every, strict=True)]
        of_a = (saved.gram[j] * (factor / n)) @ rows[i]
        return (of_a, (saved.gram[i] * (factor / n)) @ rows[j]), saved.diagonal[p, ...] * factor

    def in_tiles() -> tuple[tuple[Array, Array], Array]:
        _, of_a, of_b = _in_tiles(xp, standard, pair, n, shards)
        return (of_a * factor, of_b * factor), xp.zeros_like(saved.diagonal[p, ...])

    return _xp.either(xp, saved.cancels, in_tiles, by_gram) if _xp.branches(xp) else in_tiles()


def _in_tiles(
    xp: Namespace, standard: list[Array], pair: tuple[int, int], n: Scalar, shards: Shards
) -> tuple[Array, Array, Array]:
    """Σ_{i≠j} C_ij² of a pair of views, and x̂_b Cᵀ and x̂_a C without C's diagonal.

    From the matrix itself, as many rows of it at a time as the views have.
    """
    a, b = (standard[v] for v in pair)
    columns = xp.arange(a.shape[-1], **_xp.on_device(a))

    def tile(chosen: Array) -> tuple[list[Array], list[Array]]:
        some = xp.take(a, chosen, axis=-1)
        c = shards.sum(xp.matrix_transpose(some) @ b) / n
        own = _xp.of_rank(xp, chosen[:, None] == columns[None, :], c.ndim)
        c = xp.where(own, xp.zeros_like(c), c)
        return [b @ xp.matrix_transpose(c)], [xp.sum(c * c, axis=(-2, -1)), some @ c]

    (of_a,), (off, of_b) = _xp.accumulate(xp, tile, columns, a.shape[-2] * shards.size)
    return off, of_a, of_b
