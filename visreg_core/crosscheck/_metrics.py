"""Checks of the metrics: Python numbers and NumPy arrays from arrays of any library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from visreg_core import _xp, metrics
from visreg_core.crosscheck._check import TOLERANCES, Check, Fields, as_fields, largest
from visreg_core.crosscheck._inputs import Arrays
from visreg_core.typing import Array


def _metric(
    function: str,
    call: Callable[[Arrays], Any],
    variant: str = "",
    *,
    tolerance: str = "metric",
    inputs: str = "given",
    host: bool = False,
) -> Check:
    return Check(
        function,
        variant,
        "metric",
        inputs,
        lambda c: as_fields(call(c.arrays)),
        lambda arrays, reference: tuple(max(1.0, r) for r in largest(reference)),
        TOLERANCES[tolerance],
        "host",
        conditioned=True,
        host=host,
    )


def _gaussianity(arrays: Arrays) -> Fields:
    tests = metrics.gaussianity(arrays["z"], arrays["slices"], n_simulations=1)
    return tuple(v for t in tests for v in (t.mean, t.max, t.mean_z, t.max_z))


def _normality(arrays: Arrays) -> Fields:
    test = metrics.sliced_normality_test(arrays["z"], arrays["slices"], n_simulations=1)
    return test.mean, test.max, test.values


def _linkage(x: Array, **options: str) -> Fields:
    tree = metrics.linkage(x, **options)
    return tree[:, 2], tree[:, [0, 1, 3]]  # heights; clusters and sizes


def _worst_direction(arrays: Arrays) -> Fields:
    found = metrics.worst_direction(arrays["z"], arrays["slices"], n_steps=2)
    return found.statistic, found.z, _xp.to_numpy(found.direction)


def _on_host(labels: Array) -> np.ndarray:
    return _xp.to_numpy(labels)


def _resolved_ranks(arrays: Arrays) -> tuple[int, int]:
    """Ranks of the eigenvalues that float32 resolves, for the fit of α."""
    s = metrics.singular_values(_xp.to_numpy(arrays["z"]).astype(np.float64), center=True)
    return 1, max(2, int(np.sum(s > 1e-2 * s[0])))


METRICS: tuple[Check, ...] = (
    _metric("rankme", lambda a: metrics.rankme(a["z"])),
    _metric("effective_rank", lambda a: metrics.effective_rank(a["z"])),
    _metric("stable_rank", lambda a: metrics.stable_rank(a["z"])),
    _metric("participation_ratio", lambda a: metrics.participation_ratio(a["z"])),
    _metric(
        "alpha_req",
        lambda a: metrics.alpha_req(a["z"], fit_range=_resolved_ranks(a)),
        "resolved ranks",
    ),
    # σ_min has the absolute accuracy of σ_max, and so has the reciprocal of the condition number.
    _metric("condition_number", lambda a: 1 / metrics.condition_number(a["z"]), "reciprocal"),
    _metric("singular_values", lambda a: metrics.singular_values(a["z"])),
    _metric("alignment", lambda a: metrics.alignment(a["a"], a["b"])),
    _metric("uniformity", lambda a: metrics.uniformity(a["z"])),
    _metric("linear_cka", lambda a: metrics.linear_cka(a["a"], a["b"])),
    _metric("mutual_knn", lambda a: metrics.mutual_knn(a["a"], a["b"])),
    _metric("lidar", lambda a: metrics.lidar(a["z"], _on_host(a["labels"])[:, 1].tolist())),
    _metric("gaussianity", _gaussianity),
    _metric("sparsity", lambda a: metrics.sparsity(a["z"])),
    _metric("sliced_normality_test", _normality),
    _metric("henze_zirkler", lambda a: metrics.henze_zirkler(a["z"]).statistic),
    _metric(
        "two_sample_test", lambda a: metrics.two_sample_test(a["z"], a["y"], n_permutations=1)[:2]
    ),
    # One rounding may change where a few steps of ascent lead, so only on suitable embeddings.
    _metric("worst_direction", _worst_direction, inputs="own"),
    _metric("linkage", lambda a: _linkage(a["z"])),
    _metric("linkage", lambda a: _linkage(a["z"], method="ward", metric="euclidean"), "Ward"),
    _metric("lca_similarity", lambda a: metrics.lca_similarity(a["a"], a["b"])),
    _metric(
        "lca_similarity",
        lambda a: metrics.lca_similarity(a["a"], a["b"], distance="depth"),
        "depth",
    ),
    _metric("cophenetic_similarity", lambda a: metrics.cophenetic_similarity(a["a"], a["b"])),
    _metric("cophenetic_correlation", lambda a: metrics.cophenetic_correlation(a["z"])),
    _metric(
        "hierarchical_knn_accuracy",
        lambda a: metrics.hierarchical_knn_accuracy(a["z"], _on_host(a["labels"]), k=5),
    ),
    _metric(
        "hierarchical_linear_accuracy",
        lambda a: metrics.hierarchical_linear_accuracy(a["z"], _on_host(a["labels"]), n_folds=2),
        host=True,
    ),
    _metric(
        "hierarchical_rand_index",
        lambda a: (
            metrics.hierarchical_rand_index(
                a["z"], _on_host(a["labels"]), clustering="dendrogram"
            ).rand
        ),
        "dendrogram",
    ),
    _metric(
        "rand_index_sweep",
        lambda a: (
            metrics.rand_index_sweep(
                a["z"], _on_host(a["labels"])[:, 1:], (2, 3, 5), clustering="dendrogram"
            ).rand
        ),
        "dendrogram",
    ),
)
