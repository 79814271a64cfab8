"""Correlations of two trees' distances; for depth, from pairs of leaves counted by distance."""

from __future__ import annotations

import numpy as np

from visreg_core.metrics.trees._pair_counts import (
    PairCounts,
    PairMoments,
    correlate,
    height_moments,
)
from visreg_core.metrics.trees._tree import Tree, along_leaves

# Pairs counted at a time.
_BLOCK = 1 << 20


def tree_moments(first: Tree, second: Tree, distance: str) -> PairMoments:
    """Correlations over all pairs of the trees' "height" or "depth" distances."""
    if distance == "depth":
        return correlate(*depth_counts(first, second))
    return height_moments(first, second)


def depth_counts(
    first: Tree, second: Tree
) -> tuple[list[PairCounts], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Arguments of `correlate` for the depth distance of two trees.

    The depth distance of two leaves, the mean number of edges up to their lowest common ancestor,
    is half the length of the path between them: (depth_p + depth_q)/2 − depth_lca, where merges of
    one height, one below the other, are one node. It varies within a merge, so that all pairs are
    enumerated: O(N²) time, and memory for the combinations of values that occur. Paths of the trees
    have at most 2(N − 1) edges, a few dozen where trees branch.
    """
    order = first.order
    depth_first, depth_second = first.leaf_steps[order], second.leaf_steps[order]
    place = second.position[order]
    gaps_first, gaps_second = first.steps[first.gap], second.steps[second.gap]
    n = order.size
    levels = 2 * int(second.leaf_steps.max()) + 1
    table = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    keys: list[np.ndarray] = []
    waiting = 0
    for p in range(n - 1):
        # The ancestor is the shallowest of the merges between two leaves.
        ancestor_first = np.minimum.accumulate(gaps_first[p:])
        ancestor_second = along_leaves(gaps_second, place[p], np.minimum)[place[p + 1 :]]
        path_first = depth_first[p] + depth_first[p + 1 :] - 2 * ancestor_first
        path_second = depth_second[p] + depth_second[p + 1 :] - 2 * ancestor_second
        keys.append(path_first * levels + path_second)
        waiting += n - 1 - p
        if waiting >= _BLOCK or p == n - 2:
            table = _added(table, np.concatenate(keys))
            keys, waiting = [], 0
    key, count = table
    values_first, i = np.unique(key // levels, return_inverse=True)
    values_second, j = np.unique(key % levels, return_inverse=True)
    # `correlate` wants descending j within equal i.
    sort = np.lexsort((-j, i))
    block = PairCounts(i[sort], j[sort], count[sort])
    pairs_first, pairs_second = (np.bincount(rank, count).astype(np.int64) for rank in (i, j))
    return [block], values_first / 2, values_second / 2, pairs_first, pairs_second


def _added(table: tuple[np.ndarray, np.ndarray], keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The table of sorted distinct keys and their counts, with `keys` added."""
    if keys.max() < 4 * keys.size:
        counts = np.bincount(keys)
        new = np.flatnonzero(counts)
        new_count = counts[new]
    else:
        new, new_count = np.unique(keys, return_counts=True)
    merged, where = np.unique(np.concatenate([table[0], new]), return_inverse=True)
    return merged, np.bincount(where, np.concatenate([table[1], new_count])).astype(np.int64)
