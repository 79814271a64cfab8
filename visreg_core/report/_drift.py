"""Are two files rows of one distribution? A permutation test of their sliced Wasserstein distance.

The distance of two finite samples is never 0. Its error bar over slices is that of the average, and
says nothing of how far samples of one distribution are from each other. Permutations do: rows of
both files are dealt to two sides of the same sizes. The p-value is exact where rows are
independent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from visreg_core.embeddings import Embeddings
from visreg_core.metrics.two_sample import (
    SidesDistance,
    dealt_sides,
    own_sides,
    permutation_p_value,
)
from visreg_core.report._model import Drift
from visreg_core.report._streaming import Tick

N_PERMUTATIONS = 199
# Rows of both files together, and rows times slices: some seconds.
_ROWS = 100_000
_CELLS = 600_000
# Numbers of all files' rows (256 MiB).
_KEPT_VALUES = 1 << 26


def drift_rows(of: Embeddings, others: Sequence[Embeddings]) -> int:
    """How many rows of a file the tests with those others of its width take, at least 2."""
    n, d = of.shape
    sizes = [o.shape[0] for o in others if o.shape[1] == d]
    share = max((min(1.0, _ROWS / (n + m)) for m in sizes), default=0.0)
    return max(2, min(round(share * n), _KEPT_VALUES // (d * (len(others) + 1))))


def drift_test(
    of_a: np.ndarray,
    of_b: np.ndarray,
    sizes: tuple[int, int],
    slices: np.ndarray,
    *,
    paired: bool,
    seed: int,
    tick: Tick,
) -> Drift:
    """The test on samples of two files of these `sizes`, of as many `slices` as take seconds."""
    n, m = sizes
    rows = len(of_a), len(of_b)
    k = min(slices.shape[1], max(1, _CELLS // sum(rows)))
    directions = slices[:, :k].T
    pooled = np.concatenate(
        [_projections(of_a, directions), _projections(of_b, directions)], axis=1
    )
    distance = SidesDistance(pooled, *rows)
    found = distance(own_sides(*rows))
    dealt = np.empty(N_PERMUTATIONS)
    for i, sides in enumerate(dealt_sides(*rows, N_PERMUTATIONS, seed, paired=paired)):
        tick("drift", i, N_PERMUTATIONS)
        dealt[i] = distance(sides)
    p = permutation_p_value(found, dealt)
    # The squared distance of samples of one distribution is proportional to 1/n + 1/m.
    larger = (1 / n + 1 / m) / (1 / rows[0] + 1 / rows[1])
    chance = np.sqrt(dealt * larger)
    return Drift(
        float(chance.mean()),
        float(np.quantile(chance, 0.95)),
        p,
        rows,
        k,
        N_PERMUTATIONS,
        paired,
    )


def _projections(rows: np.ndarray, directions: np.ndarray) -> np.ndarray:
    return np.asarray(directions.astype(rows.dtype) @ rows.T)
