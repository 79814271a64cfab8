"""State of a clustering under way: means, sizes, spreads and nearest neighbours of clusters."""

from __future__ import annotations

import numpy as np

# Merged slots are squeezed out of the matrices when fewer than this share is in use.
_OCCUPANCY = 0.8

# ‖v‖² of an empty slot: far from everything, and finite, for products warn about infinities.
FAR = 1e30

# Numbers held by the float64 differences of candidate pairs at a time.
_PAIR_BLOCK = 1 << 21


class Clusters:
    """State of all clusters, one slot each; a merged pair lives on in the slot of its first."""

    def __init__(
        self,
        points: np.ndarray,
        sizes: np.ndarray,
        spreads: np.ndarray,
        lone: np.ndarray,
        *,
        ward: bool,
    ) -> None:
        m = points.shape[0]
        self.ward = ward
        self.count = m
        self.mean = points.copy()
        self.norm = np.einsum("nd,nd->n", points, points)
        self.size = sizes.copy()
        self.spread = spreads.copy()
        self.lone = lone.copy()
        self.lone_distance = 2 * spreads.max(initial=0.0, where=lone)
        self.id = np.arange(m)
        self.next_id = m
        self.height = np.zeros(m)
        # Slot of the nearest cluster, lowest id first, and of the first of those exactly as near
        # with an id above the cluster's own; −1 where there is none.
        self.nearest = np.zeros(m, dtype=np.intp)
        self.above = np.full(m, -1, dtype=np.intp)
        self.alive = np.ones(m, dtype=bool)
        # Whether `nearest` is known, and a lower bound of the distance to it (the distance if so).
        self.known = np.zeros(m, dtype=bool)
        self.bound = np.zeros(m)
        self.operand = self.screened("float32")

    def screened(self, dtype: str) -> np.ndarray:
        """Matrix (slots, D + 2) with rows (v, −a_v, −1), where a_v = ‖v‖² + s_v (Ward: ‖v‖²).

        Its product with rows (2u, 1, a_u) is −d, or −d without Ward's weight.
        """
        operand = np.full((self.alive.size, self.mean.shape[1] + 2), -1, dtype=dtype)
        operand[:, :-2] = self.mean
        operand[:, -2] = self._offset(np.arange(self.alive.size))
        operand[~self.alive, -2] = -FAR
        return operand

    def _offset(self, slots: np.ndarray) -> np.ndarray:
        return -self.norm[slots] if self.ward else -(self.norm[slots] + self.spread[slots])

    def distance(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Distances of clusters i to j, the same for (i, j) as for (j, i)."""
        out = np.empty(i.size)
        step = max(1, _PAIR_BLOCK // self.mean.shape[1])
        for start in range(0, i.size, step):
            a, b = i[start : start + step], j[start : start + step]
            difference = self.mean[a] - self.mean[b]
            squared = np.einsum("pd,pd->p", difference, difference)
            if self.ward:
                squared *= 2 * (self.size[a] * self.size[b] / (self.size[a] + self.size[b]))
            else:
                squared += self.spread[a] + self.spread[b]
                squared[self.lone[a] | self.lone[b]] = self.lone_distance
            out[start : start + step] = squared
        return out

    def distances(self) -> np.ndarray:
        """Distances of all pairs, (M, M), once there are no empty slots."""
        from scipy.spatial.distance import pdist, squareform

        out = squareform(pdist(self.mean, "sqeuclidean"))
        if self.ward:
            out *= 2 * (self.size[:, None] * self.size / (self.size[:, None] + self.size))
        else:
            out += self.spread[:, None] + self.spread
            out[self.lone] = out[:, self.lone] = self.lone_distance
        return out

    def stale(self) -> np.ndarray:
        """Slots without a known neighbour, nearest first as far as is known."""
        slots = np.flatnonzero(self.alive & ~self.known)
        return slots[np.lexsort((self.id[slots], self.bound[slots]))]

    def set_nearest(
        self, rows: np.ndarray, nearest: np.ndarray, above: np.ndarray, distance: np.ndarray
    ) -> None:
        self.nearest[rows] = nearest
        self.above[rows] = above
        self.bound[rows] = distance
        self.known[rows] = True

    def nearest_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Disjoint pairs (i, j) of slots, none of which is nearer to a third, by distance.

        Of pairs at equal distance those of the lowest ids go first. A row proposes its nearest
        cluster and the first one as near above its own id: of N equidistant clusters the ids 0 and
        1, 2 and 3, ... pair off at once.
        """
        known = np.flatnonzero(self.known)
        i = np.concatenate([known, known])
        j = np.concatenate([self.nearest[known], self.above[known]])
        least = (j >= 0) & self.known[j] & (self.bound[j] == self.bound[i])
        i, j = i[least], j[least]
        i, j = np.where(self.id[i] < self.id[j], (i, j), (j, i))
        order = np.lexsort((self.id[j], self.id[i], self.bound[i]))
        i, j = i[order], j[order]
        free = np.ones(self.alive.size, dtype=bool)
        chosen = []
        for edge, (a, b) in enumerate(zip(i.tolist(), j.tolist(), strict=True)):
            if free[a] and free[b]:
                free[a] = free[b] = False
                chosen.append(edge)
        return i[chosen], j[chosen]

    def least_pair(self) -> tuple[np.ndarray, np.ndarray]:
        """The nearest pair, for when rounding has left no pair reciprocal."""
        slots = np.flatnonzero(self.known)
        i = slots[[np.lexsort((self.id[slots], self.bound[slots]))[0]]]
        return i, self.nearest[i]

    def merge(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Merge slots j into slots i and return the heights."""
        n_i, n_j = self.size[i], self.size[j]
        n = n_i + n_j
        difference = self.mean[j] - self.mean[i]
        # Reducibility makes the heights monotone but for rounding.
        height = np.maximum(self.bound[i], np.maximum(self.height[i], self.height[j]))
        squared = np.einsum("pd,pd->p", difference, difference)
        self.spread[i] = (n_i * self.spread[i] + n_j * self.spread[j]) / n + (
            n_i / n * (n_j / n)
        ) * squared
        self.mean[i] += (n_j / n)[:, None] * difference
        self.norm[i] = np.einsum("pd,pd->p", self.mean[i], self.mean[i])
        self.size[i] = n
        self.height[i] = height
        self.bound[i] = height
        self.id[i] = self.next_id + np.arange(i.size)
        self.next_id += i.size
        self.count -= i.size
        self.lone[i] = False
        self.alive[j] = False
        self.operand[i, :-2] = self.mean[i]
        self.operand[i, -2] = self._offset(i)
        self.operand[j, -2] = -FAR
        # A cluster whose neighbour did not merge keeps it: by reducibility the new clusters are no
        # nearer, and at equal distance the older id goes first. Its old distance stays a bound.
        merged = ~self.alive
        merged[i] = True
        self.known &= ~merged & ~merged[self.nearest]
        self.above[merged[self.above]] = -1
        if self.count < _OCCUPANCY * self.alive.size:
            self.squeeze()
        return height

    def squeeze(self) -> None:
        """Drop the empty slots."""
        keep = np.flatnonzero(self.alive)
        place = np.zeros(self.alive.size, dtype=np.intp)
        place[keep] = np.arange(keep.size)
        self.nearest = place[self.nearest]
        self.above = np.where(self.above < 0, -1, place[self.above])
        for (
            name
        ) in "mean norm size spread lone id height nearest above alive known bound operand".split():
            setattr(self, name, getattr(self, name)[keep])
