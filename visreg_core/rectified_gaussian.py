"""Samples of the rectified generalized Gaussian, the sparse target of RDMReg (Rectified LpJEPA)."""

from __future__ import annotations

import importlib

import numpy as np

from visreg_core import _xp, checks
from visreg_core.slices import DOMAIN_TARGETS, uniforms
from visreg_core.typing import Array, Device, DType, Namespace


def rectified_generalized_gaussian(
    n: int,
    dim: int,
    *,
    p: float = 2.0,
    nonzero: float = 0.5,
    scale: float = 1.0,
    seed: int = 0,
    step: int = 0,
    xp: Namespace = None,
    dtype: DType = None,
    device: Device = None,
) -> Array:
    """Independent draws of max(0, X), where X has a density ∝ e^{−|x − μ|^p / (p σ^p)}.

    The second sample of RDMReg, which is `sliced_wasserstein` between it and rectified embeddings:
    most entries of what is learned are then 0, as many as of the target, and the others heavy in
    the tail for small p.

    Parameters
    ----------
    n, dim : int
        Shape of the result.
    p : float
        Positive; 2 is the Gaussian, 1 the Laplacian.
    nonzero : float
        Probability that an entry is not 0, between 0 and 1: it decides μ.
    scale : float
        σ, positive.
    seed, step : int
        0 … 2³² − 1. Pass the training step as `step` for fresh draws at each.
    xp : namespace, optional
        Array library of the result (default NumPy).
    dtype, device : optional
        Of the result; the library's defaults if not given.

    Returns
    -------
    array of shape (n, dim)
        Entry (i, j) depends on (seed, step, i, j) alone. Drawn on the host in float64, and cast
        last.

    Raises
    ------
    ValueError
        For a count, p or scale that is not positive, or a probability not between 0 and 1.

    Notes
    -----
    Source: Rectified LpJEPA (Kuang et al. 2026). By quantiles: |X − μ|^p / (p σ^p) has a gamma law
    of shape 1/p, so that X = μ + sign(u − 1/2) σ (p γ)^{1/p} with γ = P⁻¹(1/p, |2u − 1|).
    Projections of independent rectified entries have no law in closed form, so that the regulariser
    compares two samples.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core import random_slices, sliced_wasserstein
    >>> target = rectified_generalized_gaussian(512, 16, p=1.0, nonzero=0.25)
    >>> bool(abs(np.mean(target > 0) - 0.25) < 0.02)
    True
    >>> z = np.maximum(np.random.default_rng(0).standard_normal((512, 16)), 0)
    >>> bool(sliced_wasserstein(z, target, random_slices(16, 64), power=True) > 0.03)
    True
    """
    checks.positive_int("n", n)
    checks.positive_int("dim", dim)
    checks.positive("p", p)
    checks.positive("scale", scale)
    checks.positive("nonzero", nonzero)
    if nonzero >= 1:
        raise ValueError(f"expected nonzero < 1; found {nonzero!r}")
    xp = _xp.as_namespace(xp)
    dtype = _xp.default_float(xp) if dtype is None else dtype
    checks.dtype("dtype", dtype, xp)
    rows = np.arange(n, dtype=np.int64).astype(np.int32)[:, None]
    pairs = np.arange((dim + 1) // 2, dtype=np.int32)[None, :] + np.int32(DOMAIN_TARGETS << 28)
    u = np.stack(uniforms(np, seed, step, rows, pairs, dtype=np.float64), axis=2)
    mean = _quantile(np.asarray(nonzero), p)
    drawn = scale * np.maximum(mean + _quantile(u.reshape(n, -1)[:, :dim], p), 0)
    return _xp.from_numpy(xp, drawn, device=device, dtype=dtype)


def _quantile(u: np.ndarray, p: float) -> np.ndarray:
    """Of the density ∝ e^{−|x|^p/p}."""
    special = importlib.import_module("scipy.special")
    # Of the smaller tail, whose digits |2u − 1| would lose.
    gamma = special.gammainccinv(1 / p, 2 * np.minimum(u, 1 - u))
    return np.sign(u - 0.5) * (p * gamma) ** (1 / p)
