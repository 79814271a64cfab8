"""Linkage by the distances of all pairs of points, of which none are kept: in rounds."""

import importlib
import tracemalloc

import numpy as np
import pytest
import scipy.cluster.hierarchy as sch
from hypothesis import example, given, settings
from scipy.spatial.distance import pdist, squareform

from tests.core.metrics.trees.test_linkage import (
    BY_PAIRS,
    assert_same_dendrogram,
    distances,
    nested,
    points,
)
from visreg_core import threads
from visreg_core.metrics import linkage

rounds, near_lists, pair_clusters, pair_screen = (
    importlib.import_module(f"visreg_core.metrics.trees.{name}")
    for name in ("_rounds", "_near_lists", "_pair_clusters", "_pair_screen")
)


@pytest.fixture
def in_rounds(monkeypatch):
    """Rounds down to a few clusters, in tiles of a few points."""
    monkeypatch.setattr(rounds, "_FEW_CLUSTERS", 2)
    for module in (pair_clusters, pair_screen):
        monkeypatch.setattr(module, "ROWS", 7)
    monkeypatch.setattr(pair_clusters, "_COLUMNS", 40)
    monkeypatch.setattr(pair_clusters, "_FEW_PAIRS", 5)
    monkeypatch.setattr(pair_clusters, "_PAIRS", 16)


def of_scipy(x, method, metric):
    return sch.linkage(pdist(x, metric), method)


@pytest.mark.parametrize("down_to", [2, 40])
@pytest.mark.parametrize(("method", "metric"), BY_PAIRS)
def test_scipys_dendrogram(rng, method, metric, down_to, monkeypatch):
    monkeypatch.setattr(rounds, "_FEW_CLUSTERS", down_to)
    x = nested(rng, 500, 24)
    x = x[np.concatenate([np.arange(500), rng.integers(500, size=60)])]
    assert_same_dendrogram(linkage(x, method, metric), of_scipy(x, method, metric))


@pytest.mark.parametrize(("method", "metric"), BY_PAIRS)
@pytest.mark.usefixtures("in_rounds")
def test_small_tiles_and_short_lists(rng, method, metric, monkeypatch):
    """What merges with what is on no list, too, is no nearer than the bounds say."""
    for module in (near_lists, pair_screen):
        monkeypatch.setattr(module, "LISTED", 2)
    original = near_lists.NearLists.merge

    def checked(self, i, j):
        height = original(self, i, j)
        c = self.clusters
        slots = np.flatnonzero(c.alive)
        for row in slots:
            others = slots[slots != row]
            least = np.full(c.alive.size, self.reach[row])
            member = c.owner[self.slot[row]]
            np.minimum.at(least, member, self.least[row])
            assert np.all(c.distance(np.full(others.size, row), others) >= least[others])
        return height

    monkeypatch.setattr(near_lists.NearLists, "merge", checked)
    x = rng.standard_normal((90, 8))
    x = x[np.concatenate([np.arange(90), rng.integers(90, size=20)])]
    assert_same_dendrogram(linkage(x, method, metric), of_scipy(x, method, metric))


@pytest.mark.parametrize(("method", "metric"), BY_PAIRS)
@pytest.mark.usefixtures("in_rounds")
def test_clusters_of_many_points(rng, method, metric):
    """Unlike numbers of points: a tight cluster of half of them, and strays."""
    x = np.concatenate([1 + 1e-3 * rng.standard_normal((60, 5)), rng.standard_normal((60, 5))])
    assert_same_dendrogram(linkage(x, method, metric), of_scipy(x, method, metric))


@settings(max_examples=100, deadline=None)
@given(points)
@example([[0], [0]])
@example([[1], [1], [1], [0], [0]])
@example([[0], [1], [2], [3], [4], [5], [6]])
@example([[1, 0], [0, 0], [0, 1], [-1, 0], [1, 1], [2, 2]])
def test_every_merge_is_the_least(rows):
    """With ties many dendrograms are right: each merge must join a nearest pair of clusters."""
    x = np.asarray(rows, dtype=np.float64)
    for method, metric in BY_PAIRS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rounds, "_FEW_CLUSTERS", 2)
            z = linkage(x, method, metric)
        assert sch.is_valid_linkage(z, throw=True)
        between = squareform(distances(x, metric))
        np.fill_diagonal(between, np.inf)
        between = {i: dict(enumerate(row)) for i, row in enumerate(between.tolist())}
        size = dict.fromkeys(between, 1)
        for k, (a, b, height, count) in enumerate(z.tolist()):
            assert height == pytest.approx(between[a][b], abs=1e-12)
            assert height == pytest.approx(
                min(min(r.values()) for r in between.values()), abs=1e-12
            )
            # Lance and Williams
            share = 0.5 if method == "weighted" else size[a] / (size[a] + size[b])
            of_a, of_b, new = between.pop(a), between.pop(b), len(x) + k
            between[new] = {new: np.inf}
            for c, row in between.items():
                if c != new:
                    both = of_a[c], of_b[c]
                    row[new] = (
                        max(both) if method == "complete" else np.dot(both, (share, 1 - share))
                    )
                    between[new][c] = row[new]
                    del row[a], row[b]
            size[new] = size.pop(a) + size.pop(b)
            assert size[new] == count


