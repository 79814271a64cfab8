"""The summary of a run's log: which measures, of what."""

import numpy as np
import pytest

from visreg_core import metrics


def test_one_view(rng):
    z = rng.normal(size=(40, 6)) * np.arange(1, 7) + 5
    found = metrics.summary(z)
    assert found == {
        "rankme": metrics.rankme(z),
        "effective_rank": pytest.approx(metrics.effective_rank(z, convention="covariance")),
        "uniformity": metrics.uniformity(z),
        "std": pytest.approx(np.sqrt(z.var(axis=0).mean())),
    }
    assert metrics.summary(z[None]) == found


def test_two_views(rng):
    views = rng.normal(size=(3, 40, 6))
    views[1] += 2 * views[0]
    found = metrics.summary(views, n_neighbors=3)
    x, y, _ = views
    assert found["alignment"] == metrics.alignment(x, y)
    assert found["knn_agreement"] == metrics.mutual_knn(x, y, 3)
    assert found["lca_stability"] == metrics.lca_similarity(x, y).spearman
    few = metrics.summary(views[:, :2])
    assert few["knn_agreement"] == 1 and "lca_stability" not in few


@pytest.mark.parametrize("scale", [0.0, 1e-200, 1e150])
def test_collapse_and_scales(scale):
    z = scale * np.random.default_rng(0).normal(size=(40, 6))
    assert metrics.summary(z)["std"] == pytest.approx(np.std(z / (scale or 1)) * scale, rel=0.05)


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"expected z \(N, D\) or \(V, N, D\); found shape \(4,\)"):
        metrics.summary(np.zeros(4))
    with pytest.raises(TypeError, match=r"expected an array of numpy, .*; found builtins\.list"):
        metrics.summary([[0.0, 1.0], [1.0, 0.0]])
