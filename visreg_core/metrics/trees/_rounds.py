"""Reciprocal-nearest-neighbour rounds: every linkage but single in O(N·D) memory.

A reducible linkage may merge every pair of clusters that are each other's nearest neighbour at
once, in any order, and gives the dendrogram of one merge at a time (RAC; Sumengen et al. 2021).
For most linkages the distance of two clusters follows from their means u, v, sizes and
spreads s (mean squared distance of a cluster's points to its mean), without cancellation:

    average, squared Euclidean    d = ‖u − v‖² + s_u + s_v
    weighted                      the same, of means that weigh the two clusters joined alike
    Ward, squared                 d = 2 n_u n_v / (n_u + n_v) ‖u − v‖²

Complete linkage, and average and weighted linkage of Euclidean distances, take all pairs of points
each time (`PairClusters`), and all of them once more for the last clusters.

Under ties a round merges disjoint pairs of which neither has a nearer neighbour, the lowest ids
first, so that points on a lattice, or N equidistant ones, take about log N rounds. Once the
clusters are few, and float32 products cannot resolve their distances, chains of nearest neighbours
take over.
"""

from __future__ import annotations

import numpy as np

from visreg_core.metrics.trees._chain import merge_along_chains
from visreg_core.metrics.trees._clusters import Clusters
from visreg_core.metrics.trees._near_lists import NearLists
from visreg_core.metrics.trees._pair_clusters import PairClusters
from visreg_core.metrics.trees._pair_screen import PairScreen
from visreg_core.metrics.trees._screen import Screen
from visreg_core.typing import Device, Namespace

# Largest number of rows whose neighbour is searched in a round, per merge of the round before. It
# matters only where rounds merge few pairs while many rows lose their neighbour: then it keeps the
# total at O(N²) distances.
_ROWS_PER_MERGE = 16

# Clusters of which all pairs of distances may be held at once, in any case; beyond, where they take
# no more memory than the points.
_FEW_CLUSTERS = 4096

# Clusters from which on a graph is no longer needed, nor trusted: the top of the tree is exact.
_EXACT = 1 << 14


def merge_rounds(
    clusters: Clusters | PairClusters,
    xp: Namespace,
    device: Device,
    *,
    graph: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Children (M − 1, 2) and heights (M − 1,) of the merges of M weighted points.

    Parameters
    ----------
    clusters
        One for each point; overwritten.
    xp, device
        Where the products of `Clusters` run; those of `PairClusters` run on the host.
    graph : integer array (M, k), optional
        Points near to each one, or itself. Clusters that are not linked by these are looked at only
        where a cluster has none, until few are left: what is merged may not be the nearest.

    Returns
    -------
    children, heights
        Merge k makes cluster M + k of two clusters made before it, and is no lower than they are.
        Merges are in order of creation, not of height.
    """
    near = NearLists(clusters, trusted=graph is not None)
    if graph is not None:
        near.put_graph(graph)
    if isinstance(clusters, PairClusters):
        screen: Screen = PairScreen(near)
    else:
        screen = Screen(xp, device, near)
    children, heights = [], []
    few = max(_FEW_CLUSTERS, clusters.dim + 1)
    limit = clusters.count
    while clusters.count > 1:
        if near.trusted and clusters.count <= _EXACT:
            near.forget()
        if not near.trusted and clusters.count <= few:
            if screen.crowded():
                near.squeeze()
                pairs, above = merge_along_chains(
                    clusters.distances(), clusters.size, clusters.height, method=clusters.method
                )
                number = np.concatenate([clusters.id, clusters.next_id + np.arange(above.size)])
                children.append(number[pairs])
                heights.append(above)
                break
            few = clusters.count // 2  # look again then
        unknown, _ = near.settle(near.stale())
        screen.settle(unknown[:limit])
        i, j = near.nearest_pairs()
        if i.size == 0:
            if unknown.size > limit:
                limit *= 2
                continue
            i, j = near.least_pair()
        limit = _ROWS_PER_MERGE * i.size
        children.append(np.stack([clusters.id[i], clusters.id[j]], axis=1))
        heights.append(near.merge(i, j))
    return np.concatenate(children), np.concatenate(heights)
