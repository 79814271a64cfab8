"""Linkage on a graph of near rows: exact where the graph has all that is needed, near elsewhere."""

import importlib

import numpy as np
import pytest
import scipy.cluster.hierarchy as sch
from scipy.spatial.distance import cdist

from visreg_core.metrics import dendrogram_correlations, linkage

rounds = importlib.import_module("visreg_core.metrics.trees._rounds")

METHODS = [
    ("average", "cosine"),
    ("average", "sqeuclidean"),
    ("weighted", "cosine"),
    ("ward", "euclidean"),
]


def clusters(rng, n, d=16):
    coarse = rng.standard_normal((6, d))
    fine = coarse[rng.integers(6, size=60)] + 0.5 * rng.standard_normal((60, d))
    return fine[rng.integers(60, size=n)] + 0.3 * rng.standard_normal((n, d))


def neighbours(x, metric, k):
    distance = cdist(x, x, metric)
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1)[:, :k]


@pytest.mark.parametrize(("method", "metric"), METHODS)
def test_near_the_exact_tree(rng, method, metric, monkeypatch):
    monkeypatch.setattr(rounds, "_EXACT", 300)
    x = clusters(rng, 2000)
    exact = linkage(x, method, metric)
    graph = neighbours(x, metric, 12)
    # A tenth of the neighbours not found, as of a search that is in a hurry.
    missed = np.where(rng.random(graph.shape) < 0.1, -1, graph)
    for near in (graph, missed.astype(np.int64)):
        z = linkage(x, method, metric, graph=near)
        assert sch.is_valid_linkage(z, throw=True)
        assert sch.is_monotonic(z)
        found = dendrogram_correlations(exact, z)
        # In the weighted tree one merge that is not the nearest changes all above it.
        least = {"average": 0.999, "ward": 0.99, "weighted": 0.95}[method]
        assert min(found.pearson, found.spearman) > least


def test_few_clusters_are_exact(rng):
    """Of less than 16,384 rows the graph, however poor, is not needed."""
    x = clusters(rng, 400)
    poor = rng.integers(400, size=(400, 2))
    np.testing.assert_allclose(linkage(x, graph=poor), linkage(x), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("method", "metric"), METHODS)
@pytest.mark.parametrize("graph", ["none", "rings"])
def test_whatever_the_graph(rng, method, metric, graph, monkeypatch):
    """Clusters with no neighbour left are compared with all: every tree ends, and is monotone."""
    monkeypatch.setattr(rounds, "_EXACT", 0)
    x = clusters(rng, 300)
    x[20:40] = x[0]  # and identical rows are one
    x[7] = 0
    near = np.full((300, 1), -1)
    if graph == "rings":
        near = (np.arange(300) // 10 * 10 + (np.arange(300) + 1) % 10)[:, None]
    z = linkage(x, method, metric, graph=near)
    assert sch.is_valid_linkage(z, throw=True)
    assert sch.is_monotonic(z)
    if graph == "none":  # the first search, of all with all, makes good lists
        found = dendrogram_correlations(linkage(x, method, metric), z)
        assert found.pearson > 0.9


def test_the_same_on_every_backend(backend, rng, monkeypatch):
    monkeypatch.setattr(rounds, "_EXACT", 20)
    x = clusters(rng, 200)
    graph = neighbours(x, "cosine", 6)
    z = linkage(backend.asarray(x), graph=graph)
    np.testing.assert_array_equal(z, linkage(x, graph=graph))


def test_errors(rng):
    x = clusters(rng, 10)
    good = np.zeros((10, 2), dtype=int)
    for method, metric in (("single", "cosine"), ("complete", "cosine"), ("average", "euclidean")):
        with pytest.raises(ValueError, match="expected a graph with Ward's method"):
            linkage(x, method, metric, graph=good)
    with pytest.raises(ValueError, match=r"shape \(10, k\), integers; found shape \(9, 2\)"):
        linkage(x, graph=good[:9])
    with pytest.raises(ValueError, match=r"integers; found shape .* float64"):
        linkage(x, graph=good * 1.0)
    with pytest.raises(ValueError, match=r"rows 0 \.\.\. 9 in graph"):
        linkage(x, graph=good + 10)
    with pytest.raises(ValueError, match=r"rows 0 \.\.\. 9 in graph"):
        linkage(x, graph=good - 2)
