"""What two files have in common."""

from __future__ import annotations

import math

from visreg_core.metrics import linear_cka_from_covariances, mutual_knn
from visreg_core.report._drift import drift_test
from visreg_core.report._model import Measurement, Pair
from visreg_core.report._one_file import File, mean_of
from visreg_core.report._streaming import Place, Tick, cross_scatter, two_sample_values
from visreg_core.report._trees import tree_pair
from visreg_core.slices import random_slices

_NEIGHBORS = 10


def pair_of(
    first: File, second: File, paired: bool, seed: int, n_slices: int, place: Place, tick: Tick
) -> Pair:
    a, b = first.chosen, second.chosen
    distance = drift = cka = common = trees = None
    if a.shape[1] == b.shape[1]:
        slices = random_slices(a.shape[1], n_slices, seed=seed)
        distance = _root(mean_of(two_sample_values(a, b, slices, place, tick)))
        drift = drift_test(a, b, slices, paired=paired, seed=seed, tick=tick)
    if paired:
        cross = cross_scatter(a, b, first.moments, second.moments, tick)
        cka = linear_cka_from_covariances(first.moments.scatter(), second.moments.scatter(), cross)
        x, y = first.rows.points, second.rows.points
        common = mutual_knn(x, y.astype(x.dtype, copy=False), min(_NEIGHBORS, len(x) - 1))
        tick("similarity of dendrograms", 0, 1)
        trees = tree_pair(first.rows, second.rows)
    return Pair(a.name, b.name, distance, drift, cka, common, trees)


def _root(power: Measurement) -> Measurement:
    """√ of an estimate, its error by the first-order expansion."""
    root = math.sqrt(power.value)
    return Measurement(
        root, power.standard_error / (2 * root) if root and power.standard_error else 0.0
    )
