"""Nearest clusters in two steps: products in the array's library screen, float64 decides.

A blocked product in float32, in the array's own library and on its device, finds every row's
nearest clusters up to a rigorous error bound. Distances are then computed on the host in
float64 from the differences of means, one value a pair, and the least (distance, id) wins. So every
library gives the same dendrogram, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from visreg_core import _xp, threads
from visreg_core.metrics.trees._clusters import FAR, GROUP
from visreg_core.metrics.trees._near_lists import LISTED, NearLists
from visreg_core.metrics.trees._nearest_products import nearest_products
from visreg_core.typing import Array, Device, DType, Namespace

# Where most rows have more candidates than this, float32 does not resolve the distances.
_MANY_CANDIDATES = 16

# About how many rows are sampled to decide that beforehand.
_SAMPLED_ROWS = 16

# Rows of a block: of one thread on the host; on devices by the bytes of its distances, enough to
# occupy them, and never so few that products are slow.
_ROWS_HOST = 128
_BLOCK_BYTES_DEVICE = 1 << 26
_MIN_BLOCK_ROWS = 64


class Screen:
    """Nearest clusters by blocked products on the array's device, settled in float64."""

    def __init__(self, xp: Namespace, device: Device, near: NearLists) -> None:
        self.xp = xp
        self.device = device
        self.near = near
        self.clusters: Any = near.clusters  # `Clusters`; not so in `PairScreen`
        self.dtype: DType = xp.float32
        self.on_host = _xp.works_in_tiles(xp)
        self.few_shapes = _xp.compiles(xp)  # each shape costs a compilation

    def settle(self, rows: np.ndarray) -> None:
        """Find the nearest clusters of rows, and their lists of near ones."""
        if not rows.size:
            return
        rest, least = self._listed(rows)
        if 2 * rest.size > rows.size and self.dtype == self.xp.float32 and self._can_widen():
            self._widen()  # float32 does not resolve the distances: continue in float64
            rest, least = self._listed(rest)
        if rest.size:
            self._compare(rest, least)

    def crowded(self) -> bool:
        """Whether most clusters would have many candidates in float32, by a sample, on the host."""
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

    def _listed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`NearLists.settle` of rows with new lists."""
        points, inverse_size = self._upload()
        blocks = self._blocks(rows)
        if self.on_host:

            def work(mine: Sequence[np.ndarray]) -> None:
                for block in mine:
                    self._put(block, *self._nearest(block, points, inverse_size))

            threads.spread(work, blocks, rows.size * self.clusters.alive.size)
        else:  # whose blocks are all launched before the first one is waited for
            k = min(LISTED, points.shape[0])
            nearest = _xp.compiled(self.xp, _nearest_by_scores, "xp", "k")
            launched = [nearest(self.xp, self._own(b), points, inverse_size, k) for b in blocks]
            for block, found in zip(blocks, launched, strict=True):
                at, least = (_xp.to_numpy(a)[: block.size] for a in found)
                self._put(block, at, least.astype(np.float64) * self.weight)
        return self.near.settle(rows)

    def _blocks(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows whose nearest clusters are searched together."""
        step = _ROWS_HOST if self.on_host else self._block_rows
        return [rows[start : start + step] for start in range(0, rows.size, step)]

    def _put(self, rows: np.ndarray, slot: np.ndarray, value: np.ndarray) -> None:
        """Set rows' lists from the nearest slots (R, K) by products, whose error is checked."""
        c = self.clusters
        error = self._error(rows[:, None], value, _xp.dtype_name(self.dtype))
        nobody = value > FAR / 2  # the row itself, or an empty slot
        slot = np.where(nobody, rows[:, None], slot)
        distance = c.distance(rows, slot[:, 0])
        if np.any(np.abs(value[:, 0] - distance) > error[:, 0]):
            raise RuntimeError(
                f"expected {_xp.name(self.xp)} on {self.device} to multiply matrices in full "
                f"{_xp.dtype_name(self.dtype)} precision; found larger errors: switch reduced "
                "precision (TF32, bfloat16) of its matrix products off"
            )
        least = np.where(nobody, np.inf, value) - error
        reach = least[:, -1] if c.count - 1 > slot.shape[1] else np.full(rows.size, np.inf)
        self.near.put(rows, slot, np.concatenate([distance[:, None], least[:, 1:]], axis=1), reach)

    def _upload(self) -> tuple[Array, Array | None]:
        """The clusters' operand on the device, and 1/(2n), whose sums divide Ward's distances.

        Clusters of one size have a common weight instead.
        """
        c = self.clusters
        operand = c.operand
        if self.few_shapes:
            padding = _padded_size(operand.shape[0], 2) - operand.shape[0]
            empty = np.zeros((padding, operand.shape[1]), dtype=operand.dtype)
            empty[:, -2] = FAR
            operand = np.concatenate([operand, empty])
        sizes = c.size[c.alive]
        self.weight = float(sizes[0]) if c.ward else 1.0
        inverse_size = None
        if c.ward and np.any(sizes != sizes[0]):
            self.weight = 1.0
            inverse_size = np.ones(operand.shape[0])
            inverse_size[: c.size.size][c.alive] = 0.5 / sizes
            inverse_size = self._to_device(inverse_size)
        return self._to_device(operand), inverse_size

    def _nearest(
        self, rows: np.ndarray, points: Any, inverse_size: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Slots (R, K) and screened distances of what is nearest to a few rows, on the host."""
        k = min(LISTED, points.shape[0])
        queries = _queries(self.xp, points[rows])
        index, value = nearest_products(queries, points, rows, k, inverse_size)
        return index, value.astype(np.float64) * self.weight

    def _all(self, rows: np.ndarray, points: Any, inverse_size: Any) -> np.ndarray:
        """Screened distances (R, slots) of rows, without Ward's weight; ∞ to themselves."""
        scored = _xp.compiled(self.xp, _scores, "xp")
        return _xp.to_numpy(scored(self.xp, self._own(rows), points, inverse_size))[: rows.size]

    def _own(self, rows: np.ndarray) -> Array:
        """Rows on the device, repeated up to one of a few lengths where few shapes pay."""
        if self.few_shapes:
            rows = np.resize(rows, _padded_size(rows.size, 4))
        return self._to_device(rows)

    def _compare(self, rows: np.ndarray, least: np.ndarray) -> None:
        """Settle rows that are no nearer than `least` to more clusters than a list holds."""
        c = self.clusters
        points, inverse_size = self._upload()
        step = self._block_rows
        for start in range(0, rows.size, step):
            block, best = rows[start : start + step], least[start : start + step]
            scores = self._all(block, points, inverse_size)
            error = self._error(block, best, _xp.dtype_name(self.dtype))
            limit = ((best + 2 * error) / self.weight).astype(scores.dtype)
            row, slot = np.nonzero(scores <= np.nextafter(limit, np.inf)[:, None])
            value = c.distance(block[row], slot)
            order = np.lexsort((c.id[slot], value, row))
            row, slot, value = row[order], slot[order], value[order]
            first = np.searchsorted(row, np.arange(block.size))
            tied = (value == value[first][row]) & (c.id[slot] > c.id[block[row]])
            above = np.full(block.size, -1, dtype=np.intp)
            late, place = np.unique(row[tied], return_index=True)
            above[late] = slot[tied][place]
            self.near.set_nearest(block, slot[first], above, value[first])

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
        return (c.dim + 8) * (8 * (info.eps / 2) * scale + 8 * weight * info.tiny)

    def _widen(self) -> None:
        self.dtype = self.xp.float64
        self.clusters.operand = self.clusters.screened(np.dtype(np.float64))

    def _can_widen(self) -> bool:
        return "float64" in self.xp.__array_namespace_info__().dtypes(kind="real floating")

    @property
    def _block_rows(self) -> int:
        row_bytes = self.clusters.operand.itemsize * self.clusters.operand.shape[0]
        return max(_MIN_BLOCK_ROWS, _BLOCK_BYTES_DEVICE // row_bytes)

    def _to_device(self, a: np.ndarray) -> Array:
        if self.on_host:
            return a
        dtype = self.dtype if a.dtype.kind == "f" else None
        if dtype is None and self.few_shapes:
            a = a.astype(np.int32)  # int64 may not exist there
        return _xp.from_numpy(self.xp, a, device=self.device, dtype=dtype)


def _nearest_by_scores(
    xp: Namespace, own: Array, points: Array, inverse_size: Array | None, k: int
) -> tuple[Array, Array]:
    """Slots (R, k) of the least screened distances of rows, and these."""
    scores = _scores(xp, own, points, inverse_size)
    at = _smallest(xp, scores, k)
    return at, xp.take_along_axis(scores, at, axis=1)


def _scores(xp: Namespace, own: Array, points: Array, inverse_size: Array | None) -> Array:
    """Screened distances (R, slots) of rows `own`; ∞ to themselves."""
    queries = _queries(xp, xp.take(points, own, axis=0))
    scores = queries @ xp.matrix_transpose(points)
    if inverse_size is not None:
        scores = scores / (xp.take(inverse_size, own, axis=0)[:, None] + inverse_size[None, :])
    return _exclude(xp, scores, own)


def _queries(xp: Namespace, rows: Array) -> Array:
    """Rows (−2u, 1, a_u) from (u, a_u, 1)."""
    return xp.concat([-2 * rows[:, :-2], rows[:, -1:], rows[:, -2:-1]], axis=1)


def _exclude(xp: Namespace, scores: Array, columns: Array) -> Array:
    """`scores` (B, M) with ∞ at (b, columns[b]); in place where the library can."""
    if _xp.writes_in_place(xp):
        rows = xp.arange(columns.shape[0], **_xp.on_device(columns))
        scores[rows, columns] = xp.inf
        return scores
    every = xp.arange(scores.shape[1], dtype=columns.dtype, **_xp.on_device(columns))
    return xp.where(every[None, :] == columns[:, None], xp.inf, scores)


def _smallest(xp: Namespace, scores: Array, k: int) -> Array:
    """Indices (B, k) of the k smallest of each row, which are in the k groups of least minima."""
    b, m = scores.shape
    groups = m // GROUP
    if groups <= 2 * k:
        return _xp.smallest(xp, scores, k)
    least = xp.min(xp.reshape(scores, (b, GROUP, groups)), axis=1)
    group = _xp.smallest(xp, least, k)
    member = xp.arange(GROUP, dtype=group.dtype, **_xp.on_device(scores)) * groups
    column = xp.reshape(group[:, None, :] + member[None, :, None], (b, GROUP * k))
    place = _xp.smallest(xp, xp.take_along_axis(scores, column, axis=1), k)
    return xp.take_along_axis(column, place, axis=1)


def _padded_size(size: int, base: int) -> int:
    """The least 64 · baseᵏ that is no less than `size`."""
    padded = 64
    while padded < size:
        padded *= base
    return padded
