"""LiDAR against the formula with explicit matrices, scikit-learn's LDA, and closed forms."""

import numpy as np
import pytest
import scipy.linalg
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from visreg_core import metrics


def naive(x, groups, delta, eps=0.0):
    """Σ_w^{−1/2} Σ_b Σ_w^{−1/2} with a matrix square root, sums written as loops over groups."""
    names = sorted(set(groups))
    means = np.stack([x[groups == g].mean(axis=0) for g in names])
    deviations = [x[groups == g] - m for g, m in zip(names, means, strict=True)]
    scatter = sum(v.T @ v for v in deviations)
    within = scatter / (len(x) - len(names)) + delta * np.eye(x.shape[1])
    centred = means - means.mean(axis=0)
    between = centred.T @ centred / (len(names) - 1)
    root = np.linalg.inv(scipy.linalg.sqrtm(within))
    values = np.linalg.eigvalsh(root @ between @ root).clip(0) + eps
    p = values[values > 0] / values.sum()
    return np.exp(-np.sum(p * np.log(p)))


def grouped(rng, sizes, d, spread=2.0):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    means = spread * rng.standard_normal((len(sizes), d)) * np.arange(1, d + 1) ** -0.7
    order = rng.permutation(groups.size)
    return (means[groups] + rng.standard_normal((groups.size, d)) + 5.0)[order], groups[order]


@pytest.mark.parametrize("sizes", [[4] * 12, [2, 9, 3, 1, 5, 5]])
@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize("delta", [1e-4, 0.5])
def test_lidar_is_its_definition(where, rng, sizes, d, delta):
    x, groups = grouped(rng, sizes, d)
    value = metrics.lidar(where.asarray(x), groups, delta=delta)
    assert type(value) is float
    assert value == pytest.approx(
        naive(x, groups, delta), rel=1e-8 if where.dtype == "float64" else 3e-3
    )


def test_published_epsilon(rng):
    x, groups = grouped(rng, [4] * 5, 8)
    value = metrics.lidar(x, groups, convention="stable-pretraining")
    assert value == pytest.approx(naive(x, groups, 1e-4, 1e-8), rel=1e-6)
    assert value != metrics.lidar(x, groups)


def test_eigenvalues_are_those_of_linear_discriminants(rng):
    x, groups = grouped(rng, [6] * 9, 5)
    fitted = LinearDiscriminantAnalysis(solver="eigen").fit(x, groups)
    p = fitted.explained_variance_ratio_
    p = p[p > 0]
    value = metrics.lidar(x, groups, delta=1e-12)
    assert value == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-8)


def test_symmetric_means_and_bounds(rng):
    d = 6
    means = np.concatenate([np.eye(d), -np.eye(d)])
    x = np.concatenate([means, means])
    assert metrics.lidar(x, np.tile(np.arange(2 * d), 2)) == pytest.approx(d)
    x, groups = grouped(rng, [3] * 4, 50)
    assert metrics.lidar(x, groups) <= 3


def test_group_names_scale_and_order_do_not_matter(rng):
    x, groups = grouped(rng, [4] * 6, 5)
    value = metrics.lidar(x, groups, delta=1e-10)
    names = np.asarray(["f", "e", "d", "c", "b", "a"])[groups]
    assert metrics.lidar(x, names, delta=1e-10) == pytest.approx(value, rel=1e-12)
    order = rng.permutation(groups.size)
    assert metrics.lidar(x[order], groups[order], delta=1e-10) == pytest.approx(value, rel=1e-10)
    assert metrics.lidar(1e3 * x + 7, groups, delta=1e-4) == pytest.approx(value, rel=1e-6)


def test_collapse_is_rank_zero(where):
    x = where.asarray(np.full((12, 4), 0.1))
    assert metrics.lidar(x, np.repeat([0, 1, 2], 4)) == 0


def test_bad_input(rng):
    x = rng.standard_normal((6, 3))
    with pytest.raises(ValueError, match=r"groups of shape \(6,\); found shape \(5,\)"):
        metrics.lidar(x, range(5))
    for groups in ([0] * 6, range(6)):
        with pytest.raises(ValueError, match="at least two groups, one of several rows"):
            metrics.lidar(x, groups)
    with pytest.raises(ValueError, match="delta"):
        metrics.lidar(x, [0, 0, 0, 1, 1, 1], delta=0)
    with pytest.raises(ValueError, match="convention"):
        metrics.lidar(x, [0, 0, 0, 1, 1, 1], convention="reptrix")
