"""Sliced Wasserstein distance between two samples, of any sizes and weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core.losses.declaration import Example, Inputs, declare_loss, times
from visreg_core.losses.execution import Execution
from visreg_core.losses.quantile_merging import two_sample_term, weighted_term
from visreg_core.losses.rows import power_of_two_below
from visreg_core.losses.sliced import flat_batch, flat_slices, projection_dtype_for, sliced
from visreg_core.typing import Array, DType, Namespace, Scalar


class SlicedWassersteinSaved(NamedTuple):
    """What the forward pass saves.

    slopes : derivative of each distance with respect to its mean of W_p^p, (B,); of_x, of_y :
    gradients of the sum of W_p^p over slices, of the samples' shapes with one batch axis.
    """

    slopes: Array
    of_x: Array | None
    of_y: Array | None


class MaxSlicedWassersteinSaved(NamedTuple):
    """What the forward pass saves.

    slopes : (B,), as in `SlicedWassersteinSaved`; farthest : index of the farthest slice, (B, 1).
    """

    slopes: Array
    farthest: Array


def _check_weights(argument: str, weights: Array | None, x: Array) -> None:
    if weights is None:
        return
    checks.floating(argument, weights)
    if tuple(weights.shape) != (x.shape[-2],):
        raise ValueError(
            f"expected {argument} of shape ({x.shape[-2]},); found {tuple(weights.shape)}"
        )


class _TwoSamples(NamedTuple):
    """Samples (B, N, D) divided by a power of two, `unit` (B,): p-th powers of 1e8 overflow."""

    xp: Namespace
    wide: tuple[Array, Array]
    unit: Array
    term: Callable[..., tuple[Array, ...]]
    chunk_size: int | None
    projection_dtype: DType

    def evaluate(self, columns: Array, execution: Execution) -> tuple[Array, tuple[Array, ...]]:
        """W_p^p (B, K) and, if needed, the gradients of its sum."""
        return sliced(
            self.xp,
            self.wide,
            columns,
            self.term,
            execution,
            chunk_size=self.chunk_size,
            projection_dtype=self.projection_dtype,
        )


def _two_samples(
    x: Array,
    y: Array,
    slices: Array,
    p: float,
    x_weights: Array | None,
    y_weights: Array | None,
    chunk_size: int | None,
    projection_dtype: DType,
) -> _TwoSamples:
    """Check the arguments and scale the samples."""
    xp = _xp.namespace(x, y, slices, x_weights, y_weights)
    checks.embeddings("x", x, min_rows=1)
    checks.embeddings("y", y, min_rows=1)
    checks.same_dtype("x", x, "y", y)
    if x.shape[-1] != y.shape[-1] or x.shape[:-2] != y.shape[:-2]:
        raise ValueError(
            "expected x and y of shapes (..., N, D) and (..., M, D); "
            f"found {tuple(x.shape)} and {tuple(y.shape)}"
        )
    checks.slices(slices, x)
    checks.number("p", p, minimum=1, static=True)
    _check_weights("x_weights", x_weights, x)
    _check_weights("y_weights", y_weights, y)
    dtype = _xp.compute_dtype(xp, x)
    wide = tuple(_xp.cast(xp, flat_batch(xp, s), dtype) for s in (x, y))
    of_x, of_y = (xp.max(xp.abs(_xp.stop_gradient(s)), axis=(-2, -1)) for s in wide)
    unit = power_of_two_below(xp, xp.maximum(of_x, of_y))
    wide_x, wide_y = (s / unit[:, None, None] for s in wide)
    if x_weights is None and y_weights is None:
        term = two_sample_term(xp, x.shape[-2], y.shape[-2], p, wide_x)
    else:
        weights = [
            xp.ones_like(s[0, :, 0]) if w is None else _xp.cast(xp, _xp.stop_gradient(w), dtype)
            for s, w in zip(wide, (x_weights, y_weights), strict=True)
        ]
        term = weighted_term(xp, weights[0], weights[1], p)
    projected = projection_dtype_for(xp, x, projection_dtype)
    return _TwoSamples(xp, (wide_x, wide_y), unit, term, chunk_size, projected)


def _root(xp: Namespace, mean: Array, unit: Array, p: float, power: bool) -> tuple[Array, Array]:
    """Distances (B,) from means of W_p^p of samples divided by `unit`, and their derivatives.

    mean^(1/p) · unit, with derivative 0 at 0; or mean · unit^p where `power`. The derivative is
    that for the samples as they were: d(distance)/d(mean) / unit.
    """
    if power:
        return mean * unit**p, unit ** (p - 1)
    if p == 1:
        return mean * unit, xp.ones_like(mean)
    zero = mean == 0
    safe = xp.where(zero, xp.ones_like(mean), mean)
    root = xp.where(zero, xp.zeros_like(mean), safe ** (1 / p))
    return root * unit, xp.where(zero, xp.zeros_like(mean), safe ** (1 / p - 1) / p)


def _magnitude(
    x: np.ndarray,
    y: np.ndarray,
    slices: np.ndarray,
    *,
    p: float = 2,
    power: bool = False,
    **_: Array,
) -> tuple[float, ...]:
    """‖x w‖ + ‖y w‖, root mean p-th powers over rows and slices (to the p-th where `power`).

    By Minkowski's inequality at least (mean (|x_n w_k| + |y_n w_k|)^p)^(1/p), and without sorting.
    """
    sizes = [float(np.mean(np.abs(s @ slices) ** p)) ** (1 / p) for s in (x, y)]
    return (sum(sizes) ** (p if power else 1),)


def _max_magnitude(
    x: np.ndarray,
    y: np.ndarray,
    slices: np.ndarray,
    *,
    p: float = 2,
    power: bool = False,
    **_: Array,
) -> tuple[float, ...]:
    """The largest of `_magnitude` over the slices."""
    columns = [slices[:, k : k + 1] for k in range(slices.shape[1])]
    return max(_magnitude(x, y, column, p=p, power=power) for column in columns)


def _order(p: float = 2, power: bool = False) -> float:
    return 1 if power else p


_PAIR = {"x": "z", "y": "y"}


@declare_loss(
    differentiated=("x", "y"),
    row_axes={"x": -2, "y": -2, "x_weights": -1, "y_weights": -1},
    constants=("x_weights", "y_weights"),
    shape_only=("slices",),
    saved=SlicedWassersteinSaved,
    sorts=True,
    sharded=False,
    min_rows=1,
    root=_order,
    magnitude=_magnitude,
    examples=(
        Example(arrays={"x": "a", "y": "b"}),
        Example("unequal sizes", _PAIR),
        Example(
            "weights, p=1.5",
            {**_PAIR, "x_weights": "z_weights", "y_weights": "y_weights"},
            {"p": 1.5},
        ),
        Example("equal keys", _PAIR, {"power": True}, inputs="ties", differentiable=False),
    ),
)
def sliced_wasserstein(
    execution: Execution,
    x: Array,
    y: Array,
    slices: Array,
    p: float = 2,
    x_weights: Array | None = None,
    y_weights: Array | None = None,
    *,
    power: bool = False,
    chunk_size: int | None = None,
    projection_dtype: DType = None,
) -> tuple[Array, SlicedWassersteinSaved]:
    """Sliced p-Wasserstein distance between two samples: (mean_k W_p^p)^(1/p).

    Parameters
    ----------
    x, y : arrays of shape (..., N, D) and (..., M, D)
        Samples of one dtype; sizes may differ. The result is the mean over the leading axes.
    slices : array of shape (D, K) or (..., D, K)
        Unit directions, from `random_slices`.
    p : float
        Order of the distance, at least 1.
    x_weights, y_weights : arrays of shapes (N,) and (M,), optional
        Non-negative masses, normalised to sum 1; equal if not given. Constants: no gradient flows
        through them.
    power : bool
        Return mean_k W_p^p, whose gradient stays finite as the samples meet.
    chunk_size : int, optional
        Slices projected at once; bounds memory and changes nothing else.
    projection_dtype : dtype, optional
        Dtype of the products ``x @ slices`` and ``y @ slices``; float32, and float64
        for float64 samples, if not given.

    Returns
    -------
    0-d array
        float64 for float64 samples, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit, p < 1, or slices that require a gradient.
    TypeError
        For dtypes that are not floating or differ, or arrays of two libraries.

    Notes
    -----
    Source: VISReg Lemma 2; samples of unequal sizes or weights meet by merging their quantile
    functions exactly. POT's ``sliced_wasserstein_distance`` gives the same number for the same
    projections. The gradient on identical samples is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core import random_slices
    >>> x = np.random.default_rng(0).standard_normal((100, 4))
    >>> round(float(sliced_wasserstein(x, x + 1.0, random_slices(4, 50_000))), 2)
    1.0
    """
    checks.flag("power", power)
    samples = _two_samples(x, y, slices, p, x_weights, y_weights, chunk_size, projection_dtype)
    xp = samples.xp
    values, gradients = samples.evaluate(flat_slices(xp, slices, x), execution)
    # One distance for each leading index, then their mean.
    roots, slopes = _root(xp, xp.mean(values, axis=-1), samples.unit, p, power)
    of_x, of_y = gradients if execution.need_gradient else (None, None)
    return xp.mean(roots), SlicedWassersteinSaved(slopes, of_x, of_y)


@sliced_wasserstein.backward
def _sliced_wasserstein_backward(
    execution: Execution, inputs: Inputs, saved: SlicedWassersteinSaved, cotangent: Scalar
) -> tuple[Array, Array]:
    size = math.prod(saved.slopes.shape) * inputs["slices"].shape[-1]
    return _scaled(execution, inputs, (saved.of_x, saved.of_y), saved.slopes * (cotangent / size))


def _scaled(
    execution: Execution, inputs: Inputs, gradients: tuple[Array, ...], scale: Array
) -> tuple[Array, Array]:
    """Gradients (B, N, D) times a scale (B,), as those of x and of y."""
    xp = _xp.namespace(scale)
    of_x, of_y = (times(g, scale[:, None, None], execution.donated) for g in gradients)
    return xp.reshape(of_x, inputs["x"].shape), xp.reshape(of_y, inputs["y"].shape)


@declare_loss(
    differentiated=("x", "y"),
    row_axes={"x": -2, "y": -2, "x_weights": -1, "y_weights": -1},
    constants=("x_weights", "y_weights"),
    saved=MaxSlicedWassersteinSaved,
    sorts=True,
    sharded=False,
    min_rows=1,
    root=_order,
    magnitude=_max_magnitude,
    examples=(Example(arrays=_PAIR),),
)
def max_sliced_wasserstein(
    execution: Execution,
    x: Array,
    y: Array,
    slices: Array,
    p: float = 2,
    x_weights: Array | None = None,
    y_weights: Array | None = None,
    *,
    power: bool = False,
    chunk_size: int | None = None,
    projection_dtype: DType = None,
) -> tuple[Array, MaxSlicedWassersteinSaved]:
    """Largest p-Wasserstein distance between two samples over the given slices.

    Parameters
    ----------
    x, y, slices, p, x_weights, y_weights, power, chunk_size, projection_dtype
        As in `sliced_wasserstein`.

    Returns
    -------
    0-d array
        max_k W_p, or max_k W_p^p where `power`; the mean over the leading axes. float64 for
        float64 samples, else float32.

    Raises
    ------
    ValueError, TypeError
        As `sliced_wasserstein`.

    Notes
    -----
    Source: Deshpande et al. 2019, with the maximum over the given slices as in POT's
    ``max_sliced_wasserstein_distance``. Where slices tie the gradient is that of the first.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.zeros((5, 2))
    >>> y = x + np.array([3.0, 0.0])
    >>> float(max_sliced_wasserstein(x, y, np.eye(2)))
    3.0
    """
    checks.flag("power", power)
    samples = _two_samples(x, y, slices, p, x_weights, y_weights, chunk_size, projection_dtype)
    xp = samples.xp
    values, _ = samples.evaluate(
        flat_slices(xp, slices, x), execution._replace(need_gradient=False)
    )
    farthest = xp.argmax(values, axis=-1)[:, None]
    largest = xp.take_along_axis(values, farthest, axis=-1)[:, 0]
    roots, slopes = _root(xp, largest, samples.unit, p, power)
    return xp.mean(roots), MaxSlicedWassersteinSaved(slopes, farthest)


@max_sliced_wasserstein.backward
def _max_sliced_wasserstein_backward(
    execution: Execution, inputs: Inputs, saved: MaxSlicedWassersteinSaved, cotangent: Scalar
) -> tuple[Array, Array]:
    # Only the farthest slice has a gradient, so that one is evaluated again.
    names = ("x", "y", "slices", "p", "x_weights", "y_weights", "chunk_size", "projection_dtype")
    samples = _two_samples(*(inputs[name] for name in names))
    xp, batch = samples.xp, saved.slopes.shape[0]
    columns = flat_slices(xp, inputs["slices"], inputs["x"])
    every = xp.broadcast_to(columns, (batch, *columns.shape[1:]))
    index = xp.broadcast_to(saved.farthest[:, None, :], (batch, columns.shape[1], 1))
    own = execution._replace(need_gradient=True, donated=True)
    _, gradients = samples.evaluate(xp.take_along_axis(every, index, axis=-1), own)
    return _scaled(own, inputs, gradients, saved.slopes * (cotangent / batch))
