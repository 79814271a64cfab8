"""Dendrograms against SciPy, naive agglomeration, and what ties and duplicates must give."""

import importlib

import numpy as np
import pytest
import scipy.cluster.hierarchy as sch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform

from tests.backends import Backend
from visreg_core.metrics import cut_tree, linkage

rounds, clusters, near_lists, nearest_products, screen, chain = (
    importlib.import_module(f"visreg_core.metrics.trees.{name}")
    for name in ("_rounds", "_clusters", "_near_lists", "_nearest_products", "_screen", "_chain")
)

BY_ROUNDS = [
    *[(m, d) for m in ("average", "weighted") for d in ("cosine", "sqeuclidean")],
    ("ward", "euclidean"),
]
BY_PAIRS = [
    ("average", "euclidean"),
    ("weighted", "euclidean"),
    *[("complete", d) for d in ("cosine", "euclidean", "sqeuclidean")],
]
ALL = [*BY_ROUNDS, *BY_PAIRS, *[("single", d) for d in ("cosine", "euclidean", "sqeuclidean")]]


def nested(rng, n, d):
    """Points with clusters inside clusters, off the origin."""
    coarse = rng.standard_normal((6, d))
    fine = coarse[rng.integers(6, size=20)] + 0.3 * rng.standard_normal((20, d))
    return 0.7 + fine[rng.integers(20, size=n)] + 0.1 * rng.standard_normal((n, d))


def distances(x, metric):
    """Condensed distances with the rules for zero vectors and identical rows."""
    if metric != "cosine":
        return pdist(x, metric)
    norm = np.linalg.norm(x, axis=1)
    u = x / np.where(norm > 0, norm, 1)[:, None]
    square = 1 - u @ u.T
    square[np.all(x[:, None] == x[None], axis=2)] = 0
    return squareform(square, checks=False)


def naive_linkage(square, method):
    """One merge at a time from the definition: O(N³), every mean over all pairs of members."""
    members = {i: [i] for i in range(len(square))}
    rows = []
    while len(members) > 1:
        best = None
        for a in members:
            for b in members:
                if a < b:
                    block = square[np.ix_(members[a], members[b])]
                    d = {"average": block.mean, "single": block.min, "complete": block.max}[
                        method
                    ]()
                    if best is None or (d, a, b) < best:
                        best = (d, a, b)
        d, a, b = best
        joined = members.pop(a) + members.pop(b)
        members[len(square) + len(rows)] = joined
        rows.append([a, b, d, len(joined)])
    return np.asarray(rows)


def assert_same_dendrogram(z, reference, tolerance=1e-10):
    assert z.shape == reference.shape
    assert z.dtype == np.float64
    assert sch.is_valid_linkage(z, throw=True)
    assert sch.is_monotonic(z)
    scale = max(reference[-1, 2], 1e-300)
    assert np.abs(z[:, 2] - reference[:, 2]).max() <= tolerance * scale
    # Equal cophenetic distances are equal partitions at every cut.
    assert np.abs(sch.cophenet(z) - sch.cophenet(reference)).max() <= tolerance * scale


@pytest.mark.parametrize(("method", "metric"), ALL)
@pytest.mark.parametrize("shape", [(2, 3), (3, 1), (7, 2), (60, 5), (300, 24)])
def test_scipys_dendrogram(rng, method, metric, shape):
    if metric == "cosine" and shape[1] == 1:
        pytest.skip("all distances tie")
    x = nested(rng, *shape)
    assert_same_dendrogram(linkage(x, method, metric), sch.linkage(pdist(x, metric), method))


def test_scipys_dendrogram_larger(rng):
    x = nested(rng, 2500, 32)
    for method, metric in BY_ROUNDS:
        z = linkage(x, method, metric)
        reference = sch.linkage(x, method, metric)
        assert_same_dendrogram(z, reference)
        for k in (2, 17, 400):
            ours = cut_tree(z, n_clusters=k)
            theirs = sch.fcluster(reference, k, "maxclust")
            assert len(set(zip(ours.tolist(), theirs.tolist(), strict=True))) == k


@pytest.mark.parametrize(("method", "metric"), [*BY_ROUNDS, ("single", "cosine")])
def test_same_on_every_backend(where, rng, method, metric):
    x = nested(rng, 150, 6).astype(where.dtype)
    z = linkage(where.asarray(x), method, metric)
    assert type(z) is np.ndarray
    np.testing.assert_array_equal(z, linkage(x, method, metric))
    assert_same_dendrogram(z, sch.linkage(pdist(x.astype(np.float64), metric), method))


