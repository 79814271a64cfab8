"""Clusters, cophenetic distances and graphs from dendrograms."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from visreg_core import checks, optional
from visreg_core.metrics.trees._tree import along_leaves, checked_linkage, tree
from visreg_core.typing import Array

if TYPE_CHECKING:
    from networkx import DiGraph


def cut_tree(z: Array, *, n_clusters: int | None = None, height: float | None = None) -> np.ndarray:
    """Cluster labels from cutting a dendrogram into k clusters or at a height.

    Parameters
    ----------
    z : array (N − 1, 4)
        Linkage matrix.
    n_clusters : int, optional
        Undo the last k − 1 rows, even among equal heights; 1 ≤ k ≤ N.
    height : float, optional
        Keep the merges of at most this height: leaves share a label where their cophenetic
        distance is at most `height`.

    Returns
    -------
    numpy.ndarray (N,), int64
        Labels 0, 1, …, in the order in which the clusters first occur among the leaves.

    Raises
    ------
    ValueError
        Neither or both of `n_clusters` and `height`, or `n_clusters` out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import cut_tree, linkage
    >>> z = linkage(np.asarray([[0.0], [9.0], [1.0]]), metric="euclidean")
    >>> cut_tree(z, n_clusters=2)
    array([0, 1, 0])
    >>> cut_tree(z, height=0.5)
    array([0, 1, 2])
    """
    matrix = checked_linkage("z", z)
    n = matrix.shape[0] + 1
    if (n_clusters is None) == (height is None):
        raise ValueError("expected either n_clusters or height; found both or neither")
    if height is not None:
        given: Any = height  # whatever the annotation says
        if isinstance(given, bool) or not isinstance(given, Real):
            raise TypeError(f"expected height to be a number; found {given!r}")
        if math.isnan(height):
            raise ValueError(f"expected a height to cut at; found {height!r}")
        kept = int(np.searchsorted(matrix[:, 2], height, side="right"))
    elif n_clusters is not None:
        checks.positive_int("n_clusters", n_clusters)
        if n_clusters > n:
            raise ValueError(f"expected n_clusters <= N = {n}; found {n_clusters}")
        kept = n - n_clusters
    t = tree(matrix)
    # Gaps whose merge is undone separate the clusters in leaf order.
    run = np.concatenate([[0], np.cumsum(t.gap >= kept)])[t.position]
    _, first, label = np.unique(run, return_index=True, return_inverse=True)
    place = np.empty_like(first)
    place[np.argsort(first)] = np.arange(first.size)
    return place[label]


def cophenetic_distances(z: Array) -> np.ndarray:
    """Heights at which pairs of leaves are joined, as a condensed vector.

    Parameters
    ----------
    z : array (N − 1, 4)
        Linkage matrix.

    Returns
    -------
    numpy.ndarray (N(N − 1)/2,), float64
        In the order of SciPy's ``pdist``: (0, 1), (0, 2), …. The measures of this package do not
        need this vector.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import cophenetic_distances, linkage
    >>> cophenetic_distances(linkage(np.asarray([[0.0], [9.0], [1.0]]), metric="euclidean"))
    array([8.5, 1. , 8.5])
    """
    t = tree(checked_linkage("z", z))
    n = t.position.size
    gaps = t.height[t.gap]
    out = np.empty(n * (n - 1) // 2)
    start = 0
    for leaf in range(n - 1):
        stop = start + n - 1 - leaf
        row = along_leaves(gaps, int(t.position[leaf]), np.maximum)
        np.take(row, t.position[leaf + 1 :], out=out[start:stop])
        start = stop
    return out


def to_networkx(z: Array) -> DiGraph:
    """The dendrogram as a directed tree with heights.

    Parameters
    ----------
    z : array (N − 1, 4)
        Linkage matrix.

    Returns
    -------
    networkx.DiGraph
        Nodes 0 … 2N − 2 with attributes ``height`` (0 for leaves) and ``size`` (number of leaves),
        edges from parents to children; leaves are 0 … N − 1 and the root is 2N − 2.

    Raises
    ------
    ImportError
        networkx is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import linkage, to_networkx
    >>> tree = to_networkx(linkage(np.asarray([[0.0], [9.0], [1.0]]), metric="euclidean"))
    >>> sorted(tree.successors(3)), tree.nodes[3]["height"]
    ([0, 2], 1.0)
    """
    networkx = optional.require("networkx", extra="report", purpose="to_networkx")
    matrix = checked_linkage("z", z)
    n = matrix.shape[0] + 1
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(n), height=0.0, size=1)
    for k, (left, right, height, size) in enumerate(matrix.tolist()):
        graph.add_node(n + k, height=height, size=int(size))
        graph.add_edges_from([(n + k, int(left)), (n + k, int(right))])
    return graph
