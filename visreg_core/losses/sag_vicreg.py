"""SAG-VICReg: VICReg whose invariance term joins pairs drawn by a random walk."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from visreg_core import _checks, _xp
from visreg_core._typing import Array, Scalar
from visreg_core.losses import _rows
from visreg_core.losses._differentiable import differentiated_by
from visreg_core.losses._execution import PLAIN, Execution
from visreg_core.losses.vicreg import as_views, branch_terms, view_gradients


class SAGVICRegTerms(NamedTuple):
    """Terms of `sag_vicreg_loss`; `total` is their weighted sum, the others are not weighted."""

    total: Array
    invariance: Array
    variance: Array
    covariance: Array


def _sag_vicreg_loss(
    a: Array,
    b: Array,
    pairs: Array,
    pair_weights: Array,
    weights: tuple[Scalar, Scalar, Scalar] = (25, 25, 1),
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
    row_mask: Array | None = None,
    need_grad: bool,
    execution: Execution = PLAIN,
) -> tuple[SAGVICRegTerms, Callable[..., object]]:
    xp = _xp.namespace(a, b, pairs, pair_weights, row_mask)
    if b is None:
        raise TypeError("expected b to be an array; found None")
    views = as_views(xp, a, b)
    size = a.shape[-2]
    for argument, x in (("pairs", pairs), ("pair_weights", pair_weights)):
        if not _xp.is_array(x):
            raise TypeError(f"expected {argument} to be an array; found {type(x).__name__}")
        if tuple(x.shape) != (size,):
            raise ValueError(f"expected {argument} of shape ({size},); found {tuple(x.shape)}")
    if "int" not in _xp.dtype_name(pairs):
        raise TypeError(f"expected pairs of an integer dtype; found {_xp.dtype_name(pairs)}")
    _checks.floating("pair_weights", pair_weights)
    _checks.row_mask(row_mask, a)
    _checks.not_negative("eps", eps)
    _checks.number("gamma", gamma)
    w_invariance, w_variance, w_covariance = _checks.weights(
        "weights", weights, SAGVICRegTerms._fields[1:]
    )
    dtype = _xp.compute_dtype(xp, a)
    keep = _rows.keep_column(row_mask)
    wide_a, wide_b = (_rows.kept(xp, keep, v) for v in views)
    pair_weight = _xp.cast(xp, _xp.stop_gradient(pair_weights), dtype)[:, None]
    pair_weight = _xp.of_rank(xp, _rows.kept(xp, keep, pair_weight), a.ndim)
    shards = execution.shards
    difference = wide_a - xp.take(shards.gather(wide_b, axis=-2), pairs, axis=-2)
    entries = math.prod(a.shape[:-2]) * a.shape[-1]  # of one row
    scale = 1 / (_rows.count(xp, a, row_mask, shards) * entries)
    invariance = shards.sum(xp.sum(pair_weight * difference**2)) * scale
    variance, covariance, of_branches = branch_terms(
        xp, views, gamma, eps, "vicreg", row_mask, shards
    )
    total = w_invariance * invariance + w_variance * variance + w_covariance * covariance

    def vjp(
        on_total: Scalar, on_invariance: Scalar, on_variance: Scalar, on_covariance: Scalar
    ) -> object:
        branches = of_branches(
            on_total * w_variance + on_variance, on_total * w_covariance + on_covariance
        )
        to_a = pair_weight * difference * (2 * scale * (on_total * w_invariance + on_invariance))
        to_b = _xp.add_rows(xp, size * shards.size, pairs, to_a)
        to_b = shards.scatter_sum(to_b, axis=-2)
        pairing = (to_a, -to_b)
        gradients = [g + p for g, p in zip(branches, pairing, strict=True)]
        return view_gradients(xp, gradients, a, b)

    return SAGVICRegTerms(total, invariance, variance, covariance), vjp


@differentiated_by(_sag_vicreg_loss)
def sag_vicreg_loss(
    a: Array,
    b: Array,
    pairs: Array,
    pair_weights: Array,
    weights: tuple[Scalar, Scalar, Scalar] = (25, 25, 1),
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
    row_mask: Array | None = None,
) -> SAGVICRegTerms:
    """SAG-VICReg: VICReg whose invariance joins pairs drawn by a random walk.

    Parameters
    ----------
    a, b : arrays of shape (..., N, D)
        Embeddings of two views.
    pairs : integer array of shape (N,)
        j(i) in 0 … N − 1, from `random_walk_pairs`: row i of a is paired with row j(i) of b.
    pair_weights : array of shape (N,)
        w_i = W_{i, j(i)}, from there, too.
    weights, gamma, eps, row_mask
        As in `vicreg_loss`. A kept row must be paired with a kept row.

    Returns
    -------
    SAGVICRegTerms
        ``total, invariance, variance, covariance``: arrays of no axes. The invariance is
        (1/(ND)) Σ_i w_i ‖a_i − b_{j(i)}‖².

    Raises
    ------
    ValueError
        For shapes that do not fit or N < 2.
    TypeError
        For dtypes that are not floating or differ, pairs that are not integers, or arrays of two
        libraries.

    Notes
    -----
    Source: SAG-VICReg Algorithm 1. No gradient flows through pairs and weights. Identity pairs
    with unit weights give `vicreg_loss` exactly.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> a, b = rng.standard_normal((2, 16, 4))
    >>> terms = sag_vicreg_loss(a, b, np.arange(16), np.ones(16))
    >>> from visreg_core import vicreg_loss
    >>> terms.total == vicreg_loss(a, b).total
    np.True_
    """
    return _sag_vicreg_loss(
        a,
        b,
        pairs,
        pair_weights,
        weights,
        gamma=gamma,
        eps=eps,
        row_mask=row_mask,
        need_grad=False,
    )[0]
