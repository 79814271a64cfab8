"""LiDAR: rank of the signal between sources, whitened by the noise within them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from visreg_core import _xp, checks
from visreg_core.metrics._inputs import labels, matrix
from visreg_core.typing import Array

# Added to each eigenvalue before normalising.
_EPS = {"exact": 0.0, "stable-pretraining": 1e-8}


def lidar(
    x: Array, groups: Sequence[Any], *, delta: float = 1e-4, convention: str = "exact"
) -> float:
    """Linear discriminant analysis rank of embeddings grouped by source (Thilak et al. 2024).

    exp(−Σ p log p) of the normalised eigenvalues p of Σ_w^{−1/2} Σ_b Σ_w^{−1/2}: Σ_b the covariance
    of the groups' means, Σ_w the covariance within groups plus δ·I. Both unbiased: divided by
    G − 1 and N − G.

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace: several views of each source. Computed on the host in float64.
    groups : sequence (N,)
        Source of each row. G ≥ 2 groups, not all of a single row; sizes may differ, each group's
        mean then counts once and each row's deviation once.
    delta : float
        δ > 0. It is not relative: it decides below which variance a direction counts as constant.
    convention : str
        "exact": no ε. "stable-pretraining", release 0.1.8: ε = 1e-8 added to each eigenvalue before
        normalising.

    Returns
    -------
    float
        Between 1 and min(D, G − 1); 0 where the groups' means are equal.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import lidar
    >>> means = np.asarray([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> round(lidar(np.concatenate([means, means]), [0, 1, 2, 3] * 2), 9)
    2.0
    """
    checks.choice("convention", convention, _EPS)
    if not 0 < delta < math.inf:
        raise ValueError(f"expected delta to be a positive number; found {delta!r}")
    _, x = matrix("x", x)
    rows = np.asarray(_xp.to_numpy(x), dtype=np.float64)
    n, d = rows.shape
    ids = labels("groups", groups)
    if ids.shape != (n,):
        raise ValueError(f"expected groups of shape ({n},); found shape {ids.shape}")
    _, group, sizes = np.unique(ids, return_inverse=True, return_counts=True)
    g = sizes.size
    if g < 2 or g == n:
        raise ValueError(
            f"expected at least two groups, one of several rows; found {g} groups of {n} rows"
        )
    rows = rows - rows[0]  # exact zeros for constants, and no digits lost to a large mean
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    means = np.add.reduceat(rows[np.argsort(group, kind="stable")], starts, axis=0)
    means /= sizes[:, None]
    within = rows - means[group]
    variances, axes = np.linalg.eigh(within.T @ within / (n - g) + delta * np.eye(d))
    between = (means - means.mean(axis=0)) / math.sqrt(g - 1)
    whitened = (between @ axes) / np.sqrt(np.maximum(variances, delta))
    eigenvalues = np.zeros(d)
    singular = np.linalg.svd(whitened, compute_uv=False)
    eigenvalues[: singular.size] = singular**2
    eps = _EPS[convention]
    total = math.fsum(eigenvalues + eps)
    if total == 0:
        return 0.0
    p = (eigenvalues + eps) / total
    p = p[p > 0]
    return math.exp(-math.fsum(p * np.log(p)))
