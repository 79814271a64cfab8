"""Chains of nearest neighbours: linkage one merge at a time, from all distances.

For clusters whose distances float32 products cannot resolve, such as equidistant ones: all
distances are computed once, instead of pair by pair in every round, and updated by the formulas of
Lance and Williams.
"""

from __future__ import annotations

import numpy as np


def merge_along_chains(
    distance: np.ndarray, size: np.ndarray, height: np.ndarray, *, method: str
) -> tuple[np.ndarray, np.ndarray]:
    """Children (M − 1, 2) and heights (M − 1,) of the merges of M clusters, in order of creation.

    `distance` (M, M), Ward's squared, is symmetric, and overwritten; `size` (M,) are the
    clusters' numbers of points, and `height` (M,) lower bounds of later merges' heights. Children
    are numbered as in `merge_rounds`. Among equally near clusters the one before the end of the
    chain comes first, then the lowest number.

    Source: Murtagh 1983, "A survey of recent advances in hierarchical clustering algorithms".
    """
    m = size.size
    np.fill_diagonal(distance, np.inf)
    size, height, number = size.copy(), height.copy(), np.arange(m)
    alive = np.ones(m, dtype=bool)
    children = np.empty((m - 1, 2), dtype=np.intp)
    heights = np.empty(m - 1)
    chain: list[int] = []
    for merge in range(m - 1):
        if not chain:
            slots = np.flatnonzero(alive)
            chain = [int(slots[np.argmin(number[slots])])]
        while True:
            row = distance[chain[-1]]
            least = row.min()
            if len(chain) > 1 and row[chain[-2]] == least:
                break
            nearest = np.flatnonzero(row == least)
            chain.append(int(nearest[np.argmin(number[nearest])]))
        j, i = chain.pop(), chain.pop()
        heights[merge] = height[i] = max(least, height[i], height[j])
        children[merge] = number[i], number[j]
        alive[[i, j]] = False
        others = np.flatnonzero(alive)
        a, b, n = distance[i, others], distance[j, others], size[others]
        if method == "ward":
            joined = _ward(a, b, least, size[i], size[j], n)
        elif method == "complete":
            joined = np.maximum(a, b)
        else:
            share = 0.5 if method == "weighted" else size[i] / (size[i] + size[j])
            joined = _mean(a, b, share)
        distance[i, others] = distance[others, i] = joined
        distance[j] = distance[:, j] = np.inf
        distance[i, j] = np.inf
        size[i] += size[j]
        number[i] = m + merge
        alive[i] = True
    return children, heights


def _mean(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """share · a + (1 − share) · b, which is exact where the two are equal."""
    return b + share * (a - b)


def _ward(
    a: np.ndarray, b: np.ndarray, between: float, n_a: float, n_b: float, n: np.ndarray
) -> np.ndarray:
    """Ward's squared distances to the union of two clusters that were at distance `between`.

    Never less than both parts' distances, which rounding could violate: chains might not end then.
    """
    joined = ((n_a + n) * a + (n_b + n) * b - n * between) / (n_a + n_b + n)
    return np.maximum(joined, np.minimum(a, b))
