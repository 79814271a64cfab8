"""What two files have in common."""

from __future__ import annotations

import math

import numpy as np

from visreg_core.metrics import linear_cka_from_covariances
from visreg_core.metrics.similarity import shared_neighbors
from visreg_core.report._drift import drift_rows, drift_test
from visreg_core.report._model import ChangedNeighbors, Measurement, Pair
from visreg_core.report._one_file import File, Plan, mean_of
from visreg_core.report._streaming import two_sample_values
from visreg_core.report._trees import tree_pair
from visreg_core.statistics import CrossScatter

_NEIGHBORS = 10
_SHOWN = 5  # rows whose neighbours changed most


def pair_of(first: File, second: File, cross: CrossScatter | None, plan: Plan) -> Pair:
    a, b = first.chosen, second.chosen
    distance = drift = cka = common = changed = trees = None
    if a.shape[1] == b.shape[1]:
        assert first.projected is not None and second.projected is not None
        plan.tick("two samples", 0, 1)
        values, bound = two_sample_values(first.projected, second.projected)
        distance = _root(mean_of(values))._replace(bound=bound or None)
        count = drift_rows(a, [b]), drift_rows(b, [a])
        of_a, of_b = (
            f.first.sample.result(c)[1] for f, c in zip((first, second), count, strict=True)
        )
        drift = drift_test(
            of_a, of_b, (a.shape[0], b.shape[0]), first.first.slices,
            paired=plan.paired, seed=plan.seed, tick=plan.tick,
        )  # fmt: skip
    if cross is not None:
        cka = linear_cka_from_covariances(
            first.moments.scatter(), second.moments.scatter(), cross.result()
        )
        x, y = first.rows.points, second.rows.points
        k = min(_NEIGHBORS, len(x) - 1)
        kept = shared_neighbors(x, y.astype(x.dtype, copy=False), k) / k
        common = max(float(kept.mean()), 0.0)
        changed = _changed(kept, first.rows.names, k)
        plan.tick("similarity of dendrograms", 0, 1)
        trees = tree_pair(first.rows, second.rows)
    return Pair(a.name, b.name, distance, drift, cka, common, changed, trees)


def _changed(kept: np.ndarray, names: np.ndarray, k: int) -> ChangedNeighbors:
    least = np.argsort(kept, kind="stable")[:_SHOWN]
    lost = int(np.sum(kept <= 0))
    return ChangedNeighbors(names[least].tolist(), kept[least].tolist(), k, lost, len(kept))


def _root(power: Measurement) -> Measurement:
    """√ of an estimate, its error by the first-order expansion."""
    root = math.sqrt(power.value)
    return Measurement(
        root, power.standard_error / (2 * root) if root and power.standard_error else 0.0
    )
