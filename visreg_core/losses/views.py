"""Two or more views of a batch: arguments, pairs, gradients and magnitudes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core.losses.declaration import Example, Inputs, times
from visreg_core.losses.execution import Execution
from visreg_core.typing import Array, Namespace, Scalar


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
        checks.embeddings("a", a)
        checks.embeddings("b", b)
        checks.same_shape("a", a, "b", b)
        return
    checks.embeddings("views", a, shape="(V, N, D)")
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


class StackSaved(NamedTuple):
    """gradient : of the sum over the leading axes, of all views on one another, (V, ..., N, D)."""

    gradient: Array | None


def of_stack(
    execution: Execution, a: Array, b: Array | None, of_views: Callable[[Array], tuple[Array, Any]]
) -> tuple[Array, StackSaved]:
    """Value and, if needed, gradient by `of_views` of views (V, ..., N, D), in float64.

    In float32 where the device has no other, and for a value alone on JAX, which may differentiate
    it by itself and cannot where float64 is switched on inside.
    """
    xp = execution.namespace(a, b)
    dtype = _xp.compute_dtype(xp, a)
    stack = _xp.cast(xp, a if b is None else xp.stack([a, b]), dtype)
    if _xp.compiles(xp) and not execution.need_gradient:
        return of_views(stack)[0], StackSaved(None)
    with _xp.float64_inside(xp):
        value, gradient = of_views(_xp.cast(xp, stack, _xp.widest(xp, stack)))
        gradient = None if gradient is None else _xp.cast(xp, gradient, dtype)
        return _xp.cast(xp, value, dtype), StackSaved(gradient)


def stack_backward(
    execution: Execution, inputs: Inputs, saved: StackSaved, cotangent: Scalar
) -> Any:
    """Gradients of the views as the caller passed them, of a gradient that is saved whole."""
    a, gradient = inputs["a"], saved.gradient
    assert gradient is not None
    if inputs["b"] is None:
        return times(gradient, cotangent, execution.donated)
    share = cotangent / math.prod(a.shape[:-2])
    return tuple(gradient[v, ...] * share for v in range(2))


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
