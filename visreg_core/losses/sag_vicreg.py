"""SAG-VICReg: VICReg whose invariance term joins pairs drawn by a random walk."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core.losses import rows as _rows
from visreg_core.losses.declaration import Inputs, declare_loss
from visreg_core.losses.execution import Execution
from visreg_core.losses.variance_covariance import VICRegSaved
from visreg_core.losses.vicreg import branches_forward, branches_gradient, vicreg_loss
from visreg_core.losses.views import as_views, check_views, weighted_total
from visreg_core.typing import Array, Scalar


class SAGVICRegTerms(NamedTuple):
    """Terms of `sag_vicreg_loss`; `total` is their weighted sum, the others are not weighted."""

    total: Array
    invariance: Array
    variance: Array
    covariance: Array


def _magnitude(
    a: np.ndarray, b: np.ndarray, pairs: np.ndarray, pair_weights: np.ndarray
) -> tuple[float, ...]:
    """Of VICReg, with mean w_i (|a_i| + |b_j(i)|)²."""
    of_vicreg = vicreg_loss.declaration.magnitude
    assert of_vicreg is not None
    _, _, variances, covariances = of_vicreg(a, b)
    squares = np.mean(pair_weights[:, None] * (np.abs(a) + np.abs(b[pairs])) ** 2)
    return weighted_total((25, 25, 1), (float(squares), variances, covariances))


def _check(a: Array, b: Array, pairs: Array, pair_weights: Array) -> None:
    if b is None:
        raise TypeError("expected b to be an array; found None")
    check_views(a, b)
    size = a.shape[-2]
    for argument, x in (("pairs", pairs), ("pair_weights", pair_weights)):
        if not _xp.is_array(x):
            raise TypeError(f"expected {argument} to be an array; found {type(x).__name__}")
        if tuple(x.shape) != (size,):
            raise ValueError(f"expected {argument} of shape ({size},); found {tuple(x.shape)}")
    if "int" not in _xp.dtype_name(pairs):
        raise TypeError(f"expected pairs of an integer dtype; found {_xp.dtype_name(pairs)}")
    checks.floating("pair_weights", pair_weights)


def _pair_column(a: Array, pair_weights: Array, row_mask: Array | None) -> Array:
    """The weights as a column (N, 1), 0 for masked rows."""
    xp = _xp.namespace(a)
    column = _xp.cast(xp, _xp.stop_gradient(pair_weights), _xp.compute_dtype(xp, a))[:, None]
    return _xp.of_rank(xp, _rows.kept(xp, _rows.keep_column(row_mask), column), a.ndim)


@declare_loss(
    differentiated=("a", "b"),
    row_axes={"a": -2, "b": -2, "pairs": -1, "pair_weights": -1, "row_mask": -1},
    constants=("pair_weights",),
    terms=SAGVICRegTerms,
    saved=VICRegSaved,
    magnitude=_magnitude,
)
def sag_vicreg_loss(
    execution: Execution,
    a: Array,
    b: Array,
    pairs: Array,
    pair_weights: Array,
    weights: tuple[Scalar, Scalar, Scalar] = (25, 25, 1),
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
    row_mask: Array | None = None,
) -> tuple[SAGVICRegTerms, VICRegSaved]:
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
        ``total, invariance, variance, covariance``: 0-d arrays. The invariance is
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
    xp = _xp.namespace(a, b, pairs, pair_weights, row_mask)
    _check(a, b, pairs, pair_weights)
    checks.row_mask(row_mask, a)
    checks.not_negative("eps", eps)
    checks.number("gamma", gamma)
    w_invariance, w_variance, w_covariance = checks.weights(
        "weights", weights, SAGVICRegTerms._fields[1:]
    )
    views, shards, keep = as_views(xp, a, b), execution.shards, _rows.keep_column(row_mask)
    wide_a, wide_b = (_rows.kept(xp, keep, v) for v in views)
    difference = wide_a - xp.take(shards.gather(wide_b, axis=-2), pairs, axis=-2)
    n = _rows.count(xp, a, row_mask, shards)
    weighted = _pair_column(a, pair_weights, row_mask) * difference**2
    invariance = shards.sum(xp.sum(weighted)) * (1 / (n * _entries(a)))
    variance, covariance, branches = branches_forward(
        execution, views, gamma, eps, "vicreg", row_mask
    )
    total = w_invariance * invariance + w_variance * variance + w_covariance * covariance
    saved = VICRegSaved.of(branches, None if row_mask is None else n, difference)
    return SAGVICRegTerms(total, invariance, variance, covariance), saved


def _entries(a: Array) -> int:
    """Entries of one row, over the leading axes."""
    return math.prod(a.shape[:-2]) * a.shape[-1]


@sag_vicreg_loss.backward
def _backward(
    execution: Execution,
    inputs: Inputs,
    saved: VICRegSaved,
    on_total: Scalar,
    on_invariance: Scalar,
    on_variance: Scalar,
    on_covariance: Scalar,
) -> tuple[Array, Array]:
    a, pairs, shards = inputs["a"], inputs["pairs"], execution.shards
    xp = _xp.namespace(a)
    w_invariance, w_variance, w_covariance = inputs["weights"]
    of_a, of_b = branches_gradient(
        execution,
        as_views(xp, a, inputs["b"]),
        inputs,
        "vicreg",
        saved.branches(),
        on_total * w_variance + on_variance,
        on_total * w_covariance + on_covariance,
    )
    n = _rows.count(xp, a, None, shards) if saved.n_rows is None else saved.n_rows
    scale = 2 / (n * _entries(a)) * (on_total * w_invariance + on_invariance)
    to_a = _pair_column(a, inputs["pair_weights"], inputs["row_mask"]) * saved.difference * scale
    to_b = _xp.add_rows(xp, a.shape[-2] * shards.size, pairs, to_a)
    return of_a + to_a, of_b - shards.scatter_sum(to_b, axis=-2)
