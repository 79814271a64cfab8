"""Where two hierarchies differ: the LCA correlation inside every branch, and the worst of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from visreg_core import checks
from visreg_core.metrics.trees._pair_counts import pair_counts
from visreg_core.metrics.trees._tree import Tree, tree, two_linkages
from visreg_core.typing import Array


class Branch(NamedTuple):
    """A branch of a dendrogram: row `merge` of its linkage matrix.

    `leaves` is a NumPy array of the items below it, in leaf order; `correlation` is Pearson's, over
    their pairs, of the heights in this dendrogram with those in the other.
    """

    merge: int
    height: float
    leaves: np.ndarray
    correlation: float


def branch_correlations(first: Array, second: Array) -> np.ndarray:
    """LCA correlation of two dendrograms inside every branch of the first.

    Parameters
    ----------
    first, second : array (N − 1, 4)
        Linkage matrices whose leaf i is the same item.

    Returns
    -------
    numpy.ndarray (N − 1,), float64
        Entry k is Pearson's correlation of the two dendrograms' heights over the pairs of items
        below row k of `first`; the last is that of `dendrogram_correlations`. NaN where one of the
        dendrograms joins all those pairs at one height.

    Notes
    -----
    A branch whose correlation is low is arranged differently in the other dendrogram. One count of
    pairs gives all correlations, in the time that `lca_similarity` takes.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import branch_correlations, linkage
    >>> x = np.asarray([[0.0], [1.0], [3.0], [7.0]])
    >>> z = linkage(x, metric="euclidean")
    >>> branch_correlations(z, z)
    array([nan,  1.,  1.])
    """
    a, b = two_linkages(first, second)
    return _correlations(a, tree(a), tree(b))


def disagreeing_branches(
    first: Array, second: Array, *, n_branches: int = 5, min_leaves: int | None = None
) -> list[Branch]:
    """Branches of the first dendrogram that the second arranges most differently.

    Parameters
    ----------
    first, second : array (N − 1, 4)
        Linkage matrices whose leaf i is the same item.
    n_branches : int
        How many at most.
    min_leaves : int, optional
        Leaves of a branch, at least; 3 or more. By default N/50, or 5 if that is more. No branch
        has more than half of all leaves.

    Returns
    -------
    list of Branch
        Disjoint, lowest correlation first. Of nested branches the one of lower correlation is
        returned.

    Raises
    ------
    ValueError
        Invalid linkage matrices, different numbers of leaves, `min_leaves` below 3.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import disagreeing_branches, linkage
    >>> x = np.asarray([[0.0], [1.0], [3.0], [20.0], [21.0], [23.0], [26.0]])
    >>> y = np.asarray([[0.0], [1.0], [3.0], [20.0], [26.0], [23.5], [21.0]])
    >>> z = linkage(x, metric="euclidean"), linkage(y, metric="euclidean")
    >>> worst = disagreeing_branches(*z, n_branches=1, min_leaves=3)[0]
    >>> worst.leaves, round(worst.correlation, 2)
    (array([5, 3, 4]), -0.5)
    """
    a, b = two_linkages(first, second)
    n = len(a) + 1
    checks.positive_int("n_branches", n_branches)
    least = max(5, n // 50) if min_leaves is None else min_leaves
    checks.positive_int("min_leaves", least, minimum=3)
    t = tree(a)
    correlation = _correlations(a, t, tree(b))
    some = (t.size >= least) & (2 * t.size <= n) & ~np.isnan(correlation)
    candidates = np.flatnonzero(some)
    candidates = candidates[np.argsort(correlation[candidates], kind="stable")]
    taken = np.zeros(n, dtype=bool)  # leaf positions
    order = t.order
    found: list[Branch] = []
    for k in candidates.tolist():
        where = slice(int(t.start[k]), int(t.end[k]))
        if not taken[where].any():
            taken[where] = True
            found.append(Branch(k, float(t.height[k]), order[where], float(correlation[k])))
            if len(found) == n_branches:
                break
    return found


class _Sums(NamedTuple):
    """Of the pairs below a merge: number, means, centred sums of squares and products, extremes."""

    pairs: float
    x: float
    y: float
    xx: float
    yy: float
    xy: float
    least: tuple[float, float]
    most: tuple[float, float]

    def joined(self, other: _Sums) -> _Sums:
        pairs = self.pairs + other.pairs
        dx, dy = other.x - self.x, other.y - self.y
        share = other.pairs / pairs
        weight = self.pairs * share
        return _Sums(
            pairs,
            self.x + share * dx,
            self.y + share * dy,
            self.xx + other.xx + weight * dx * dx,
            self.yy + other.yy + weight * dy * dy,
            self.xy + other.xy + weight * dx * dy,
            (min(self.least[0], other.least[0]), min(self.least[1], other.least[1])),
            (max(self.most[0], other.most[0]), max(self.most[1], other.most[1])),
        )

    @property
    def correlation(self) -> float:
        if self.least[0] == self.most[0] or self.least[1] == self.most[1]:
            return math.nan
        r = self.xy / math.sqrt(self.xx) / math.sqrt(self.yy)
        return math.copysign(1.0, r) if abs(r) > 1 else r


def _correlations(z: np.ndarray, t: Tree, other: Tree) -> np.ndarray:
    """Pearson's correlation of heights over the pairs of leaves below every merge of `t`.

    Sums of a merge's own pairs, joined with those of its children (Chan, Golub and LeVeque 1983).
    """
    m = t.height.size
    merge = np.arange(m)
    own, height = (
        h / (h[np.isfinite(h)].max(initial=0.0) or 1.0) for h in (t.height, other.height)
    )
    own = own.tolist()
    mean, squares, least, most = np.zeros((4, m))
    for i, j, count in pair_counts(t, other, merge, merge):  # all of a merge in one block
        first = np.flatnonzero(np.diff(i, prepend=-1))
        y, one = height[j], i[first]
        mean[one] = np.add.reduceat(count * y, first) / np.add.reduceat(count, first)
        with np.errstate(invalid="ignore"):  # squared distances beyond float64
            squares[one] = np.add.reduceat(count * (y - mean[i]) ** 2, first)
        least[one], most[one] = np.minimum.reduceat(y, first), np.maximum.reduceat(y, first)
    pairs, n = t.pairs.astype(np.float64).tolist(), m + 1
    columns = (column.tolist() for column in (mean, squares, least, most))
    found: list[_Sums] = []
    correlation = np.empty(m)
    for k, (y, yy, low, high) in enumerate(zip(*columns, strict=True)):
        sums = _Sums(pairs[k], own[k], y, 0.0, yy, 0.0, (own[k], low), (own[k], high))
        for child in z[k, :2].astype(np.intp).tolist():
            if child >= n:
                sums = sums.joined(found[child - n])
        found.append(sums)
        correlation[k] = sums.correlation
    return correlation
