"""The estimator by scikit-learn's own checks, and beside its agglomerative clustering."""

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from visreg_core.metrics.trees.estimator import HierarchicalClustering


@parametrize_with_checks(
    [
        HierarchicalClustering(),
        HierarchicalClustering(metric="euclidean", linkage="ward"),
        HierarchicalClustering(linkage="single"),
    ]
)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


CASES = [
    ("average", "cosine"),
    ("ward", "euclidean"),
    ("single", "euclidean"),
    ("complete", "euclidean"),
]


@pytest.mark.parametrize(("linkage", "metric"), CASES)
@pytest.mark.parametrize("k", [1, 2, 7, 80])
def test_as_agglomerative_clustering(rng, linkage, metric, k):
    x = rng.standard_normal((80, 4))
    ours = HierarchicalClustering(k, linkage=linkage, metric=metric).fit(x)
    theirs = AgglomerativeClustering(k, linkage=linkage, metric=metric, compute_distances=True).fit(
        x
    )
    assert adjusted_rand_score(ours.labels_, theirs.labels_) == 1
    np.testing.assert_allclose(np.sort(ours.distances_), np.sort(theirs.distances_), rtol=1e-9)
    assert (ours.n_clusters_, ours.n_leaves_) == (k, 80)
    threshold = ours.distances_[60]  # at the threshold clusters are not merged
    cut = HierarchicalClustering(None, linkage=linkage, metric=metric, distance_threshold=threshold)
    cut.fit(x)
    assert cut.n_clusters_ == 20
    np.testing.assert_array_equal(cut.children_, ours.children_)
    np.testing.assert_array_equal(cut.linkage_matrix_[:, 2], ours.distances_)


def test_errors(rng):
    x = rng.standard_normal((8, 2))
    for both in ({"distance_threshold": 1.0}, {"n_clusters": None}):
        with pytest.raises(ValueError, match="either n_clusters or distance_threshold"):
            HierarchicalClustering(**both).fit(x)
    for threshold in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="distance_threshold to be a finite number >= 0"):
            HierarchicalClustering(None, distance_threshold=threshold).fit(x)
    with pytest.raises(ValueError, match="n_clusters <= N = 8; found 9"):
        HierarchicalClustering(9).fit(x)
