"""Nearest clusters in two steps: products screen in the array's library, float64 decides.

A blocked product in float32, in the array's own library and on its device, screens all clusters:
whatever lies within its rigorous error bound of a row's least distance stays a candidate. The
candidates' distances are then computed on the host in float64 from the differences of means, one
value a pair, and the least (distance, id) wins. So every library gives the same dendrogram, bit for
bit.
"""

from __future__ import annotations

import numpy as np

from visreg_core import _xp
from visreg_core.metrics.trees._clusters import FAR, Clusters
from visreg_core.typing import Array, Device, DType, Namespace

# Candidates of a row; where most rows have more, float32 tells too little apart.
_MANY_CANDIDATES = 16

# Rows by which that is judged beforehand, about.
_SAMPLED_ROWS = 16

# Bytes of distances made at a time, on the host for its caches, on devices to fill them; and rows
# at least, for narrower products are slow.
_BLOCK_BYTES = {"numpy": 1 << 22}
_BLOCK_BYTES_DEVICE = 1 << 26
_MIN_BLOCK_ROWS = 64


class Screen:
    """Nearest neighbours by blocked products on the array's device, settled in float64."""

    def __init__(self, xp: Namespace, device: Device, clusters: Clusters) -> None:
        self.xp = xp
        self.device = device
        self.clusters = clusters
        self.dtype: DType = xp.float32
        # JAX compiles a program for every shape: it is given few of them.
        self.fixed_shapes = _xp.name(xp) == "jax"

    def nearest(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each row: slot of the nearest cluster, of the next as near, and the distance.

        Clusters at equal distance go by their ids; the second slot is the first of them above the
        row's own id, or −1.
        """
        nearest = np.empty(rows.size, dtype=np.intp)
        above = np.empty(rows.size, dtype=np.intp)
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
            for whole, part in zip((nearest, above, distance), found, strict=True):
                whole[start : start + step] = part
        return nearest, above, distance

    def crowded(self) -> bool:
        """Whether most clusters would have many candidates in float32: of a few, on the host."""
        c = self.clusters
        slots = np.flatnonzero(c.alive)
        many = 0
        rows = slots[:: max(1, slots.size // _SAMPLED_ROWS)]
        for row in rows:
            others = slots[slots != row]
            distance = c.distance(np.full(others.size, row), others)
            least = distance.min()
            reach = least + 2 * self._error(np.asarray([row]), least, "float32")[0]
            many += int(np.count_nonzero(distance <= reach) > _MANY_CANDIDATES)
        return many > rows.size / 2

    def _upload(self) -> tuple[Array, Array | None]:
        """The clusters' operand on the device, and 1/(2n), whose sums divide Ward's distances."""
        c = self.clusters
        operand, inverse_size = c.operand, 0.5 / c.size
        if self.fixed_shapes:
            padding = _padded_size(c.alive.size, 2) - c.alive.size
            empty = np.zeros((padding, operand.shape[1]), dtype=operand.dtype)
            empty[:, -2] = -FAR
            operand = np.concatenate([operand, empty])
            inverse_size = np.concatenate([inverse_size, np.ones(padding)])
        return self._to_device(operand), self._to_device(inverse_size) if c.ward else None

    def _nearest_of_block(
        self, rows: np.ndarray, points: Array, inverse_size: Array | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """`nearest` of a few rows; None where float32 does not do."""
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
        error = self._error(rows, least, _xp.dtype_name(self.dtype))
        distance = c.distance(rows, slot)
        self._check_products(least, distance, error)
        close = np.flatnonzero(runner_up <= least + 2 * error)
        above = np.full(k, -1, dtype=np.intp)
        if close.size == 0:
            return slot, above, distance
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
        row, candidate, value = row[order], candidate[order], value[order]
        winner = np.unique(row, return_index=True)[1]
        slot[close], distance[close] = candidate[winner], value[winner]
        tied = (value == value[winner][row]) & (c.id[candidate] > c.id[rows[close[row]]])
        row, next_one = np.unique(row[tied], return_index=True)
        above[close[row]] = candidate[tied][next_one]
        return slot, above, distance

    def _error(self, rows: np.ndarray, least: np.ndarray, dtype: str) -> np.ndarray:
        """Bound of the error of screened distances d of a row, near its least one.

        With unit roundoff ε a product of D + 2 terms errs by at most
        (D + 8) ε (2‖u‖‖v‖ + a_u + a_v) ≤ (D + 8) ε (6‖u‖² + 4d), as ‖v‖² ≤ 2‖u‖² + 2d; Ward's
        weight is at most 2n_u. `tiny` covers products that underflow.
        """
        c = self.clusters
        info = np.finfo(dtype)
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
