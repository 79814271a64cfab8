"""Statistics of goodness of fit to N(0, 1), averaged over slices."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core.losses import rows as _rows
from visreg_core.losses.declaration import Example, Inputs, declare_loss, times
from visreg_core.losses.execution import Execution
from visreg_core.losses.sliced import (
    flat_batch,
    flat_slices,
    projection_dtype_for,
    sliced_sorting,
)
from visreg_core.typing import Array, DType, Namespace, Scalar

STATISTICS = ("anderson_darling", "cramer_von_mises", "watson", "jarque_bera")


class StatisticSaved(NamedTuple):
    """gradient : of the sum over slices, (..., N, D)."""

    gradient: Array | None


def statistic_term(
    statistic: str,
    xp: Namespace,
    p: Array,
    n: Scalar,
    row_mask: Array | None,
    need_gradient: bool,
) -> tuple[Array, ...]:
    """The statistic of each row of p (R, N) and, if needed, its gradient (R, N)."""
    if statistic == "jarque_bera":
        return _jarque_bera(xp, p, row_mask, need_gradient)
    keep = None if row_mask is None else row_mask[None, :]
    i = xp.arange(1, p.shape[-1] + 1, dtype=p.dtype, **_xp.on_device(p))
    ranked = _xp.stop_gradient(p)
    if keep is not None:  # masked samples sort behind the others
        ranked = xp.where(keep, ranked, xp.inf * xp.ones_like(ranked))
    c = _xp.targets_by_rank(xp, ranked, (2 * i - 1) / n)  # twice the middle of a sample's step
    slope = None
    if statistic == "anderson_darling":
        below, above = (_log_cdf(xp, x, need_gradient) for x in (p, -p))
        value = -n - xp.sum(_rows.kept(xp, keep, c * below[0] + (2 - c) * above[0]), axis=-1)
        if need_gradient:
            slope = (2 - c) * above[1] - c * below[1]
    else:
        off = _rows.kept(xp, keep, 0.5 * (1 + _xp.erf(xp, p * math.sqrt(0.5))) - c / 2)
        value = xp.sum(off * off, axis=-1) + 1 / (12 * n)
        if statistic == "watson":  # less n (mean Φ − 1/2)², and the mean of c is 1
            middle = xp.sum(off, axis=-1, keepdims=True) / n
            value = value - n * middle[..., 0] ** 2
            off = off - middle
        if need_gradient:
            slope = 2 * off * _density(xp, p)
    return (value,) if slope is None else (value, _rows.kept(xp, keep, slope))


def _density(xp: Namespace, x: Array) -> Array:
    return xp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _log_cdf(xp: Namespace, x: Array, need_slope: bool) -> tuple[Array, ...]:
    """log Φ(x) and, if needed, its derivative φ(x)/Φ(x).

    Far to the left by the asymptotic series: there the derivative cancels, and libraries' automatic
    differentiation of log Φ breaks down.
    """
    far = x < (-20.0 if x.dtype == xp.float64 else -8.0)
    away = xp.where(far, x, -xp.ones_like(x))
    r, series = 1 / (away * away), xp.ones_like(x)
    for k in range(15, 0, -2):
        series = 1 - k * r * series
    log_density = -0.5 * x * x - math.log(2 * math.pi) / 2
    near = _xp.log_ndtr(xp, xp.where(far, xp.zeros_like(x), x))
    value = xp.where(far, log_density + xp.log(series / -away), near)
    if not need_slope:
        return (value,)
    excess = xp.where(far, xp.zeros_like(x), log_density - near)
    return value, xp.where(far, -away / series, xp.exp(excess))


def _jarque_bera(
    xp: Namespace, p: Array, row_mask: Array | None, need_gradient: bool
) -> tuple[Array, ...]:
    """n (m² + (v − 1)²/2 + S²/6 + (K − 3)²/24); S and K of a constant row are 0 and 3."""
    rows, centred = _rows.centre(xp, p[..., None], row_mask)
    deviation = _rows.standard_deviation(rows, centred)
    inverse = _rows.safe_reciprocal(xp, deviation)
    y, mean, n = centred * inverse, rows.mean(), rows.n
    off = deviation * deviation - 1
    skew = rows.sum(y**3) / n
    kurtosis = xp.where(deviation == 0, 3 * xp.ones_like(skew), rows.sum(y**4) / n)
    excess = kurtosis - 3
    value = n * (mean * mean + off * off / 2 + skew * skew / 6 + excess * excess / 24)
    if not need_gradient:
        return (value[:, 0, 0],)
    shape = skew * (y * y - 1 - skew * y) + excess * (y**3 - skew - kurtosis * y) / 3
    slope = 2 * mean + 2 * off * centred + shape * inverse
    return value[:, 0, 0], _rows.kept(xp, rows.keep, slope)[..., 0]


def mean_of_sorting(
    execution: Execution,
    term: Callable[..., tuple[Array, ...]],
    z: Array,
    slices: Array,
    row_mask: Array | None,
    *,
    chunk_size: int | None,
    projection_dtype: DType,
) -> tuple[Array, Array | None]:
    """A whole forward pass: the mean over slices of a term that sorts, and the sum's gradient.

    term(xp, p (R, N), n, row_mask, need_gradient) sees the rows of all shards; z is as passed.
    """
    xp = _xp.namespace(z, slices, row_mask)
    checks.embeddings("z", z)
    checks.slices(slices, z)
    checks.row_mask(row_mask, z)
    n = _rows.count(xp, z, row_mask, execution.shards)
    wide = _xp.cast(xp, flat_batch(xp, z), _xp.compute_dtype(xp, z))
    mask = None if row_mask is None else execution.shards.gather(row_mask, axis=0)
    values, gradient = sliced_sorting(
        xp,
        _rows.kept(xp, _rows.keep_column(row_mask), wide),
        flat_slices(xp, slices, z),
        lambda need_gradient, p: term(xp, p, n, mask, need_gradient),
        execution,
        chunk_size=chunk_size,
        projection_dtype=projection_dtype_for(xp, z, projection_dtype),
    )
    if gradient is not None:
        gradient = xp.reshape(gradient, z.shape)
    return _rows.mean_of(xp, values), gradient


def gradient_of_mean(
    execution: Execution, inputs: Inputs, gradient: Array, cotangent: Scalar
) -> Array:
    """The backward pass that goes with `mean_of_sorting`."""
    size = math.prod(inputs["z"].shape[:-2]) * inputs["slices"].shape[-1]
    return times(gradient, cotangent / size, execution.donated)


def _magnitude(
    z: np.ndarray, slices: np.ndarray, *, statistic: str = "anderson_darling"
) -> tuple[float, ...]:
    """Sums of absolute values."""
    p = z @ slices
    n = p.shape[0]
    if statistic == "anderson_darling":
        logs = -_xp.log_ndtr(np, p) - _xp.log_ndtr(np, -p)
        return (float(n + 2 * logs.sum(axis=0).mean()),)
    if statistic != "jarque_bera":
        return (float(n),)
    sizes = np.mean(p * p, axis=0)
    return (float(n * np.mean(sizes + (sizes + 1) ** 2 / 2 + 4)),)


@declare_loss(
    differentiated=("z",),
    row_axes={"z": -2, "row_mask": -1},
    shape_only=("slices",),
    saved=StatisticSaved,
    sorts=True,
    magnitude=_magnitude,
    examples=tuple(Example(s, options={"statistic": s}) for s in STATISTICS),
)
def sliced_statistic(
    execution: Execution,
    z: Array,
    slices: Array,
    *,
    statistic: str = "anderson_darling",
    row_mask: Array | None = None,
    chunk_size: int | None = None,
    projection_dtype: DType = None,
) -> tuple[Array, StatisticSaved]:
    """Mean over slices of a statistic of goodness of fit of the projections to N(0, 1).

    Parameters
    ----------
    z : array of shape (..., N, D)
        Embeddings; the loss is the mean over the leading axes.
    slices : array of shape (D, K) or (..., D, K)
        Unit directions, from `random_slices`.
    statistic : {"anderson_darling", "cramer_von_mises", "watson", "jarque_bera"}
        A², W² and U² compare the empirical distribution function with Φ, A² with weight in the
        tails, U² whatever the mean of Φ is. "jarque_bera" is extended by mean and variance:
        N (m² + (v − 1)²/2 + S²/6 + (K − 3)²/24) with biased variance v, skewness S and kurtosis K;
        for Gaussian samples it tends to χ² of 4 degrees of freedom.
    row_mask : boolean array of shape (N,), optional
        Rows to keep.
    chunk_size : int, optional
        Slices projected at once; bounds memory and changes nothing else.
    projection_dtype : dtype, optional
        Dtype of the product ``z @ slices``; float32, and float64 for float64 z, if not given.

    Returns
    -------
    0-d array
        float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit, N < 2, slices that require a gradient, or an unknown statistic.
    TypeError
        For dtypes that are not floating, or arrays of two libraries.

    Notes
    -----
    Source: the univariate tests that LeJEPA (Balestriero & LeCun 2025) compares; Anderson & Darling
    1954, Watson 1961, Jarque & Bera 1980. The Epps-Pulley statistic is `sigreg_loss`, W₂ is
    `gaussian_sliced_wasserstein`. Gradients of W² and U² vanish far from the Gaussian, where Φ is
    flat; that of A² grows linearly, that of "jarque_bera" as the cube.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core import random_slices
    >>> z = np.random.default_rng(0).standard_normal((256, 16))
    >>> bool(0.5 < sliced_statistic(z, random_slices(16, 64)) < 1.5)
    True
    """
    checks.choice("statistic", statistic, STATISTICS)
    value, gradient = mean_of_sorting(
        execution,
        partial(statistic_term, statistic),
        z,
        slices,
        row_mask,
        chunk_size=chunk_size,
        projection_dtype=projection_dtype,
    )
    return value, StatisticSaved(gradient)


@sliced_statistic.backward
def _backward(
    execution: Execution, inputs: Inputs, saved: StatisticSaved, cotangent: Scalar
) -> Array:
    return gradient_of_mean(execution, inputs, saved.gradient, cotangent)
