"""Are two files rows of one distribution? A permutation test of their sliced Wasserstein distance.

The distance of two finite samples is never 0. Its error bar over slices is that of the average, and
says nothing of how far samples of one distribution are from each other. Permutations do: rows of
both files are dealt to two sides of the same sizes. The p-value is exact where rows are
independent.
"""

from __future__ import annotations

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


def drift_test(
    a: Embeddings,
    b: Embeddings,
    slices: np.ndarray,
    *,
    paired: bool,
    seed: int,
    tick: Tick,
) -> Drift:
    """The test on as many rows and of `slices` (D, K) as some seconds allow."""
    n, m = a.shape[0], b.shape[0]
    share = min(1.0, _ROWS / (n + m))
    of_a, of_b = (s.sample(max(2, round(share * s.shape[0])), seed=seed) for s in (a, b))
    rows = of_a.shape[0], of_b.shape[0]
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


def _projections(stored: Embeddings, directions: np.ndarray) -> np.ndarray:
    wide: type[np.floating] = np.float64 if stored.dtype == np.float64 else np.float32
    w: np.ndarray = directions.astype(wide)
    return np.concatenate([w @ z.astype(wide, copy=False).T for z in stored.blocks()], axis=1)
