"""Sums of absolute values before cancellation: what the error of a loss is relative to.

One function for each loss, with the loss's own arguments as float64 NumPy arrays; it returns one
magnitude for each field of the result. Where a formula subtracts, its terms are added here in
absolute value: (p − q)² becomes (|p| + |q|)².
"""

from __future__ import annotations

import itertools

import numpy as np

from visreg_core.gaussian import epps_pulley_knots, normal_quantiles

Magnitudes = tuple[float, ...]


def _total(weights: tuple[float, ...], terms: tuple[float, ...]) -> Magnitudes:
    return (sum(w * t for w, t in zip(weights, terms, strict=True)), *terms)


# --- VISReg --------------------------------------------------------------------------------------


def center(z: np.ndarray, *, reduction: str = "mean") -> Magnitudes:
    """mean_j (mean_n |z_nj|)²."""
    means = np.mean(np.abs(z), axis=0)
    return (float(np.sum(means**2)) / (1 if reduction == "sum" else means.size),)


def scale(z: np.ndarray) -> Magnitudes:
    """mean_j (1 + σ_j)²."""
    return (float(np.mean((1 + z.std(axis=0)) ** 2)),)


def to_quantiles(z: np.ndarray, slices: np.ndarray, *, reduction: str = "mean") -> Magnitudes:
    """mean_{k,n} (|p_nk| + |q_n|)² of sorted projections p."""
    p = np.sort(z @ slices, axis=0)
    squares = (np.abs(p) + np.abs(normal_quantiles(z.shape[0]))[:, None]) ** 2
    return (float(np.mean(squares)) * (z.shape[0] if reduction == "sum" else 1),)


def shape(
    z: np.ndarray, slices: np.ndarray, *, reduction: str = "mean", eps: float = 1e-6, **_: bool
) -> Magnitudes:
    """`to_quantiles` of the standardised embeddings."""
    return to_quantiles((z - z.mean(axis=0)) / (z.std(axis=0) + eps), slices, reduction=reduction)


def visreg(
    z: np.ndarray, slices: np.ndarray, *, weights: tuple[float, ...] = (1, 1, 1), **_: bool
) -> Magnitudes:
    """`scale`, `shape` and `center`, weighted."""
    return _total(weights, (*scale(z), *shape(z, slices), *center(z)))


def invariance(z: np.ndarray, *, n_global: int | None = None, **_: bool) -> Magnitudes:
    """mean (|z_v| + |c|)², c the mean of the global views."""
    return (float(np.mean((np.abs(z) + np.abs(z[:n_global].mean(axis=0))) ** 2)),)


# --- distances and tests of slices ---------------------------------------------------------------


def two_sample(
    x: np.ndarray, y: np.ndarray, slices: np.ndarray, *, p: float = 2, power: bool = False
) -> Magnitudes:
    """‖x w‖ + ‖y w‖, root mean p-th powers over rows and slices (to the p-th where `power`).

    By Minkowski's inequality at least (mean (|x_n w_k| + |y_n w_k|)^p)^(1/p), and without sorting.
    """
    sizes = [float(np.mean(np.abs(s @ slices) ** p)) ** (1 / p) for s in (x, y)]
    return (sum(sizes) ** (p if power else 1),)


def farthest(
    x: np.ndarray, y: np.ndarray, slices: np.ndarray, *, p: float = 2, power: bool = False
) -> Magnitudes:
    """The largest of `two_sample` over the slices."""
    columns = [slices[:, k : k + 1] for k in range(slices.shape[1])]
    return max(two_sample(x, y, column, p=p, power=power) for column in columns)


def epps_pulley(x: np.ndarray, t_max: float = 3.0, n_knots: int = 17) -> Magnitudes:
    """N Σ_t w_t (mean_n (1 + |t x_n|) + e^{−t²/2})²: an angle t·x counts with its own size."""
    n = x.shape[0]
    size = float(np.mean(np.abs(x)))
    knots = zip(*epps_pulley_knots(t_max, n_knots), strict=True)
    return (n * sum(weight * (1 + t * size + target) ** 2 for t, weight, target in knots),)


def sigreg(z: np.ndarray, slices: np.ndarray, *, scale_by_n: bool = True) -> Magnitudes:
    """`epps_pulley` of the projections."""
    (size,) = epps_pulley((z @ slices).reshape(-1))
    return (size / (slices.shape[1] if scale_by_n else slices.shape[1] * z.shape[0]),)


# --- VICReg, Barlow Twins, SpectralNet -----------------------------------------------------------


def variance(z: np.ndarray, *, gamma: float = 1.0, eps: float = 1e-4, power: int = 1) -> Magnitudes:
    """mean_j (γ + sqrt(Var_j + ε))."""
    return (float(np.mean((gamma + np.sqrt(z.var(axis=0, ddof=1) + eps)) ** power)),)


