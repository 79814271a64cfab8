"""A sample of rows that does not depend on how they were divided: those of the smallest keys."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from visreg_core.embeddings._sampling import row_words


class RowSample:
    """The `count` rows whose words of the counter-based stream are the smallest.

    Row i's word depends on (seed, i) alone (`visreg_core.slices`), so that any division of the rows
    keeps the same ones, those that ``Embeddings.sample`` draws. Of fewer rows all are kept.
    """

    def __init__(self, dim: int, count: int, seed: int) -> None:
        self.dim, self.count, self.seed = dim, count, seed
        self._words = np.empty(0, np.uint64)
        self._numbers = np.empty(0, np.int64)
        self._rows: list[np.ndarray] = []
        self._bound = np.uint64(np.iinfo(np.uint64).max)

    def update(self, rows: np.ndarray, numbers: np.ndarray) -> None:
        """Offer rows (B, D) with their numbers (B,)."""
        words = row_words(numbers, self.seed)
        few = np.flatnonzero(words <= self._bound)
        if len(few):
            # Not float16: what is of the sample is computed in float32 or wider.
            wide = np.float64 if rows.dtype == np.float64 else np.float32
            self._offer(words[few], numbers[few], [rows[few].astype(wide)])

    def merge(self, other: RowSample) -> None:
        """Offer the rows of another sample, which stays as it is."""
        self._offer(other._words, other._numbers, other._rows)

    def _offer(self, words: np.ndarray, numbers: np.ndarray, rows: list[np.ndarray]) -> None:
        self._words = np.concatenate([self._words, words])
        self._numbers = np.concatenate([self._numbers, numbers])
        self._rows += rows
        if len(self._words) > 2 * self.count:
            self._keep_smallest()

    def _keep_smallest(self) -> None:
        kept = np.lexsort((self._numbers, self._words))[: self.count]
        rows = np.concatenate([*self._rows, np.empty((0, self.dim), np.float32)])
        self._rows = [rows[kept]]
        self._words, self._numbers = self._words[kept], self._numbers[kept]
        if len(kept) == self.count:
            self._bound = self._words[-1]

    def result(self, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and rows of the sample, or of the smaller one of `count`, in rows' order."""
        self._keep_smallest()
        numbers, rows = self._numbers[:count], self._rows[0][:count]
        order = np.argsort(numbers)
        return numbers[order], rows[order]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The sample and what it was drawn by."""
        self._keep_smallest()
        drawn_by = np.array([self.count, self.seed])
        return {"drawn_by": drawn_by, "numbers": self._numbers, "rows": self._rows[0]}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> RowSample:
        """The state that `to_arrays` wrote down."""
        count, seed = map(int, arrays["drawn_by"])
        state = cls(arrays["rows"].shape[1], count, seed)
        numbers = arrays["numbers"]
        state._offer(row_words(numbers, seed), numbers, [arrays["rows"]])
        return state
