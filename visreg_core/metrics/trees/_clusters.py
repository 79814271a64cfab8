"""State of a clustering under way: means, sizes and spreads of clusters."""

from __future__ import annotations

import math

import numpy as np

# Merged slots are squeezed out of the matrices when fewer than this share is in use.
_OCCUPANCY = 0.8

# ‖v‖² of an empty slot: far from everything, and finite, for products warn about infinities.
FAR = 1e30

# Numbers held by the float64 differences of candidate pairs at a time.
_PAIR_BLOCK = 1 << 16

# Rows of the matrix that products are made of: a multiple of this, so that they fall into groups.
GROUP = 32


class Clusters:
    """State of all clusters, one slot each; a merged pair lives on in the slot of its first.

    A cluster's mean weighs its points alike ("average", "ward") or the two clusters that it was
    made of ("weighted").
    """

    def __init__(
        self,
        points: np.ndarray,
        sizes: np.ndarray,
        spreads: np.ndarray,
        lone: np.ndarray,
        *,
        method: str,
    ) -> None:
        m = points.shape[0]
        self.ward = method == "ward"
        self.halves = method == "weighted"
        self.count = m
        self.radius = 2 * math.sqrt(points.shape[1])
        self.mean = points  # and no copy: what was given is overwritten
        self.norm = np.einsum("nd,nd->n", points, points)
        self.size = sizes.copy()
        self.spread = spreads.copy()
        self.lone = lone.copy()
        self.lone_distance = 2 * spreads.max(initial=0.0, where=lone)
        self.id = np.arange(m)
        self.next_id = m
        self.height = np.zeros(m)
        self.alive = np.ones(m, dtype=bool)
        # The slot in which what was once in each slot lives on.
        self.owner = np.arange(m)
        self.operand = self.screened(np.dtype(np.float32))

    def screened(self, dtype: np.dtype) -> np.ndarray:
        """Matrix (slots, D + 2) with rows (v, a_v, 1), where a_v = ‖v‖² + s_v (Ward: ‖v‖²).

        Its product with rows (−2u, 1, a_u) is d, or d without Ward's weight. Empty slots are added
        up to a multiple of `GROUP`.
        """
        slots = self.alive.size
        operand = np.zeros((-(-slots // GROUP) * GROUP, self.mean.shape[1] + 2), dtype=dtype)
        operand[:slots, :-2] = self.mean
        operand[:slots, -2] = self._offset(np.arange(slots))
        operand[:slots][~self.alive, -2] = FAR
        operand[slots:, -2] = FAR
        operand[:, -1] = 1
        return operand

    def _offset(self, slots: np.ndarray) -> np.ndarray:
        return self.norm[slots] if self.ward else self.norm[slots] + self.spread[slots]

    def distance(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Distances of clusters i to j, the same for (i, j) as for (j, i)."""
        out = np.empty(i.size)
        step = max(1, _PAIR_BLOCK // self.mean.shape[1])
        for start in range(0, i.size, step):
            a, b = i[start : start + step], j[start : start + step]
            difference = self.mean[a]
            difference -= self.mean[b]
            squared = np.einsum("pd,pd->p", difference, difference)
            if self.ward:
                squared *= 2 * (self.size[a] * self.size[b] / (self.size[a] + self.size[b]))
            else:
                squared += self.spread[a] + self.spread[b]
                squared[self.lone[a] | self.lone[b]] = self.lone_distance
            out[start : start + step] = squared
        return out

    def less_rounding(self, distance: np.ndarray) -> np.ndarray:
        """Distances less what `distance` may err by: these bound it from below."""
        eps = float(np.finfo(np.float64).eps)
        terms = self.mean.shape[1] + 16
        size = np.clip(distance, 0.0, FAR)  # finite, also where the distance is not
        return distance - eps * (terms * size + 8 * self.radius * np.sqrt(size))

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

    def shares(self, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights of clusters i and j in the clusters that they make."""
        if self.halves:
            half = np.full(i.size, 0.5)
            return half, half
        n = self.size[i] + self.size[j]
        return self.size[i] / n, self.size[j] / n

    def merge(self, i: np.ndarray, j: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Merge slots j into slots i, which are at `distance`, and return the heights."""
        w_i, w_j = self.shares(i, j)
        difference = self.mean[j] - self.mean[i]
        # Reducibility makes the heights monotone but for rounding.
        height = np.maximum(distance, np.maximum(self.height[i], self.height[j]))
        squared = np.einsum("pd,pd->p", difference, difference)
        self.spread[i] = w_i * self.spread[i] + w_j * self.spread[j] + w_i * w_j * squared
        self.mean[i] += w_j[:, None] * difference
        self.norm[i] = np.einsum("pd,pd->p", self.mean[i], self.mean[i])
        self.size[i] += self.size[j]
        self.height[i] = height
        self.id[i] = self.next_id + np.arange(i.size)
        self.next_id += i.size
        self.count -= i.size
        self.lone[i] = False
        self.alive[j] = False
        self.owner[j] = i
        self.owner = self.owner[self.owner]
        self.operand[i, :-2] = self.mean[i]
        self.operand[i, -2] = self._offset(i)
        self.operand[j, -2] = FAR
        return height

    @property
    def sparse(self) -> bool:
        """Whether many slots are empty."""
        return self.count < _OCCUPANCY * self.alive.size

    def squeeze(self) -> tuple[np.ndarray, np.ndarray]:
        """Drop the empty slots: which slots are left, and where what was in each slot is now."""
        keep = np.flatnonzero(self.alive)
        place = np.empty(self.alive.size, dtype=np.intp)
        place[keep] = np.arange(keep.size)
        place = place[self.owner]
        for name in "mean norm size spread lone id height alive".split():
            setattr(self, name, getattr(self, name)[keep])
        self.owner = np.arange(keep.size)
        self.operand = self.screened(self.operand.dtype)
        return keep, place
