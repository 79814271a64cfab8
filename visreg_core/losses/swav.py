"""SwAV: each view predicts the balanced assignment of the other to prototypes."""

from __future__ import annotations

import math

import numpy as np

from visreg_core import _xp, checks
from visreg_core.losses import rows as _rows
from visreg_core.losses.declaration import Example, declare_loss
from visreg_core.losses.execution import Execution, Shards
from visreg_core.losses.views import (
    StackSaved,
    check_views,
    of_stack,
    over_pairs,
    stack_backward,
)
from visreg_core.typing import Array, Namespace


def _magnitude(
    a: np.ndarray, b: np.ndarray, *, temperature: float = 0.1, **_: float
) -> tuple[float, ...]:
    """mean_n max_k |s_nk|/τ of both views, and log K: what a row's cross-entropy is a sum of."""
    largest = np.max(np.abs(a), axis=1) + np.max(np.abs(b), axis=1)
    return (float(np.mean(largest)) / temperature + math.log(a.shape[1]),)


@declare_loss(
    differentiated=("a", "b"),
    row_axes={"a": -2, "b": -2, "row_mask": -1},
    saved=StackSaved,
    magnitude=over_pairs(_magnitude),
    examples=(
        Example(differentiable=False),
        Example("three views", {"a": "views", "b": None}, differentiable=False),
        Example("even assignments", options={"epsilon": 1e15}),  # which do not follow the scores
    ),
)
def swav_loss(
    execution: Execution,
    a: Array,
    b: Array | None = None,
    *,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    n_iterations: int = 3,
    row_mask: Array | None = None,
) -> tuple[Array, StackSaved]:
    """SwAV: cross-entropy of a view's scores to the other view's assignment, over pairs of views.

    −mean_n Σ_k q_nk log softmax_k(s_n/τ), where q is Sinkhorn and Knopp's assignment of the other
    view's scores, in which every prototype has the same share of the batch.

    Parameters
    ----------
    a : array of shape (..., N, K), or (V, N, K) without `b`
        A view's scores: cosines of its embeddings to K prototypes; or those of two or more views.
    b : array of a's shape, optional
        The other view's.
    temperature : float
        τ > 0.
    epsilon : float
        Entropy of the assignment, > 0: q is balanced from e^{s/ε}.
    n_iterations : int
        Sinkhorn and Knopp's iterations: prototypes are given equal shares, then rows.
    row_mask : boolean array of shape (N,), optional
        Rows to keep.

    Returns
    -------
    0-d array
        float64 for float64 scores, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit, N < 2, one view alone, or options that are not positive.
    TypeError
        For dtypes that are not floating, or arrays of two libraries.

    Notes
    -----
    Source: Caron, Misra, Mairal, Goyal, Bojanowski & Joulin 2020, eqs. 2 to 5. No gradient flows
    through q. The prototypes, and their gradient, are the caller's: ``swav_loss(za @ c, zb @ c)``
    with columns and rows of length 1. Assignments are made in logarithms and float64, so that
    no score is too large. With several processes the sums over rows are those of all.

    Examples
    --------
    >>> import numpy as np
    >>> s = np.eye(4)[np.arange(12) % 4]
    >>> float(swav_loss(s, s)) < 0.01 < 1 < float(swav_loss(s, s[:, ::-1]))
    True
    """
    execution.namespace(a, b, row_mask)
    check_views(a, b)
    checks.row_mask(row_mask, a)
    checks.positive("temperature", temperature)
    checks.positive("epsilon", epsilon)
    checks.positive_int("n_iterations", n_iterations)

    def of_scores(scores: Array) -> tuple[Array, Array | None]:
        return _swapped(execution, scores, row_mask, temperature, epsilon, n_iterations)

    return of_stack(execution, a, b, of_scores)


swav_loss.backward(stack_backward)


def _swapped(
    execution: Execution,
    scores: Array,
    row_mask: Array | None,
    temperature: float,
    epsilon: float,
    n_iterations: int,
) -> tuple[Array, Array | None]:
    """Value and, if needed, gradient of scores (V, ..., N, K)."""
    xp, shards, views = execution.namespace(scores, row_mask), execution.shards, scores.shape[0]
    keep = _rows.keep_column(row_mask)
    scores = _rows.kept(xp, keep, scores)
    n = _rows.count(xp, scores, row_mask, shards)
    constant = _xp.stop_gradient(scores)
    q = _balanced(xp, constant / epsilon, keep, shards, n_iterations)
    others = [sum(q[w, ...] for w in range(views) if w != v) for v in range(views)]
    target = xp.stack(others) / (views - 1)
    logits = (scores - xp.max(constant, axis=-1, keepdims=True)) / temperature
    exponentials = xp.exp(logits)
    total = xp.sum(exponentials, axis=-1, keepdims=True)
    each = xp.log(total[..., 0]) - xp.sum(target * logits, axis=-1)
    each = _rows.kept(xp, row_mask, each)
    value = shards.sum(xp.sum(each)) / (n * math.prod(scores.shape[:-2]))
    if not execution.need_gradient:
        return value, None
    gradient = (exponentials / total - target) / (n * views * temperature)
    return value, _rows.kept(xp, keep, gradient)


def _balanced(
    xp: Namespace, x: Array, keep: Array | None, shards: Shards, n_iterations: int
) -> Array:
    """Rows (..., N, K) of e^x, scaled by columns and by rows in turn; each row's sum is 1."""
    beyond = None if keep is None else -xp.inf * xp.ones_like(x)
    for _ in range(n_iterations):
        kept = _rows.kept(xp, keep, x, beyond)
        largest = shards.maximum(xp.max(kept, axis=-2, keepdims=True))
        total = shards.sum(_xp.sum_rows(xp, xp.exp(kept - largest)))
        x = (x - largest) - xp.log(total)
        x = x - xp.max(x, axis=-1, keepdims=True)
        total = xp.sum(xp.exp(x), axis=-1, keepdims=True)
        x = x - xp.log(total)
    return xp.exp(x)
