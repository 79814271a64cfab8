"""Nearest clusters by the products of all their points, on the host; differences decide."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from visreg_core.metrics.trees._clusters import FAR, GROUP
from visreg_core.metrics.trees._near_lists import LISTED, NearLists
from visreg_core.metrics.trees._nearest_products import smallest_in_tiles
from visreg_core.metrics.trees._pair_clusters import ROWS, Chunk, PairClusters, squares
from visreg_core.metrics.trees._screen import Screen


class PairScreen(Screen):
    """As `Screen`, of `PairClusters`."""

    clusters: PairClusters

    def __init__(self, near: NearLists) -> None:
        super().__init__(np, "cpu", near)
        # A square root makes the error of a product of near points larger.
        self.dtype = np.float32 if self.clusters.largest else np.float64
        self.weight = 1.0

    def crowded(self) -> bool:
        """Always: all distances of few clusters take less than another search."""
        return True

    def _widen(self) -> None:
        self.dtype = np.float64

    def _upload(self) -> tuple[list[tuple[Chunk, np.ndarray]], None]:
        """All clusters with the operands (points, D + 2) of products, (v, ‖v‖², 1)."""
        c = self.clusters
        out = []
        for chunk in c.chunks():
            operand = np.ones((chunk.point.size, c.dim + 2), dtype=self.dtype)
            operand[:, :-2] = points = c.points[chunk.point] - c.middle
            operand[:, -2] = squares(points)
            out.append((chunk, operand))
        return out, None

    def _blocks(self, rows: np.ndarray) -> list[np.ndarray]:
        return self.clusters.blocks(rows)

    def _distances(
        self, rows: np.ndarray, chunks: list[tuple[Chunk, np.ndarray]]
    ) -> Iterator[np.ndarray]:
        """Screened distances of clusters from those of a chunk each time."""
        c = self.clusters
        points = c.points[c.points_in(rows)] - c.middle
        queries = np.ones((len(points), c.dim + 2), dtype=self.dtype)
        queries[:, :-2] = -2 * points
        queries[:, -1] = squares(points)

        def products(operand: np.ndarray) -> Iterator[np.ndarray]:
            for start in range(0, len(queries), ROWS):
                tile = queries[start : start + ROWS] @ operand.T
                if not c.largest:
                    np.sqrt(np.maximum(tile, 0, out=tile), out=tile)
                yield tile

        for chunk, operand in chunks:
            found = c.gathered(rows, products(operand), chunk, queries.dtype)
            more = np.full((len(rows), -found.shape[1] % GROUP), np.inf, dtype=found.dtype)
            yield np.ascontiguousarray(np.concatenate([found, more], axis=1))

    def _nearest(
        self, rows: np.ndarray, points: list[tuple[Chunk, np.ndarray]], inverse_size: None
    ) -> tuple[np.ndarray, np.ndarray]:
        slot = np.concatenate([chunk.slot for chunk, _ in points])
        slot = np.concatenate([slot, np.full(-slot.size % GROUP, slot[-1])])
        place = np.empty(self.clusters.alive.size, dtype=np.intp)
        place[slot[::-1]] = np.arange(slot.size)[::-1]
        index, value = smallest_in_tiles(
            self._distances(rows, points), slot.size, place[rows], min(LISTED, slot.size)
        )
        return slot[index], np.minimum(value.astype(np.float64), FAR)

    def _all(
        self, rows: np.ndarray, points: list[tuple[Chunk, np.ndarray]], inverse_size: None
    ) -> np.ndarray:
        """As `Screen._all`; ∞ to empty slots, too."""
        out = np.full((rows.size, self.clusters.alive.size), np.inf, dtype=self.dtype)
        for (chunk, _), found in zip(points, self._distances(rows, points), strict=True):
            out[:, chunk.slot] = found[:, : chunk.slot.size]
        out[np.arange(rows.size), rows] = np.inf
        return out

    def _error(self, rows: np.ndarray, least: np.ndarray, dtype: str) -> np.ndarray:
        """As `Screen._error`, of the largest product; or of means of roots.

        A product errs by at most (D + 8) ε (‖u‖ + ‖v‖)², and its root by no more than the root of
        that; their mean by as much, and by a sum's rounding.
        """
        c = self.clusters
        if c.largest:
            return super()._error(rows, least, dtype)
        info = np.finfo(dtype)
        squared = (c.dim + 8) * (8 * (info.eps / 2) * (c.norm[rows] + c.longest) + info.tiny)
        return np.sqrt(squared) + 1e-12 * math.sqrt(c.longest)

    @property
    def _block_rows(self) -> int:
        return 64
