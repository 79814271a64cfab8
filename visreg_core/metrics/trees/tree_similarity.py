"""Similarity of two hierarchies: correlations of their distances over all pairs of items."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from visreg_core import checks
from visreg_core.metrics._inputs import matrix, paired, same_ids
from visreg_core.metrics._resampling import Estimate, over_subsets
from visreg_core.metrics.trees._depth_counts import tree_moments
from visreg_core.metrics.trees._distances import cophenetic_pearson
from visreg_core.metrics.trees._tree import Tree, tree
from visreg_core.metrics.trees.linkage import drawn_linkage
from visreg_core.typing import Array

DISTANCES = ("depth", "height")


class Correlations(NamedTuple):
    """Correlation coefficients of two distances over all pairs.

    NaN where one is constant: all rows equal, equidistant, or only two. Distances and heights count
    as equal where they differ by no more than the rounding of their computation in float64 (see
    `linkage`).
    Squared distances beyond float64 are infinite, and Pearson's coefficient then NaN.
    """

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
        leaf up to it, averaged over the two leaves; merges of one height, one below the other, are
        one node, because their order is arbitrary.
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
        `n_samples` an `Estimate` (mean, low, high) each, with an interval for the mean over all
        subsets of that size: Student's, corrected for skewness (Hall 1992). That is not the
        similarity of all items: trees of fewer items are less deep.

    Raises
    ------
    ValueError
        Unknown names, different numbers of rows or ids, rows with NaN or infinity.

    Notes
    -----
    Each dendrogram is made of the rows in a random order of its own, so that ties cannot agree
    because of the order of the rows: a set with tied clusters, as on a lattice, has similarity
    below 1 to itself. Identical rows affect neither "height" nor "depth".

    For "height" the time beyond the two dendrograms is about N · (mean depth of a leaf), never N²
    where trees branch. "depth" takes O(N²) time in O(N) memory. Everything after the
    dendrograms' products runs on the host.

    Source: SAG-VICReg §4.4, Table 1.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import lca_similarity
    >>> x = np.asarray([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.3, 0.9]])
    >>> lca_similarity(x, x[:, ::-1])
    Correlations(pearson=1.0, spearman=1.0, kendall=1.0)
    """
    checks.choice("distance", distance, DISTANCES)
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
    first, second = _two_trees(x, y, method, metric)
    return tree_moments(first, second, distance)[:3]


def _two_trees(x: Array, y: Array, method: str, metric: str) -> tuple[Tree, Tree]:
    """Dendrograms of two sets, with ties broken in an order of each one's own."""
    first, second = (
        tree(drawn_linkage(z, method, metric, draw=draw)) for draw, z in enumerate((x, y))
    )
    return first, second


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
    For cosine and squared Euclidean distances the sums follow from cluster sums, in O(ND²) time
    beyond the dendrograms; Euclidean distances are computed by blocks of rows, in O(N²D). On the
    host.

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
    first, second = _two_trees(x, y, method, metric)
    return cophenetic_pearson(first, y, metric), cophenetic_pearson(second, x, metric)


def cophenetic_correlation(x: Array, method: str = "average", metric: str = "cosine") -> float:
    """Cophenetic correlation coefficient: how well a set's dendrogram preserves its distances.

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
    return cophenetic_pearson(tree(drawn_linkage(x, method, metric, draw=0)), x, metric)
