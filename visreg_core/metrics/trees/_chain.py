"""Chains of nearest neighbours: linkage one merge at a time, from all distances.

For clusters that products tell too little apart, such as equidistant ones: the distances that would
be computed pair by pair in every round are made once, and follow Lance and Williams's formulas.
"""

from __future__ import annotations

import numpy as np


def merge_along_chains(
    distance: np.ndarray, size: np.ndarray, height: np.ndarray, *, method: str
) -> tuple[np.ndarray, np.ndarray]:
    """Children (M − 1, 2) and heights (M − 1,) of the merges of M clusters, in order of creation.

    `distance` (M, M), Ward's squared, is symmetric, and overwritten; `size` (M,) are the
    clusters' numbers of points and `height` (M,) what no later merge may be below. Children are
    numbered as in `merge_rounds`. As near as each other are first the cluster before the end of
    the chain, then the lowest number.

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
    """Mean of distances a, of this share, and b; equal ones stay what they are."""
    return b + share * (a - b)


def _ward(
    a: np.ndarray, b: np.ndarray, between: float, n_a: float, n_b: float, n: np.ndarray
) -> np.ndarray:
    """Ward's squared distances to two clusters joined, which were at `between`.

    No nearer than both parts, which rounding might undo: else chains need not end.
    """
    joined = ((n_a + n) * a + (n_b + n) * b - n * between) / (n_a + n_b + n)
    return np.maximum(joined, np.minimum(a, b))