def test_distances_to_a_zero_vector_are_equal(rng):
    """Bit for bit, by all ways of taking them."""
    x = rng.standard_normal((400, 5))
    lone = np.arange(400) == 7
    c = pair_clusters.PairClusters(x, np.ones(400), lone, method="complete")
    many = np.arange(20, 400)
    assert set(c.distance(np.full(380, 7), many)) == {2.0}
    assert set(c.distances()[7, many]) == {2.0}
    assert set(c._matrix(np.asarray([3, 7]), many)[1]) == {2.0}


@pytest.mark.parametrize("seed", range(4))
def test_a_zero_vector_joins_at_exactly_one(seed, monkeypatch):
    """Under cosine it is as far from every other, and rounding must not choose among them."""
    monkeypatch.setattr(rounds, "_FEW_CLUSTERS", 2)
    x = np.random.default_rng(seed).standard_normal((14, 3))
    x[11] = 0
    z = linkage(x, "complete")
    row = np.flatnonzero(np.any(z[:, :2] == 11, axis=1))[0]
    assert z[row, 2] == 1.0
    # What comes after the tie depends on the tie.
    reference = sch.linkage(distances(x, "cosine"), "complete")
    np.testing.assert_allclose(z[:row, 2], reference[:row, 2], atol=1e-14)


@pytest.mark.parametrize(("method", "metric"), BY_PAIRS)
def test_tight_clusters_far_apart(rng, method, metric, monkeypatch):
    """Float32 products tell nothing apart in a cluster: float64 ones, and differences, do."""
    monkeypatch.setattr(rounds, "_FEW_CLUSTERS", 2)
    screens = []
    original = pair_screen.PairScreen.settle
    monkeypatch.setattr(
        pair_screen.PairScreen,
        "settle",
        lambda self, rows: screens.append(self) or original(self, rows),
    )
    centres = rng.standard_normal((4, 12))
    x = centres[rng.integers(4, size=120)] + 1e-5 * rng.standard_normal((120, 12))
    wide = x / np.linalg.norm(x, axis=1)[:, None] if metric == "cosine" else x
    reference = of_scipy(wide, method, "euclidean" if metric == "euclidean" else "sqeuclidean")
    reference[:, 2] /= 2 if metric == "cosine" else 1
    z = linkage(x, method, metric)
    np.testing.assert_array_equal(z[:, :2], reference[:, :2])
    np.testing.assert_allclose(z[:, 2], reference[:, 2], rtol=1e-8)
    assert {screen.dtype for screen in screens} == {np.float64}


@pytest.mark.parametrize("method", ["average", "complete", "weighted"])
@pytest.mark.parametrize("few", [2, 4096])
def test_differences_of_the_points_as_they_are(method, few, monkeypatch):
    """Near 0, and not near the mean, distances of 1 are exact beside those of 2⁴⁴."""
    monkeypatch.setattr(rounds, "_FEW_CLUSTERS", few)
    x = 2.0 ** np.arange(45)[:, None]
    z = linkage(x, method, "euclidean")
    assert z[:, 3].tolist() == list(range(2, 46))


@pytest.mark.parametrize(("method", "metric"), BY_PAIRS)
def test_any_number_of_threads(rng, method, metric, monkeypatch):
    monkeypatch.setattr(rounds, "_FEW_CLUSTERS", 60)
    x = nested(rng, 700, 6)
    with threads.at_most_threads(1):
        alone = linkage(x, method, metric)
    monkeypatch.setattr(threads, "available_threads", lambda: 3)
    np.testing.assert_array_equal(linkage(x, method, metric), alone)


def test_no_matrix(rng, monkeypatch):
    """Of 2000 rows all distances take 16 MB, and SciPy's copy of them as much again."""
    monkeypatch.setattr(rounds, "_FEW_CLUSTERS", 200)
    monkeypatch.setattr(pair_clusters, "_COLUMNS", 256)
    x = nested(rng, 2000, 4)
    linkage(x[:300], "complete")  # imports
    tracemalloc.start()
    linkage(x, "complete")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12e6
