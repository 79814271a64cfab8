"""W_p^p of two samples on a line, by merging their quantile functions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from visreg_core import _xp
from visreg_core.typing import Array, Namespace


def _power(xp: Namespace, difference: Array, p: float, need_grad: bool) -> tuple[Array, ...]:
    """|d|^p and, if needed, its derivative p |d|^{p−1} sign(d), 0 at d = 0."""
    if p == 2:
        return (difference * difference, 2 * difference)[: 2 if need_grad else 1]
    size = xp.abs(difference)
    if p == 1:
        return (size, _xp.sign(xp, difference))[: 2 if need_grad else 1]
    met = size == 0  # not size > 0: NaN must stay NaN
    safe = xp.where(met, xp.ones_like(size), size)
    value = xp.where(met, xp.zeros_like(size), safe**p)
    if not need_grad:
        return (value,)
    slope = p * safe ** (p - 1) * _xp.sign(xp, difference)
    return value, xp.where(met, xp.zeros_like(size), slope)


def _static_merge(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intervals on which the quantile functions of n and of m equal masses are both constant.

    Returns the order statistic of either sample and the mass of each interval; exact, because the
    ends i/n and j/m are compared as integers over their common denominator.
    """
    n, m = int(n), int(m)  # torch's symbolic sizes become constants: NumPy needs numbers
    ends_x = np.arange(1, n + 1, dtype=np.int64) * m
    ends_y = np.arange(1, m + 1, dtype=np.int64) * n
    ends = np.sort(np.concatenate([ends_x, ends_y]))
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]])
    # An interval is empty where both samples end; the last one starts beyond them.
    return (
        np.minimum(starts // m, n - 1),
        np.minimum(starts // n, m - 1),
        # Under torch.compile integers would divide to torch's default dtype, float32.
        (ends - starts).astype(np.float64) / (n * m),
    )


def two_sample_term(
    xp: Namespace, n: int, m: int, p: float, like: Array
) -> Callable[..., tuple[Array, ...]]:
    """Term for unweighted samples, whose merged quantile functions depend on their sizes alone."""

    def equal(need_grad: bool, px: Array, py: Array) -> tuple[Array, ...]:
        if not need_grad:
            difference = _xp.sorted_values(xp, px) - _xp.sorted_values(xp, py)
            return (xp.sum(_power(xp, difference, p, False)[0], axis=-1) / n,)
        (xs, order_x), (ys, order_y) = _xp.sorted_rows(xp, px), _xp.sorted_rows(xp, py)
        value, slope = _power(xp, xs - ys, p, True)
        slope = slope / n
        total = xp.sum(value, axis=-1) / n
        return total, _xp.put_last(xp, order_x, slope), _xp.put_last(xp, order_y, -slope)

    if n == m:
        return equal

    host_i, host_j, host_mass = _static_merge(n, m)
    where = _xp.on_device(like)
    i = _xp.from_numpy(xp, host_i, **where)
    j = _xp.from_numpy(xp, host_j, **where)
    mass = _xp.from_numpy(xp, host_mass, dtype=like.dtype, **where)[None, :]

    def merged(need_grad: bool, px: Array, py: Array) -> tuple[Array, ...]:
        if need_grad:
            (xs, order_x), (ys, order_y) = _xp.sorted_rows(xp, px), _xp.sorted_rows(xp, py)
        else:
            xs, ys = _xp.sorted_values(xp, px), _xp.sorted_values(xp, py)
        difference = xp.take(xs, i, axis=-1) - xp.take(ys, j, axis=-1)
        value, *slope = _power(xp, difference, p, need_grad)
        total = xp.sum(mass * value, axis=-1)
        if not need_grad:
            return (total,)
        slope_x = _xp.add_last(xp, n, xp.broadcast_to(i, difference.shape), mass * slope[0])
        slope_y = _xp.add_last(xp, m, xp.broadcast_to(j, difference.shape), -mass * slope[0])
        return total, _xp.put_last(xp, order_x, slope_x), _xp.put_last(xp, order_y, slope_y)

    return merged


def weighted_term(
    xp: Namespace, x_weights: Array, y_weights: Array, p: float
) -> Callable[..., tuple[Array, ...]]:
    """Term for weighted samples: their cumulative weights are merged slice by slice."""
    n, m = x_weights.shape[0], y_weights.shape[0]

    def term(need_grad: bool, px: Array, py: Array) -> tuple[Array, ...]:
        xs, order_x = _xp.sorted_rows(xp, px)
        ys, order_y = _xp.sorted_rows(xp, py)
        merged, mass = _merged(xp, x_weights, y_weights, order_x, order_y)
        # The number of x's intervals that ended before is the index of x's order statistic.
        closes_x = xp.astype(merged < n, merged.dtype)
        closed_x = _xp.cumulative_sum(xp, closes_x) - closes_x
        here = xp.arange(n + m, dtype=merged.dtype, **_xp.on_device(merged))[None, :]
        i = xp.minimum(closed_x, n - 1 + xp.zeros_like(closed_x))
        j = xp.minimum(here - closed_x, m - 1 + xp.zeros_like(closed_x))
        difference = xp.take_along_axis(xs, i, axis=-1) - xp.take_along_axis(ys, j, axis=-1)
        value, *slope = _power(xp, difference, p, need_grad)
        total = xp.sum(mass * value, axis=-1)
        if not need_grad:
            return (total,)
        slope_x = _xp.add_last(xp, n, i, mass * slope[0])
        slope_y = _xp.add_last(xp, m, j, -mass * slope[0])
        return total, _xp.put_last(xp, order_x, slope_x), _xp.put_last(xp, order_y, slope_y)

    return term


def _merged(
    xp: Namespace, x_weights: Array, y_weights: Array, order_x: Array, order_y: Array
) -> tuple[Array, Array]:
    """Ends of both samples' intervals in order, (R, N + M), and the mass up to each of them.

    In float64: a mass is a difference of sums near 1, whose error in float32 would be N · 6e-8 of
    it.
    """
    index = xp.arange(1).dtype  # the library's default, which differs inside of the context
    with _xp.float64_inside(xp):
        ends_x = _cumulative(xp, x_weights, order_x)
        ends = xp.concat([ends_x, _cumulative(xp, y_weights, order_y)], axis=-1)
        merged = xp.argsort(ends, axis=-1, stable=True)
        ends = xp.take_along_axis(ends, merged, axis=-1)
        mass = ends - xp.concat([xp.zeros_like(ends[:, :1]), ends[:, :-1]], axis=-1)
        return xp.astype(merged, index), xp.astype(mass, x_weights.dtype)


def _cumulative(xp: Namespace, weights: Array, order: Array) -> Array:
    """Cumulative weights (R, N) in each row's order, ending at exactly 1."""
    ordered = xp.reshape(xp.take(weights, xp.reshape(order, (-1,)), axis=0), order.shape)
    ordered = xp.astype(ordered, _xp.widest(xp, weights))
    sums = _xp.cumulative_sum(xp, ordered)
    return sums / sums[:, -1:]
