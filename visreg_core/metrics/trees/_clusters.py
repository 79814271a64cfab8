"""State of a clustering in progress: means, sizes and spreads of clusters."""

from __future__ import annotations

import math

import numpy as np

# Empty slots are removed from the matrices when less than this share of all is in use.
_OCCUPANCY = 0.8

# ‖v‖² of an empty slot: far from everything, yet finite, because products warn about infinities.
FAR = 1e30

# Elements of a block of float64 differences of candidate pairs.
_PAIR_BLOCK = 1 << 16

# The operand of products has a multiple of this many rows, so that they divide into groups.
GROUP = 32


class Slots:
    """Which clusters there are, one slot each; the union of a pair takes the slot of its first."""

    # What there is of each slot.
    fields = "size id height alive"

    def __init__(self, sizes: np.ndarray) -> None:
        m = sizes.size
        self.count = m
        self.size = sizes.copy()
        self.id = np.arange(m)
        self.next_id = m
        self.height = np.zeros(m)
        self.alive = np.ones(m, dtype=bool)
        # The slot that now holds what each slot held at first.
        self.owner = np.arange(m)

    def unite(self, i: np.ndarray, j: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Give slots i the numbers of their unions with j, and return the heights."""
        # By reducibility heights are monotone, up to rounding.
        height = np.maximum(distance, np.maximum(self.height[i], self.height[j]))
        self.size[i] += self.size[j]
        self.height[i] = height
        self.id[i] = self.next_id + np.arange(i.size)
        self.next_id += i.size
        self.count -= i.size
        self.alive[j] = False
        self.owner[j] = i
        self.owner = self.owner[self.owner]
        return height

    @property
    def sparse(self) -> bool:
        """Whether many slots are empty."""
        return self.count < _OCCUPANCY * self.alive.size

    def squeeze(self) -> tuple[np.ndarray, np.ndarray]:
        """Remove the empty slots; returns those that remain, and the new slot of each old one."""
        keep = np.flatnonzero(self.alive)
        place = np.empty(self.alive.size, dtype=np.intp)
        place[keep] = np.arange(keep.size)
        place = place[self.owner]
        for name in self.fields.split():
            setattr(self, name, getattr(self, name)[keep])
        self.owner = np.arange(keep.size)
        return keep, place


class Clusters(Slots):
    """State of all clusters whose distances follow from their means, sizes and spreads.

    A cluster's mean weights its points equally ("average", "ward"), or the two clusters that it was
    merged from ("weighted").
    """

    fields = f"{Slots.fields} mean norm spread lone"

    def __init__(
        self,
        points: np.ndarray,
        sizes: np.ndarray,
        spreads: np.ndarray,
        lone: np.ndarray,
        *,
        method: str,
    ) -> None:
        super().__init__(sizes)
        self.method = method
        self.ward = method == "ward"
        self.radius = 2 * math.sqrt(points.shape[1])
        self.mean = points  # and no copy: what was given is overwritten
        self.norm = np.einsum("nd,nd->n", points, points)
        self.spread = spreads.copy()
        self.lone = lone.copy()
        self.lone_distance = 2 * spreads.max(initial=0.0, where=lone)
        self.operand = self.screened(np.dtype(np.float32))

    @property
    def dim(self) -> int:
        """Terms of a distance."""
        return int(self.mean.shape[1])

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
        """Lower bounds: distances minus the largest rounding error of `distance`."""
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
        """Weights of clusters i and j in the mean of their union."""
        return shares(self.method, self.size[i], self.size[j])

    def joined(
        self,
        i: np.ndarray,
        j: np.ndarray,
        a: np.ndarray,
        b: np.ndarray,
        other: np.ndarray,
        between: np.ndarray,
    ) -> np.ndarray:
        """Lower bounds (R, K) of the distances of unions of i and j, `between` apart, to `other`.

        `a` are lower bounds of those of i, `b` of those of j.
        """
        if self.ward:
            n_i, n_j, n = self.size[i, None], self.size[j, None], self.size[other]
            joined = (n_i + n) * a + (n_j + n) * b - n * between[:, None]
            joined /= n_i + n_j + n
        else:
            w_i, w_j = self.shares(i, j)
            joined = w_i[:, None] * a + w_j[:, None] * b
        return self.less_rounding(joined)

    def joined_beyond(
        self, i: np.ndarray, j: np.ndarray, a: np.ndarray, b: np.ndarray, between: np.ndarray
    ) -> np.ndarray:
        """As `joined`, (R,), to whatever cluster is no nearer than a to i and than b to j."""
        if self.ward:  # whatever its number of points, which is at least 1
            n_i, n_j, more = self.size[i], self.size[j], a + b - between
            joined = np.minimum(more, (n_i * a + n_j * b + more) / (n_i + n_j + 1))
        else:
            w_i, w_j = self.shares(i, j)
            joined = w_i * a + w_j * b
        return self.less_rounding(joined)

    def merge(self, i: np.ndarray, j: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Merge slots j into slots i, at these distances, and return the heights."""
        w_i, w_j = self.shares(i, j)
        difference = self.mean[j] - self.mean[i]
        squared = np.einsum("pd,pd->p", difference, difference)
        self.spread[i] = w_i * self.spread[i] + w_j * self.spread[j] + w_i * w_j * squared
        self.mean[i] += w_j[:, None] * difference
        self.norm[i] = np.einsum("pd,pd->p", self.mean[i], self.mean[i])
        self.lone[i] = False
        height = self.unite(i, j, distance)
        self.operand[i, :-2] = self.mean[i]
        self.operand[i, -2] = self._offset(i)
        self.operand[j, -2] = FAR
        return height

    def squeeze(self) -> tuple[np.ndarray, np.ndarray]:
        """As `Slots.squeeze`."""
        found = super().squeeze()
        self.operand = self.screened(self.operand.dtype)
        return found


def shares(method: str, n_i: np.ndarray, n_j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of two clusters of these sizes in their union."""
    if method == "weighted":
        half = np.full(n_i.size, 0.5)
        return half, half
    return n_i / (n_i + n_j), n_j / (n_i + n_j)
