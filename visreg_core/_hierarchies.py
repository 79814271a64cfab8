"""The hierarchy in a report: dendrograms of a sample of rows, their similarity, their labels.

Everything here is exact for the rows drawn. Which rows depends on the seed, their number and the
file's length alone, so that files of the same items are compared on the same ones.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from visreg_core import _checks
from visreg_core.embeddings import Embeddings
from visreg_core.metrics import (
    Tanglegram,
    adjusted_rand_index,
    cut_tree,
    dendrogram_correlations,
    hierarchical_knn_accuracy,
    hierarchical_linear_accuracy,
    hierarchical_rand_index,
    rand_index,
    tanglegram,
)
from visreg_core.metrics._distances import cophenetic_pearson
from visreg_core.metrics._resampling import subset
from visreg_core.metrics._tree import tree
from visreg_core.metrics.hierarchy import level_columns
from visreg_core.metrics.linkage import METHODS, METRICS, drawn_linkage

CLUSTERINGS = ("dendrogram", "spectral")
TREE: tuple[str, ...] = ("cophenetic_correlation",)
LABELLED: tuple[str, ...] = (
    "hierarchical_knn_accuracy",
    "hierarchical_linear_accuracy",
    "hierarchical_rand_index",
    "hierarchical_adjusted_rand_index",
)
PAIR_OF_TREES: tuple[str, ...] = (
    "lca_similarity_pearson",
    "lca_similarity_spearman",
    "lca_similarity_kendall",
    "cophenetic_similarity_d1_to_p2",
    "cophenetic_similarity_d2_to_p1",
    "entanglement",
)

# Random halves behind an interval, and the fewest rows of which halves are worth a tree.
_HALVES = 20
_FEWEST_ROWS = 8
_CONFIDENCE = 0.95
_NEIGHBORS = 20
_FOLDS = 5


class TreeOptions(NamedTuple):
    """Rows drawn for a dendrogram, `linkage`'s method and metric, clusters of the Rand index."""

    rows: int = 2000
    method: str = "average"
    metric: str = "cosine"
    clustering: str = "dendrogram"

    def check(self) -> None:
        """ValueError where there is no such tree."""
        _checks.positive_int("rows", self.rows, minimum=2)
        _checks.choice("method", self.method, METHODS)
        _checks.choice("metric", self.metric, METRICS)
        _checks.choice("clustering", self.clustering, CLUSTERINGS)
        if self.method == "ward" and self.metric != "euclidean":
            raise ValueError(
                f"expected metric 'euclidean' for Ward's linkage; found {self.metric!r}"
            )

    def __str__(self) -> str:
        return f"{self.method} linkage, {self.metric} distance"


DEFAULT_TREE = TreeOptions()


class Interval(NamedTuple):
    """A value and, where there are rows enough for halves, a 95 % confidence interval."""

    value: float
    low: float | None = None
    high: float | None = None


class Hierarchy(NamedTuple):
    """The dendrogram of a file's rows.

    `linkage` (T − 1, 4) of the T rows drawn; `measures` by the names of `TREE`; `labels` (T, L),
    the classes on each level as codes, or None; `classes`, the names behind the codes on each
    level; `labelled` by the names of `LABELLED`, one number a level.
    """

    linkage: np.ndarray
    measures: dict[str, float]
    labels: np.ndarray | None
    classes: tuple[tuple[str, ...], ...]
    labelled: dict[str, tuple[float, ...]]

    @property
    def n_classes(self) -> tuple[int, ...]:
        """How many classes of each level the rows drawn have."""
        return tuple(map(len, self.classes))

    @property
    def rows(self) -> int:
        """How many rows the dendrogram has."""
        return len(self.linkage) + 1


class TreePair(NamedTuple):
    """Similarity of two files' dendrograms, by the names of `PAIR_OF_TREES`, and their layout."""

    measures: dict[str, Interval]
    layout: Tanglegram


