"""Barlow Twins: the cross-correlation of two views should be the identity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from visreg_core import _checks, _xp
from visreg_core._typing import Array, Namespace, Scalar
from visreg_core.losses import _rows
from visreg_core.losses._differentiable import differentiated_by
from visreg_core.losses._execution import PLAIN, Execution, Shards
from visreg_core.losses.vicreg import as_views, off_diagonal, view_gradients, view_pairs


class BarlowTwinsTerms(NamedTuple):
    """Terms of `barlow_twins_loss`; `off_diagonal` is not weighted."""

    total: Array
    on_diagonal: Array
    off_diagonal: Array


def _pair_terms(
    xp: Namespace, a: Array, b: Array, n: Scalar, shards: Shards
) -> tuple[Array, Array, Callable[[Scalar, Scalar], tuple[Array, Array]]]:
    """Σ(1 − C_ii)² and Σ_{i≠j} C_ij² of C = âᵀb̂/n, (..., 1, 1), and their pullback to â, b̂.

    Where N < D, Σ_ij C_ij² = ⟨ââᵀ, b̂b̂ᵀ⟩/n² by the N × N Gram matrices and no D × D array is made.
    A shard then gathers all rows, which are fewer numbers, and makes its rows of the Gram matrices.
    """
    rows, dim = a.shape[-2] * shards.size, a.shape[-1]
    diagonal = shards.sum(_xp.sum_rows(xp, a * b)) / n  # (..., 1, D)
    on = xp.sum((1 - diagonal) ** 2, axis=(-2, -1), keepdims=True)
    if rows < dim:
        every_a, every_b = (shards.gather(x, axis=-2) for x in (a, b))
        gram_a, gram_b = a @ xp.matrix_transpose(every_a), b @ xp.matrix_transpose(every_b)
        every = xp.sum(gram_a * gram_b, axis=(-2, -1), keepdims=True)
        every = shards.sum(every) / (n * n)
        off = every - xp.sum(diagonal * diagonal, axis=(-2, -1), keepdims=True)
        included = diagonal  # of the diagonal in the products that follow

        def products(factor: Scalar) -> tuple[Array, Array]:
            return (gram_b * (factor / n)) @ every_a, (gram_a * (factor / n)) @ every_b
    else:
        others = off_diagonal(xp, shards.sum(xp.matrix_transpose(a) @ b) / n)
        off = xp.sum(others * others, axis=(-2, -1), keepdims=True)
        included = xp.zeros_like(diagonal)

        def products(factor: Scalar) -> tuple[Array, Array]:
            scaled = others * factor
            return b @ xp.matrix_transpose(scaled), a @ scaled

    def pullback(on_scale: Scalar, off_scale: Scalar) -> tuple[Array, Array]:
        # Factors go onto a row or the smaller matrix, not onto (N, D) entries.
        factor = 2 * off_scale / n
        on_other = (diagonal - 1) * (2 * on_scale / n) - included * factor
        of_a, of_b = products(factor)
        return of_a + b * on_other, of_b + a * on_other

    return on, off, pullback


def _barlow_twins_loss(
    a: Array,
    b: Array | None = None,
    off_diagonal_weight: Scalar = 0.0051,
    *,
    eps: float = 0.0,
    row_mask: Array | None = None,
    need_grad: bool,
    execution: Execution = PLAIN,
) -> tuple[BarlowTwinsTerms, Callable[..., object]]:
    xp = _xp.namespace(a, b, row_mask)
    views = as_views(xp, a, b)
    _checks.row_mask(row_mask, views[0])
    _checks.not_negative("eps", eps)
    _checks.number("off_diagonal_weight", off_diagonal_weight)
    shards = execution.shards
    rows, centred = zip(*(_rows.centre(xp, z, row_mask, shards) for z in views), strict=True)
    n = rows[0].n
    reciprocals = [
        _rows.safe_reciprocal(xp, _rows.standard_deviation(r, c, eps=eps))
        for r, c in zip(rows, centred, strict=True)
    ]
    standard = [c * s for c, s in zip(centred, reciprocals, strict=True)]
    pairs = view_pairs(len(views))
    terms = [_pair_terms(xp, standard[i], standard[j], n, shards) for i, j in pairs]
    on_diagonal = sum(xp.mean(on) for on, _, _ in terms[1:]) + xp.mean(terms[0][0])
    off_diagonal = sum(xp.mean(off) for _, off, _ in terms[1:]) + xp.mean(terms[0][1])
    on_diagonal, off_diagonal = on_diagonal / len(pairs), off_diagonal / len(pairs)
    total = on_diagonal + off_diagonal_weight * off_diagonal

    def vjp(on_total: Scalar, on_on: Scalar, on_off: Scalar) -> object:
        share = len(pairs) * math.prod(views[0].shape[:-2])
        gradients: list[Array | None] = [None] * len(views)
        for (i, j), (_, _, pullback) in zip(pairs, terms, strict=True):
            both = pullback(
                (on_total + on_on) / share, (on_total * off_diagonal_weight + on_off) / share
            )
            for v, g in zip((i, j), both, strict=True):
                gradients[v] = g if gradients[v] is None else gradients[v] + g
        carried = []
        for r, x, s, g in zip(rows, standard, reciprocals, gradients, strict=True):
            # x̂ = ẑ / sqrt(var + ε): along x̂ itself the standardisation takes the gradient away.
            # The centring takes nothing: g and x̂ are combinations of centred columns.
            through = x * (r.sum(g * x) / n)
            carried.append((g - through) * s)
        return view_gradients(xp, carried, a, b)

    return BarlowTwinsTerms(total, on_diagonal, off_diagonal), vjp


@differentiated_by(_barlow_twins_loss)
def barlow_twins_loss(
    a: Array,
    b: Array | None = None,
    off_diagonal_weight: Scalar = 0.0051,
    *,
    eps: float = 0.0,
    row_mask: Array | None = None,
) -> BarlowTwinsTerms:
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
        ``total, on_diagonal, off_diagonal`` (the last not weighted): arrays of no axes, float64
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
    matrices of the views.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.random.default_rng(0).standard_normal((64, 4))
    >>> bool(barlow_twins_loss(a, a).on_diagonal < 1e-20)
    True
    """
    return _barlow_twins_loss(
        a, b, off_diagonal_weight, eps=eps, row_mask=row_mask, need_grad=False
    )[0]
