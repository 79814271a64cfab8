"""Agreement of embeddings with a hierarchy of labels: Rand indices, nearest neighbours, probes.

Labels are ``(N, L)``, column 0 the coarsest level (`hierarchical_labels` makes them from a tree);
``(N,)`` is one level. Spectral clustering and linear probes are scikit-learn's, on the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core.metrics import _discriminant
from visreg_core.metrics._inputs import labels as host_labels
from visreg_core.metrics._inputs import matrix
from visreg_core.metrics._resampling import drawn_order, taken
from visreg_core.metrics.similarity import nearest
from visreg_core.metrics.trees.dendrogram import cut_tree
from visreg_core.metrics.trees.linkage import drawn_linkage
from visreg_core.optional import require
from visreg_core.typing import Array

_CLUSTERINGS = ("dendrogram", "spectral")
_METRICS = ("cosine", "euclidean")
_SOLVERS = ("logistic", "discriminant")


class RandIndices(NamedTuple):
    """One entry for each level of a hierarchy, or each number of clusters of a sweep."""

    n_clusters: tuple[int, ...]
    rand: tuple[float, ...]
    adjusted: tuple[float, ...]


# --- two partitions -------------------------------------------------------------------------------


def rand_index(a: Any, b: Any) -> float:
    """Share of pairs of items that two partitions treat alike (Rand 1971; SAG-VICReg G.4).

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
    return _numbered(values)


