"""Linear discriminants that leave each row out: a probe for hundreds of classes, in closed form.

The rule is the linear discriminant analysis of Gaussian classes with one covariance (Fisher 1936;
Hastie, Tibshirani and Friedman 2009, §4.3): the class with the largest log n_c − (N − C)/2 · (x −
m_c)ᵀ A⁻¹ (x − m_c), A = (1 − s)·W + s·tr(W)/D·I, W the scatter within classes. It needs only the
classes' sums and W. Leaving a row out is an update of A by rank one and of one mean, so that no
model is fitted twice.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SHRINKAGE = 0.1
# Rows × classes at once: 64 MiB for each of the few arrays of that size.
_BLOCK = 1 << 23


class Discriminant(NamedTuple):
    """Whitening (D, D), means (C, D) in whitened coordinates, counts (C,), trained rows."""

    whiten: np.ndarray
    origin: np.ndarray
    means: np.ndarray
    counts: np.ndarray
    n: int
    shrinkage: float


def fit(
    counts: np.ndarray,
    sums: np.ndarray,
    mean: np.ndarray,
    scatter: np.ndarray,
    *,
    shrinkage: float = SHRINKAGE,
) -> Discriminant:
    """The rule from class counts (C,), sums of rows about `mean` (C, D), and scatter about it.

    The target of the shrinkage is that of all rows, also where one is left out later.
    """
    from scipy import linalg

    n, d = int(counts.sum()), scatter.shape[0]
    means = sums / np.maximum(counts, 1)[:, None]
    within = scatter - (means * counts[:, None]).T @ means
    spread = max(float(np.trace(within)), 1e-12 * float(np.trace(scatter)), np.finfo(float).tiny)
    a = (1 - shrinkage) * within + shrinkage * spread / d * np.eye(d)
    factor = linalg.cholesky(a, lower=True)
    whiten = linalg.solve_triangular(factor, np.eye(d), lower=True).T
    return Discriminant(whiten, mean, means @ whiten, counts.astype(np.float64), n, shrinkage)


def classify(x: np.ndarray, codes: np.ndarray, test: np.ndarray | None = None) -> np.ndarray:
    """Class of each row of `test`, or of each row of x (N, D) by all the others."""
    mean = x.mean(axis=0)
    z = x - mean
    counts = np.bincount(codes)
    rule = fit(counts, class_sums(z, codes, len(counts)), mean, z.T @ z)
    return predict(rule, x, codes) if test is None else predict(rule, test)


def class_sums(z: np.ndarray, codes: np.ndarray, n_classes: int) -> np.ndarray:
    """Sums (C, D) of the rows of each class."""
    from scipy.sparse import csr_array

    ones = np.ones(len(codes))
    members = csr_array((ones, (codes, np.arange(len(codes)))), shape=(n_classes, len(codes)))
    return np.asarray(members @ z)


def predict(rule: Discriminant, rows: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
    """Class (M,) of rows (M, D); with `own`, their classes, each row is left out of the rule.

    A row that is alone in its class is always classified wrongly: without it the class does not
    exist.
    """
    step = max(1, _BLOCK // len(rule.counts))
    parts = [
        _predict(rule, rows[i : i + step], None if own is None else own[i : i + step])
        for i in range(0, len(rows), step)
    ]
    return np.concatenate(parts)


def _predict(rule: Discriminant, rows: np.ndarray, own: np.ndarray | None) -> np.ndarray:
    u = (rows.astype(np.float64) - rule.origin) @ rule.whiten
    m, counts = rule.means, rule.counts
    distance = np.sum(u * u, axis=1)[:, None] + np.sum(m * m, axis=1) - 2 * (u @ m.T)
    n_classes = int(np.count_nonzero(counts))
    with np.errstate(divide="ignore"):
        prior = np.log(counts)
    if own is None:
        return np.argmax(prior - 0.5 * max(1, rule.n - n_classes) * distance, axis=1)
    # W without row i is W − t d dᵀ, d = x − m_y and t = n_y/(n_y − 1): Sherman and Morrison.
    at = np.arange(len(rows))
    size = counts[own]
    t = np.where(size > 1, size / np.maximum(size - 1, 1), 0.0)
    d = u - m[own]
    q = np.sum(d * d, axis=1)
    # Near 0 rounding must not change the sign.
    gain = (1 - rule.shrinkage) * t / np.maximum(1 - (1 - rule.shrinkage) * t * q, 1e-9)
    along = np.sum(d * u, axis=1)[:, None] - d @ m.T
    distance += gain[:, None] * along**2
    distance[at, own] = t**2 * (q + gain * q**2)
    degrees = np.maximum(1, rule.n - 1 - (n_classes - (size == 1)))
    score = prior - 0.5 * degrees[:, None] * distance
    with np.errstate(divide="ignore"):
        score[at, own] += np.log(np.maximum(size - 1, 0)) - prior[own]
    return np.argmax(score, axis=1)
