"""The nearest others of some rows among all, which the second pass shows block by block."""

from __future__ import annotations

import numpy as np

from visreg_core.metrics._inputs import unit_rows
from visreg_core.metrics.similarity import nearest

# Values of a block of rows among which neighbours are searched.
_BLOCK_VALUES = 1 << 22


class Nearest:
    """The k nearest others of each of the `queries` (M, D), whose places among all are `rows`.

    They are found block by block; what the blocks offer is ordered by distances from differences,
    in float64.
    """

    def __init__(self, rows: np.ndarray, queries: np.ndarray, k: int, metric: str) -> None:
        self.rows, self.queries, self.k, self.metric = rows, queries, k, metric
        self._best = np.full((len(rows), k), np.inf)
        self._index = np.zeros((len(rows), k), np.intp)
        self._held: list[tuple[slice, np.ndarray]] = []

    def update(self, places: slice, block: np.ndarray) -> None:
        """Look among these rows, too."""
        # Blocks are searched together: the more rows, the fewer offers there are to order.
        if self._held and self._held[-1][0].stop != places.start:
            self._search()
        self._held.append((places, block))
        if (places.stop - self._held[0][0].start) * block.shape[1] >= _BLOCK_VALUES:
            self._search()

    def _search(self) -> None:
        if not self._held:
            return
        start = self._held[0][0].start
        block = np.concatenate([b for _, b in self._held]).astype(self.queries.dtype, copy=False)
        self._held = []
        few = min(len(block), self.k + 1)  # one may be the row itself
        found = nearest(self.queries, block, few, metric=self.metric)[0]
        distance = _distances(self.queries, block, found, self.metric)
        found = found + start
        distance[found == self.rows[:, None]] = np.inf
        self._keep(distance, found)

    def _keep(self, distance: np.ndarray, found: np.ndarray) -> None:
        both = np.concatenate([self._best, distance], axis=1)
        places = np.concatenate([self._index, found], axis=1)
        order = np.lexsort((places, both), axis=1)[:, : self.k]
        self._best = np.take_along_axis(both, order, axis=1)
        self._index = np.take_along_axis(places, order, axis=1)

    def places(self) -> np.ndarray:
        """Places (M, k) of the nearest, the nearest first; all rows have been shown."""
        self._search()
        return self._index


def _distances(queries: np.ndarray, x: np.ndarray, index: np.ndarray, metric: str) -> np.ndarray:
    """Squared distances (M, k), of unit rows for the cosine; a zero row is at 1 from all others."""
    q, p = queries.astype(np.float64), x.astype(np.float64)
    if metric == "cosine":
        q, p = unit_rows(np, q), unit_rows(np, p)
        lonely_q, lonely_p = ~q.any(axis=1), ~p.any(axis=1)
    out = np.empty(index.shape)
    step = max(1, (1 << 21) // (index.shape[1] * x.shape[1]))
    for start in range(0, len(q), step):
        part = slice(start, start + step)
        difference = p[index[part]] - q[part, None, :]
        out[part] = np.einsum("qkd,qkd->qk", difference, difference)
        if metric == "cosine":
            out[part][lonely_p[index[part]] | lonely_q[part, None]] = 2.0
    return out
