"""The hierarchy in a report: dendrograms of a sample of rows, their similarity, their labels.

Everything here is exact for the rows drawn. Which rows depends on the seed, their number and the
file's length alone, so that files of the same items are compared on the same ones.
"""

from __future__ import annotations

import warnings

import numpy as np

from visreg_core.metrics import (
    adjusted_rand_index,
    cut_tree,
    dendrogram_correlations,
    disagreeing_branches,
    hierarchical_rand_index,
    rand_index,
    tanglegram,
)
from visreg_core.metrics._resampling import subset
from visreg_core.metrics.trees._distances import cophenetic_pearson
from visreg_core.metrics.trees._tree import tree
from visreg_core.metrics.trees.linkage import drawn_linkage
from visreg_core.report._labelled import Levels
from visreg_core.report._model import PAIR_OF_TREES, Hierarchy, Interval, TreeOptions, TreePair

# Random halves behind an interval, and the fewest rows of which halves are worth a tree.
_HALVES = 12
_FEWEST_ROWS = 8
_CONFIDENCE = 0.95

# Branches named of those that two trees arrange differently.
_BRANCHES = 3


class TreeRows:
    """The rows drawn from a file, and the dendrograms of all and of halves of them.

    `points` (T, D); `names` (T,), their numbers in the file or their ids.
    """

    def __init__(
        self, points: np.ndarray, names: np.ndarray, options: TreeOptions, seed: int
    ) -> None:
        self.points, self.names = points, names
        self.options = options
        self.seed = seed
        self.linkage = self._linkage(self.points)
        self._halves: list[tuple[np.ndarray, np.ndarray]] = []

    def _linkage(self, points: np.ndarray) -> np.ndarray:
        # Rows in a random order, which decides what ties: files are often sorted by class.
        return drawn_linkage(
            points, self.options.method, self.options.metric, seed=self.seed, draw=0
        )

    @property
    def halves(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Points and dendrograms of random halves, the same rows in every file of this length."""
        n = len(self.points)
        if not self._halves and n >= _FEWEST_ROWS:
            for repeat in range(_HALVES):
                half = self.points[subset(n, n // 2, seed=self.seed, repeat=repeat)]
                self._halves.append((half, self._linkage(half)))
        return self._halves


def hierarchy(rows: TreeRows, levels: Levels | None) -> Hierarchy:
    """Measures of one dendrogram; and codes and names of its rows' labels."""
    measures = {
        "cophenetic_correlation": cophenetic_pearson(
            tree(rows.linkage), rows.points, rows.options.metric
        )
    }
    if levels is None:
        return Hierarchy(rows.linkage, measures)
    codes, classes = [], []
    for column, names in zip(levels.codes, levels.names, strict=True):
        present, code = np.unique(column, return_inverse=True)
        codes.append(code)
        classes.append(tuple(names[i] for i in present))
    return Hierarchy(rows.linkage, measures, np.stack(codes, axis=1), tuple(classes))


def rand_indices(rows: TreeRows, found: Hierarchy) -> list[tuple[float, float] | None]:
    """Rand index and adjusted Rand index on each level, with as many clusters as classes.

    None on a level whose rows are all of one class, or each of its own: every tree agrees with
    those.
    """
    assert found.labels is not None
    out: list[tuple[float, float] | None] = []
    for column, count in zip(found.labels.T, found.n_classes, strict=True):
        if not 1 < count < len(column):
            out.append(None)
        elif rows.options.clustering == "dendrogram":
            clusters = cut_tree(rows.linkage, n_clusters=count)
            out.append((rand_index(clusters, column), adjusted_rand_index(clusters, column)))
        else:
            with warnings.catch_warnings():
                # Clusters are then unions of parts of its components.
                warnings.filterwarnings("ignore", message="Graph is not fully connected")
                _, rand, adjusted = hierarchical_rand_index(
                    rows.points,
                    column,
                    n_neighbors=min(10, len(rows.points)),
                    metric="cosine" if rows.options.metric == "cosine" else "euclidean",
                    seed=rows.seed,
                )
            out.append((rand[0], adjusted[0]))
    return out


def tree_pair(first: TreeRows, second: TreeRows) -> TreePair:
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
    branches = disagreeing_branches(first.linkage, second.linkage, n_branches=_BRANCHES)
    named = dict(zip(PAIR_OF_TREES, measures, strict=True))
    return TreePair(named, layout, branches, first.names)


def _similarity(
    x: np.ndarray, of_x: np.ndarray, y: np.ndarray, of_y: np.ndarray, options: TreeOptions
) -> list[float]:
    """`lca_similarity` and `cophenetic_similarity` of the dendrograms already made."""
    return [
        *dendrogram_correlations(of_x, of_y),
        cophenetic_pearson(tree(of_x), y, options.metric),
        cophenetic_pearson(tree(of_y), x, options.metric),
    ]
