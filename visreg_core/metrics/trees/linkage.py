"""Dendrograms of embeddings in SciPy's layout."""

from __future__ import annotations

from collections import deque

import numpy as np

from visreg_core import _xp, checks
from visreg_core._xp.points import Members, distinct
from visreg_core.metrics._inputs import matrix, plain, power_of_two, unit_rows
from visreg_core.metrics._resampling import drawn_order, taken
from visreg_core.metrics.trees._clusters import Clusters
from visreg_core.metrics.trees._pair_clusters import PairClusters
from visreg_core.metrics.trees._rounding import Rounding
from visreg_core.metrics.trees._rounds import merge_rounds
from visreg_core.metrics.trees._spanning_tree import Edges, forest, merged, spanning_tree
from visreg_core.typing import Array, Device, Namespace

METHODS = ("average", "complete", "single", "ward", "weighted")
METRICS = ("cosine", "euclidean", "sqeuclidean")


def linkage(
    x: Array, method: str = "average", metric: str = "cosine", *, graph: Array | None = None
) -> np.ndarray:
    """Agglomerative clustering of the rows of `x`: a dendrogram in SciPy's ``Z`` layout.

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace, N ≥ 2, finite. For condensed distances use
        ``scipy.cluster.hierarchy.linkage``.
    method : str
        "average" (UPGMA), "weighted" (WPGMA, McQuitty), "single", "complete" or "ward".
    metric : str
        "cosine", "euclidean" or "sqeuclidean"; Ward's method wants "euclidean".
    graph : integer array (N, k), optional
        Near rows of every row, such as an approximate search for neighbours finds them. The
        dendrogram is then approximate: a cluster is compared with those that its rows' neighbours
        are in, and with all others where these are its own; what is left at 16,384 clusters is
        joined exactly. For average and weighted linkage of "cosine" and "sqeuclidean", and
        Ward's.

    Returns
    -------
    numpy.ndarray (N − 1, 4), float64
        Row k joins clusters ``Z[k, 0] < Z[k, 1]`` (leaves are 0 … N − 1, row i makes N + i) at
        height ``Z[k, 2]``, which does not decrease, into a cluster of ``Z[k, 3]`` leaves.

    Raises
    ------
    ValueError
        Unknown method or metric, Ward with another metric than Euclidean, wrong shape, rows with
        NaN or infinity, a graph of other rows or with a method that takes none.
    TypeError
        `x` is not a floating array of a supported library.

    Notes
    -----
    No method keeps a matrix of N² distances, but for the last 4096 clusters (134 MB), or D + 1.

    Average and weighted linkage of cosine and squared Euclidean distances, and Ward's, merge in
    rounds, whose products run in the namespace and on the device of `x`; decisions are taken in
    float64 on the host, so that all libraries give the same dendrogram. (The last clusters are
    taken by all their distances only if they are too close to equidistant for float32.) Single
    linkage is a minimum spanning tree, on the host. Complete linkage, and average and weighted
    linkage of Euclidean distances, merge in rounds on the host; their distances are taken from all
    pairs of points anew each time, which costs about four times as much as where means will do.

    On NumPy arrays all cores are used; `visreg_core.threads.at_most_threads` limits them.

    Products only screen: neighbours, ties and heights come from differences in float64, which
    resolve clusters down to a width of about 1e-15 of their distance from the mean. Heights h that
    differ by no more than rounding are equal: by ε ((D + 16) h + 4 r √h) for squared and cosine
    distances, by ε ((D + 16) h + 4 r) for Euclidean ones, where ε = 2⁻⁵² and r is the largest
    distance from the mean, 1 for cosine.

    Identical rows are joined first, at height exactly 0. A zero vector has cosine distance 1 to
    every other vector, and 0 to another zero vector, to which it is identical. In a tie the lower
    cluster numbers, by order of creation, go first, so that the dendrogram depends on the order of
    the rows, unless only identical rows tie. (In single linkage edges of equal length tie, and go
    by their rows' numbers. Where all distances of the last clusters are taken, it is the numbers of
    those nearest to one cluster that count.) In any order every merge joins a nearest pair of
    clusters. Measures of embeddings draw a random order of the rows first, so that the order cannot
    affect a score; shuffle the rows of a file that is sorted by class before you cut its
    dendrogram. Ward's heights are SciPy's, √(2 n_u n_v / (n_u + n_v)) ‖ū − v̄‖.

    Source: Sumengen et al. 2021, "Scaling hierarchical agglomerative clustering to billion-sized
    datasets" (rounds of reciprocal nearest neighbours, and graphs); SAG-VICReg §4.4 (use).

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import linkage
    >>> linkage(np.asarray([[0.0], [1.0], [5.0]]), metric="sqeuclidean")
    array([[ 0. ,  1. ,  1. ,  2. ],
           [ 2. ,  3. , 20.5,  3. ]])
    """
    checks.choice("method", method, METHODS)
    checks.choice("metric", metric, METRICS)
    if method == "ward" and metric != "euclidean":
        raise ValueError(f"expected metric='euclidean' for Ward's method; found {metric!r}")
    x = plain("x", x)
    if x.ndim == 1 and _xp.dtype_name(x) in _xp.FLOATING:
        raise ValueError(
            f"expected x of shape (N, D); found shape {tuple(x.shape)}: condensed distances are "
            "for scipy.cluster.hierarchy.linkage"
        )
    xp, x = matrix("x", x)
    points = _xp.to_numpy(x).astype(np.float64)
    if metric == "cosine":
        points, unit = unit_rows(np, points), 1.0
    else:
        unit = power_of_two(points)
        points /= unit
    n = points.shape[0]
    near = None if graph is None else _near_rows(graph, n)
    rounding = Rounding(points, metric)
    by_means = method == "ward" or (method in ("average", "weighted") and metric != "euclidean")
    if graph is not None and not by_means:
        raise ValueError(
            "expected a graph with Ward's method, or average or weighted linkage of cosine or "
            f"squared Euclidean distances; found {method!r} and {metric!r}"
        )
    first, members = distinct(points)
    children, cluster = _join_identical(n, members)
    heights = np.zeros(children.shape[0])
    if first.size > 1:
        if members is not None:
            points = points[first]
            if near is not None:
                near = members.group[near[first]]
        if method == "single":
            joins, above = _by_spanning_tree(points, metric)
        else:
            sizes = np.ones(n) if members is None else members.size.astype(np.float64)
            if by_means:
                joins, above = _by_means(xp, _xp.device(x), points, sizes, method, metric, near)
            else:
                joins, above = _by_pairs(points, sizes, method, metric)
        cluster = np.concatenate([cluster, n + heights.size + np.arange(above.size)])
        children = np.concatenate([children, cluster[joins]])
        heights = np.concatenate([heights, above])
    order = np.argsort(heights, kind="stable")  # children come before parents at equal height
    children, heights = children[order], rounding.levelled(heights[order])
    with np.errstate(over="ignore"):  # squares beyond float64 are infinite
        heights = heights * unit * (unit if metric == "sqeuclidean" else 1.0)
    return _renumbered(children, heights, order)