@pytest.mark.parametrize("metric", ["cosine", "sqeuclidean"])
def test_definition(rng, metric):
    x = rng.standard_normal((24, 3))
    for method in ("average", "single", "complete"):
        reference = naive_linkage(squareform(distances(x, metric)), method)
        assert_same_dendrogram(linkage(x, method, metric), reference)


points = st.integers(2, 14).flatmap(
    lambda n: st.integers(1, 3).flatmap(
        lambda d: st.lists(
            st.lists(st.integers(-3, 3), min_size=d, max_size=d), min_size=n, max_size=n
        )
    )
)


def crowded_below(count):
    """In place of `Screen.crowded`: so many clusters or fewer go by chains."""
    return lambda self: self.clusters.count <= count


@settings(max_examples=200, deadline=None)
@given(points, st.sampled_from(BY_ROUNDS[:2]), st.sampled_from([0, 5, 99]))
@example([[0, 0], [0, 0]], ("average", "cosine"), 0)
@example([[1], [1], [1], [0], [0]], ("average", "cosine"), 99)
@example([[0], [1], [2], [3], [4], [5], [6]], ("average", "sqeuclidean"), 0)
def test_every_merge_is_the_least(rows, which, chains):
    """With ties many dendrograms are right: each merge must join a nearest pair of clusters."""
    method, metric = which
    x = np.asarray(rows, dtype=np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen.Screen, "crowded", crowded_below(chains))
        z = linkage(x, method, metric)
    assert sch.is_valid_linkage(z, throw=True)
    square = squareform(distances(x, metric))
    members = {i: [i] for i in range(len(x))}
    for k, (a, b, height, size) in enumerate(z.tolist()):
        least = min(
            square[np.ix_(members[p], members[q])].mean() for p in members for q in members if p < q
        )
        joined = square[np.ix_(members[int(a)], members[int(b)])].mean()
        assert height == pytest.approx(joined, abs=1e-12)
        assert height == pytest.approx(least, abs=1e-12)
        members[len(x) + k] = members.pop(int(a)) + members.pop(int(b))
        assert size == len(members[len(x) + k])


@settings(max_examples=60, deadline=None)
@given(points, st.sampled_from(ALL), st.randoms(use_true_random=False))
def test_duplicates_do_not_depend_on_the_order(rows, which, random):
    """Where only identical rows tie, permuted rows have the same cophenetic distances."""
    method, metric = which
    distinct = np.unique(np.asarray(rows, dtype=np.float64), axis=0)
    if metric == "cosine":
        distinct = distinct[np.any(distinct != 0, axis=1)]
    assume(len(distinct) > 1)
    jitter = np.random.default_rng(0).standard_normal(distinct.shape) / 7
    distinct = distinct + jitter
    if metric == "cosine" and distinct.shape[1] == 1:
        distinct = np.hstack([distinct, jitter + 1])
    x = np.repeat(distinct, np.arange(len(distinct)) % 3 + 1, axis=0)
    order = list(range(len(x)))
    random.shuffle(order)
    here = squareform(sch.cophenet(linkage(x, method, metric)))
    there = squareform(sch.cophenet(linkage(x[order], method, metric)))
    np.testing.assert_allclose(there, here[np.ix_(order, order)], rtol=0, atol=1e-12)
    same = np.all(x[:, None] == x[None], axis=2)
    assert np.all(here[same] == 0)
    assert np.all(here[~same] > 0)


def test_zero_vectors_under_cosine(backend):
    """Identical to each other, at distance 1 from the rest, with ties to the lowest number."""
    x = np.asarray([[0.0, 0.0], [1.0, 0.0], [0.0, -0.0], [1.0, 0.1], [-1.0, 0.0]])
    for method in ("average", "single", "complete", "weighted"):
        z = linkage(backend.asarray(x), method, "cosine")
        reference = sch.linkage(distances(x, "cosine"), method)
        # What comes after the tie at 1 depends on the tie.
        np.testing.assert_allclose(z[:3, 2], reference[:3, 2], atol=1e-15)
        assert z[0].tolist() == [0, 2, 0, 2]
    average = linkage(backend.asarray(x))
    # {0, 2} is at 1 from {4} and {1, 3}: number 4 is the lower.
    assert average[2].tolist() == [4, 5, 1, 3]
    far = np.asarray([[0.0] * 3, *np.random.default_rng(0).standard_normal((30, 3))])
    assert np.any(linkage(backend.asarray(far))[:, 2] == 1)


