"""Comparisons of two given dendrograms, known from R's dendextend."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from visreg_core import checks
from visreg_core.metrics.trees._depth_counts import tree_moments
from visreg_core.metrics.trees._pair_counts import pair_counts
from visreg_core.metrics.trees._tree import Tree, first_of_height, tree, two_linkages
from visreg_core.metrics.trees.tree_similarity import DISTANCES, Correlations
from visreg_core.typing import Array

_CONVENTIONS = ("goodman-kruskal", "spearman")


class FowlkesMallows(NamedTuple):
    """Fowlkes-Mallows index of the cuts of two trees into k clusters, k = 2 … N − 1.

    All fields are NumPy arrays (N − 2,). `expected` and `variance` are those of `similarity` when
    the leaves of one tree are permuted.
    """

    n_clusters: np.ndarray
    similarity: np.ndarray
    expected: np.ndarray
    variance: np.ndarray


def dendrogram_correlations(
    first: Array,
    second: Array,
    distance: str = "height",
) -> Correlations:
    """`lca_similarity` of two given dendrograms.

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
        Invalid linkage matrices, or matrices that have inversions or differ in their numbers of
        leaves.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import dendrogram_correlations, linkage
    >>> x = np.asarray([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.3, 0.9]])
    >>> dendrogram_correlations(linkage(x), linkage(x, method="single")).spearman
    1.0
    """
    checks.choice("distance", distance, DISTANCES)
    return Correlations(*tree_moments(*_two_trees(first, second), distance)[:3])


def bakers_gamma(first: Array, second: Array, *, convention: str = "spearman") -> float:
    """Baker's gamma: rank correlation of the stages at which pairs of items are joined.

    Parameters
    ----------
    first, second : array (N − 1, 4)
        Linkage matrices whose leaf i is the same item. Merges of equal height are one stage.
    convention : str
        "spearman": Spearman's correlation of the stages, as in R's dendextend.
        "goodman-kruskal": (C − D)/(C + D) of concordant and discordant pairs of pairs, as in Baker.

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
    checks.choice("convention", convention, _CONVENTIONS)
    moments = tree_moments(*_two_trees(first, second), "height")
    return moments.spearman if convention == "spearman" else moments.gamma


def fowlkes_mallows(first: Array, second: Array) -> FowlkesMallows:
    """Fowlkes-Mallows index B_k of two dendrograms at every number k of clusters.

    Parameters
    ----------
    first, second : array (N − 1, 4)
        Linkage matrices whose leaf i is the same item. Merges of one height are undone together:
        the cut is the finest one into at most k clusters. A collapsed tree is one cluster at every
        k, whose index equals its expectation.

    Returns
    -------
    FowlkesMallows
        k = 2 … N − 1, B_k, and its expectation and variance under permutations of the leaves given
        the sizes of the clusters (the variance is NaN for N < 4).

    Notes
    -----
    B_k = T/√(PQ), where T, P and Q count the ordered pairs of items that are together in both cuts,
    in the first and in the second. One count of pairs, by the later of their two merges,
    gives all cuts, in the time that `lca_similarity` takes.

    Source: Fowlkes and Mallows 1983, "A method for comparing two hierarchical clusterings", §2.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import fowlkes_mallows, linkage
    >>> z = linkage(np.asarray([[0.0], [1.0], [3.0], [7.0]]), metric="euclidean")
    >>> fowlkes_mallows(z, z).similarity
    array([1., 1.])
    """
    a, b = _two_trees(first, second)
    n = a.position.size
    merge = np.arange(n - 1)
    # Merges of one height happen together, at the first of them.
    at_a, at_b = first_of_height(a.height), first_of_height(b.height)
    together = np.zeros(n - 1)
    for i, j, count in pair_counts(a, b, merge, merge):
        together += np.bincount(np.maximum(at_a[i], at_b[j]), count, minlength=n - 1)
    # Entry m: after merges 0 … m there are N − 1 − m clusters. Reversed: k = 2 … N − 1.
    k = np.arange(2, n)
    t, p, q = (
        2 * np.cumsum(c)[: n - 2][::-1]
        for c in (together, _gathered(at_a, a.pairs), _gathered(at_b, b.pairs))
    )
    triples_p, triples_q = (
        np.cumsum(_gathered(at, _triples(tr)))[: n - 2][::-1] for at, tr in ((at_a, a), (at_b, b))
    )
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


def _two_trees(first: Array, second: Array) -> tuple[Tree, Tree]:
    a, b = two_linkages(first, second)
    return tree(a), tree(b)


def _gathered(at: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums of `values` (N − 1,) of merges that happen together."""
    return np.bincount(at, values, minlength=at.size)


def _triples(t: Tree) -> np.ndarray:
    """Ordered triples of items that each merge brings into one cluster: Σ m(m − 1)(m − 2)."""
    left, right = (t.mid - t.start).astype(np.float64), (t.end - t.mid).astype(np.float64)
    # (l + r)₃ − l₃ − r₃ in falling factorials
    return 3 * left * right * (left + right - 2)
