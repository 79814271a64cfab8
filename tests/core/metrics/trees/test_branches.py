"""Correlations inside branches against NumPy's, from all cophenetic distances."""

import numpy as np
import pytest
from scipy.spatial.distance import squareform

from visreg_core.metrics import (
    branch_correlations,
    cophenetic_distances,
    dendrogram_correlations,
    disagreeing_branches,
    linkage,
)
from visreg_core.metrics.trees import _pair_counts


def members(z):
    n = len(z) + 1
    below = [[i] for i in range(n)]
    for a, b in z[:, :2].astype(int):
        below.append(below[a] + below[b])
    return below[n:]


def naive(first, second):
    a, b = (squareform(cophenetic_distances(z)) for z in (first, second))
    out = []
    for leaves in members(first):
        i, j = np.triu_indices(len(leaves), 1)
        i, j = np.asarray(leaves)[i], np.asarray(leaves)[j]
        constant = len(np.unique(a[i, j])) == 1 or len(np.unique(b[i, j])) == 1
        out.append(np.nan if constant else np.corrcoef(a[i, j], b[i, j])[0, 1])
    return np.asarray(out)


@pytest.mark.parametrize("block", [1 << 20, 8])
def test_every_branch(rng, block, monkeypatch):
    monkeypatch.setattr(_pair_counts, "_BLOCK", block)
    x = rng.standard_normal((60, 3))
    y = x + 0.3 * rng.standard_normal((60, 3))
    y[:9] = y[0]  # branches of height 0
    first, second = linkage(x, metric="euclidean"), linkage(y, metric="euclidean")
    found = branch_correlations(first, second)
    np.testing.assert_allclose(found, naive(first, second), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found[-1], dendrogram_correlations(first, second).pearson)
    np.testing.assert_allclose(
        branch_correlations(second, first), naive(second, first), rtol=1e-9, atol=1e-12
    )


def test_low_branches_keep_their_digits(rng):
    """Heights 1e-9 of the whole tree's, whose sums of squares would cancel."""
    x = np.repeat([[0.0], [100.0]], 30, axis=0) + 1e-7 * rng.standard_normal((60, 1))
    y = np.repeat([[0.0], [100.0]], 30, axis=0) + 1e-7 * rng.standard_normal((60, 1))
    first, second = linkage(x, metric="euclidean"), linkage(y, metric="euclidean")
    np.testing.assert_allclose(
        branch_correlations(first, second), naive(first, second), rtol=1e-6, atol=1e-9
    )


def test_the_branch_that_was_changed(rng):
    """Of ten clusters with clusters inside, one is arranged anew."""
    fine = rng.standard_normal((10, 1, 1, 5)) * 50 + rng.standard_normal((10, 4, 1, 5)) * 6
    x = (fine + rng.standard_normal((10, 4, 8, 5))).reshape(320, 5)
    y = x + 0.01 * rng.standard_normal(x.shape)
    y[96:128] = rng.permutation(y[96:128])
    first, second = (linkage(z, metric="euclidean") for z in (x, y))
    found = disagreeing_branches(first, second, min_leaves=20)
    assert set(found[0].leaves.tolist()) <= set(range(96, 128))
    assert found[0].correlation < 0.3
    assert all(b.correlation > 0.9 for b in found[1:])
    assert found[0].correlation == branch_correlations(first, second)[found[0].merge]
    assert found[0].height == first[found[0].merge, 2]
    everything = np.concatenate([b.leaves for b in found])
    assert len(np.unique(everything)) == len(everything)
    assert len(disagreeing_branches(first, second, min_leaves=20, n_branches=2)) == 2


@pytest.mark.parametrize(("n", "least"), [(60, 5), (400, 8)])
def test_disjoint_branches_of_the_default_sizes(rng, n, least):
    x, y = rng.standard_normal((2, n, 3))
    first, second = linkage(x, metric="euclidean"), linkage(y, metric="euclidean")
    correlation, below, taken, expected = naive(first, second), members(first), set(), []
    for k in np.argsort(correlation):  # NaN last
        fits = least <= len(below[k]) <= n / 2 and not np.isnan(correlation[k])
        if fits and taken.isdisjoint(below[k]):
            taken.update(below[k])
            expected.append(k)
    found = disagreeing_branches(first, second, n_branches=n)
    assert [b.merge for b in found] == expected
    assert disagreeing_branches(first, second, n_branches=n, min_leaves=n // 2 + 1) == []


def test_collapsed_and_infinite_trees(rng):
    z = linkage(np.ones((12, 2)))
    assert np.isnan(branch_correlations(z, z)).all()
    assert disagreeing_branches(z, z) == []
    far = linkage(np.asarray([[0.0], [1e150], [2.5e150], [1e156]]), metric="sqeuclidean")
    assert np.isinf(far[-1, 2])
    found = branch_correlations(far, far)
    assert found[1] == 1
    assert np.isnan(found[[0, 2]]).all()


def test_errors(rng):
    z = linkage(rng.standard_normal((12, 2)))
    with pytest.raises(ValueError, match="12 and 11 leaves"):
        branch_correlations(z, linkage(rng.standard_normal((11, 2))))
    with pytest.raises(ValueError, match="min_leaves"):
        disagreeing_branches(z, z, min_leaves=2)
    with pytest.raises(ValueError, match="n_branches"):
        disagreeing_branches(z, z, n_branches=0)
