"""Rand indices: of two partitions, and of clusterings of embeddings with a hierarchy of labels.

Labels are ``(N, L)``, column 0 the coarsest level (`hierarchical_labels` makes them from a tree);
``(N,)`` is one level. Spectral clustering is scikit-learn's, on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from visreg_core import checks
from visreg_core.metrics._inputs import labels as host_labels
from visreg_core.metrics._inputs import matrix
from visreg_core.metrics._levels import level_columns, numbered
from visreg_core.metrics._resampling import drawn_order, taken
from visreg_core.metrics.similarity import METRICS, nearest
from visreg_core.metrics.trees.dendrogram import cut_tree
from visreg_core.metrics.trees.linkage import drawn_linkage
from visreg_core.optional import require
from visreg_core.typing import Array

_CLUSTERINGS = ("dendrogram", "spectral")


class RandIndices(NamedTuple):
    """One entry for each level of a hierarchy, or each number of clusters of a sweep."""

    n_clusters: tuple[int, ...]
    rand: tuple[float, ...]
    adjusted: tuple[float, ...]


def rand_index(a: Any, b: Any) -> float:
    """Share of pairs of items on which two partitions agree (Rand 1971; SAG-VICReg G.4).

    Parameters
    ----------
    a, b : array_like (N,)
        Label of each item: integers, strings, arrays of any namespace. Counted on the host in
        exact integer arithmetic: correctly rounded for any N.

    Returns
    -------
    float
        In [0, 1]; 1 for equal partitions. Independent partitions into many clusters are near 1,
        too: see `adjusted_rand_index`.

    Examples
    --------
    >>> from visreg_core.metrics import rand_index
    >>> rand_index([0, 0, 1, 1], ["x", "x", "x", "y"])
    0.5
    """
    both, in_a, in_b, pairs = _pair_counts(a, b)
    return (pairs + 2 * both - in_a - in_b) / pairs


def adjusted_rand_index(a: Any, b: Any) -> float:
    """Rand index corrected for chance (Hubert and Arabie 1985).

    Parameters
    ----------
    a, b : array_like (N,)
        Label of each item, as for `rand_index`.

    Returns
    -------
    float
        1 for equal partitions, 0 on average for independent ones of the same cluster sizes; at
        least −1/2. 1 where both partitions are one cluster, or both are all singletons.

    Examples
    --------
    >>> from visreg_core.metrics import adjusted_rand_index
    >>> adjusted_rand_index([0, 0, 1, 1], [5, 5, 7, 7])
    1.0
    """
    both, in_a, in_b, pairs = _pair_counts(a, b)
    numerator = 2 * (both * pairs - in_a * in_b)
    denominator = (in_a + in_b) * pairs - 2 * in_a * in_b
    return 1.0 if denominator == 0 else numerator / denominator


def _pair_counts(a: Any, b: Any) -> tuple[int, int, int, int]:
    """Pairs together in both, in a, in b, and all pairs, as Python integers."""
    first, second = _codes("a", a), _codes("b", b)
    n = first.size
    if second.size != n:
        raise ValueError(f"expected labels of the same items; found {n} and {second.size}")
    if n < 2:
        raise ValueError(f"expected labels of at least 2 items; found {n}")
    joint = first * (int(second.max()) + 1) + second

    def together(codes: np.ndarray) -> int:
        sizes = np.unique(codes, return_counts=True)[1].astype(np.int64)
        return int(np.sum(sizes * (sizes - 1))) // 2  # the sum is below N², fits for N < 3e9

    return together(joint), together(first), together(second), n * (n - 1) // 2


def _codes(argument: str, labels: Any) -> np.ndarray:
    values = host_labels(argument, labels)
    if values.ndim != 1:
        raise ValueError(f"expected {argument} of shape (N,); found shape {values.shape}")
    return numbered(values)


def hierarchical_rand_index(
    x: Array,
    labels: Any,
    *,
    clustering: str = "spectral",
    n_neighbors: int = 10,
    method: str = "average",
    metric: str = "cosine",
    seed: int = 0,
) -> RandIndices:
    """Rand index of a clustering of the embeddings with the labels, level by level.

    On each level as many clusters as the level has classes (SAG-VICReg App. H). Rows are taken in a
    random order, so that ties are resolved at random: collapsed embeddings score at chance level,
    whatever the order of the items.

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace.
    labels : array_like (N, L) or (N,)
        Column 0 the coarsest level.
    clustering : str
        "spectral": scikit-learn's spectral clustering on the host, as in App. H; the affinity,
        which the paper does not state, is the symmetrised graph of `n_neighbors` neighbours. Its
        eigenvectors bound the time. "dendrogram": `linkage` cut into that many clusters, one tree
        for all levels, the cheap alternative.
    n_neighbors : int
        Neighbours of the spectral graph, an item itself included; at most N.
    method, metric
        Of `linkage`; the spectral graph uses `metric`, too: "cosine" or "euclidean".
    seed : int
        Of the order of rows, and of the spectral clustering.

    Returns
    -------
    RandIndices
        ``(n_clusters, rand, adjusted)``, each with one entry a level.

    Warns
    -----
    UserWarning
        By scikit-learn, where the graph of neighbours is not connected: clusters are then unions
        of parts of its components.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import hierarchical_rand_index
    >>> x = np.asarray([[0.0], [0.1], [1.0], [1.1], [9.0], [9.1]])
    >>> labels = [[0, 0], [0, 0], [0, 1], [0, 1], [1, 2], [1, 2]]
    >>> hierarchical_rand_index(x, labels, clustering="dendrogram", metric="euclidean").rand
    (1.0, 1.0)
    """
    x = matrix("x", x)[1]
    columns = level_columns(labels, x.shape[0])
    n_clusters = [int(np.unique(c).size) for c in columns]
    clusters = _clusterings(x, n_clusters, clustering, n_neighbors, method, metric, seed)
    return _rand_indices(n_clusters, clusters, columns)


def rand_index_sweep(
    x: Array,
    labels: Any,
    n_clusters: Sequence[int],
    *,
    clustering: str = "spectral",
    n_neighbors: int = 10,
    method: str = "average",
    metric: str = "cosine",
    seed: int = 0,
) -> RandIndices:
    """Rand index with the finest labels over a range of numbers of clusters (App. H, Figure 4b).

    Parameters
    ----------
    x, labels, clustering, n_neighbors, method, metric, seed
        As for `hierarchical_rand_index`; the last column of `labels` is used.
    n_clusters : sequence of int
        Numbers of clusters, each from 1 to N.

    Returns
    -------
    RandIndices
        ``(n_clusters, rand, adjusted)``, each with one entry for each number.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import rand_index_sweep
    >>> x = np.asarray([[0.0], [0.1], [9.0], [9.1]])
    >>> sweep = rand_index_sweep(
    ...     x, [0, 0, 1, 1], [1, 2, 4], clustering="dendrogram", metric="euclidean"
    ... )
    >>> [round(r, 3) for r in sweep.rand]
    [0.333, 1.0, 0.667]
    """
    x = matrix("x", x)[1]
    finest = level_columns(labels, x.shape[0])[-1]
    counts = list(n_clusters)
    if not counts:
        raise ValueError("expected at least one number of clusters; found none")
    clusters = _clusterings(x, counts, clustering, n_neighbors, method, metric, seed)
    return _rand_indices(counts, clusters, [finest] * len(counts))


def _rand_indices(
    counts: list[int], clusters: list[np.ndarray], columns: list[np.ndarray]
) -> RandIndices:
    pairs = list(zip(clusters, columns, strict=True))
    return RandIndices(
        tuple(counts),
        tuple(rand_index(a, b) for a, b in pairs),
        tuple(adjusted_rand_index(a, b) for a, b in pairs),
    )


def _clusterings(
    x: Array,
    counts: list[int],
    clustering: str,
    n_neighbors: int,
    method: str,
    metric: str,
    seed: int,
) -> list[np.ndarray]:
    """Cluster of each item (N,), for each number of clusters."""
    checks.choice("clustering", clustering, _CLUSTERINGS)
    _, x = matrix("x", x)
    n = x.shape[0]
    for k in counts:
        checks.positive_int("n_clusters", k)
        if k > n:
            raise ValueError(f"expected at most N = {n} clusters; found {k}")
    if clustering == "dendrogram":
        tree = drawn_linkage(x, method, metric, seed=seed, draw=0)
        return [cut_tree(tree, n_clusters=k) for k in counts]

    checks.choice("metric", metric, METRICS)
    checks.positive_int("n_neighbors", n_neighbors)
    if n_neighbors > n:
        raise ValueError(f"expected n_neighbors <= N = {n}; found {n_neighbors}")
    purpose = "spectral clustering"
    cluster = require("sklearn.cluster", extra="report", purpose=purpose)
    from scipy import sparse  # takes a while

    order = drawn_order(n, seed=seed)
    place = np.argsort(order)
    points = taken(x, order)
    index, _ = nearest(points, points, n_neighbors, metric=metric)
    begin = np.arange(n + 1) * n_neighbors
    graph = sparse.csr_matrix((np.ones(index.size), index.reshape(-1), begin), shape=(n, n))
    graph = (graph + graph.T) / 2
    return [
        np.zeros(n, dtype=np.int64)
        if k == 1
        else cluster.SpectralClustering(
            n_clusters=k, affinity="precomputed", random_state=seed
        ).fit_predict(graph)[place]
        for k in counts
    ]
