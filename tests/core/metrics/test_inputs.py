"""Every metric of embeddings refuses rows with NaN or infinity, in one line that counts them."""

import inspect

import numpy as np
import pytest

from visreg_core import metrics, random_slices

LABELS = np.arange(15) % 3
SLICES = random_slices(4, 6)

OF_ONE = {
    "alpha_req": metrics.alpha_req,
    "condition_number": metrics.condition_number,
    "cophenetic_correlation": metrics.cophenetic_correlation,
    "effective_rank": metrics.effective_rank,
    "gaussianity": lambda x: metrics.gaussianity(x, SLICES),
    "hierarchical_knn_accuracy": lambda x: metrics.hierarchical_knn_accuracy(x, LABELS, k=3),
    "hierarchical_linear_accuracy": lambda x: metrics.hierarchical_linear_accuracy(x, LABELS),
    "hierarchical_rand_index": lambda x: metrics.hierarchical_rand_index(x, LABELS),
    "lidar": lambda x: metrics.lidar(x, LABELS),
    "linkage": metrics.linkage,
    "participation_ratio": metrics.participation_ratio,
    "rand_index_sweep": lambda x: metrics.rand_index_sweep(x, LABELS, [3]),
    "rankme": metrics.rankme,
    "singular_values": metrics.singular_values,
    "stable_rank": metrics.stable_rank,
    "uniformity": metrics.uniformity,
    "worst_direction": lambda x: metrics.worst_direction(x, SLICES),
}
OF_TWO = {
    "alignment": metrics.alignment,
    "cophenetic_similarity": metrics.cophenetic_similarity,
    "lca_similarity": metrics.lca_similarity,
    "linear_cka": metrics.linear_cka,
    "mutual_knn": lambda x, y: metrics.mutual_knn(x, y, 3),
}


def test_no_metric_is_missing():
    takes_x = {
        name
        for name in metrics.__all__
        if inspect.isfunction(function := getattr(metrics, name))
        and "x" in list(inspect.signature(function).parameters)[:1]
    }
    assert takes_x == {*OF_ONE, *OF_TWO}


@pytest.mark.parametrize("name", OF_ONE)
def test_rows_that_are_not_finite(rng, name):
    x = rng.standard_normal((15, 4))
    OF_ONE[name](x)
    x[3, 1], x[7] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"^expected finite x; .* infinity in 2 rows \(3, 7\)$"):
        OF_ONE[name](x)


@pytest.mark.parametrize("name", OF_TWO)
def test_rows_of_two_sets_that_are_not_finite(rng, name):
    x = rng.standard_normal((15, 4))
    bad = x.copy()
    bad[5] = -np.inf
    with pytest.raises(ValueError, match=r"^expected finite x; .* infinity in 1 row \(5\)$"):
        OF_TWO[name](bad, x)
    with pytest.raises(ValueError, match=r"^expected finite y; .* infinity in 1 row \(5\)$"):
        OF_TWO[name](x, bad)
    with pytest.raises(ValueError, match=r"^expected finite x; "):
        metrics.compare_lca_similarity((bad, x), (x, x))


def test_rows_to_classify_that_are_not_finite(rng):
    x = rng.standard_normal((15, 4))
    bad = x.copy()
    bad[0] = np.nan
    for function in (metrics.hierarchical_knn_accuracy, metrics.hierarchical_linear_accuracy):
        with pytest.raises(ValueError, match=r"^expected finite test; "):
            function(x, LABELS, test=bad, test_labels=LABELS)


def test_on_every_backend(where, rng):
    x = rng.standard_normal((8, 3))
    x[1:] = np.nan
    with pytest.raises(ValueError, match=r"7 rows \(1, 2, 3, 4, 5, \.\.\.\)"):
        metrics.linkage(where.asarray(x))
