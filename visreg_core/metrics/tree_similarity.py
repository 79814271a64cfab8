"""Similarity of two hierarchies: correlations of their distances over all pairs of items."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from visreg_core import _checks
from visreg_core._typing import Array
from visreg_core.metrics._depth_counts import depth_counts
from visreg_core.metrics._distances import cophenetic_pearson
from visreg_core.metrics._inputs import matrix, paired, same_ids
from visreg_core.metrics._pair_counts import Moments, correlate, height_moments, pair_counts
from visreg_core.metrics._resampling import Estimate, over_subsets
from visreg_core.metrics._tree import Tree, checked_linkage, tree
from visreg_core.metrics.linkage import linkage

_DISTANCES = ("depth", "height")
_CONVENTIONS = ("goodman-kruskal", "spearman")


class Correlations(NamedTuple):
    """Correlation coefficients of two distances over all pairs; NaN where one is constant."""

    pearson: float
    spearman: float
    kendall: float


class SampledCorrelations(NamedTuple):
    """`Correlations` estimated from subsets of the items."""

    pearson: Estimate
    spearman: Estimate
    kendall: Estimate


class CopheneticSimilarity(NamedTuple):
    """Pearson's correlation of one set's cophenetic distances with the other's distances.

    `d1_to_p2`: the dendrogram of `x` with the pairwise distances of `y`; `d2_to_p1`: the other way.
    """

    d1_to_p2: float
    d2_to_p1: float


class SampledCopheneticSimilarity(NamedTuple):
    """`CopheneticSimilarity` estimated from subsets of the items."""

    d1_to_p2: Estimate
    d2_to_p1: Estimate


class FowlkesMallows(NamedTuple):
    """Fowlkes-Mallows index of the cuts of two trees into k clusters, k = 2 … N − 1.

    All fields are NumPy arrays (N − 2,). `expected` and `variance` are those of `similarity` when
    the leaves of one tree are permuted.
    """

    n_clusters: np.ndarray
    similarity: np.ndarray
    expected: np.ndarray
    variance: np.ndarray


def lca_similarity(
    x: Array,
    y: Array,
    method: str = "average",
    metric: str = "cosine",
    distance: str = "height",
    *,
    ids_x: Sequence[Any] | None = None,
    ids_y: Sequence[Any] | None = None,
    n_samples: int | None = None,
    n_repeats: int = 20,
    seed: int = 0,
    confidence: float = 0.95,
) -> Correlations | SampledCorrelations:
    """Correlation of the lowest-common-ancestor distances of two sets' dendrograms.

    Parameters
    ----------
    x, y : array (N, Dx), (N, Dy)
        Row i the same item in both; any one namespace.
    method, metric : str
        As in `linkage`.
    distance : str
        "height": height of the lowest common ancestor (cophenetic distance). "depth": edges from a
        leaf up to it, averaged over the two leaves.
    ids_x, ids_y : sequence, optional
        Ids of the items, compared row by row.
    n_samples : int, optional
        Estimate from random subsets of this many items, 3 ≤ n_samples ≤ N, instead of from all.
    n_repeats : int
        Number of subsets, at least 2.
    seed : int
        Of the subsets, 0 … 2³² − 1.
    confidence : float
        Of the intervals, between 0 and 1.

    Returns
    -------
    Correlations or SampledCorrelations
        Pearson, Spearman (midranks) and Kendall (tau-b), exact over all N(N − 1)/2 pairs. With
        `n_samples` an `Estimate` (mean, low, high) each, with Student's interval for the mean over
        all subsets of that size. That is another quantity than the similarity of all items: trees
        of fewer items are less deep.

    Raises
    ------
    ValueError
        Unknown names, different numbers of rows or ids, rows with NaN or infinity.

    Notes
    -----
    For "height" the time beyond the two dendrograms is about N · (mean depth of a leaf), never N²
    where trees branch. "depth" takes O(N²) time in O(N) memory. What follows the dendrograms'
    products runs on the host.

    Source: SAG-VICReg §4.4, Table 1.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import lca_similarity
    >>> x = np.asarray([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.3, 0.9]])
    >>> lca_similarity(x, x[:, ::-1])
    Correlations(pearson=1.0, spearman=1.0, kendall=1.0)
    """
    _checks.choice("distance", distance, _DISTANCES)
    _, x, y = paired(x, y)
    same_ids(ids_x, ids_y, x.shape[0])
    whole = functools.partial(_lca_similarity, method=method, metric=metric, distance=distance)
    if n_samples is None:
        return Correlations(*whole(x, y))
    estimates = over_subsets(whole, x, y, n_samples, n_repeats, seed, confidence)
    return SampledCorrelations(*estimates)


def _lca_similarity(
    x: Array, y: Array, *, method: str, metric: str, distance: str
) -> tuple[float, ...]:
    first, second = tree(linkage(x, method, metric)), tree(linkage(y, method, metric))
    return _moments(first, second, distance)[:3]


def dendrogram_correlations(
    first: Array,
    second: Array,
    distance: str = "height",
) -> Correlations:
    """`lca_similarity` of two dendrograms at hand.

    Parameters
    ----------
    first, second : array (N − 1, 4)
        Linkage matrices whose leaf i is the same item.
    distance : str
        "height" or "depth", as in `lca_similarity`.

    Returns
    -------
    Correlations
        Pearson, Spearman and Kendall's tau-b over all pairs.

    Raises
    ------
    ValueError
        Matrices that are no dendrograms, have inversions, or differ in their numbers of leaves.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import dendrogram_correlations, linkage
    >>> x = np.asarray([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.3, 0.9]])
    >>> dendrogram_correlations(linkage(x), linkage(x, method="single")).spearman
    1.0
    """
    _checks.choice("distance", distance, _DISTANCES)
    return Correlations(*_moments(*two_trees(first, second), distance)[:3])


def bakers_gamma(first: Array, second: Array, *, convention: str = "spearman") -> float:
    """Baker's gamma: rank correlation of the stages at which pairs of items are joined.

    Parameters
    ----------
    first, second : array (N − 1, 4)
        Linkage matrices whose leaf i is the same item. Merges of equal height are one stage.
    convention : str
        "spearman": Spearman's correlation of the stages, as R's dendextend has it.
        "goodman-kruskal": (C − D)/(C + D) of concordant and discordant pairs of pairs, as Baker.

    Returns
    -------
    float
        In [−1, 1]; NaN where it is undefined (all pairs of a tree joined at one stage).

    Notes
    -----
    Source: Baker 1974, "Stability of two hierarchical grouping techniques, case I: sensitivity to
    data errors"; Goodman and Kruskal 1954.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import bakers_gamma, linkage
    >>> x = np.asarray([[0.0], [1.0], [3.0], [7.0]])
    >>> z = linkage(x, metric="euclidean")
    >>> bakers_gamma(z, linkage(-x, metric="euclidean"), convention="goodman-kruskal")
    1.0
    """
    _checks.choice("convention", convention, _CONVENTIONS)
    moments = _moments(*two_trees(first, second), "height")
    return moments.spearman if convention == "spearman" else moments.gamma


def fowlkes_mallows(first: Array, second: Array) -> FowlkesMallows:
    """Fowlkes-Mallows index B_k of two dendrograms at every number k of clusters.

    Parameters
    ----------
    first, second : array (N − 1, 4)
        Linkage matrices whose leaf i is the same item. The cut into k clusters undoes the last
        k − 1 rows, also among equal heights.

    Returns
    -------
    FowlkesMallows
        k = 2 … N − 1, B_k, and its expectation and variance under permutations of the leaves given
        the sizes of the clusters (the variance is NaN for N < 4).

    Notes
    -----
    B_k = T/√(PQ), where T, P and Q count the ordered pairs of items that are together in both cuts,
    in the first and in the second. All cuts come from one count of pairs by the later of their two
    merges, in the time of `lca_similarity`'s.

    Source: Fowlkes and Mallows 1983, "A method for comparing two hierarchical clusterings", §2.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import fowlkes_mallows, linkage
    >>> z = linkage(np.asarray([[0.0], [1.0], [3.0], [7.0]]), metric="euclidean")
    >>> fowlkes_mallows(z, z).similarity
    array([1., 1.])
    """
    a, b = two_trees(first, second)
    n = a.position.size
    merge = np.arange(n - 1)
    together = np.zeros(n - 1)
    for i, j, count in pair_counts(a, b, merge, merge):
        together += np.bincount(np.maximum(i, j), count, minlength=n - 1)
    # Entry m: after merges 0 … m there are N − 1 − m clusters. Reversed: k = 2 … N − 1.
    k = np.arange(2, n)
    t, p, q = (2 * np.cumsum(c)[: n - 2][::-1] for c in (together, a.pairs, b.pairs))
    triples_p, triples_q = (_triples(tr)[: n - 2][::-1] for tr in (a, b))
    root = np.sqrt(p) * np.sqrt(q)
    expected = root / (n * (n - 1))
    if n < 4:
        return FowlkesMallows(k, t / root, expected, np.full(k.size, np.nan))
    second_moment = (
        2 / (n * (n - 1))
        + 4 * (triples_p / p) * (triples_q / q) / (n * (n - 1) * (n - 2))
        + (p - 2 - 4 * triples_p / p)
        * (q - 2 - 4 * triples_q / q)
        / (n * (n - 1) * (n - 2) * (n - 3))
    )
    variance = np.maximum(second_moment - expected**2, 0.0)
    return FowlkesMallows(k, t / root, expected, variance)


def cophenetic_similarity(
    x: Array,
    y: Array,
    method: str = "average",
    metric: str = "cosine",
    *,
    ids_x: Sequence[Any] | None = None,
    ids_y: Sequence[Any] | None = None,
    n_samples: int | None = None,
    n_repeats: int = 20,
    seed: int = 0,
    confidence: float = 0.95,
) -> CopheneticSimilarity | SampledCopheneticSimilarity:
    """Correlation of each set's cophenetic distances with the other set's pairwise distances.

    Parameters
    ----------
    x, y : array (N, Dx), (N, Dy)
        Row i the same item in both; any one namespace.
    method, metric : str
        As in `linkage`; `metric` is also that of the pairwise distances.
    ids_x, ids_y, n_samples, n_repeats, seed, confidence
        As in `lca_similarity`.

    Returns
    -------
    CopheneticSimilarity or SampledCopheneticSimilarity
        Pearson's correlations (d1_to_p2, d2_to_p1) over all pairs.

    Notes
    -----
    For cosine and squared Euclidean distances block sums follow from cluster sums, O(ND²) beyond
    the dendrograms; Euclidean distances are computed by blocks of rows, O(N²D) time. On the host.

    Source: SAG-VICReg §4.4 and Table 2.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import cophenetic_similarity
    >>> x = np.asarray([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.3, 0.9]])
    >>> [round(r, 6) for r in cophenetic_similarity(x, x[:, ::-1])]
    [0.936013, 0.936013]
    """
    _, x, y = paired(x, y)
    same_ids(ids_x, ids_y, x.shape[0])
    whole = functools.partial(_cophenetic_similarity, method=method, metric=metric)
    if n_samples is None:
        return CopheneticSimilarity(*whole(x, y))
    estimates = over_subsets(whole, x, y, n_samples, n_repeats, seed, confidence)
    return SampledCopheneticSimilarity(*estimates)


def _cophenetic_similarity(x: Array, y: Array, *, method: str, metric: str) -> tuple[float, float]:
    first, second = tree(linkage(x, method, metric)), tree(linkage(y, method, metric))
    return cophenetic_pearson(first, y, metric), cophenetic_pearson(second, x, metric)


def cophenetic_correlation(x: Array, method: str = "average", metric: str = "cosine") -> float:
    """Cophenetic correlation coefficient: how well a set's dendrogram keeps its distances.

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace.
    method, metric : str
        As in `linkage`; `metric` is also that of the pairwise distances.

    Returns
    -------
    float
        Pearson's correlation over all pairs; NaN where a distance is constant.

    Notes
    -----
    Source: Sokal and Rohlf 1962; SAG-VICReg App. G.3.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import cophenetic_correlation
    >>> x = np.asarray([[0.0], [1.0], [3.0], [7.0]])
    >>> round(cophenetic_correlation(x, metric="euclidean"), 6)
    0.898584
    """
    _, x = matrix("x", x)
    return cophenetic_pearson(tree(linkage(x, method, metric)), x, metric)


def two_trees(first: Array, second: Array) -> tuple[Tree, Tree]:
    """Layouts of two linkage matrices of equally many leaves."""
    a, b = checked_linkage("first", first), checked_linkage("second", second)
    if a.shape != b.shape:
        raise ValueError(
            "expected two dendrograms of the same items; "
            f"found {a.shape[0] + 1} and {b.shape[0] + 1} leaves"
        )
    return tree(a), tree(b)


def _moments(first: Tree, second: Tree, distance: str) -> Moments:
    if distance == "depth":
        return correlate(*depth_counts(first, second))
    return height_moments(first, second)


def _triples(t: Tree) -> np.ndarray:
    """Ordered triples of items in one cluster, Σ m(m − 1)(m − 2), after every merge."""
    left, right = (t.mid - t.start).astype(np.float64), (t.end - t.mid).astype(np.float64)
    # (l + r)₃ − l₃ − r₃ in falling factorials
    return np.cumsum(3 * left * right * (left + right - 2))
