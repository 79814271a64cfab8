"""Cuts, cophenetic distances, graphs and tanglegrams against SciPy, NetworkX and brute force."""

import itertools
import re
import sys

import networkx as nx
import numpy as np
import pytest
import scipy.cluster.hierarchy as sch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from tests.core.metrics.trees.test_tree_similarity import random_tree, trees
from visreg_core import metrics
from visreg_core.metrics.trees._tree import redrawn


@settings(max_examples=100, deadline=None)
@given(trees)
def test_cuts_are_scipys(tree):
    n, chain, levels, seed = tree
    z = random_tree(np.random.default_rng(seed), n, chain, levels)
    for k in range(1, n + 1):
        labels = metrics.cut_tree(z, n_clusters=k)
        assert labels.dtype.kind == "i"
        assert labels[0] == 0
        assert len(set(labels.tolist())) == k
        # In the order in which they first occur.
        assert np.all(np.diff(np.unique(labels, return_index=True)[1]) > 0)
        if levels is None:
            theirs = sch.fcluster(z, k, "maxclust")
            assert n == k or adjusted_rand_score(labels, theirs) == 1
    for height in (-1.0, *z[:, 2], z[-1, 2] + 1, (z[0, 2] + z[-1, 2]) / 2):
        labels = metrics.cut_tree(z, height=height)
        theirs = sch.fcluster(z, height, "distance") if height >= 0 else np.arange(n)
        pairs = set(zip(labels.tolist(), theirs.tolist(), strict=True))
        assert len(pairs) == len(set(labels.tolist())) == len(set(theirs.tolist()))


def test_cophenetic_distances(backend, rng):
    z = metrics.linkage(rng.standard_normal((40, 3)))
    result = metrics.cophenetic_distances(backend.asarray(z))
    np.testing.assert_array_equal(result, sch.cophenet(z))


def test_networkx_tree(rng):
    z = metrics.linkage(rng.standard_normal((25, 3)))
    graph = metrics.to_networkx(z)
    assert nx.is_arborescence(graph)
    assert sorted(graph.nodes) == list(range(49))
    assert [v for v in graph if graph.in_degree(v) == 0] == [48]
    heights = nx.get_node_attributes(graph, "height")
    lca = dict(nx.tree_all_pairs_lowest_common_ancestor(graph))
    ours = metrics.cophenetic_distances(z)
    for value, pair in zip(ours, itertools.combinations(range(25), 2), strict=True):
        assert heights[lca[pair] if pair in lca else lca[pair[::-1]]] == value
    for node, size in graph.nodes(data="size"):
        leaves = [v for v in nx.descendants(graph, node) | {node} if v < 25]
        assert len(leaves) == size


def test_networkx_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(ImportError, match="to_networkx needs networkx"):
        metrics.to_networkx(np.asarray([[0.0, 1.0, 1.0, 2.0]]))


def crossings(left, right):
    place = np.argsort(right)[left]
    return sum(a > b for a, b in itertools.combinations(place.tolist(), 2))


def layouts(z):
    """All leaf orders of a dendrogram."""
    n = len(z) + 1
    orders = {i: [[i]] for i in range(n)}
    for k, (a, b) in enumerate(z[:, :2].astype(int).tolist()):
        orders[n + k] = [
            p + q for one, other in ((a, b), (b, a)) for p in orders[one] for q in orders[other]
        ]
    return orders[2 * n - 2]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 7), st.integers(0, 10**6))
def test_tanglegram_is_optimal_tree_by_tree(n, seed):
    rng = np.random.default_rng(seed)
    a, b = random_tree(rng, n), random_tree(rng, n)
    layout = metrics.tanglegram(a, b)
    left, right = layout.left.tolist(), layout.right.tolist()
    assert left in layouts(a)
    assert right in layouts(b)
    assert layout.crossings == crossings(left, right)
    assert layout.crossings == min(crossings(order, right) for order in layouts(a))
    assert layout.crossings == min(crossings(left, order) for order in layouts(b))
    plain = metrics.tanglegram(a, b, untangle=False)
    assert layout.crossings <= plain.crossings
    assert plain.left.tolist() == sch.leaves_list(a).tolist()
    assert plain.crossings == crossings(plain.left, plain.right)


def test_tanglegram_of_equal_trees_is_level(rng):
    x = rng.standard_normal((300, 4))
    z = metrics.linkage(x)
    turned = z.copy()
    turned[::2, :2] = z[::2, 1::-1]
    layout = metrics.tanglegram(z, turned)
    assert layout.crossings == 0
    assert layout.entanglement == 0.0
    assert metrics.tanglegram(z, turned, untangle=False).crossings > 0
    assert type(layout.crossings) is int
    with pytest.raises(ValueError, match="300 and 2 leaves"):
        metrics.tanglegram(z, metrics.linkage(x[:2]))


def test_collapsed_trees_are_tangled(rng):
    """About as much as trees of embeddings that have nothing to do with each other."""
    one, star = metrics.linkage(np.ones((64, 3))), metrics.linkage(np.eye(64))
    x, y = (metrics.linkage(rng.standard_normal((64, 4))) for _ in "xy")
    chance = metrics.tanglegram(x, y).entanglement
    for a, b in ((one, one), (star, star), (one, star), (one, x), (x, one)):
        assert metrics.tanglegram(a, b).entanglement > 0.6 * chance
    assert metrics.tanglegram(x, x).entanglement == 0


