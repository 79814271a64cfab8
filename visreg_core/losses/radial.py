"""Radial kernels: functions of ρ = ‖x − y‖², and their means over slices and over the Gaussian.

Each is a mixture of Gaussians e^{−γρ}, whose mean over X ~ N(0, I) is again one: of kernels that
have a closed form themselves, that of the mean is at most one integral over γ away.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core.losses.rows import safe_reciprocal, safe_root
from visreg_core.typing import Array, Namespace

KERNELS = ("gaussian", "imq", "laplace")

# Step of the trapezoid rule in log γ, which is off by e^{−π²/step} = 7e-18 of k(0).
_STEP = 0.25
_NODES = 128  # of the interpolation, more than any series keeps


def kernel(xp: Namespace, name: str, h: float, rho: Array, need_slope: bool) -> tuple[Array, ...]:
    """k(ρ) of bandwidth h with k(0) = 1 and, if needed, dk/dρ (0 at the tip of Laplace's)."""
    if name == "laplace":
        r = safe_root(xp, rho)
        k = xp.exp(-r / h)
        return (k, k * safe_reciprocal(xp, r) / (-2 * h)) if need_slope else (k,)
    if name == "imq":
        t = 1 / (1 + rho / h**2)
        k = xp.sqrt(t)
        return (k, k * t / (-2 * h**2)) if need_slope else (k,)
    k = xp.exp(rho / (-2 * h**2))
    return (k, k / (-2 * h**2)) if need_slope else (k,)


class PriorMeans(NamedTuple):
    """Means of a kernel over independent X, X' ~ N(0, I) in D dimensions.

    E k(z, X) = Σ_m weights_m e^{−rates_m ‖z‖²}; both : E k(X, X').
    """

    weights: tuple[float, ...]
    rates: tuple[float, ...]
    both: float


@_xp.host_constants
def prior_means(name: str, h: float, dim: int) -> PriorMeans:
    """Of the kernel `name`: E e^{−γ‖z − X‖²} = (1 + 2γ)^{−D/2} e^{−γ‖z‖²/(1 + 2γ)}."""
    if name == "gaussian":
        weights, gamma = np.ones(1), np.full(1, 1 / (2 * h**2))
    elif name == "imq":  # (1 + ρ/h²)^{−1/2} = π^{−1/2} ∫ t^{−1/2} e^{−t(1 + ρ/h²)} dt
        t = np.exp(np.arange(-50, 4, _STEP))
        weights, gamma = _STEP * np.sqrt(t / math.pi) * np.exp(-t), t / h**2
        # The mixture of the widest, which do not differ on any z that float32 can hold.
        weights[0] += 1 - weights.sum()
    else:  # e^{−r/h} = (4 π h²)^{−1/2} ∫ γ^{−3/2} e^{−1/(4 h² γ) − γρ} dγ
        t = np.exp(np.arange(-6.75, 80, _STEP))
        weights, gamma = _STEP / np.sqrt(math.pi * t) * np.exp(-1 / t), t / (4 * h**2)
    own = weights * np.exp(-dim / 2 * np.log1p(2 * gamma))
    both = np.dot(weights, np.exp(-dim / 2 * np.log1p(4 * gamma)))
    kept = (own > 1e-18 * own.sum()) | (gamma < gamma[np.argmax(own)])
    rates = gamma / (1 + 2 * gamma)
    return PriorMeans(tuple(own[kept].tolist()), tuple(rates[kept].tolist()), float(both))


def prior_mean(xp: Namespace, means: PriorMeans, q: Array, need_slope: bool) -> tuple[Array, ...]:
    """E k(z, X) at ‖z‖² = q and, if needed, its derivative for q."""
    weights, rates = (
        _xp.of_rank(xp, xp.asarray(m, dtype=q.dtype, **_xp.on_device(q)), q.ndim + 1)
        for m in (means.weights, means.rates)
    )
    each = weights * xp.exp(-rates * q[..., None])
    value = xp.sum(each, axis=-1)
    return (value, -xp.sum(rates * each, axis=-1)) if need_slope else (value,)


def mean_over_directions(xp: Namespace, dim: int, s: Array, need_slope: bool) -> tuple[Array, ...]:
    """E e^{−s (w·u)²} over unit w, for a unit u, in `dim` dimensions, and its derivative for s.

    (w·u)² is Beta(1/2, (D − 1)/2) distributed, so that this is M(1/2, D/2, −s), Kummer's function,
    whose derivative is −M(3/2, D/2 + 1, −s)/D.
    """
    value = _kummer(xp, 0.5, dim, s)
    return (value, _kummer(xp, 1.5, dim, s) / -dim) if need_slope else (value,)


def _kummer(xp: Namespace, a: float, dim: int, s: Array) -> Array:
    """M(a, b, −s), b = (D − 1)/2 + a, for s >= 0: t^a times a series, t = b/(s + b)."""
    if dim == 1:
        return xp.exp(-s)
    b = (dim - 1) / 2 + a
    t = b / (s + b)
    x = 2 - 4 * t  # twice the argument of the Chebyshev polynomials
    first, *others = _kummer_series(a, dim, float(xp.finfo(s.dtype).eps))
    c1, c2 = xp.zeros_like(t), 0.0
    for c in reversed(others):  # Clenshaw's recurrence
        c1, c2 = x * c1 - c2 + c, c1
    root = xp.sqrt(t)
    return (0.5 * x * c1 - c2 + first) * (root if a == 0.5 else t * root)


@_xp.host_constants
def _kummer_series(a: float, dim: int, eps: float) -> tuple[float, ...]:
    """Chebyshev coefficients of M(a, b, −s) t^{−a} for 1 − 2t in [−1, 1]; it is nearly constant.

    As t tends to 0 the function has an asymptotic series in t, so that the coefficients fall fast:
    from D = 64 on, 16 are good for float64.
    """
    unit = math.pi / (2 * _NODES)
    odd = 2 * np.arange(_NODES) + 1
    t = np.sin(odd * (unit / 2)) ** 2
    b = (dim - 1) / 2 + a
    values = _kummer_by_quadrature(a, dim, b * (1 - t) / t) * t**-a
    turns = np.outer(np.arange(_NODES), odd) % (4 * _NODES)  # as integers: no large angles
    series = 2 / _NODES * np.cos(unit * turns) @ values
    series[0] /= 2
    large = np.flatnonzero(np.abs(series) > 2 * eps * np.abs(series[0]))
    return tuple(series[: max(2, large[-1] + 1)].tolist())


def _kummer_by_quadrature(a: float, dim: int, s: np.ndarray) -> np.ndarray:
    """∫ u^{a−1} (1 − u)^{c−1} e^{−su} du / B(a, c), c = (D − 1)/2, with u = 1/(1 + e^{−v})."""
    v = np.arange(-110, 80, _STEP)
    u, rest = 1 / (1 + np.exp(-v)), 1 / (1 + np.exp(v))
    density = u**a * rest ** ((dim - 1) / 2)
    return np.exp(-s[:, None] * u) @ (density / density.sum())


def check_bandwidth(bandwidth: float | None, dim: int) -> float:
    """The bandwidth, √D if not given: independent draws of N(0, I) are √(2D) apart."""
    if bandwidth is None:
        return math.sqrt(dim)
    bandwidth = _xp.fixed_number(bandwidth)
    checks.positive("bandwidth", bandwidth)
    return bandwidth