def drawn_linkage(x: Array, method: str, metric: str, *, seed: int = 0, draw: int) -> np.ndarray:
    """`linkage` of the rows in the random order number `draw`; leaf i is still row i.

    So ties are broken at random, and not by the order of the rows.
    """
    order = drawn_order(x.shape[0], seed=seed, draw=draw)
    z = linkage(taken(x, order), method, metric)
    leaf = z[:, :2] < len(order)
    z[:, :2][leaf] = order[z[:, :2][leaf].astype(np.intp)]
    z[:, :2].sort(axis=1)
    return z


def _by_means(
    xp: Namespace,
    device: Device,
    points: np.ndarray,
    sizes: np.ndarray,
    method: str,
    metric: str,
    near: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Merges of distinct points by reciprocal nearest neighbours, in order of creation.

    For unit vectors 1 − ⟨u, v⟩ = ‖u − v‖² / 2, and the rounds take the mean of all points as
    origin, so that a collapsed embedding loses no digits. A zero vector has spread 1, as the mean
    of a random unit vector: distance (‖0 − v‖² + 1 + 0) / 2 = 1.
    """
    lone = np.zeros(sizes.size, dtype=bool)
    if metric == "cosine":
        lone[:] = ~points.any(axis=1)
    points -= (sizes / sizes.sum()) @ points  # in place: there may be many
    unit = power_of_two(points)
    points /= unit
    clusters = Clusters(points, sizes, lone / unit**2, lone, method=method)
    children, heights = merge_rounds(clusters, xp, device, graph=near)
    if method == "ward":
        return children, np.sqrt(heights) * unit
    return children, heights * (unit**2 / (2 if metric == "cosine" else 1))


def _by_spanning_tree(points: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Merges of distinct points by single linkage."""
    n = len(points)
    lone = ~points.any(axis=1) & (metric == "cosine")
    some = np.flatnonzero(~lone)
    apart = points[some] if lone.any() else points
    apart = apart - apart.mean(axis=0)
    unit = power_of_two(apart)
    apart /= unit
    parts = []
    if some.size > 1:
        first, second, squared = spanning_tree(apart)
        parts.append(Edges(some[first], some[second], squared))
    for zero in np.flatnonzero(lone):  # at distance 1 from everything
        parts.append(Edges(np.full(some.size, zero), some, np.full(some.size, 2 / unit**2)))
    edges = forest(n, parts)
    heights = edges.squared * unit**2
    if metric == "euclidean":
        heights = np.sqrt(heights)
    elif metric == "cosine":
        heights /= 2
    return merged(edges), heights


def _by_pairs(
    points: np.ndarray, sizes: np.ndarray, method: str, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Merges of distinct points by distances of all their pairs, of which none are kept.

    A zero vector has a coordinate of its own under cosine: distance (1 + 1) / 2 to unit vectors.
    """
    lone = np.logical_and(~points.any(axis=1), metric == "cosine")
    if lone.any():
        points = np.column_stack([points, lone])
    clusters = PairClusters(points, sizes, lone, method=method)
    children, heights = merge_rounds(clusters, np, "cpu")
    if metric == "euclidean":
        return children, np.sqrt(heights) if method == "complete" else heights
    return children, heights / (2 if metric == "cosine" else 1)


def _near_rows(graph: Array, n: int) -> np.ndarray:
    """A checked graph on the host; a row without a neighbour, −1, has itself."""
    given = _xp.to_numpy(plain("graph", graph))
    if given.ndim != 2 or given.shape[0] != n or given.dtype.kind not in "iu":
        raise ValueError(
            f"expected graph of shape ({n}, k), integers; found shape {given.shape}, {given.dtype}"
        )
    if given.size == 0 or given.max() >= n or given.min() < -1:
        raise ValueError(f"expected rows 0 ... {n - 1} in graph, or -1; found others, or none")
    return np.where(given < 0, np.arange(n)[:, None], given.astype(np.int32, copy=False))


def _join_identical(n: int, members: Members | None) -> tuple[np.ndarray, np.ndarray]:
    """Merges (M, 2) that join every set of identical rows, and the cluster each set ends in.

    All distances are 0, so that the two lowest numbers go first: a queue, and a balanced tree.
    """
    if members is None:
        return np.empty((0, 2), dtype=np.intp), np.arange(n)
    children: list[tuple[int, int]] = []
    cluster = members.order[members.first]
    for g in np.flatnonzero(members.size > 1):
        begin = members.first[g]
        queue = deque(members.order[begin : begin + members.size[g]].tolist())
        while len(queue) > 1:
            queue.append(n + len(children))
            children.append((queue.popleft(), queue.popleft()))
        cluster[g] = queue[0]
    return np.asarray(children, dtype=np.intp).reshape(-1, 2), cluster


def _renumbered(children: np.ndarray, heights: np.ndarray, order: np.ndarray) -> np.ndarray:
    """SciPy's matrix from merges sorted by height; `order` are their numbers by creation."""
    n = heights.size + 1
    number = np.empty(2 * n - 1, dtype=np.intp)
    number[:n] = np.arange(n)
    number[n + order] = n + np.arange(n - 1)
    joined = np.sort(number[children], axis=1)
    size = [1] * n
    for a, b in joined.tolist():
        size.append(size[a] + size[b])
    return np.column_stack([joined, heights, size[n:]]).astype(np.float64)
