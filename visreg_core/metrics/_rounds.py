"""Reciprocal-nearest-neighbour rounds: average and Ward linkage in O(N·D) memory.

A reducible linkage may merge every pair of clusters that are each other's nearest neighbour at
once, in any order, and ends in the dendrogram of one merge at a time (RAC; Sumengen et al. 2021).
For the linkages here the distance of two clusters follows from their means u, v, sizes and
spreads s (mean squared distance of a cluster's points to its mean), without cancellation:

    average, squared Euclidean    d = ‖u − v‖² + s_u + s_v
    Ward, squared                 d = 2 n_u n_v / (n_u + n_v) ‖u − v‖²

Neighbours are found in two steps. A blocked product in float32, in the array's own library and on
its device, screens all clusters: whatever lies within its rigorous error bound of a row's least
distance stays a candidate. The candidates' distances are then computed on the host in float64 from
the differences of means, one value a pair, and the least (distance, id) wins. So every library
gives the same dendrogram, bit for bit.
"""

from __future__ import annotations

import numpy as np

from visreg_core import _xp
from visreg_core._typing import Array, Device, DType, Namespace

# Rows whose neighbour is looked for in a round, at most, per merge of the round before. Without
# ties it hardly binds; with N equidistant points, where a round merges one pair and every row has
# lost its neighbour, it keeps the total at O(N²) distances.
_ROWS_PER_MERGE = 16

# Merged slots are squeezed out of the matrices when fewer than this share is in use.
_OCCUPANCY = 0.8

# Candidates of a row; where most rows have more, float32 tells too little apart.
_MANY_CANDIDATES = 16

# ‖v‖² of an empty slot: far from everything, and finite, for products warn about infinities.
_FAR = 1e30

# Bytes of distances made at a time, on the host for its caches, on devices to fill them; and rows
# at least, for narrower products are slow.
_BLOCK_BYTES = {"numpy": 1 << 22}
_BLOCK_BYTES_DEVICE = 1 << 26
_MIN_BLOCK_ROWS = 64

# Numbers held by the float64 differences of candidate pairs at a time.
_PAIR_BLOCK = 1 << 21