def _numbered(values: np.ndarray) -> np.ndarray:
    """Codes 0, 1, … of labels (N,), in their order."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


# --- clusterings against a hierarchy --------------------------------------------------------------


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
    random order, so that ties go by chance: collapsed embeddings score as chance does, however the
    items are sorted.

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


def level_columns(labels: Any, n: int) -> list[np.ndarray]:
    """Columns of labels (N, L) as integer codes, coarsest first."""
    values = host_labels("labels", labels)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or values.shape[0] != n or values.shape[1] == 0:
        raise ValueError(
            f"expected labels of shape ({n}, L), one row for each of the embeddings; "
            f"found shape {values.shape}"
        )
    return [_numbered(c) for c in values.T]


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

    checks.choice("metric", metric, _METRICS)
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


# --- classifiers ----------------------------------------------------------------------------------


def hierarchical_knn_accuracy(
    x: Array,
    labels: Any,
    *,
    test: Array | None = None,
    test_labels: Any = None,
    k: int = 20,
    metric: str = "cosine",
    temperature: float | None = None,
) -> tuple[float, ...]:
    """Top-1 accuracy of a nearest-neighbour classifier, level by level (SAG-VICReg Table 4).

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace; neighbours are searched there, votes counted on the host.
    labels : array_like (N, L) or (N,)
        Column 0 the coarsest level. Each level votes for itself.
    test, test_labels : array (M, D), array_like (M, L) or (M,), optional
        Items to classify by their neighbours in `x`. Without them each item of `x` is classified
        by the others (leave one out).
    k : int
        Neighbours that vote, those of `mutual_knn`; equal distances go by a random order of `x`.
        Ties of votes go to the class that sorts first.
    metric : str
        "cosine" or "euclidean".
    temperature : float, optional
        A vote weighs exp(cosine / temperature), as in Wu et al. 2018 (0.07); only for "cosine".
        Without it all votes are equal.

    Returns
    -------
    tuple of float
        Accuracy on each level, in [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import hierarchical_knn_accuracy
    >>> x = np.asarray([[0.0], [0.1], [1.0], [1.1], [9.0], [9.1]])
    >>> labels = [[0, 0], [0, 0], [0, 1], [0, 1], [1, 2], [1, 2]]
    >>> hierarchical_knn_accuracy(x, labels, k=1, metric="euclidean")
    (1.0, 1.0)
    """
    checks.choice("metric", metric, _METRICS)
    checks.positive_int("k", k)
    if temperature is not None and (metric != "cosine" or not 0 < temperature < math.inf):
        raise ValueError(
            "expected a positive temperature with metric='cosine'; "
            f"found {temperature!r} with {metric!r}"
        )
    queries, columns, truth = _split(x, labels, test, test_labels)
    candidates = x.shape[0] - (test is None)
    if k > candidates:
        raise ValueError(f"expected k <= {candidates} neighbours; found k = {k}")
    order = drawn_order(x.shape[0])
    x, columns = taken(x, order), [c[order] for c in columns]
    if test is None:
        queries, truth = x, columns
    index, distance = nearest(queries, x, k, metric=metric, leave_one_out=test is None)
    if temperature is None:
        weights = np.ones(index.shape)
    else:
        weights = np.exp((distance[:, :1] - distance) / temperature)
    accuracies = []
    for column, true in zip(columns, truth, strict=True):
        votes = np.zeros((index.shape[0], int(column.max()) + 1))
        np.add.at(votes, (np.arange(index.shape[0])[:, None], column[index]), weights)
        accuracies.append(float(np.mean(votes.argmax(axis=1) == true)))
    return tuple(accuracies)


def hierarchical_linear_accuracy(
    x: Array,
    labels: Any,
    *,
    test: Array | None = None,
    test_labels: Any = None,
    solver: str = "logistic",
    regularization: float = 1.0,
    n_folds: int = 5,
    max_iter: int = 1000,
    seed: int = 0,
) -> tuple[float, ...]:
    """Top-1 accuracy of a linear probe, trained anew on each level (SAG-VICReg Table 5).

    Computed on the host, in float64.

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace.
    labels : array_like (N, L) or (N,)
        Column 0 the coarsest level.
    test, test_labels : array (M, D), array_like (M, L) or (M,), optional
        Items to classify. Without them: stratified cross-validation on `x` ("logistic"), or each
        item by a rule that leaves it out ("discriminant").
    solver : str
        "logistic": scikit-learn's multinomial logistic regression, on columns standardised by the
        training rows. "discriminant": linear discriminant analysis, the covariance within classes
        shrunk by 0.1 towards a multiple of I; in closed form, a hundred times faster for hundreds
        of classes, and mostly within a few hundredths of the other.
    regularization : float
        Weight of the squared norm of the coefficients, scikit-learn's 1/C.
    n_folds : int
        Of the cross-validation; classes of fewer items are missing from some folds, and
        scikit-learn warns of them. One class at least needs as many.
    max_iter : int
        Of the optimiser, L-BFGS; scikit-learn warns where it does not suffice.
    seed : int
        Of the folds. This and the three before it are for "logistic" alone.

    Returns
    -------
    tuple of float
        Accuracy on each level, in [0, 1]; 1 on a level of a single class.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import hierarchical_linear_accuracy
    >>> x = np.arange(12.0)[:, None]
    >>> hierarchical_linear_accuracy(x, (x[:, 0] > 5).astype(int), n_folds=3)
    (1.0,)
    """
    if not 0 < regularization < math.inf:
        raise ValueError(f"expected regularization to be positive; found {regularization!r}")
    checks.choice("solver", solver, _SOLVERS)
    checks.positive_int("n_folds", n_folds, minimum=2)
    checks.positive_int("max_iter", max_iter)
    queries, columns, truth = _split(x, labels, test, test_labels)
    if solver == "discriminant":
        points, tested = _host_rows("x", x), _host_rows("test", queries)
        return tuple(
            float(np.mean(_discriminant.classify(points, c, None if test is None else tested) == t))
            for c, t in zip(columns, truth, strict=True)
        )
    purpose = "a linear probe"
    linear_model = require("sklearn.linear_model", extra="report", purpose=purpose)
    selection = require("sklearn.model_selection", extra="report", purpose=purpose)
    pipeline = require("sklearn.pipeline", extra="report", purpose=purpose)
    preprocessing = require("sklearn.preprocessing", extra="report", purpose=purpose)

    def probe() -> Any:
        return pipeline.make_pipeline(
            preprocessing.StandardScaler(),
            linear_model.LogisticRegression(C=1 / regularization, max_iter=max_iter),
        )

    points, tested = _host_rows("x", x), _host_rows("test", queries)

    def accuracy(column: np.ndarray, true: np.ndarray) -> float:
        if np.unique(column).size == 1:
            predicted = np.full(true.shape, column[0])
        elif test is None:
            if np.bincount(column).max() < n_folds:
                raise ValueError(
                    f"expected n_folds <= {np.bincount(column).max()}, the items of the largest "
                    f"class; found {n_folds}"
                )
            folds = selection.StratifiedKFold(n_folds, shuffle=True, random_state=seed)
            predicted = selection.cross_val_predict(probe(), points, column, cv=folds)
        else:
            predicted = probe().fit(points, column).predict(tested)
        return float(np.mean(predicted == true))

    return tuple(accuracy(c, t) for c, t in zip(columns, truth, strict=True))


def _host_rows(argument: str, x: Array) -> np.ndarray:
    return np.asarray(_xp.to_numpy(matrix(argument, x, min_rows=1)[1]), dtype=np.float64)


def _split(
    x: Array, labels: Any, test: Array | None, test_labels: Any
) -> tuple[Array, list[np.ndarray], list[np.ndarray]]:
    """Rows to classify, the training labels' columns and the true ones, in common codes."""
    matrix("x", x)
    if (test is None) != (test_labels is None):
        raise ValueError("expected test and test_labels together; found one of them")
    if test is None:
        columns = level_columns(labels, x.shape[0])
        return x, columns, columns
    _xp.namespace(x, test)
    matrix("test", test, min_rows=1)
    if test.shape[1] != x.shape[1]:
        raise ValueError(
            f"expected test with D = {x.shape[1]} columns; found shape {tuple(test.shape)}"
        )
    # Checked one by one, coded together, so that a class is one number in both.
    n, n_levels = x.shape[0], len(level_columns(labels, x.shape[0]))
    if len(level_columns(test_labels, test.shape[0])) != n_levels:
        raise ValueError("expected labels and test_labels with one number of levels")
    both = [host_labels("labels", v) for v in (labels, test_labels)]
    if len({isinstance(v.flat[0], str) for v in both}) > 1:
        raise ValueError("expected labels and test_labels of one sort; found numbers and strings")
    if both[0].dtype.kind != both[1].dtype.kind:  # one dtype for both would round some
        both = [v.astype(object) for v in both]
    joined = level_columns(np.concatenate(both), n + test.shape[0])
    return test, [c[:n] for c in joined], [c[n:] for c in joined]