@pytest.mark.parametrize("seed", range(20))
def test_a_zero_vector_joins_at_exactly_one(seed):
    """Its distances all tie at 1, and rounding must not choose among them."""
    x = np.random.default_rng(seed).standard_normal((30, 3))
    x[11] = 0
    z = linkage(x)
    row = np.flatnonzero(np.any(z[:, :2] == 11, axis=1))[0]
    assert z[row, 2] == 1.0
    joined = set(z[:row, :2].ravel().tolist())
    leaves = [i for i in range(30) if i not in joined and i != 11]
    if leaves:
        assert leaves[0] in z[row, :2]


def test_negative_zero_and_powers_of_two_are_identical():
    assert linkage(np.asarray([[0.0, 1.0], [-0.0, 1.0]]), metric="sqeuclidean")[0, 2] == 0
    assert linkage(np.asarray([[0.3, 1.0], [0.6, 2.0]]), metric="cosine")[0, 2] == 0


def test_many_duplicates_make_a_balanced_tree():
    z = linkage(np.ones((1000, 3)))
    assert np.all(z[:, 2] == 0)
    graph_depth = np.zeros(1999, dtype=int)
    for k in range(998, -1, -1):
        graph_depth[z[k, :2].astype(int)] = graph_depth[1000 + k] + 1
    assert graph_depth.max() == 10


def test_ties_go_by_number():
    # Equidistant points merge two by two, then the pairs in the order of their creation.
    z = linkage(np.eye(8), "average", "sqeuclidean")
    expected = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [12, 13]]
    np.testing.assert_array_equal(z[:, :2], expected)
    np.testing.assert_allclose(z[:, 2], 2, rtol=1e-15)
    lattice = np.arange(9.0)[:, None]
    np.testing.assert_array_equal(
        linkage(lattice, "average", "sqeuclidean"), linkage(lattice, "average", "sqeuclidean")
    )


def equidistant(rng, n):
    return np.eye(n)


def equidistant_but_for_rounding(rng, n):
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def line(rng, n):
    return np.arange(float(n))[:, None]


def hypercube(rng, n):
    k = int(np.log2(n))
    return (np.arange(2**k)[:, None] >> np.arange(k) & 1) * 1.0