class Rows:
    """The rows drawn from a file, and the dendrograms of all and of halves of them."""

    def __init__(self, chosen: Embeddings, options: TreeOptions, seed: int) -> None:
        drawn = chosen.sample(options.rows, seed=seed)
        wide = np.float64 if chosen.dtype == np.float64 else np.float32
        self.points = drawn.to_numpy().astype(wide, copy=False)
        self.selection = drawn.selection
        self.options = options
        self._seed = seed
        self.linkage = self._linkage(self.points)
        self._halves: list[tuple[np.ndarray, np.ndarray]] = []

    def _linkage(self, points: np.ndarray) -> np.ndarray:
        # Rows in a random order, which decides what ties: files are often sorted by class.
        return drawn_linkage(
            points, self.options.method, self.options.metric, seed=self._seed, draw=0
        )

    @property
    def halves(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Points and dendrograms of random halves, the same rows in every file of this length."""
        n = len(self.points)
        if not self._halves and n >= _FEWEST_ROWS:
            for repeat in range(_HALVES):
                half = self.points[subset(n, n // 2, seed=self._seed, repeat=repeat)]
                self._halves.append((half, self._linkage(half)))
        return self._halves


def hierarchy(rows: Rows, labels: np.ndarray | None, seed: int) -> Hierarchy:
    """Measures of one dendrogram, and with `labels` (T, L) of the rows those against them."""
    options = rows.options
    measures = {
        "cophenetic_correlation": cophenetic_pearson(
            tree(rows.linkage), rows.points, options.metric
        )
    }
    if labels is None:
        return Hierarchy(rows.linkage, measures, None, (), {})
    columns = level_columns(labels, len(rows.points))
    classes = tuple(
        tuple(map(str, np.unique(level).tolist())) for level in labels.reshape(len(labels), -1).T
    )
    labelled = _labelled(rows, columns, tuple(map(len, classes)), seed)
    return Hierarchy(rows.linkage, measures, np.stack(columns, axis=1), classes, labelled)


def _labelled(
    rows: Rows, columns: Sequence[np.ndarray], n_classes: Sequence[int], seed: int
) -> dict[str, tuple[float, ...]]:
    points, options = rows.points, rows.options
    codes = np.stack(columns, axis=1)
    neighbors = "cosine" if options.metric == "cosine" else "euclidean"
    with warnings.catch_warnings():
        # A class of fewer items than folds is missing from some, and counted all the same.
        warnings.filterwarnings("ignore", message="The least populated class")
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        linear = tuple(_linear_accuracy(points, c, seed) for c in columns)
        if options.clustering == "dendrogram":
            clusters = [cut_tree(rows.linkage, n_clusters=k) for k in n_classes]
            rand = tuple(map(rand_index, clusters, columns))
            adjusted = tuple(map(adjusted_rand_index, clusters, columns))
        else:
            _, rand, adjusted = hierarchical_rand_index(
                points,
                codes,
                n_neighbors=min(10, len(points)),
                metric=neighbors,
                seed=seed,
            )
    k = min(_NEIGHBORS, len(points) - 1)
    knn = hierarchical_knn_accuracy(points, codes, k=k, metric=neighbors)
    return dict(zip(LABELLED, (knn, linear, rand, adjusted), strict=True))


def _linear_accuracy(points: np.ndarray, column: np.ndarray, seed: int) -> float:
    """Cross-validated accuracy on one level; NaN where no class has an item for each fold."""
    if np.bincount(column).max() < _FOLDS:
        return math.nan
    return hierarchical_linear_accuracy(points, column, n_folds=_FOLDS, seed=seed)[0]


def tree_pair(first: Rows, second: Rows) -> TreePair:
    """Similarity of two dendrograms of the same items, with intervals.

    An interval says how far the value would differ for as many other items. Its width comes from
    random halves of the rows: half of N rows drawn without replacement scatter about the whole as
    N rows scatter about what they were drawn from (the delete-d jackknife, d = N/2; Shao and Wu
    1989, "A general theory for jackknife variance estimation").
    """
    values = _similarity(first.points, first.linkage, second.points, second.linkage, first.options)
    pairs = list(zip(first.halves, second.halves, strict=True))
    if pairs:
        halves = np.array([_similarity(*a, *b, first.options) for a, b in pairs])
        from scipy.special import stdtrit

        reach = stdtrit(_HALVES - 1, (1 + _CONFIDENCE) / 2) * halves.std(axis=0, ddof=1)
        low, high = np.clip([values - reach, values + reach], -1, 1).tolist()
        intervals = [Interval(*i) for i in zip(values, low, high, strict=True)]
    else:
        intervals = [Interval(v) for v in values]
    layout = tanglegram(first.linkage, second.linkage)
    measures = [*intervals, Interval(layout.entanglement)]
    return TreePair(dict(zip(PAIR_OF_TREES, measures, strict=True)), layout)


def _similarity(
    x: np.ndarray, of_x: np.ndarray, y: np.ndarray, of_y: np.ndarray, options: TreeOptions
) -> list[float]:
    """`lca_similarity` and `cophenetic_similarity` from the dendrograms at hand."""
    return [
        *dendrogram_correlations(of_x, of_y),
        cophenetic_pearson(tree(of_x), y, options.metric),
        cophenetic_pearson(tree(of_y), x, options.metric),
    ]


def rows_of(stored: Embeddings, drawn: np.ndarray | None) -> np.ndarray | slice:
    """Where the rows `drawn` of a file stand among those of `stored`."""
    if drawn is None:
        return slice(None)
    return drawn if stored.selection is None else np.searchsorted(stored.selection, drawn)
