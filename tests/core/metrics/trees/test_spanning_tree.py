"""Minimum spanning trees against networkx, and single linkage against SciPy's."""

import importlib

import networkx
import numpy as np
import pytest
import scipy.cluster.hierarchy as sch
from scipy.spatial.distance import cdist

from visreg_core.metrics import linkage

module = importlib.import_module("visreg_core.metrics.trees._spanning_tree")


def clusters(rng, n, d, *, width=0.1):
    return rng.standard_normal((12, d))[rng.integers(12, size=n)] + width * rng.standard_normal(
        (n, d)
    )


def networkx_tree(squared):
    """The one tree by (length, first, second): with the place in that order for a length."""
    n = len(squared)
    first, second = np.triu_indices(n, 1)
    order = np.lexsort((second, first, squared[first, second]))
    graph = networkx.Graph()
    for rank, e in enumerate(order):
        graph.add_edge(int(first[e]), int(second[e]), weight=rank)
    edges = networkx.minimum_spanning_edges(graph, data=False)
    return {(min(e), max(e)) for e in edges}


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 16)
    monkeypatch.setattr(module, "_PAIR_BLOCK", 50)


@pytest.mark.parametrize("make", ["clusters", "lattice", "line", "tight"])
def test_the_tree_of_networkx(rng, make, small_tiles):
    x = {
        "clusters": lambda: clusters(rng, 150, 6),
        "lattice": lambda: np.stack(np.meshgrid(*[np.arange(5.0)] * 3), -1).reshape(-1, 3),
        "line": lambda: np.arange(130.0)[:, None],
        "tight": lambda: clusters(rng, 150, 6, width=1e-9),
    }[make]()
    x = rng.permutation(x)
    edges = module.spanning_tree(x)
    squared = ((x[:, None] - x) ** 2).sum(axis=2)
    assert set(zip(edges.first.tolist(), edges.second.tolist(), strict=True)) == networkx_tree(
        squared
    )
    np.testing.assert_array_equal(edges.squared, np.sort(edges.squared))
    np.testing.assert_allclose(edges.squared, squared[edges.first, edges.second], rtol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 17, 33, 400])
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "sqeuclidean"])
def test_single_linkage_of_scipy(rng, n, metric, small_tiles):
    x = clusters(rng, n, 5)
    z, reference = linkage(x, "single", metric), sch.linkage(x, "single", metric)
    np.testing.assert_allclose(z[:, 2], reference[:, 2], rtol=1e-10, atol=1e-15)
    np.testing.assert_array_equal(z[:, [0, 1, 3]], reference[:, [0, 1, 3]])


def test_threads_make_the_same_tree(rng, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 200)
    x = clusters(rng, 3000, 16)
    threads = importlib.import_module("visreg_core.threads")
    expected = linkage(x, "single", "euclidean")
    with threads.at_most_threads(1):
        np.testing.assert_array_equal(linkage(x, "single", "euclidean"), expected)
    monkeypatch.setattr(threads, "_cores", lambda: 3)
    np.testing.assert_array_equal(linkage(x, "single", "euclidean"), expected)
    np.testing.assert_allclose(
        expected[:, 2], sch.linkage(x, "single", "euclidean")[:, 2], rtol=1e-10
    )


def test_a_zero_vector_links_what_is_opposite(rng):
    """It is at 1 from everything, and so on the way between whatever is farther apart."""
    x = np.concatenate([clusters(rng, 20, 3) + 5, -clusters(rng, 20, 3) - 5, np.zeros((1, 3))])
    z = linkage(x, "single", "cosine")
    assert z[-2:, 2].tolist() == [1, 1]
    unit = x[:40] / np.linalg.norm(x[:40], axis=1)[:, None]
    assert (cdist(unit[:20], unit[20:], "sqeuclidean") / 2).min() > 1
    np.testing.assert_allclose(linkage(x[[0, 40]], "single", "cosine")[:, 2], 1, rtol=0)


def test_few_distances_are_measured(rng, monkeypatch):
    """Of N²/2 distances all but some for each point are left to products."""
    monkeypatch.setattr(module, "_BLOCK", 250)
    measured = []
    original = module._measured
    monkeypatch.setattr(
        module,
        "_measured",
        lambda points, first, second: (
            measured.append(first.size) or original(points, first, second)
        ),
    )
    # In tight clusters only blocks that hold parts of two measure all that they share.
    for width, most in ((0.1, 150 * 3000), (1e-7, 3000**2 / 8)):
        measured.clear()
        module.spanning_tree(clusters(rng, 3000, 16, width=width))
        assert sum(measured) < most