def merge_rounds(
    xp: Namespace,
    device: Device,
    points: np.ndarray,
    sizes: np.ndarray,
    spreads: np.ndarray,
    *,
    ward: bool,
    lone: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Children (M − 1, 2) and heights (M − 1,) of the merges of M weighted points.

    Parameters
    ----------
    xp, device
        Where the products run.
    points : float64 array (M, D)
        Means of the starting clusters, centred, of magnitude about 1.
    sizes, spreads : float64 array (M,)
        Their numbers of points and spreads.
    ward : bool
        Ward's distance instead of average squared Euclidean.
    lone : boolean array (M,), optional
        At most one point whose distance to every other is its spread times 2, exactly: a zero
        vector under cosine, whose ties rounding must not decide.

    Returns
    -------
    children, heights
        Merge k makes cluster M + k of two clusters made before it, and is no lower than they are.
        Merges are in order of creation, not of height.
    """
    if lone is None:
        lone = np.zeros(sizes.size, dtype=bool)
    clusters = _Clusters(points, sizes, spreads, lone, ward=ward)
    screen = _Screen(xp, device, clusters)
    children, heights = [], []
    limit = clusters.count
    while clusters.count > 1:
        stale = clusters.stale()
        rows = stale[:limit]
        clusters.set_nearest(rows, *screen.nearest(rows))
        i, j = clusters.reciprocal_pairs()
        if i.size == 0:
            if stale.size > rows.size:
                limit *= 2
                continue
            i, j = clusters.least_pair()
        limit = _ROWS_PER_MERGE * i.size
        children.append(np.stack([clusters.id[i], clusters.id[j]], axis=1))
        heights.append(clusters.merge(i, j))
    return np.concatenate(children), np.concatenate(heights)


class _Clusters:
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
        self.nearest = np.zeros(m, dtype=np.intp)
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
        operand[~self.alive, -2] = -_FAR
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

    def stale(self) -> np.ndarray:
        """Slots without a known neighbour, nearest first as far as is known."""
        slots = np.flatnonzero(self.alive & ~self.known)
        return slots[np.lexsort((self.id[slots], self.bound[slots]))]

    def set_nearest(self, rows: np.ndarray, nearest: np.ndarray, distance: np.ndarray) -> None:
        self.nearest[rows] = nearest
        self.bound[rows] = distance
        self.known[rows] = True

    def reciprocal_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (i, j) of slots that are each other's nearest, in the order of their distances."""
        i = np.flatnonzero(self.known)
        j = self.nearest[i]
        mutual = self.known[j] & (self.nearest[j] == i) & (self.id[i] < self.id[j])
        i, j = i[mutual], j[mutual]
        order = np.lexsort((self.id[i], self.bound[i]))
        return i[order], j[order]

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
        self.operand[j, -2] = -_FAR
        # A cluster whose neighbour did not merge keeps it: by reducibility the new clusters are no
        # nearer, and at equal distance the older id goes first. Its old distance stays a bound.
        merged = ~self.alive
        merged[i] = True
        self.known &= ~merged & ~merged[self.nearest]
        if self.count < _OCCUPANCY * self.alive.size:
            self._squeeze()
        return height

    def _squeeze(self) -> None:
        keep = np.flatnonzero(self.alive)
        place = np.zeros(self.alive.size, dtype=np.intp)
        place[keep] = np.arange(keep.size)
        self.nearest = place[self.nearest]
        for (
            name
        ) in "mean norm size spread lone id height nearest alive known bound operand".split():
            setattr(self, name, getattr(self, name)[keep])


class _Screen:
    """Nearest neighbours by blocked products on the array's device, settled in float64."""

    def __init__(self, xp: Namespace, device: Device, clusters: _Clusters) -> None:
        self.xp = xp
        self.device = device
        self.clusters = clusters
        self.dtype: DType = xp.float32
        # JAX compiles a program for every shape: it is given few of them.
        self.fixed_shapes = _xp.name(xp) == "jax"

    def nearest(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slot of the nearest cluster of each row, and its distance."""
        nearest = np.empty(rows.size, dtype=np.intp)
        distance = np.empty(rows.size)
        points, inverse_size = self._upload()
        row_bytes = self.clusters.operand.itemsize * self.clusters.alive.size
        step = _block_rows(self.xp, row_bytes)
        for start in range(0, rows.size, step):
            block = rows[start : start + step]
            found = self._nearest_of_block(block, points, inverse_size)
            if found is None:  # float32 tells too little apart: go on in float64
                self.dtype = self.xp.float64
                self.clusters.operand = self.clusters.screened("float64")
                points, inverse_size = self._upload()
                found = self._nearest_of_block(block, points, inverse_size)
                assert found is not None
            nearest[start : start + step], distance[start : start + step] = found
        return nearest, distance

    def _upload(self) -> tuple[Array, Array | None]:
        """The clusters' operand on the device, and 1/(2n), whose sums divide Ward's distances."""
        c = self.clusters
        operand, inverse_size = c.operand, 0.5 / c.size
        if self.fixed_shapes:
            padding = _padded_size(c.alive.size, 2) - c.alive.size
            empty = np.zeros((padding, operand.shape[1]), dtype=operand.dtype)
            empty[:, -2] = -_FAR
            operand = np.concatenate([operand, empty])
            inverse_size = np.concatenate([inverse_size, np.ones(padding)])
        return self._to_device(operand), self._to_device(inverse_size) if c.ward else None

    def _nearest_of_block(
        self, rows: np.ndarray, points: Array, inverse_size: Array | None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Nearest slots and distances of a few rows; None where float32 does not do."""
        xp, c = self.xp, self.clusters
        taken = self._padded(rows)
        queries = 2 * c.operand[taken]
        queries[:, -2] = 1
        queries[:, -1] = -c.operand[taken, -2]
        scores = self._to_device(queries) @ xp.matrix_transpose(points)
        if inverse_size is not None:
            own = xp.take(inverse_size, self._to_device(taken), axis=0)
            scores = scores / (own[:, None] + inverse_size[None, :])
        scores = _exclude(xp, scores, self._to_device(taken))
        first = xp.argmax(scores, axis=1)
        best = xp.max(scores, axis=1)
        scores = _exclude(xp, scores, first)
        second = xp.max(scores, axis=1)

        k = rows.size
        slot = _xp.to_numpy(first)[:k].astype(np.intp)
        least = -_xp.to_numpy(best)[:k].astype(np.float64)
        runner_up = -_xp.to_numpy(second)[:k].astype(np.float64)
        error = self._error(rows, least)
        distance = c.distance(rows, slot)
        self._check_products(least, distance, error)
        close = np.flatnonzero(runner_up <= least + 2 * error)
        if close.size == 0:
            return slot, distance
        index = self._to_device(self._padded(close))
        host_scores = _xp.to_numpy(xp.take(scores, index, axis=0))[: close.size]
        limit = -(least + 2 * error)[close].astype(host_scores.dtype)
        row, candidate = np.nonzero(host_scores >= np.nextafter(limit, -np.inf)[:, None])
        crowded = np.count_nonzero(np.bincount(row) > _MANY_CANDIDATES)
        if self.dtype == xp.float32 and crowded > k / 2 and self._can_widen():
            return None
        row = np.concatenate([row, np.arange(close.size)])
        candidate = np.concatenate([candidate, slot[close]])
        value = c.distance(rows[close[row]], candidate)
        order = np.lexsort((c.id[candidate], value, row))
        winner = order[np.unique(row[order], return_index=True)[1]]
        slot[close], distance[close] = candidate[winner], value[winner]
        return slot, distance

    def _error(self, rows: np.ndarray, least: np.ndarray) -> np.ndarray:
        """Bound of the error of screened distances d of a row, near its least one.

        With unit roundoff ε a product of D + 2 terms errs by at most
        (D + 8) ε (2‖u‖‖v‖ + a_u + a_v) ≤ (D + 8) ε (6‖u‖² + 4d), as ‖v‖² ≤ 2‖u‖² + 2d; Ward's
        weight is at most 2n_u. `tiny` covers products that underflow.
        """
        c = self.clusters
        info = np.finfo(_xp.dtype_name(self.dtype))
        weight = 2 * c.size[rows] if c.ward else 1.0
        scale = weight * c.norm[rows] + np.abs(least)
        terms = c.mean.shape[1] + 8
        return terms * (8 * (info.eps / 2) * scale + 8 * weight * info.tiny)

    def _check_products(self, least: np.ndarray, distance: np.ndarray, error: np.ndarray) -> None:
        """Refuse a library whose products have fewer digits than its dtype (TF32, bfloat16)."""
        if np.any(np.abs(least - distance) > error):
            raise RuntimeError(
                f"expected {_xp.name(self.xp)} on {self.device} to multiply matrices in full "
                f"{_xp.dtype_name(self.dtype)} precision; found larger errors: switch reduced "
                "precision (TF32, bfloat16) of its matrix products off"
            )

    def _can_widen(self) -> bool:
        return "float64" in self.xp.__array_namespace_info__().dtypes(kind="real floating")

    def _padded(self, rows: np.ndarray) -> np.ndarray:
        """`rows`, repeated up to one of a few lengths where shapes are to be few."""
        return np.resize(rows, _padded_size(rows.size, 4)) if self.fixed_shapes else rows

    def _to_device(self, a: np.ndarray) -> Array:
        dtype = self.dtype if a.dtype.kind == "f" else None
        if dtype is None and _xp.name(self.xp) == "jax":
            a = a.astype(np.int32)
        return _xp.from_numpy(self.xp, a, device=self.device, dtype=dtype)


def _block_rows(xp: Namespace, row_bytes: int) -> int:
    budget = _BLOCK_BYTES.get(_xp.name(xp), _BLOCK_BYTES_DEVICE)
    return max(_MIN_BLOCK_ROWS, budget // row_bytes)


def _exclude(xp: Namespace, scores: Array, columns: Array) -> Array:
    """`scores` (B, M) with −∞ at (b, columns[b]); in place where the library can."""
    if _xp.name(xp) in ("numpy", "torch", "cupy"):
        rows = xp.arange(columns.shape[0], **_xp.on_device(columns))
        scores[rows, columns] = -xp.inf
        return scores
    every = xp.arange(scores.shape[1], dtype=columns.dtype, **_xp.on_device(columns))
    return xp.where(every[None, :] == columns[:, None], -xp.inf, scores)


def _padded_size(size: int, base: int) -> int:
    """The least 64 · baseᵏ that is no less than `size`."""
    padded = 64
    while padded < size:
        padded *= base
    return padded