def covariance(z: np.ndarray) -> Magnitudes:
    """(1/D) Σ_ij C_ij², the diagonal included."""
    centred = z - z.mean(axis=0)
    n, d = z.shape
    product = centred @ centred.T if n < d else centred.T @ centred
    return (float(np.sum(product**2)) / (n - 1) ** 2 / d,)


def vicreg(
    a: np.ndarray,
    b: np.ndarray,
    *,
    weights: tuple[float, ...] = (25, 25, 1),
    convention: str = "vicreg",
) -> Magnitudes:
    """mean (|a| + |b|)², `variance` and `covariance` as the convention combines them."""
    squares = float(np.mean((np.abs(a) + np.abs(b)) ** 2))
    if convention == "visreg":
        both = np.concatenate([a, b])
        return _total(weights, (squares, *variance(both, power=2), *covariance(both)))
    squares *= a.shape[1] if convention == "paper" else 1
    half = 0.5 if convention == "vicreg" else 1.0
    variances = half * (variance(a)[0] + variance(b)[0])
    return _total(weights, (squares, variances, covariance(a)[0] + covariance(b)[0]))


def vicreg_of_views(views: np.ndarray) -> Magnitudes:
    """Mean of `vicreg` over pairs of views."""
    pairs = [vicreg(a, b) for a, b in itertools.combinations(views, 2)]
    return tuple(np.mean(pairs, axis=0).tolist())


def sag_vicreg(
    a: np.ndarray, b: np.ndarray, pairs: np.ndarray, pair_weights: np.ndarray
) -> Magnitudes:
    """`vicreg` with mean w_i (|a_i| + |b_j(i)|)²."""
    _, _, variances, covariances = vicreg(a, b)
    squares = np.mean(pair_weights[:, None] * (np.abs(a) + np.abs(b[pairs])) ** 2)
    return _total((25, 25, 1), (float(squares), variances, covariances))


def barlow_twins(
    a: np.ndarray, b: np.ndarray, *, off_diagonal_weight: float = 0.0051
) -> Magnitudes:
    """Σ_i (1 + |C|_ii)² and Σ_ij |C|_ij² with |C| = |â|ᵀ|b̂|/N."""
    standard = []
    for z in (a, b):
        deviation = z.std(axis=0)
        standard.append(np.abs(z - z.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0))
    a, b = standard
    n, d = a.shape
    on = float(np.sum((1 + np.mean(a * b, axis=0)) ** 2))
    off = np.sum((a @ a.T) * (b @ b.T)) if n < d else np.sum((a.T @ b) ** 2)
    return _total((1, off_diagonal_weight), (on, float(off) / n**2))


def barlow_twins_of_views(views: np.ndarray) -> Magnitudes:
    """Mean of `barlow_twins` over pairs of views."""
    pairs = [barlow_twins(a, b) for a, b in itertools.combinations(views, 2)]
    return tuple(np.mean(pairs, axis=0).tolist())


def spectralnet(y: np.ndarray, affinity: np.ndarray) -> Magnitudes:
    """(1/N²) Σ_ij W_ij ‖|y_i| + |y_j|‖²."""
    y = np.abs(y)
    squares = np.sum(y * y, axis=1)
    pairs = squares[:, None] + squares[None, :] + 2 * y @ y.T
    return (float(np.sum(affinity * pairs)) / y.shape[0] ** 2,)


# --- arrays --------------------------------------------------------------------------------------


def affinity(a: np.ndarray, b: np.ndarray, n_neighbors: int = 10) -> float:
    """1 + 2/min σ_i: what rounding of a distance does to exp(−(d̃/σ_i)²).

    d̃ is a difference of distances 1 − cos, so that a relative error ε of the cosines moves a
    weight by up to 2 ε/σ_i.
    """
    kept = np.sort(1 - _unit(a, axis=1) @ _unit(b, axis=1).T, axis=1)[:, :n_neighbors]
    sigma = np.maximum(np.percentile(kept - kept[:, :1], 20, axis=1), 1e-7)
    return float(1 + np.max(2 / sigma))


def column_condition(y: np.ndarray) -> float:
    """Condition number of `y` with unit columns, which is what its QR factors depend on."""
    s = np.linalg.svd(_unit(y, axis=0), compute_uv=False)
    return float(s[0] / s[-1]) if s[-1] > 0 else float("inf")


def _unit(x: np.ndarray, axis: int) -> np.ndarray:
    norm = np.linalg.norm(x, axis=axis, keepdims=True)
    return x / np.where(norm > 0, norm, 1.0)
