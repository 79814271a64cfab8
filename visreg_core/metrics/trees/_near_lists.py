"""Lists of near clusters, from which most rounds find the nearest ones without a search.

A linkage is reducible: the distance of A ∪ B to C is no less than the lesser of A's and B's. So,
whatever has merged, the clusters that a list's members now belong to are no nearer than the members
were, and all other clusters are no nearer than the list's reach, a lower bound of their distances.
A list's nearest cluster is the nearest of all if it is nearer than the reach. A merged cluster's
list is made from those of its two parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from visreg_core import threads
from visreg_core.metrics.trees._clusters import Clusters
from visreg_core.metrics.trees._pair_clusters import PairClusters

# Clusters on a list.
LISTED = 16

# Rows whose lists are worked on at a time.
_ROWS = 2048

_NOBODY = np.iinfo(np.intp).max
_LARGEST = np.finfo(np.float64).max


class NearLists:
    """For each slot of `clusters` its nearest cluster, where known, and a list of near ones.

    With `trusted` lists what is on none is taken to be far: a list that is empty is all that is
    asked for.
    """

    def __init__(self, clusters: Clusters | PairClusters, *, trusted: bool = False) -> None:
        m = clusters.alive.size
        self.clusters = clusters
        self.trusted = trusted
        # Slot of the nearest cluster, lowest id first, and of the first of those exactly as near
        # with an id above the cluster's own; −1 where there is none.
        self.nearest = np.zeros(m, dtype=np.intp)
        self.above = np.full(m, -1, dtype=np.intp)
        # Whether `nearest` is known, and a lower bound of the distance to it (the distance if so).
        self.known = np.zeros(m, dtype=bool)
        self.bound = np.zeros(m)
        # Slots of the lists; ids of the clusters to which `least` are the exact distances (−1:
        # lower bounds only); and a lower bound of the distance to every other cluster.
        self.slot = np.zeros((m, LISTED), dtype=np.int32)
        self.id = np.full((m, LISTED), -1, dtype=np.int32)
        self.least = np.full((m, LISTED), np.inf)
        self.reach = np.zeros(m)

    def stale(self) -> np.ndarray:
        """Slots whose nearest cluster is unknown, by their bounds."""
        slots = np.flatnonzero(self.clusters.alive & ~self.known)
        return slots[np.lexsort((self.clusters.id[slots], self.bound[slots]))]

    def put(self, rows: np.ndarray, slot: np.ndarray, least: np.ndarray, reach: np.ndarray) -> None:
        """New lists (R, ≤ LISTED); the first of each is at distance `least`, exactly."""
        width = slot.shape[1]
        self.slot[rows, :width] = slot
        self.id[rows] = -1
        self.id[rows, 0] = self.clusters.id[slot[:, 0]]
        self.least[rows, :width] = least
        self.least[rows, width:] = np.inf
        self.reach[rows] = np.inf if self.trusted else reach

    def put_graph(self, graph: np.ndarray) -> None:
        """Lists of the nearest of every cluster's neighbours in a graph (slots, k)."""
        c, (m, k) = self.clusters, graph.shape

        def work(mine: Sequence[int]) -> None:
            for start in mine:
                rows = np.arange(start, min(start + _ROWS, m))
                slot = np.sort(graph[rows], axis=1)
                least = c.distance(np.repeat(rows, k), slot.ravel()).reshape(slot.shape)
                least[slot == rows[:, None]] = np.inf
                least[:, 1:][slot[:, 1:] == slot[:, :-1]] = np.inf
                order = np.argsort(least, axis=1)[:, :LISTED]
                width = order.shape[1]
                self.slot[rows, :width] = slot = np.take_along_axis(slot, order, axis=1)
                self.least[rows, :width] = np.take_along_axis(least, order, axis=1)
                self.id[rows, :width] = c.id[slot]
                self.reach[rows] = np.inf

        threads.spread(work, range(0, m, _ROWS), graph.nbytes)

    def forget(self) -> None:
        """Trust no list any more."""
        self.trusted = False
        self.known[:] = False
        self.reach[:] = 0
        self.bound[:] = 0

    def settle(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest clusters of rows from their lists.

        Returns the rows whose lists do not tell, and the least distance on each of these.
        """
        blocks = [rows[start : start + _ROWS] for start in range(0, rows.size, _ROWS)]

        def work(mine: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
            return [self._settle(block) for block in mine]

        parts = threads.spread(work, blocks, rows.size * self.least.itemsize * LISTED)
        found = [part for some in parts for part in some]
        left, least = ([part[k] for part in found] for k in (0, 1))
        return (np.concatenate(left), np.concatenate(least)) if found else (rows, np.empty(0))

    def _settle(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        c = self.clusters
        slot = c.owner[self.slot[rows]]
        least, reach = self.least[rows], self.reach[rows]
        least[slot == rows[:, None]] = np.inf
        exact = self.id[rows] == c.id[slot]

        def measure(row: np.ndarray, place: np.ndarray) -> None:
            least[row, place] = c.distance(rows[row], slot[row, place])
            exact[row, place] = True

        def best() -> np.ndarray:
            return np.min(np.where(exact, least, np.inf), axis=1)

        def limit() -> np.ndarray:
            return np.minimum(np.minimum(best(), reach), _LARGEST)

        # The distance to whichever may be nearest, and then to all that may be nearer still.
        every = np.arange(rows.size)
        unsure = np.where(exact, np.inf, least)
        first = np.argmin(unsure, axis=1)
        ask = np.flatnonzero(unsure[every, first] <= limit())
        measure(ask, first[ask])
        measure(*np.nonzero(~exact & (least <= limit()[:, None])))
        distance = best()
        self.slot[rows], self.least[rows] = slot, least
        self.id[rows] = np.where(exact, c.id[slot], -1)

        decided = distance < reach
        name = np.where(exact & (least == distance[:, None]), c.id[slot], _NOBODY)[decided]
        slot, every = slot[decided], every[: name.shape[0]]
        lowest = np.argmin(name, axis=1)
        later = np.where(name > c.id[rows[decided], None], name, _NOBODY)
        second = np.argmin(later, axis=1)
        self.set_nearest(
            rows[decided],
            slot[every, lowest],
            np.where(later[every, second] < _NOBODY, slot[every, second], -1),
            distance[decided],
        )
        return rows[~decided], distance[~decided]

    def set_nearest(
        self, rows: np.ndarray, nearest: np.ndarray, above: np.ndarray, distance: np.ndarray
    ) -> None:
        self.nearest[rows] = nearest
        self.above[rows] = above
        self.bound[rows] = distance
        self.known[rows] = True

    def nearest_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Disjoint pairs (i, j) of slots that are each other's nearest, by distance.

        Pairs at equal distance go by the lowest ids. Each row proposes its nearest cluster, and the
        first equally near one above its own id: of N equidistant clusters the ids 0 and 1, 2 and 3,
        … form pairs in one round.
        """
        name = self.clusters.id
        known = np.flatnonzero(self.known)
        if self.trusted:  # what is on a list may not have its owner on its own
            self._tell(known)
        i = np.concatenate([known, known])
        j = np.concatenate([self.nearest[known], self.above[known]])
        least = (j >= 0) & self.known[j] & (self.bound[j] == self.bound[i])
        i, j = i[least], j[least]
        i, j = np.where(name[i] < name[j], (i, j), (j, i))
        order = np.lexsort((name[j], name[i], self.bound[i]))
        i, j = i[order], j[order]
        free = np.ones(self.known.size, dtype=bool)
        chosen = []
        for edge, (a, b) in enumerate(zip(i.tolist(), j.tolist(), strict=True)):
            if free[a] and free[b]:
                free[a] = free[b] = False
                chosen.append(edge)
        return i[chosen], j[chosen]

    def _tell(self, known: np.ndarray) -> None:
        """Let clusters know of those that have them for their nearest, where these are nearer."""
        known = known[np.argsort(-self.bound[known], kind="stable")]
        other = self.nearest[known]
        nearer = self.known[other] & (self.bound[known] < self.bound[other])
        known, other = known[nearer], other[nearer]
        self.set_nearest(other, known, np.full(other.size, -1), self.bound[known])

    def least_pair(self) -> tuple[np.ndarray, np.ndarray]:
        """The nearest pair, for when rounding has left no pair reciprocal."""
        slots = np.flatnonzero(self.known)
        i = slots[[np.lexsort((self.clusters.id[slots], self.bound[slots]))[0]]]
        return i, self.nearest[i]

    def merge(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Merge slots j into slots i, with their lists, and return the heights."""
        c = self.clusters
        self._join(i, j)
        height = c.merge(i, j, self.bound[i])
        self.bound[i] = height
        # A cluster whose nearest neighbour did not merge keeps it: by reducibility the new clusters
        # are no nearer, and in a tie the older id goes first. Its old distance stays a bound.
        merged = ~c.alive
        merged[i] = True
        self.known &= ~merged & ~merged[self.nearest]
        self.above[merged[self.above]] = -1
        if c.sparse:
            self.squeeze()
        return height

    def squeeze(self) -> None:
        """Remove the empty slots."""
        keep, place = self.clusters.squeeze()
        self.nearest = place[self.nearest]
        self.above = np.where(self.above < 0, -1, place[self.above])
        self.slot = place[self.slot].astype(np.int32)
        for name in "nearest above known bound slot id least reach".split():
            setattr(self, name, getattr(self, name)[keep])

    def _join(self, i: np.ndarray, j: np.ndarray) -> None:
        """Give slots i the lists of what i and j make: the least of both lists' bounds."""
        for start in range(0, i.size, _ROWS):
            self._join_block(i[start : start + _ROWS], j[start : start + _ROWS])

    def _join_block(self, i: np.ndarray, j: np.ndarray) -> None:
        c = self.clusters
        (slot_i, least_i), (slot_j, least_j) = self._bounds(i), self._bounds(j)
        reach_i, reach_j, between = self.reach[i], self.reach[j], self.bound[i]
        same = slot_i[:, :, None] == slot_j[:, None, :]
        both_i, both_j = same.any(axis=2), same.any(axis=1)
        # Of i's members also j's bounds, of j's others what is left: j's bound and i's reach.
        there = np.where(same, least_j[:, None, :], np.inf).min(axis=2)
        beyond_i, beyond_j = reach_i[:, None], reach_j[:, None]
        if self.trusted:  # not known to be any nearer
            beyond_i, beyond_j = least_j, least_i
        there = np.where(both_i, there, beyond_j)
        least = np.concatenate(
            [
                c.joined(i, j, least_i, there, slot_i, between),
                np.where(both_j, np.inf, c.joined(i, j, beyond_i, least_j, slot_j, between)),
            ],
            axis=1,
        )
        slot = np.concatenate([slot_i, slot_j], axis=1)
        least[(slot == i[:, None]) | (slot == j[:, None])] = np.inf
        order = np.argsort(least, axis=1)[:, : LISTED + 1]
        least = np.take_along_axis(least, order, axis=1)
        self.slot[i] = np.take_along_axis(slot, order[:, :-1], axis=1)
        self.id[i] = -1
        self.least[i] = least[:, :-1]
        if self.trusted:
            return
        reach = c.joined_beyond(i, j, reach_i, reach_j, between)
        self.reach[i] = np.minimum(least[:, -1], reach)

    def _bounds(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slots (R, K) in rows' lists, and lower bounds of their distances.

        A member that has merged since may contain a cluster beyond the reach, which bounds it then.
        """
        slot = self.clusters.owner[self.slot[rows]]
        least = self.least[rows]
        exact = self.id[rows] == self.clusters.id[slot]
        return slot, np.where(exact, least, np.minimum(least, self.reach[rows, None]))
