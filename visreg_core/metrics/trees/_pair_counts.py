"""Counts of pairs of leaves by their ancestors in two trees, and correlations from such counts.

A pair of leaves has one lowest common ancestor in each tree, so that anything that compares the
trees' distances over all N(N − 1)/2 pairs follows from a sparse table: how many pairs have ancestor
a in the first and b in the second. A merge of s leaves meets at most s − 1 merges of the other
tree, and the table has at most Σ s = N · (mean depth) entries, a few dozen N where trees branch. It
takes about that many steps to count: walking down the first tree, with the leaves of every merge
sorted by their order in the second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from visreg_core.metrics.trees._tree import Tree, ancestors

# Leaves of the merges of a block, which take about 100 bytes of memory each.
_BLOCK = 1 << 20


class PairCounts(NamedTuple):
    """`pairs` pairs with rank `i` in the first and `j` in the second; each (i, j) once.

    Sorted by ascending i, and by descending j within one i.
    """

    i: np.ndarray
    j: np.ndarray
    pairs: np.ndarray


class PairMoments(NamedTuple):
    """Correlation coefficients of two variables over pairs."""

    pearson: float
    spearman: float
    kendall: float
    gamma: float


def height_moments(first: Tree, second: Tree, *, identical: int = 0) -> PairMoments:
    """Correlations of the heights at which pairs of leaves are joined in two trees.

    `identical` pairs, at height 0 in both trees, are left out: copies of one item in a resample.
    """
    if first.size.sum() > second.size.sum():
        first, second = second, first  # symmetric, and the walk takes the first's total size
    values_first, rank_first = np.unique(first.height, return_inverse=True)
    values_second, rank_second = np.unique(second.height, return_inverse=True)
    pairs_first, pairs_second = (
        np.add.reduceat(t.pairs, np.flatnonzero(np.diff(rank, prepend=-1)))
        for t, rank in ((first, rank_first), (second, rank_second))
    )
    blocks = pair_counts(first, second, rank_first, rank_second)
    if identical:
        pairs_first[0] -= identical
        pairs_second[0] -= identical
        blocks = (
            PairCounts(i, j, count - identical * ((i == 0) & (j == 0))) for i, j, count in blocks
        )
    return correlate(blocks, values_first, values_second, pairs_first, pairs_second)


def pair_counts(
    first: Tree, second: Tree, rank_first: np.ndarray, rank_second: np.ndarray
) -> Iterator[PairCounts]:
    """Counts of pairs by the ranks of their ancestors, in blocks of descending first rank.

    `rank_first` and `rank_second` (N − 1,) give every merge a rank, non-decreasing in the merge;
    a rank of the first tree never spans two blocks.
    """
    walk = Walk(first, second)
    levels = int(rank_second.max()) + 1
    n = first.position.size
    tops = np.searchsorted(rank_first, np.arange(rank_first[-1] + 2))  # first merge of each rank
    walked = np.concatenate([[0], np.cumsum(first.size)])
    high = tops.size - 1
    while high > 0:
        # As many whole ranks as fit a block, at least one.
        budget = walked[tops[high]] - _BLOCK
        low = min(high - 1, int(np.searchsorted(walked[tops], budget)))
        if walked[tops[high]] - walked[tops[low]] <= _BLOCK:
            a, b, count = walk.down(tops[low], tops[high])
            yield _aggregated(rank_first[a], rank_second[b], count, levels)
        else:  # one rank of many merges: its counts are summed over parts of it
            total = np.zeros(levels)  # whole numbers below 2⁵³
            merge = tops[high]
            while merge > tops[low]:
                bottom = int(np.searchsorted(walked, walked[merge] - _BLOCK))
                bottom = max(tops[low], min(merge - 1, bottom))
                _, b, count = walk.down(bottom, merge)
                total += np.bincount(rank_second[b], count, minlength=levels)
                merge = bottom
            j = np.flatnonzero(total)[::-1]
            yield PairCounts(np.full(j.size, low), j, total[j].astype(np.int64))
        high = low
    assert walk.counted == n * (n - 1) // 2


def _aggregated(i: np.ndarray, j: np.ndarray, count: np.ndarray, levels: int) -> PairCounts:
    """Equal (i, j) added up; sorted by i, and by descending j within one i."""
    key = i.astype(np.int64) * levels + (levels - 1 - j)
    order = np.argsort(key, kind="stable")
    key = key[order]
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    distinct = key[starts]
    return PairCounts(
        distinct // levels, levels - 1 - distinct % levels, np.add.reduceat(count[order], starts)
    )


class Walk:
    """The leaves in the first tree's layout, those of a merge sorted by position in the second.

    Merges are visited from the root down; each passes its leaves to its children by a stable
    partition, and the pairs that it splits are counted by their ancestors in the second tree.
    """

    def __init__(self, first: Tree, second: Tree) -> None:
        self.first, self.second = first, second
        self.ancestor = ancestors(second)
        self.place = np.arange(first.position.size)  # in the second tree
        self.own = first.position[second.order]  # in the first tree
        self.counted = 0

    def down(self, bottom: int, top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Merges top − 1, …, bottom of the first tree: (merge, merge of the second, pairs).

        Merges of one depth have disjoint leaves, and are visited together.
        """
        found = [self._level(merges) for merges in self.first.levels(bottom, top)]
        a, b, count = (np.concatenate(column) for column in zip(*found, strict=True))
        self.counted += int(count.sum())
        return a, b, count

    def _level(self, merges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        segment, _, place, right = self.split(merges)
        n = self.place.size
        rights = np.concatenate([[0], np.cumsum(right)])  # right leaves before each

        # Neighbours in a segment have an ancestor b in the second tree; the leaves of b in the
        # segment are a run around them, split between them.
        k = np.flatnonzero(segment[1:] == segment[:-1])
        b = self.ancestor(place[k], place[k + 1])
        key = segment * n + place
        base = segment[k] * n
        low = np.searchsorted(key, base + self.second.start[b])
        high = np.searchsorted(key, base + self.second.end[b])
        right_before = rights[k + 1] - rights[low]
        left_before = k + 1 - low - right_before
        right_after = rights[high] - rights[k + 1]
        left_after = high - k - 1 - right_after
        count = left_before * right_after + right_before * left_after
        some = np.flatnonzero(count)
        return merges[segment[k[some]]], b[some], count[some]

    def split(self, merges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Pass the leaves of merges of one depth, sorted by position, to their children.

        Returns, for the leaves of one merge after the other, in the second tree's order: which of
        `merges` each belongs to; where each merge begins (M,); the leaves' positions in the second
        tree; and whether they go to the second child.
        """
        t = self.first
        size = t.size[merges]
        offset = np.cumsum(size) - size
        segment = np.repeat(np.arange(merges.size), size)
        where = np.arange(segment.size) + (t.start[merges] - offset)[segment]
        place, own = self.place[where], self.own[where]
        right = own >= t.mid[merges][segment]
        before = np.cumsum(right) - right
        rank = before - before[offset][segment]  # right leaves of the merge before each
        target = np.where(right, t.mid[merges][segment] + rank, where - rank)
        self.place[target], self.own[target] = place, own
        return segment, offset, place, right


def correlate(
    blocks: Iterable[PairCounts],
    values_first: np.ndarray,
    values_second: np.ndarray,
    pairs_first: np.ndarray,
    pairs_second: np.ndarray,
) -> PairMoments:
    """Pearson, Spearman (midranks), Kendall's tau-b and Goodman-Kruskal's gamma of counted pairs.

    `values_*` are the variable's distinct values in ascending order, by rank, and `pairs_*` how
    many pairs have each (int64). Blocks come in descending order of the first rank. Where a
    variable is constant the coefficient is NaN. Counts are exact at any N: pairs of pairs are
    Python integers.
    """
    total = int(pairs_first.sum())
    x, y = _standardized(values_first, pairs_first), _standardized(values_second, pairs_second)
    u = _standardized(_midranks(pairs_first), pairs_first)
    v = _standardized(_midranks(pairs_second), pairs_second)
    pearson = spearman = 0.0
    concordant = joint_ties = 0
    above = np.zeros(pairs_second.size, dtype=np.int64)  # pairs of larger first rank, by second
    for i, j, count in blocks:
        pearson += float(np.sum(count * x[i] * y[j]))
        spearman += float(np.sum(count * u[i] * v[j]))
        larger = np.cumsum(above[::-1])[::-1]
        larger_than = np.concatenate([larger[1:], [0]])
        concordant += exact_dot(count, larger_than[j]) + _concordant(j, count)
        joint_ties += _choose_two(count)
        above += np.bincount(j, count, minlength=above.size).astype(np.int64)

    pairs = total * (total - 1) // 2
    untied_first = pairs - _choose_two(pairs_first)
    untied_second = pairs - _choose_two(pairs_second)
    # concordant + discordant = pairs tied in neither
    untied = untied_first + untied_second - pairs + joint_ties
    surplus = 2 * concordant - untied
    root = math.sqrt(untied_first * untied_second)
    return PairMoments(
        pearson=_clipped(pearson),
        spearman=_clipped(spearman),
        kendall=_clipped(surplus / root) if root > 0 else math.nan,
        gamma=surplus / untied if untied > 0 else math.nan,
    )


def exact_dot(a: np.ndarray, b: np.ndarray) -> int:
    """Σ a·b of non-negative int64 with Σ a < 2⁶¹, as a Python integer: `b` in parts of few bits."""
    width = 62 - int(a.sum()).bit_length()
    total, shift = 0, 0
    while b.any():
        total += int(np.dot(a, b & ((1 << width) - 1))) << shift
        b = b >> width
        shift += width
    return total


def _concordant(j: np.ndarray, count: np.ndarray) -> int:
    """Σ count count' over e before e' with j < j'.

    Radix sort from the top bit: a pair is counted at the highest bit where it differs, while both
    are in one group and in their original order.
    """
    total = 0
    for bit in reversed(range(int(j.max()).bit_length())):
        one = (j >> bit & 1).astype(bool)
        prefix = j >> (bit + 1)
        start = np.concatenate([[True], prefix[1:] != prefix[:-1]])
        group = np.cumsum(start) - 1
        starts = np.flatnonzero(start)
        zeros = np.concatenate([[0], np.cumsum(~one)])
        weight = np.concatenate([[0], np.cumsum(np.where(one, 0, count))])
        before = weight[:-1] - weight[starts][group]
        total += exact_dot(count[one], before[one])
        zeros_of_group = np.add.reduceat(~one, starts, dtype=np.intp)
        rank = zeros[:-1] - zeros[starts][group]  # zeros of the group before each
        place = np.arange(j.size)
        target = np.where(one, place + zeros_of_group[group] - rank, starts[group] + rank)
        j, count = _permuted(j, target), _permuted(count, target)
    return total


def _permuted(a: np.ndarray, target: np.ndarray) -> np.ndarray:
    out = np.empty_like(a)
    out[target] = a
    return out


def _choose_two(count: np.ndarray) -> int:
    """Σ count (count − 1) / 2, exactly."""
    return (exact_dot(count, count) - int(count.sum())) // 2


def _midranks(pairs: np.ndarray) -> np.ndarray:
    below = np.cumsum(pairs) - pairs
    return below + (pairs + 1) / 2


def _standardized(values: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Values minus their mean over pairs, scaled so that Σ pairs·value² = 1.

    NaN where they are constant or the largest is infinite.
    """
    if np.count_nonzero(pairs) < 2 or values[-1] == math.inf:
        return np.full(values.size, math.nan)
    values = values / np.abs(values).max()
    centred = values - np.sum(pairs * values) / pairs.sum()
    centred -= np.sum(pairs * centred) / pairs.sum()
    squares = float(np.sum(pairs * centred**2))
    return centred / (math.sqrt(squares) if squares > 0 else math.nan)


def _clipped(r: float) -> float:
    """A correlation rounded to beyond ±1 is ±1 (NaN passes)."""
    return math.copysign(1.0, r) if abs(r) > 1 else r
