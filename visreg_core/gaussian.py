"""Constants of the standard Gaussian: quantiles, and the knots and weights of Epps-Pulley."""

from __future__ import annotations

import importlib
import math

import numpy as np

from visreg_core import _xp, checks
from visreg_core.typing import Array, Device, DType, Namespace

_QUANTILES: dict[int, np.ndarray] = {}
_MAX_CACHED = 64


def normal_quantiles(
    n: int, *, xp: Namespace = None, dtype: DType = None, device: Device = None
) -> Array:
    """Quantiles Φ⁻¹(i / (n + 1)), i = 1 … n, of the standard normal distribution.

    Parameters
    ----------
    n : int
        Number of quantiles, at least 1.
    xp : namespace, optional
        Array library of the result (default NumPy).
    dtype, device : optional
        Of the result; the library's defaults if not given.

    Returns
    -------
    array of shape (n,)
        Increasing and odd-symmetric; computed in float64 and cast last.

    Notes
    -----
    Source: VISReg Algorithm 1, ``u = arange(1, N + 1) / (N + 1)``, ``target = icdf(u)``. Kept by
    `n` on the host; while torch traces a graph they are computed inside it.

    Examples
    --------
    >>> normal_quantiles(3).round(4).tolist()
    [-0.6745, 0.0, 0.6745]
    """
    checks.positive_int("n", n)
    xp = _xp.as_namespace(xp)
    dtype = _xp.default_float(xp) if dtype is None else dtype
    checks.dtype("dtype", dtype, xp)
    if _xp.is_compiling(xp):
        i = xp.arange(1, n + 1, dtype=xp.float64, **({} if device is None else {"device": device}))
        return xp.astype(_xp.ndtri(xp, i / (n + 1)), dtype)
    return _xp.from_numpy(xp, _host_quantiles(n), device=device, dtype=dtype)


def _host_quantiles(n: int) -> np.ndarray:
    values = _QUANTILES.get(n)
    if values is None:
        upper = np.arange(n // 2, 0, -1) / (n + 1)  # Φ⁻¹ is accurate where its argument is small
        half = -importlib.import_module("scipy.special").ndtri(upper)
        middle = [0.0] if n % 2 else []
        values = np.concatenate([-half[::-1], middle, half])
        values.flags.writeable = False
        if len(_QUANTILES) >= _MAX_CACHED:
            _QUANTILES.pop(next(iter(_QUANTILES)), None)
        _QUANTILES[n] = values
    return values


def masked_normal_quantiles(xp: Namespace, size: int, n: Array, *, dtype: DType) -> Array:
    """The first n entries are Φ⁻¹(i / (n + 1)) for an n known only as an array; the rest are 0.

    `n` is 0-d and of the floating dtype `dtype`; the result has shape (size,).
    """
    i = xp.arange(1, size + 1, dtype=dtype, **_xp.on_device(n))
    # Φ⁻¹ of the smaller tail: in float32 the larger one has lost its digits.
    tail = xp.minimum(i, n + 1 - i) / (n + 1)
    outside = i > n  # not i <= n: an n of NaN, which says too few rows, must propagate
    q = _xp.ndtri(xp, xp.where(outside, 0.5 * xp.ones_like(tail), tail))
    q = xp.where(2 * i > n + 1, -q, q)
    return xp.where(outside, xp.zeros_like(q), q)


def epps_pulley_knots(t_max: float, n_knots: int) -> tuple[list[float], list[float], list[float]]:
    """Knots, weights and targets of the Epps-Pulley integral, as Python floats.

    Equally spaced t_j on [0, t_max]; w_j the trapezoid weights, doubled for the symmetric half
    and times e^{−t²/2}; targets e^{−t²/2}, the Gaussian's characteristic function.
    """
    checks.positive_int("n_knots", n_knots, minimum=2)
    checks.number("t_max", t_max, static=True)
    if t_max <= 0:
        raise ValueError(f"expected t_max > 0; found {t_max!r}")
    step = float(t_max) / (n_knots - 1)
    knots = [j * step for j in range(n_knots)]
    targets = [math.exp(-t * t / 2) for t in knots]
    ends = (0, n_knots - 1)
    weights = [(step if j in ends else 2 * step) * targets[j] for j in range(n_knots)]
    return knots, weights, targets
