"""Pearson's correlation of cophenetic with pairwise distances, without N² memory."""

from __future__ import annotations

import math

import numpy as np

from visreg_core import _xp
from visreg_core.metrics._inputs import centred, power_of_two, unit_rows
from visreg_core.metrics.trees._rounding import Rounding
from visreg_core.metrics.trees._tree import Tree
from visreg_core.typing import Array

# Below this share of the terms' size, cancellation has left sums of products no digits.
_KEPT = 1e-8

# Distances computed at a time.
_BLOCK = 1 << 20


def cophenetic_pearson(t: Tree, x: Array, metric: str) -> float:
    """Correlation over all pairs of the heights of `t` with the distances of the rows of `x`."""
    if t.height[0] == t.height[-1] or t.height[-1] == math.inf:
        return math.nan
    points = _xp.to_numpy(x).astype(np.float64)
    heights = t.height / t.height[-1]
    heights = heights - np.sum(t.pairs * heights) / t.pairs.sum()
    variance = float(np.sum(t.pairs * heights**2))
    known = metric != "euclidean"
    if known:
        covariance, spread, known = _inner_product_sums(t, heights, points, metric)
    if not known:  # distances nearly equal, which sums of products lose
        covariance, spread = _pairwise_sums(t, heights, points, metric)
    if spread <= 0:
        return math.nan
    r = covariance / math.sqrt(variance) / math.sqrt(spread)
    return math.copysign(1.0, r) if abs(r) > 1 else r


def _inner_product_sums(
    t: Tree, heights: np.ndarray, points: np.ndarray, metric: str
) -> tuple[float, float, bool]:
    """Σ h d and Σ (d − d̄)² over pairs, h summing to 0, for cosine and half the squared distance.

    Also returns whether the second has kept enough digits.

    Both are d_ij = e_i + e_j − ⟨c_i, c_j⟩ with centred rows c and e = (‖c‖² + s)/2, where s is 1
    for a zero vector under cosine and else 0 (see `linkage`); two zero vectors are at 0, not 1.
    A merge's sum of d over its pairs then follows from the sums of c and e over its two sides, and
    Σ d² from ‖CᵀC‖_F², as Σ c = 0.
    """
    points = points[t.order]
    n = points.shape[0]
    zero = np.zeros(n)
    if metric == "cosine":
        points = unit_rows(np, points)
        zero[~points.any(axis=1)] = 1.0
    else:
        points = points / (np.abs(points).max() or 1.0)
    c = centred(np, points)
    scale = np.abs(c).max() or 1.0
    c = c / scale
    s = zero / scale**2
    e = (np.einsum("nd,nd->n", c, c) + s) / 2
    e_mean = e.mean()
    e = e - e_mean

    # Sums over runs of leaves, by differences of sums from the first leaf.
    sum_c, sum_e = (np.concatenate([0 * v[:1], np.cumsum(v, axis=0)]) for v in (c, e))
    zeros = np.concatenate([[0.0], np.cumsum(zero)])
    left, right = t.mid - t.start, t.end - t.mid
    c_left, c_right = sum_c[t.mid] - sum_c[t.start], sum_c[t.end] - sum_c[t.mid]
    e_left, e_right = sum_e[t.mid] - sum_e[t.start], sum_e[t.end] - sum_e[t.mid]
    zero_pairs = (zeros[t.mid] - zeros[t.start]) * (zeros[t.end] - zeros[t.mid])
    # Distances minus 2ē, so that their large common part cannot cause cancellation.
    block = right * e_left + left * e_right - np.einsum("kd,kd->k", c_left, c_right)
    block -= zero_pairs / scale**2
    covariance = float(np.sum(heights * block))

    gram = c.T @ c if c.shape[1] <= n else c @ c.T
    diagonal = 2 * e - np.einsum("nd,nd->n", c, c)
    everything = 2 * n * float(e @ e) + float(np.sum(gram * gram))
    of_zeros = zeros[-1] * (zeros[-1] - 1) / 2
    # A pair of zeros has d = 0 in place of s: −2ē in place of s − 2ē.
    between = s.max() - 2 * e_mean
    squares = (everything - float(diagonal @ diagonal)) / 2
    squares += of_zeros * ((2 * e_mean) ** 2 - between**2)
    total = float(block.sum())
    spread = squares - total**2 / t.pairs.sum()
    return covariance, spread, spread > _KEPT * everything


def _pairwise_sums(
    t: Tree, heights: np.ndarray, points: np.ndarray, metric: str
) -> tuple[float, float]:
    """Σ h d and Σ (d − d̄)² over pairs of rows, h summing to 0, from blocks of distances.

    The second is 0 where all distances are equal but for rounding.
    """
    from scipy.spatial.distance import cdist

    points = points[t.order]
    points = unit_rows(np, points) if metric == "cosine" else points / power_of_two(points)
    zero = np.all(points == 0, axis=1)
    gaps = heights[t.gap]
    n = points.shape[0]

    def distances(rows: slice) -> np.ndarray:
        if metric == "euclidean":
            return cdist(points[rows], points[rows.start + 1 :])
        out = cdist(points[rows], points[rows.start + 1 :], "sqeuclidean") / 2
        if metric == "cosine":
            out[zero[rows, None] != zero[None, rows.start + 1 :]] = 1.0
        return out

    shift = float(distances(slice(0, 1)).mean())
    least, largest = math.inf, 0.0
    step = max(1, _BLOCK // n)
    covariance = total = squares = 0.0
    for start in range(0, n - 1, step):
        stop = min(start + step, n - 1)
        # Columns start + 1 …: the highest gap between a row's leaf and each leaf to its right.
        columns = np.arange(start, n - 1)
        right = columns[None, :] >= np.arange(start, stop)[:, None]
        between = np.where(right, gaps[start:], -np.inf)
        height = np.maximum.accumulate(between, axis=1)[right]
        distance = distances(slice(start, stop))[right]
        least, largest = min(least, float(distance.min())), max(largest, float(distance.max()))
        distance -= shift
        covariance += float(height @ distance)
        total += float(distance.sum())
        squares += float(distance @ distance)
    if largest - least <= Rounding(points, metric).of(np.asarray(largest)):
        return covariance, 0.0
    return covariance, squares - total**2 / t.pairs.sum()