def opposite_pairs(rng, n):
    return np.concatenate([np.eye(n // 2), -np.eye(n // 2)])


@pytest.mark.parametrize("make", [equidistant, hypercube, opposite_pairs])
@pytest.mark.parametrize(("method", "metric"), BY_ROUNDS)
def test_ties_on_every_backend(backend, rng, make, method, metric):
    """Rounding differs between libraries, ties do not."""
    x = rng.permutation(make(rng, 64))
    z = linkage(backend.asarray(x), method, metric)
    np.testing.assert_array_equal(z, linkage(x, method, metric))


@pytest.mark.parametrize("method", ["average", "ward"])
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("make", [equidistant, line, hypercube, opposite_pairs])
def test_ties_take_few_rounds(rng, make, method, shuffled, monkeypatch):
    """Whatever ties merges together: about log₂ N rounds, of about 2 N rows in all."""
    monkeypatch.setattr(screen.Screen, "crowded", crowded_below(0))
    rows = []
    original = screen.Screen.settle
    monkeypatch.setattr(
        screen.Screen, "settle", lambda self, some: rows.append(some.size) or original(self, some)
    )
    n = 256
    x = make(rng, n)
    if shuffled:
        x = rng.permutation(x)
    metric = "euclidean" if method == "ward" else "sqeuclidean"
    z = linkage(x, method, metric)
    assert sch.is_valid_linkage(z, throw=True)
    assert len(rows) <= (20 if not shuffled or make is not line else 40)
    assert sum(rows) <= 4 * n


@pytest.mark.parametrize("make", [equidistant, equidistant_but_for_rounding])
@pytest.mark.parametrize(("method", "metric"), BY_ROUNDS)
def test_equidistant_points_go_by_all_their_distances(rng, make, method, metric, monkeypatch):
    """No round at all, and N − 1 merges at the one distance there is, Ward's too."""
    monkeypatch.setattr(screen.Screen, "settle", None)
    n = 200
    z = linkage(make(rng, n), method, metric)
    sizes = np.concatenate([np.ones(n), z[:, 3]])[z[:, :2].astype(int)]
    if method == "ward":  # √(2 n_u n_v / (n_u + n_v)) times √(1/n_u + 1/n_v)
        expected = np.full(n - 1, np.sqrt(2))
    else:
        expected = np.full(n - 1, 1.0 if metric == "cosine" else 2.0)
    np.testing.assert_allclose(z[:, 2], expected, rtol=1e-13)
    assert sch.is_valid_linkage(z, throw=True)
    if make is equidistant:
        # Twos, then fours, and so on: the lowest numbers go first.
        np.testing.assert_array_equal(z[: n // 2, :2], np.arange(n).reshape(-1, 2))
        assert np.all(sizes[n // 2 : 3 * n // 4] == 2)


@pytest.mark.parametrize(("method", "metric"), BY_ROUNDS)
@pytest.mark.parametrize("below", [40, 1000])
def test_chains_from_any_state(rng, method, metric, below, monkeypatch):
    """Rounds handing over to chains half-way, with sizes, spreads, duplicates and a zero vector."""
    x = nested(rng, 120, 4)
    x[7] = 0
    x = x[np.concatenate([np.arange(120), rng.integers(120, size=60)])]
    monkeypatch.setattr(screen.Screen, "crowded", crowded_below(0))
    by_rounds = linkage(x, method, metric)
    called = []
    monkeypatch.setattr(
        rounds,
        "merge_along_chains",
        lambda distance, *a, **k: (
            called.append(len(distance)) or chain.merge_along_chains(distance, *a, **k)
        ),
    )
    monkeypatch.setattr(screen.Screen, "crowded", crowded_below(below))
    assert_same_dendrogram(linkage(x, method, metric), by_rounds, 1e-13)
    assert called[0] <= below


def test_joined_clusters_are_no_nearer(rng):
    """In spite of rounding: a chain could else come back to one of its own clusters."""
    n_a, n_b, n = rng.integers(1, 30, (3, 2000)) * 1.0
    for gap in (0.0, 2.0**-52, 1.0):
        a = 1 + rng.random(2000)
        b = a * (1 + gap)
        assert np.all(chain._ward(a, b, a, n_a, n_b, n) >= a)
        assert np.all(chain._mean(a, b, n_a / (n_a + n_b)) >= a)
    np.testing.assert_array_equal(chain._mean(a, a, n_a / (n_a + n_b)), a)


def test_a_tie_is_forgotten_with_its_cluster():
    """Row 2 has 1 and 3 at one distance; once 3 is merged, its slot is another cluster's."""
    x = np.asarray([[0.0], [1.0], [2.0], [3.0], [3.5]])
    no = np.zeros(5, dtype=bool)
    state = clusters.Clusters(x, np.ones(5), np.zeros(5), no, method="average")
    near = near_lists.NearLists(state)
    near.set_nearest(np.asarray([2]), np.asarray([1]), np.asarray([3]), np.ones(1))
    near.set_nearest(np.asarray([3, 4]), np.asarray([4, 3]), np.asarray([-1, -1]), np.full(2, 0.25))
    i, j = near.nearest_pairs()
    assert (i.tolist(), j.tolist()) == ([3], [4])
    near.merge(i, j)
    assert near.known[2]
    assert near.nearest[2] == 1
    assert near.above[2] == -1


def test_crowding_is_judged_by_distances(rng):
    """From exact distances on the host: the same on every library, and never for a few points."""

    def crowded(x, method="average"):
        n = len(x)
        no = np.zeros(n, dtype=bool)
        state = clusters.Clusters(x, np.ones(n), np.zeros(n), no, method=method)
        return screen.Screen(np, None, near_lists.NearLists(state)).crowded()

    assert crowded(np.eye(50))
    assert crowded(np.eye(50), "ward")
    assert crowded(np.sign(x := rng.standard_normal((200, 3))) + 1e-4 * x)
    assert not crowded(np.eye(17))
    assert not crowded(rng.standard_normal((500, 16)))
    assert not crowded(line(rng, 500))


@pytest.mark.parametrize("scale", [1e-150, 1e-8, 1e8, 1e150])
def test_any_scale(rng, scale):
    x = nested(rng, 50, 4)
    for method, metric in ALL:
        power = {"cosine": 0, "sqeuclidean": 2, "euclidean": 1}[metric]
        reference = linkage(x, method, metric)
        reference[:, 2] *= scale**power
        assert_same_dendrogram(linkage(x * scale, method, metric), reference, 1e-12)


@pytest.mark.parametrize("method", ["average", "ward"])
def test_small_clusters_far_apart(rng, method):
    """Distances 1e-12 of the spread: single precision products tell nothing apart in a cluster."""
    metric = "euclidean" if method == "ward" else "sqeuclidean"
    centres = rng.integers(-8, 8, (4, 3)).astype(np.float64)
    x = centres[np.arange(200) % 4] + 2.0**-20 * rng.integers(-(2**20), 2**20, (200, 3)) / 2**10
    z = linkage(x, method, metric)
    reference = sch.linkage(x, method, metric)
    # Relative to each height, not to the largest.
    np.testing.assert_allclose(np.sort(z[:, 2]), np.sort(reference[:, 2]), rtol=1e-9)
    np.testing.assert_allclose(sch.cophenet(z), sch.cophenet(reference), rtol=1e-9)


@pytest.mark.parametrize(("method", "metric"), ALL)
def test_tight_clusters_of_float32(where, rng, method, metric):
    """Of 1e-3 about their centres: as SciPy on the same numbers in float64, by differences."""
    centres = rng.standard_normal((8, 30))
    x = centres[rng.integers(8, size=120)] + 1e-3 * rng.standard_normal((120, 30))
    x = x.astype(where.dtype)
    wide = x.astype(np.float64)
    if metric == "cosine":
        wide /= np.linalg.norm(wide, axis=1)[:, None]
        reference = sch.linkage(pdist(wide, "sqeuclidean") / 2, method)
    else:
        reference = sch.linkage(pdist(wide, metric), method)
    z = linkage(where.asarray(x), method, metric)
    np.testing.assert_array_equal(z[:, :2], reference[:, :2])
    np.testing.assert_allclose(z[:, 2], reference[:, 2], rtol=1e-9)


@pytest.mark.parametrize(("method", "metric"), ALL)
def test_heights_equal_but_for_rounding_are_equal(rng, method, metric):
    """Equidistant rows are joined at one height, which the mean of all and unit vectors round."""
    for n in (7, 60):
        rotated = np.linalg.qr(rng.standard_normal((n, n)))[0]
        for x in (1.1 * np.eye(n), rotated):
            assert np.unique(linkage(x, method, metric)[:, 2]).size == 1
    spread = linkage(rng.standard_normal((200, 5)), method, metric)
    assert np.unique(spread[:, 2]).size == 199


def test_float64_takes_over_where_float32_tells_nothing_apart(rng, monkeypatch):
    made = []
    original = clusters.Clusters.screened
    monkeypatch.setattr(
        clusters.Clusters,
        "screened",
        lambda self, dtype: made.append(dtype) or original(self, dtype),
    )
    monkeypatch.setattr(rounds, "_FEW_CLUSTERS", 100)  # more are not taken by all their distances
    x = rng.standard_normal((200, 3))
    linkage(x, "average", "sqeuclidean")
    assert set(made) == {np.dtype("float32")}
    made.clear()
    z = linkage(np.sign(x) + 1e-4 * x, "average", "sqeuclidean")
    assert set(made) == {np.dtype("float32"), np.dtype("float64")}
    monkeypatch.undo()
    assert_same_dendrogram(z, linkage(np.sign(x) + 1e-4 * x, "average", "sqeuclidean"), 1e-14)


def test_collapsed_directions(rng):
    """Cosine distances of 1e-12 keep their digits, because they are taken from the mean."""
    x = np.asarray([3.0, 1.0, 2.0]) + 1e-6 * rng.standard_normal((40, 3))
    import mpmath

    with mpmath.workdps(40):
        exact = [[mpmath.mpf(float(v)) for v in row] for row in x]
        norm = [mpmath.sqrt(sum(v * v for v in row)) for row in exact]
        condensed = np.asarray(
            [
                float(
                    1
                    - sum(a * b for a, b in zip(exact[i], exact[j], strict=True))
                    / norm[i]
                    / norm[j]
                )
                for i in range(40)
                for j in range(i + 1, 40)
            ]
        )
    z, reference = linkage(x), sch.linkage(condensed, "average")
    np.testing.assert_allclose(z[:, 2], reference[:, 2], rtol=1e-8)
    np.testing.assert_allclose(sch.cophenet(z), sch.cophenet(reference), rtol=1e-8)


@pytest.mark.parametrize("listed", [2, 6])
@pytest.mark.parametrize(
    ("which", "seed"), [*zip(BY_ROUNDS, (6, 2, 5, 3, 0), strict=True), (BY_ROUNDS[1], 14)]
)
def test_short_lists(which, seed, listed, monkeypatch):
    """What merges with what is on no list, too, is no nearer than the bounds say (these seeds)."""
    method, metric = which
    for module in (near_lists, screen):
        monkeypatch.setattr(module, "LISTED", listed)
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
    x = np.random.default_rng(seed).standard_normal((150, 8))
    z = linkage(x, method, metric)
    assert_same_dendrogram(z, sch.linkage(pdist(x, metric), method))


def test_small_blocks_and_lazy_rows(rng, monkeypatch):
    x = nested(rng, 200, 5)
    expected = {which: linkage(x, *which) for which in BY_ROUNDS}
    monkeypatch.setattr(clusters, "_PAIR_BLOCK", 7)
    monkeypatch.setattr(rounds, "_ROWS_PER_MERGE", 1)
    monkeypatch.setattr(screen, "_ROWS_HOST", 3)
    monkeypatch.setattr(nearest_products, "_TILE", 96)
    for which, z in expected.items():
        assert_same_dendrogram(linkage(x, *which), z, 1e-14)


def test_only_rows_that_lost_their_neighbour_are_recomputed(rng, monkeypatch):
    x = nested(rng, 1000, 16)
    rows = []
    original = screen.Screen.settle

    def counted(self, chosen):
        rows.append((chosen.size, self.clusters.count))
        return original(self, chosen)

    monkeypatch.setattr(screen.Screen, "settle", counted)
    linkage(x)
    assert rows[0] == (1000, 1000)
    assert sum(a * b for a, b in rows) < 1.25 * 1000**2


def test_rounding_that_leaves_no_reciprocal_pair(monkeypatch):
    """A cycle of neighbours still ends: the least pair is merged."""
    monkeypatch.setattr(
        near_lists.NearLists,
        "nearest_pairs",
        lambda self: (np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp)),
    )
    x = np.random.default_rng(3).standard_normal((40, 3))
    z = linkage(x, "average", "sqeuclidean")
    assert_same_dendrogram(z, sch.linkage(x, "average", "sqeuclidean"))


def test_imprecise_products_are_refused(rng, monkeypatch):
    original = screen.Screen._to_device

    def half_precision(self, a):
        out = original(self, a)
        if out.dtype.kind != "f":
            return out
        with np.errstate(over="ignore"):  # empty slots are far away
            return out.astype(np.float16).astype(out.dtype)

    monkeypatch.setattr(screen.Screen, "_to_device", half_precision)
    with pytest.raises(RuntimeError, match="full float32 precision"):
        linkage(rng.standard_normal((50, 8)))


def test_input_is_left_alone(backend, rng):
    a = rng.standard_normal((20, 3))
    x = backend.asarray(a)
    linkage(x)
    np.testing.assert_array_equal(backend.to_numpy(x), a)


def test_half_precision_input(rng):
    x = rng.standard_normal((40, 4))
    for b, dtype in (
        (Backend.TORCH, "bfloat16"),
        (Backend.JAX, "bfloat16"),
        (Backend.NUMPY, "float16"),
    ):
        narrow = b.asarray(x, dtype)
        assert_same_dendrogram(
            linkage(narrow), sch.linkage(b.to_numpy(narrow), "average", "cosine")
        )


def test_errors():
    x = np.arange(6.0).reshape(3, 2)
    with pytest.raises(ValueError, match=r"method to be one of .*'average'.*found 'centroid'"):
        linkage(x, "centroid")
    with pytest.raises(ValueError, match=r"metric to be one of .*found 'cityblock'"):
        linkage(x, metric="cityblock")
    with pytest.raises(ValueError, match="metric='euclidean' for Ward's method; found 'cosine'"):
        linkage(x, "ward")
    with pytest.raises(ValueError, match="N >= 2"):
        linkage(x[:1])
    with pytest.raises(ValueError, match=r"\(6,\): condensed distances are for scipy"):
        linkage(x.reshape(-1))
    with pytest.raises(ValueError, match=r"shape \(N, D\); found shape \(1, 3, 2\)"):
        linkage(x[None])
    with pytest.raises(TypeError, match="int64"):
        linkage(x.astype(np.int64))
    with pytest.raises(TypeError, match="list"):
        linkage([[0.0], [1.0]])
