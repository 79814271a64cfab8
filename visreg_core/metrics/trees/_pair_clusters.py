"""State of a clustering whose distances take all pairs of points, of which none are kept.

Complete linkage takes the largest distance of two clusters' points; average and weighted linkage of
Euclidean distances take a weighted mean, which does not follow from the clusters' means.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from visreg_core import threads
from visreg_core.metrics.trees._clusters import GROUP, Slots, shares

# Pairs of points measured at a time one by one; and up to which two clusters' are, with those of
# other clusters. Those of larger ones are a matrix.
_PAIRS = 1 << 14
_FEW_PAIRS = 64

# Points of a tile's columns, about, and of its rows.
_COLUMNS = 1 << 13
ROWS = 256

# Squared distance of a lone point.
_LONE = 2.0


class Chunk(NamedTuple):
    """Some clusters, by descending number of points, and their points.

    `point` are the first points of all these clusters, then the second points of those that have
    any, and so on: `counts` of them each time.
    """

    slot: np.ndarray
    point: np.ndarray
    counts: list[int]


class PairClusters(Slots):
    """State of all clusters, one slot each, with the points that each has.

    For "complete" distances are squared, for "average" and "weighted" Euclidean. `points` (M, D) of
    magnitude about 1; `sizes` (M,) count equal ones. A `lone` point is at squared distance 2 from
    every other, exactly.
    """

    fields = f"{Slots.fields} norm points_of"
    ward = False

    def __init__(
        self,
        points: np.ndarray,
        sizes: np.ndarray,
        lone: np.ndarray,
        *,
        method: str,
    ) -> None:
        super().__init__(sizes)
        self.method = method
        self.largest = method == "complete"
        self.points = points
        self.dim = points.shape[1]
        self.lone = lone
        # What products are taken of: distances are of the points as they are given.
        self.middle = points.mean(axis=0)
        self.norm = squares(points - self.middle)  # the largest of a cluster's points
        self.longest = float(self.norm.max())
        # Weights of points within their cluster, of total `_total`.
        self.weight = np.ones(len(points)) if method == "weighted" else sizes.copy()
        self.points_of = np.ones(len(points), dtype=np.intp)
        self._list(np.arange(len(points)))

    def _list(self, slot: np.ndarray) -> None:
        """Set the slot of every point."""
        self.slot = slot
        self.members = np.argsort(slot, kind="stable")
        ends = np.cumsum(np.bincount(slot, minlength=self.alive.size))
        self.first = ends - self.points_of * self.alive

    def _total(self, slots: np.ndarray) -> np.ndarray:
        return self.size[slots] if self.method == "average" else np.ones(slots.shape)

    def of(self, slot: int) -> np.ndarray:
        """A cluster's points."""
        first = self.first[slot]
        return self.members[first : first + self.points_of[slot]]

    def distance(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Distances of clusters i to j, the same for (i, j) as for (j, i)."""
        i, j = np.minimum(i, j), np.maximum(i, j)
        pairs = self.points_of[i] * self.points_of[j]
        out = np.empty(i.size)
        few = np.flatnonzero(pairs <= _FEW_PAIRS)
        ends = np.cumsum(pairs[few])
        parts = np.split(few, np.searchsorted(ends, np.arange(_PAIRS, ends[-1:].sum(), _PAIRS)))
        for part in filter(np.size, parts):
            out[part] = self._one_by_one(i[part], j[part], pairs[part])
        for k in np.flatnonzero(pairs > _FEW_PAIRS).tolist():
            out[k] = self._of_matrix(self.of(i[k]), self.of(j[k]))
        return out if self.largest else out / (self._total(i) * self._total(j))

    def _one_by_one(self, i: np.ndarray, j: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        first = np.cumsum(pairs) - pairs
        which = np.repeat(np.arange(i.size), pairs)
        place_i, place_j = np.divmod(np.arange(which.size) - first[which], self.points_of[j][which])
        a = self.members[self.first[i][which] + place_i]
        b = self.members[self.first[j][which] + place_j]
        difference = self.points[a]
        difference -= self.points[b]
        squared = squares(difference)
        squared[self.lone[a] | self.lone[b]] = _LONE
        if self.largest:
            return np.maximum.reduceat(squared, first)
        return np.add.reduceat(self.weight[a] * self.weight[b] * np.sqrt(squared), first)

    def _of_matrix(self, a: np.ndarray, b: np.ndarray) -> float:
        found = self.none
        for start in range(0, a.size, ROWS):
            for begin in range(0, b.size, _COLUMNS):
                rows, columns = a[start : start + ROWS], b[begin : begin + _COLUMNS]
                tile = self._matrix(rows, columns)
                if self.largest:
                    found = max(found, float(tile.max()))
                else:
                    found += float(self.weight[rows] @ tile @ self.weight[columns])
        return found

    def _matrix(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Distances (A, B) of points, by differences."""
        from scipy.spatial.distance import cdist

        out = cdist(self.points[a], self.points[b], "sqeuclidean" if self.largest else "euclidean")
        out[self.lone[a]] = out[:, self.lone[b]] = _LONE
        return out

    @property
    def none(self) -> float:
        """The distance of no pairs of points, to which those of some are added."""
        return -math.inf if self.largest else 0.0

    def less_rounding(self, distance: np.ndarray) -> np.ndarray:
        """Lower bounds: distances minus the largest rounding error of `distance`.

        None for the largest of numbers, which is one of them.
        """
        if self.largest:
            return distance
        eps = float(np.finfo(np.float64).eps)
        size = np.where(np.isfinite(distance), np.abs(distance), 0.0)
        return distance - eps * ((self.dim + 64) * size + 8 * math.sqrt(self.longest))

    def joined(
        self,
        i: np.ndarray,
        j: np.ndarray,
        a: np.ndarray,
        b: np.ndarray,
        other: np.ndarray,
        between: np.ndarray,
    ) -> np.ndarray:
        """As `Clusters.joined`."""
        if self.largest:
            return np.maximum(a, b)
        w_i, w_j = shares(self.method, self.size[i], self.size[j])
        return self.less_rounding(w_i[:, None] * a + w_j[:, None] * b)

    def joined_beyond(
        self, i: np.ndarray, j: np.ndarray, a: np.ndarray, b: np.ndarray, between: np.ndarray
    ) -> np.ndarray:
        """As `Clusters.joined_beyond`."""
        return self.joined(i, j, a[:, None], b[:, None], j, between)[:, 0]

    def merge(self, i: np.ndarray, j: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Merge slots j into slots i, at these distances, and return the heights."""
        if self.method == "weighted":
            half = np.ones(self.alive.size)
            half[i] = half[j] = 0.5
            self.weight *= half[self.slot]
        self.norm[i] = np.maximum(self.norm[i], self.norm[j])
        self.points_of[i] += self.points_of[j]
        height = self.unite(i, j, distance)
        self._list(self.owner[self.slot])
        return height

    def squeeze(self) -> tuple[np.ndarray, np.ndarray]:
        """As `Slots.squeeze`."""
        keep, place = super().squeeze()
        self._list(place[self.slot])
        return keep, place

    def chunks(self) -> list[Chunk]:
        """All clusters; those of a chunk are a multiple of `GROUP`, but for the last."""
        slots = np.flatnonzero(self.alive)
        slots = slots[np.argsort(-self.points_of[slots], kind="stable")]
        ends = np.cumsum(self.points_of[slots])
        out, start = [], 0
        while start < slots.size:
            reach = ends[start] - self.points_of[slots[start]] + _COLUMNS
            width = int(np.searchsorted(ends, reach, side="right")) - start
            chosen = slots[start : start + max(GROUP, width // GROUP * GROUP)]
            counts = (self.points_of[chosen, None] > np.arange(self.points_of[chosen[0]])).sum(0)
            point = [self.members[self.first[chosen[:n]] + k] for k, n in enumerate(counts)]
            out.append(Chunk(chosen, np.concatenate(point), counts.tolist()))
            start += chosen.size
        return out

    def gathered(
        self, rows: np.ndarray, tiles: Iterator[np.ndarray], chunk: Chunk, dtype: np.dtype
    ) -> np.ndarray:
        """Distances (R, C) of clusters from those of their points.

        `tiles` are the distances of the points of `rows`, of at most `ROWS` at a time, from those
        of `chunk`.
        """
        if self.largest and rows.size <= ROWS and np.all(self.points_of[rows] == 1):
            out = next(tiles)
        else:
            out = self._of_rows(rows, tiles, chunk.point.size, dtype)
        if not self.largest:
            out *= self.weight[chunk.point].astype(dtype)
        found = out[:, : chunk.slot.size]
        begin = chunk.counts[0]
        for count in chunk.counts[1:]:
            part, more = found[:, :count], out[:, begin : begin + count]
            (np.maximum if self.largest else np.add)(part, more, out=part)
            begin += count
        if not self.largest:
            found /= (self._total(rows)[:, None] * self._total(chunk.slot)).astype(dtype)
        return found

    def _of_rows(
        self, rows: np.ndarray, tiles: Iterator[np.ndarray], columns: int, dtype: np.dtype
    ) -> np.ndarray:
        """Distances (R, columns) of clusters from points, from those of the clusters' points."""
        row = np.repeat(np.arange(rows.size), self.points_of[rows])
        out = np.full((rows.size, columns), self.none, dtype=dtype)
        weight = self.weight[self.points_in(rows)].astype(dtype)
        start = 0
        for tile in tiles:
            mine = row[start : start + len(tile)]
            begins = np.flatnonzero(np.diff(mine, prepend=-1)).tolist()
            for begin, end in zip(begins, [*begins[1:], mine.size], strict=True):
                one = mine[begin]
                if self.largest:
                    np.maximum(out[one], tile[begin:end].max(axis=0), out=out[one])
                else:
                    out[one] += weight[start + begin : start + end] @ tile[begin:end]
            start += len(tile)
        return out

    def points_in(self, rows: np.ndarray) -> np.ndarray:
        """Points of clusters, one cluster after the other."""
        return np.concatenate([self.of(slot) for slot in rows.tolist()])

    def distances(self) -> np.ndarray:
        """Distances of all pairs, (M, M), once there are no empty slots."""
        out = np.empty((self.count, self.count))
        chunks = self.chunks()
        blocks = [(k, rows) for k, chunk in enumerate(chunks) for rows in self.blocks(chunk.slot)]

        def work(mine: Sequence[tuple[int, np.ndarray]]) -> None:
            for k, rows in mine:
                of_rows = self.points_in(rows)
                for chunk in chunks[k:]:
                    tiles = (
                        self._matrix(of_rows[start : start + ROWS], chunk.point)
                        for start in range(0, of_rows.size, ROWS)
                    )
                    found = self.gathered(rows, tiles, chunk, np.dtype(np.float64))
                    out[np.ix_(rows, chunk.slot)] = found
                    out[np.ix_(chunk.slot, rows)] = found.T

        # The first ones have the most to do.
        fair = [b for pair in zip(blocks, reversed(blocks), strict=True) for b in pair]
        threads.spread(work, fair[: len(blocks)], self.points.nbytes)
        return out

    def blocks(self, rows: np.ndarray) -> list[np.ndarray]:
        """Clusters, by descending number of points, in parts of few points, or of one cluster."""
        rows = rows[np.argsort(-self.points_of[rows], kind="stable")]
        ends = np.cumsum(self.points_of[rows])
        out, start = [], 0
        while start < rows.size:
            reach = ends[start] - self.points_of[rows[start]] + ROWS
            stop = max(start + 1, int(np.searchsorted(ends, reach, side="right")))
            out.append(rows[start:stop])
            start = stop
        return out


def squares(rows: np.ndarray) -> np.ndarray:
    """Squared lengths of rows."""
    return np.einsum("nd,nd->n", rows, rows)
