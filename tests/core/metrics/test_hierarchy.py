"""Rand indices against scikit-learn, all pairs and rationals; classifiers against scikit-learn."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.cluster.hierarchy
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from visreg_core import metrics
from visreg_core.metrics._resampling import drawn_order

partitions = st.integers(2, 40).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 5), min_size=n, max_size=n)] * 2)
)


def tree_data(rng, n_per_class=12, noise=0.3):
    """Eight classes in four pairs in two halves, far apart from coarse to fine."""
    fine = np.repeat(np.arange(8), n_per_class)
    labels = np.stack([fine // 4, fine // 2, fine], axis=1)
    centres = np.zeros((8, 7))
    for i in range(8):
        centres[i, 0] = 20.0 * (i // 4)
        centres[i, 1 + i // 4] = 8.0 * (i // 2 % 2)
        centres[i, 3 + i // 2] = 3.0 * (i % 2)
    order = rng.permutation(fine.size)
    x = centres[fine] + noise * rng.standard_normal((fine.size, 7))
    return x[order], labels[order]


# --- Rand indices ---------------------------------------------------------------------------------


@given(partitions)
@settings(deadline=None)
def test_rand_index_counts_pairs(ab):
    a, b = ab
    agree = [(a[i] == a[j]) == (b[i] == b[j]) for i, j in itertools.combinations(range(len(a)), 2)]
    assert metrics.rand_index(a, b) == sum(agree) / len(agree)
    assert metrics.rand_index(b, a) == metrics.rand_index(a, b)


@given(partitions)
@settings(deadline=None)
def test_rand_indices_are_scikit_learns(ab):
    a, b = ab
    assert metrics.rand_index(a, b) == pytest.approx(sklearn.metrics.rand_score(a, b), rel=1e-14)
    assert metrics.adjusted_rand_index(a, b) == pytest.approx(
        sklearn.metrics.adjusted_rand_score(a, b), rel=1e-10, abs=1e-12
    )
    assert metrics.adjusted_rand_index(a, a) == 1


def test_rand_indices_are_correctly_rounded_for_many_items():
    """Two million items: products of pair counts reach 4e24, beyond int64 and float64's digits."""
    n = 2_000_000
    a, b = np.arange(n) % 3, np.arange(n) // 7 % 2
    table = np.zeros((3, 2), dtype=object)
    for i, j in itertools.product(range(3), range(2)):
        table[i, j] = int(np.sum((a == i) & (b == j)))

    def pairs(counts):
        return sum(c * (c - 1) // 2 for c in counts)

    total, both = pairs([n]), pairs(table.ravel())
    in_a, in_b = pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    rand = Fraction(total + 2 * both - in_a - in_b, total)
    chance = Fraction(in_a * in_b, total)
    adjusted = (both - chance) / (Fraction(in_a + in_b, 2) - chance)
    assert metrics.rand_index(a, b) == float(rand)
    assert metrics.adjusted_rand_index(a, b) == float(adjusted)


def test_adjusted_rand_index_is_zero_on_average(rng):
    a = rng.integers(0, 4, 60)
    values = [metrics.adjusted_rand_index(a, rng.permutation(a)) for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20


def test_labels_of_any_kind(where):
    a = where.backend.asarray(
        np.asarray([0, 0, 1, 1, 2]), "int64" if "64" in where.dtype else "int32"
    )
    assert metrics.rand_index(a, ["x", "x", "y", "y", "z"]) == 1
    assert metrics.adjusted_rand_index(a, a) == 1


def test_trivial_partitions():
    assert metrics.adjusted_rand_index([0, 0, 0], [1, 1, 1]) == 1
    assert metrics.adjusted_rand_index([0, 1, 2], [2, 1, 0]) == 1
    assert metrics.rand_index([0, 1, 2], [0, 0, 0]) == 0
    assert metrics.adjusted_rand_index([0, 1, 0, 1], [0, 0, 1, 1]) == -0.5


def test_hierarchical_rand_index_of_a_clean_tree(rng):
    x, labels = tree_data(rng)
    indices = metrics.hierarchical_rand_index(
        x, labels, clustering="dendrogram", metric="euclidean"
    )
    assert indices.n_clusters == (2, 4, 8)
    assert all(type(v) is float for v in (*indices.rand, *indices.adjusted))
    assert indices.rand == indices.adjusted == (1.0, 1.0, 1.0)
    # Halves so far apart that no neighbour is in the other: scikit-learn says so.
    with pytest.warns(UserWarning, match="not fully connected"):
        indices = metrics.hierarchical_rand_index(x, labels, metric="euclidean", n_neighbors=30)
    assert indices.adjusted[:2] == (1.0, 1.0)
    assert indices.adjusted[2] > 0.2


@pytest.mark.dtypes("float64")
def test_dendrogram_cuts_are_scipys(where, rng):
    x, labels = rng.standard_normal((50, 4)), rng.integers(0, 5, (50, 2))
    counts = [1, 2, 7, 49]
    sweep = metrics.rand_index_sweep(where.asarray(x), labels, counts, clustering="dendrogram")
    tree = scipy.cluster.hierarchy.linkage(x, "average", "cosine")
    cuts = scipy.cluster.hierarchy.cut_tree(tree, counts)
    assert sweep.n_clusters == tuple(counts)
    expected = [sklearn.metrics.rand_score(labels[:, -1], c) for c in cuts.T]
    assert sweep.rand == pytest.approx(expected, rel=1e-12)
    expected = [sklearn.metrics.adjusted_rand_score(labels[:, -1], c) for c in cuts.T]
    assert sweep.adjusted == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_spectral_clustering_is_seeded_and_scikit_learns(rng):
    from sklearn.cluster import SpectralClustering

    x, labels = tree_data(rng)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    model = SpectralClustering(8, affinity="nearest_neighbors", n_neighbors=50, random_state=3)
    order = drawn_order(len(x), seed=3)
    expected = sklearn.metrics.rand_score(labels[order, 2], model.fit_predict(unit[order]))
    options = {"n_neighbors": 50, "seed": 3}
    found = metrics.rand_index_sweep(x, labels, [8, 1], **options)
    assert found.rand[0] == pytest.approx(expected, rel=1e-12)
    assert found.adjusted[1] == 0
    assert found == metrics.rand_index_sweep(x, labels, [8, 1], **options)


# --- collapse -------------------------------------------------------------------------------------


def one_point(rng, n):
    return np.ones((n, 16))


def two_points(rng, n):
    return np.eye(2)[rng.integers(2, size=n)]


COLLAPSED = [one_point, two_points, lambda rng, n: np.eye(n), lambda rng, n: np.zeros((n, 3))]


@pytest.mark.parametrize("make", COLLAPSED)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_collapse_does_not_score(rng, make, metric):
    """Of items sorted by class, as data sets often are, and in any other order."""
    labels = np.stack([np.repeat(np.arange(2), 64), np.repeat(np.arange(8), 16)], axis=1)
    for order in (np.arange(128), rng.permutation(128)):
        x = make(rng, 128)
        some = labels[order]
        cut = {"clustering": "dendrogram", "metric": metric}
        found = metrics.hierarchical_rand_index(x, some, **cut)
        assert max(map(abs, found.adjusted)) < 0.1
        sweep = metrics.rand_index_sweep(x, some, [2, 8, 40], **cut)
        assert max(map(abs, sweep.adjusted)) < 0.1
        knn = metrics.hierarchical_knn_accuracy(x, some, metric=metric)
        assert knn == pytest.approx((1 / 2, 1 / 8), abs=0.2)


@pytest.mark.filterwarnings("ignore")
def test_collapse_does_not_score_with_spectral_clustering(rng):
    labels = np.repeat(np.arange(4), 16)
    for make in COLLAPSED[:2]:
        found = metrics.hierarchical_rand_index(make(rng, 64), labels)
        assert abs(found.adjusted[0]) < 0.15


def test_scores_have_one_law_however_ties_are_ordered(rng):
    """Items of one point are exchanged: no order of theirs is better, sorted by class or not."""
    labels = np.repeat(np.arange(4), 25)
    x = rng.standard_normal((10, 3))[np.repeat(np.arange(10), 10)]

    def scores(order, seed):
        options = {"clustering": "dendrogram", "metric": "euclidean", "seed": seed}
        return metrics.rand_index_sweep(x[order], labels[order], [20], **options).adjusted[0]

    in_order = [scores(np.arange(100), seed) for seed in range(60)]
    shuffled = [scores(rng.permutation(100), seed) for seed in range(60)]
    assert scipy.stats.ks_2samp(in_order, shuffled).pvalue > 0.01


def test_votes_among_copies_do_not_go_by_index(rng):
    """Points of twelve items of one class and eight of another, whichever of them come first."""
    x = np.repeat(rng.standard_normal((40, 3)), 20, axis=0)
    labels = np.tile(np.repeat([0, 1], [12, 8]), 40)
    first, last = (
        metrics.hierarchical_knn_accuracy(x, some, k=5, metric="euclidean")[0]
        for some in (labels, labels.reshape(40, 20)[:, ::-1].reshape(-1))
    )
    assert abs(first - last) < 0.1  # by index 0.6 and 0.4


# --- nearest neighbours ---------------------------------------------------------------------------


def soft_tree(rng, n):
    fine = rng.integers(0, 8, n)
    x = rng.standard_normal((n, 6)) + 1.5 * np.eye(8)[fine][:, :6] + 1.0
    return x, np.stack([fine // 4, fine], axis=1)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 9])
def test_knn_accuracy_is_scikit_learns(where, rng, metric, k):
    (x, labels), (test, test_labels) = soft_tree(rng, 120), soft_tree(rng, 50)
    found = metrics.hierarchical_knn_accuracy(
        where.asarray(x),
        labels,
        test=where.asarray(test),
        test_labels=test_labels,
        k=k,
        metric=metric,
    )
    expected = [
        KNeighborsClassifier(k, metric=metric).fit(x, a).score(test, b)
        for a, b in zip(labels.T, test_labels.T, strict=True)
    ]
    assert all(type(v) is float for v in found)
    assert found == pytest.approx(expected, abs=1e-12 if where.dtype == "float64" else 0.021)


@pytest.mark.parametrize("temperature", [None, 0.07])
def test_knn_leaves_the_item_out_and_weighs_votes(rng, temperature):
    x, labels = soft_tree(rng, 60)
    cosine = sklearn.metrics.pairwise.cosine_similarity(x)
    for level in range(2):
        hits = 0
        for i in range(60):
            nearest = sorted(set(range(60)) - {i}, key=lambda j: -cosine[i, j])[:7]
            votes = dict.fromkeys(range(8), 0.0)
            for j in nearest:
                votes[labels[j, level]] += (
                    math.exp(cosine[i, j] / temperature) if temperature else 1
                )
            hits += max(votes, key=votes.get) == labels[i, level]
        found = metrics.hierarchical_knn_accuracy(x, labels, k=7, temperature=temperature)
        assert found[level] == pytest.approx(hits / 60)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_inside_tight_clusters(where, rng, metric):
    """Clusters of 1e-3 with a class in every half of each: as scikit-learn in float64."""
    centres = rng.standard_normal((6, 20))
    side = rng.standard_normal((200, 1))
    x = centres[rng.integers(6, size=200)] + 1e-3 * (
        side * np.eye(20)[0] * 3 + rng.standard_normal((200, 20))
    )
    x = x.astype(where.dtype)
    labels = (side[:, 0] > 0).astype(int)
    wide = x.astype(np.float64)
    if metric == "cosine":
        wide /= np.linalg.norm(wide, axis=1)[:, None]
    hits = []
    for i in range(200):
        vote = KNeighborsClassifier(7, algorithm="kd_tree").fit(
            np.delete(wide, i, axis=0), np.delete(labels, i)
        )
        hits.append(vote.predict(wide[i : i + 1])[0] == labels[i])
    found = metrics.hierarchical_knn_accuracy(where.asarray(x), labels, k=7, metric=metric)
    assert found[0] == pytest.approx(np.mean(hits))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("temperature", [None, 0.07])
def test_neighbours_far_from_the_origin_keep_their_digits(rng, metric, temperature):
    """In float32, as in float64 on the same numbers: the mean is 10,000 times the spread."""
    if metric == "euclidean" and temperature:
        pytest.skip("votes are weighed by cosines only")
    x, labels = soft_tree(rng, 120)
    moved = np.asarray(x + 1e4, dtype=np.float32)
    options = {"k": 5, "metric": metric, "temperature": temperature}
    expected = metrics.hierarchical_knn_accuracy(moved.astype(np.float64), labels, **options)
    assert metrics.hierarchical_knn_accuracy(moved, labels, **options) == expected
    wide = np.asarray(moved, dtype=np.longdouble)
    if metric == "cosine":
        wide /= np.sqrt(np.sum(wide**2, axis=1))[:, None]
    wide = (wide - wide.mean(axis=0)).astype(np.float64)
    vote = KNeighborsClassifier(5, metric="euclidean")
    for level in range(2) if temperature is None else ():
        hits = []
        for i in range(120):
            others = np.arange(120) != i
            vote.fit(wide[others], labels[others, level])
            hits.append(vote.predict(wide[i : i + 1])[0] == labels[i, level])
        assert expected[level] == pytest.approx(np.mean(hits))


def test_neighbours_at_any_scale(rng):
    x, labels = soft_tree(rng, 60)
    near = metrics.hierarchical_knn_accuracy(x, labels, k=5, metric="euclidean")
    for scale, dtype in (
        (1e25, "float32"),
        (1e-25, "float32"),
        (1e200, "float64"),
        (1e-310, "float64"),
    ):
        scaled = np.asarray(x * scale, dtype=dtype)
        far = metrics.hierarchical_knn_accuracy(scaled, labels, k=5, metric="euclidean")
        assert far == pytest.approx(near, abs=0.02)


# --- linear probe ---------------------------------------------------------------------------------


def test_linear_accuracy(backend, rng):
    (x, labels), (test, test_labels) = soft_tree(rng, 160), soft_tree(rng, 80)
    from sklearn.linear_model import LogisticRegression

    mean, std = x.mean(axis=0), x.std(axis=0)
    found = metrics.hierarchical_linear_accuracy(
        backend.asarray(x),
        labels,
        test=backend.asarray(test),
        test_labels=test_labels,
        regularization=200.0,
    )
    expected = [
        LogisticRegression(C=0.005, max_iter=1000)
        .fit((x - mean) / std, a)
        .score((test - mean) / std, b)
        for a, b in zip(labels.T, test_labels.T, strict=True)
    ]
    assert found == pytest.approx(expected, abs=0.013)
    assert found[0] > found[1] > 1 / 8


def test_linear_accuracy_by_cross_validation(rng):
    x, labels = tree_data(rng)
    levels = np.concatenate([np.zeros((96, 1), dtype=int), labels], axis=1)
    assert metrics.hierarchical_linear_accuracy(x, levels) == (1.0, 1.0, 1.0, 1.0)
    shuffled = rng.permutation(labels[:, 0])
    (chance,) = metrics.hierarchical_linear_accuracy(x, shuffled, seed=1)
    assert 0.2 < chance < 0.8
    assert (chance,) == metrics.hierarchical_linear_accuracy(x, shuffled, seed=1)


# --- bad input ------------------------------------------------------------------------------------


def test_bad_input(rng):
    x, labels = soft_tree(rng, 30)
    with pytest.raises(ValueError, match="30 and 29"):
        metrics.rand_index(labels[:, 0], labels[:29, 0])
    with pytest.raises(ValueError, match=r"a of shape \(N,\)"):
        metrics.rand_index(labels, labels)
    with pytest.raises(ValueError, match="at least 2 items"):
        metrics.adjusted_rand_index([1], [1])
    with pytest.raises(ValueError, match=r"labels of shape \(30, L\).*\(29, 2\)"):
        metrics.hierarchical_knn_accuracy(x, labels[:29])
    with pytest.raises(ValueError, match=r"clustering.*'dendrogram', 'spectral'"):
        metrics.hierarchical_rand_index(x, labels, clustering="kmeans")
    with pytest.raises(ValueError, match="at most N = 30 clusters; found 31"):
        metrics.rand_index_sweep(x, labels, [31])
    with pytest.raises(ValueError, match="n_neighbors <= N"):
        metrics.rand_index_sweep(x, labels, [3], n_neighbors=31)
    with pytest.raises(ValueError, match="k <= 29 neighbours; found k = 30"):
        metrics.hierarchical_knn_accuracy(x, labels, k=30)
    with pytest.raises(ValueError, match="temperature"):
        metrics.hierarchical_knn_accuracy(x, labels, k=3, metric="euclidean", temperature=0.1)
    for function in (metrics.hierarchical_knn_accuracy, metrics.hierarchical_linear_accuracy):
        with pytest.raises(ValueError, match="test and test_labels together"):
            function(x, labels, test=x)
        with pytest.raises(ValueError, match=r"D = 6 columns; found shape \(30, 5\)"):
            function(x, labels, test=x[:, :5], test_labels=labels)
        with pytest.raises(ValueError, match="one number of levels"):
            function(x, labels, test=x, test_labels=labels[:, 0])
    with pytest.raises(ValueError, match="regularization"):
        metrics.hierarchical_linear_accuracy(x, labels, regularization=0)
    with pytest.raises(ValueError, match="n_folds <= 1, the items of the largest class; found 5"):
        metrics.hierarchical_linear_accuracy(x, np.arange(30))
    with pytest.raises(ValueError, match="n_folds to be an integer >= 2; found 1"):
        metrics.hierarchical_linear_accuracy(x, labels, n_folds=1)
    with pytest.raises(ValueError, match="at least one number of clusters"):
        metrics.rand_index_sweep(x, labels, [])
    with pytest.raises(ValueError, match="of one sort; found numbers and strings"):
        metrics.hierarchical_knn_accuracy(x, labels, test=x, test_labels=labels.astype(str), k=3)
    with pytest.raises(ValueError, match="expected a without NaN; found it in 1 of them"):
        metrics.rand_index([0.0, math.nan], [0, 1])
    missing = labels.astype(float)
    missing[[3, 4], 1] = math.nan
    with pytest.raises(ValueError, match="expected labels without NaN; found it in 2 of them"):
        metrics.hierarchical_rand_index(x, missing, clustering="dendrogram")
    with pytest.raises(TypeError, match="of one sort, integers or strings; found NoneType, str"):
        metrics.adjusted_rand_index(["a", None], [0, 1])


def test_classes_unseen_in_training_are_never_right(rng):
    x, labels = soft_tree(rng, 30)
    other = labels + 100
    found = metrics.hierarchical_knn_accuracy(x, labels, test=x, test_labels=other, k=3)
    assert found == (0.0, 0.0)
    found = metrics.hierarchical_linear_accuracy(x, labels, test=x, test_labels=other)
    assert found == (0.0, 0.0)