@settings(max_examples=60, deadline=None)
@given(trees, st.integers(0, 10**6))
def test_ties_are_drawn_within_their_node(tree, seed):
    """The same cophenetic distances, in another order of merges; no ties, no change."""
    n, chain, levels, draw = tree
    z = random_tree(np.random.default_rng(draw), n, chain, levels)
    words = np.random.default_rng(seed).integers(0, 2**63, 2 * n - 1)
    out = redrawn(z, words)
    assert sch.is_valid_linkage(out, throw=True)
    assert sch.is_monotonic(out)
    np.testing.assert_array_equal(sch.cophenet(out), sch.cophenet(z))
    if levels is None:
        np.testing.assert_array_equal(out, z)


def test_entanglement(backend):
    order = np.asarray([3, 0, 2, 1, 4])
    reverse = order[::-1].copy()
    value = metrics.entanglement(backend.asarray(order), backend.asarray(reverse))
    assert value == 1.0
    assert metrics.entanglement(order, order) == 0.0
    # Two neighbours swapped: 2 · 1^L over 2 (4^L + 2^L).
    swapped = np.asarray([0, 3, 2, 1, 4])
    assert metrics.entanglement(order, swapped) == pytest.approx(1 / (8 + 2**1.5))
    assert metrics.entanglement(order, swapped, power=2) == pytest.approx(1 / 20)
    with pytest.raises(ValueError, match="same leaves"):
        metrics.entanglement(order, np.arange(4))
    with pytest.raises(ValueError, match="each once"):
        metrics.entanglement(np.zeros(3, dtype=int), np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="power above 0; found 0"):
        metrics.entanglement(order, order, power=0)


def test_cut_errors(rng):
    z = metrics.linkage(rng.standard_normal((5, 2)))
    with pytest.raises(ValueError, match="both or neither"):
        metrics.cut_tree(z)
    with pytest.raises(ValueError, match="both or neither"):
        metrics.cut_tree(z, n_clusters=2, height=1.0)
    with pytest.raises(ValueError, match="n_clusters <= N = 5; found 6"):
        metrics.cut_tree(z, n_clusters=6)
    with pytest.raises(ValueError, match="n_clusters to be an integer >= 1"):
        metrics.cut_tree(z, n_clusters=0)
    with pytest.raises(ValueError, match="height to cut at; found nan"):
        metrics.cut_tree(z, height=float("nan"))


# --- matrices that are not dendrograms -----------------------------------------------------------


def test_sizes_and_heights_that_cannot_be(rng):
    from scipy.cluster.hierarchy import is_valid_linkage

    z = metrics.linkage(rng.standard_normal((12, 3)), metric="euclidean")
    wrong = {}
    for size in (0, 1, 3, 7, -2, 2.5, np.nan, np.inf):
        wrong[f"expected row 0 of z to count its 2 leaves; found {size:g}"] = (0, 3, size)
    wrong["expected row 10 of z to count its 12 leaves; found 11"] = (10, 3, 11)
    wrong["expected heights of z from 0 on; found -0.5"] = (0, 2, -0.5)
    wrong["expected the heights of z not to decrease; found an inversion or NaN"] = (0, 2, np.nan)
    for message, (row, column, value) in wrong.items():
        bad = z.copy()
        bad[row, column] = value
        for function in (
            metrics.cophenetic_distances,
            metrics.to_networkx,
            lambda m: metrics.cut_tree(m, n_clusters=2),
        ):
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                function(bad)
        for function in (
            metrics.dendrogram_correlations,
            metrics.bakers_gamma,
            metrics.fowlkes_mallows,
            metrics.tanglegram,
        ):
            with pytest.raises(ValueError, match=re.escape(message.replace("of z", "of second"))):
                function(z, bad)
    assert is_valid_linkage(z)
    bad = z.copy()
    bad[0, 2] = -0.5
    assert not is_valid_linkage(bad)


def test_infinite_heights_are_possible():
    """As `linkage` makes them of squares beyond float64."""
    z = np.asarray([[0.0, 1, 1, 2], [2, 3, np.inf, 3]])
    assert metrics.cut_tree(z, n_clusters=2).tolist() == [0, 0, 1]
    assert metrics.cut_tree(z, height=np.inf).tolist() == [0, 0, 0]


@pytest.mark.parametrize("height", ["1", True, 1j, None, [1.0], np.array([1.0])])
def test_heights_to_cut_at_are_numbers(height):
    z = metrics.linkage(np.asarray([[0.0], [9.0], [1.0]]), metric="euclidean")
    error = ValueError if height is None else TypeError
    with pytest.raises(
        error, match=r"^expected (height to be a number|either n_clusters or height)"
    ):
        metrics.cut_tree(z, height=height)
    assert metrics.cut_tree(z, height=np.float32(2)).tolist() == [0, 1, 0]
    assert metrics.cut_tree(z, height=2).tolist() == [0, 1, 0]
