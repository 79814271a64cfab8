"""Similarities of two trees against SciPy over all pairs, NetworkX, enumeration and formulas."""

import importlib
import itertools
import math

import networkx as nx
import numpy as np
import pytest
import scipy.cluster.hierarchy as sch
import scipy.stats
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import fowlkes_mallows_score

from visreg_core import metrics

counts = importlib.import_module("visreg_core.metrics.trees._pair_counts")
resampling = importlib.import_module("visreg_core.metrics._resampling")


def two_sets(rng, n, noise=0.4):
    x = rng.standard_normal((6, 5))[rng.integers(6, size=n)] + 0.4 * rng.standard_normal((n, 5))
    y = np.tanh(x @ rng.standard_normal((5, 3))) + noise * rng.standard_normal((n, 3))
    return x, y


def depth_distances(z):
    """Half the lengths of paths between leaves, from NetworkX's lowest common ancestors.

    An edge between two merges of one height has no length.
    """
    graph = metrics.to_networkx(z)
    n = len(z) + 1
    height = dict(graph.nodes(data="height"))
    for a, b in graph.edges:
        graph.edges[a, b]["length"] = int(b < n or height[a] != height[b])
    depth = nx.shortest_path_length(graph, source=2 * n - 2, weight="length")
    lca = dict(nx.tree_all_pairs_lowest_common_ancestor(graph))
    out = []
    for i, j in itertools.combinations(range(n), 2):
        a = lca[i, j] if (i, j) in lca else lca[j, i]
        out.append((depth[i] + depth[j]) / 2 - depth[a])
    return np.asarray(out)


def three(a, b):
    return (
        scipy.stats.pearsonr(a, b).statistic,
        scipy.stats.spearmanr(a, b).statistic,
        scipy.stats.kendalltau(a, b).statistic,
    )


def goodman_kruskal(a, b):
    sign = np.sign(a[:, None] - a) * np.sign(b[:, None] - b)
    return sign.sum() / np.abs(sign).sum()


def random_tree(rng, n, chain=0.0, levels=None):
    """A random dendrogram: leaves go one by one onto a chain with the given probability."""
    active, rows = list(range(n)), []
    for k in range(n - 1):
        a = active.pop(-1) if rng.random() < chain else active.pop(rng.integers(len(active)))
        b = active.pop(rng.integers(len(active)))
        active.append(n + k)
        rows.append([a, b])
    heights = np.sort(rng.random(n - 1) if levels is None else rng.integers(0, levels, n - 1))
    size = [1] * n
    for a, b in rows:
        size.append(size[a] + size[b])
    return np.column_stack([rows, heights, size[n:]]).astype(float)


@pytest.mark.parametrize(
    ("method", "metric"),
    [("average", "cosine"), ("ward", "euclidean"), ("single", "sqeuclidean")],
)
def test_lca_similarity_is_scipys_recipe(rng, method, metric):
    x, y = two_sets(rng, 120)
    a, b = (sch.cophenet(sch.linkage(pdist(v, metric), method)) for v in (x, y))
    result = metrics.lca_similarity(x, y, method, metric)
    assert isinstance(result, metrics.Correlations)
    assert all(type(v) is float for v in result)
    assert result == pytest.approx(three(a, b), abs=1e-12)


def test_depth_is_the_path_through_the_ancestor(rng):
    x, y = two_sets(rng, 60)
    expected = three(*(depth_distances(metrics.linkage(v)) for v in (x, y)))
    assert metrics.lca_similarity(x, y, distance="depth") == pytest.approx(expected, abs=1e-12)


def test_every_backend(where, rng):
    x, y = (v.astype(where.dtype) for v in two_sets(rng, 50))
    a, b = where.asarray(x), where.asarray(y)
    assert metrics.lca_similarity(a, b) == metrics.lca_similarity(x, y)
    assert metrics.cophenetic_similarity(a, b) == metrics.cophenetic_similarity(x, y)
    assert type(metrics.cophenetic_correlation(a)) is float
    sampled = metrics.lca_similarity(a, b, n_samples=20, n_repeats=3)
    assert sampled == metrics.lca_similarity(x, y, n_samples=20, n_repeats=3)


trees = st.tuples(
    st.integers(2, 16),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([None, 1, 2, 5]),
    st.integers(0, 10**6),
)


@settings(max_examples=200, deadline=None)
@given(trees, trees, st.sampled_from(["height", "depth"]), st.sampled_from([1, 8, 1 << 20]))
@example((2, 0.0, None, 0), (2, 0.0, None, 1), "height", 8)
@example((12, 1.0, 1, 0), (12, 1.0, None, 1), "height", 8)
def test_any_two_trees(first, second, distance, block):
    """Chains, ties, constants and blocks of any size, against SciPy over all pairs."""
    n = first[0]
    a = random_tree(np.random.default_rng(first[3]), n, *first[1:3])
    b = random_tree(np.random.default_rng(second[3]), n, *second[1:3])
    ours = sch.cophenet(a), sch.cophenet(b)
    pairs = ours if distance == "height" else (depth_distances(a), depth_distances(b))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts, "_BLOCK", block)
        result = metrics.dendrogram_correlations(a, b, distance)
        gammas = [metrics.bakers_gamma(a, b, convention=c) for c in ("spearman", "goodman-kruskal")]
    np.testing.assert_allclose(squareform(metrics.cophenetic_distances(a)), squareform(ours[0]))
    if min(np.ptp(pairs[0]), np.ptp(pairs[1])) == 0:
        assert all(math.isnan(v) for v in result)
    else:
        assert result == pytest.approx(three(*pairs), abs=1e-12)
    if min(np.ptp(ours[0]), np.ptp(ours[1])) == 0:
        assert math.isnan(gammas[0])
    else:
        assert gammas[0] == pytest.approx(three(*ours)[1], abs=1e-12)
    sign = np.sign(ours[0][:, None] - ours[0]) * np.sign(ours[1][:, None] - ours[1])
    if np.any(sign):
        assert gammas[1] == pytest.approx(goodman_kruskal(*ours), abs=1e-12)


def test_larger_trees_in_blocks(rng, monkeypatch):
    a, b = random_tree(rng, 500, 0.7), random_tree(rng, 500, 0.3, levels=40)
    whole = metrics.dendrogram_correlations(a, b)
    assert whole == pytest.approx(three(sch.cophenet(a), sch.cophenet(b)), abs=1e-12)
    monkeypatch.setattr(counts, "_BLOCK", 700)
    assert metrics.dendrogram_correlations(a, b) == pytest.approx(whole, abs=1e-12)
    assert metrics.dendrogram_correlations(b, a) == pytest.approx(whole, abs=1e-12)


def test_equal_and_opposite_trees(rng):
    x = rng.standard_normal((200, 3))
    assert metrics.lca_similarity(x, x) == pytest.approx((1, 1, 1), abs=1e-13)
    rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    assert metrics.lca_similarity(x, 7 * x @ rotation).kendall == pytest.approx(1, abs=1e-9)
    z = metrics.linkage(x)
    shuffled = z.copy()
    shuffled[:, :2] = np.where(z[:, :2] < 200, (z[:, :2] + 71) % 200, z[:, :2])
    # Labels matter: the same tree on other items is unlike.
    assert abs(metrics.dendrogram_correlations(z, shuffled).spearman) < 0.3


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**52), st.integers(0, 2**61)), min_size=0, max_size=50),
)
@example([(2**52, 2**61)] * 50)
def test_exact_dot(terms):
    a, b = (np.asarray([t[k] for t in terms], dtype=np.int64) for k in (0, 1))
    assert counts.exact_dot(a, b) == sum(p * q for p, q in terms)


def test_counts_beyond_64_bits():
    """Pairs of pairs of 2^33 items overflow int64: the coefficient is still the exact one."""
    big = 2**31
    i = np.asarray([0, 0, 1, 1])
    j = np.asarray([1, 0, 1, 0])
    pairs = np.asarray([2 * big, 9 * big, 7 * big, 3 * big], dtype=np.int64) * 64
    result = counts.correlate(
        [counts.PairCounts(i, j, pairs)],
        np.asarray([0.0, 1.0]),
        np.asarray([0.0, 1.0]),
        np.asarray([11, 10]) * big * 64,
        np.asarray([12, 9]) * big * 64,
    )
    p, q, r, s = (int(v) for v in pairs)
    discordant, concordant = p * s, q * r
    assert concordant > 2**63
    tau = (concordant - discordant) / math.sqrt((p + q) * (r + s)) / math.sqrt((p + r) * (q + s))
    assert result.kendall == pytest.approx(tau, rel=1e-14)
    assert result.pearson == pytest.approx(tau, rel=1e-14)  # phi of a 2 × 2 table
    assert result.gamma == (concordant - discordant) / (concordant + discordant)


# --- cophenetic similarity ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "metric"),
    [
        ("average", "cosine"),
        ("average", "sqeuclidean"),
        ("ward", "euclidean"),
        ("single", "cosine"),
    ],
)
@pytest.mark.parametrize("shape", [(40, 3), (12, 30)])
def test_cophenetic_similarity(rng, method, metric, shape, monkeypatch):
    monkeypatch.setattr("visreg_core.metrics.trees._distances._BLOCK", 100)
    x = 0.8 + rng.standard_normal(shape)
    y = x + rng.standard_normal(shape)
    c = [sch.cophenet(metrics.linkage(v, method, metric)) for v in (x, y)]
    d = [pdist(v, metric) for v in (x, y)]
    result = metrics.cophenetic_similarity(x, y, method, metric)
    assert result.d1_to_p2 == pytest.approx(np.corrcoef(c[0], d[1])[0, 1], abs=1e-12)
    assert result.d2_to_p1 == pytest.approx(np.corrcoef(c[1], d[0])[0, 1], abs=1e-12)
    own = metrics.cophenetic_correlation(x, method, metric)
    assert own == pytest.approx(sch.cophenet(sch.linkage(d[0], method), d[0])[0], abs=1e-12)


def test_cophenetic_similarity_with_zero_vectors(rng):
    x = rng.standard_normal((30, 3))
    x[[4, 9, 20]] = 0
    u = x / np.where(x.any(axis=1), np.linalg.norm(x, axis=1), 1)[:, None]
    square = 1 - u @ u.T
    square[np.ix_([4, 9, 20], [4, 9, 20])] = 0
    d = squareform(square, checks=False)
    c = sch.cophenet(metrics.linkage(x))
    expected = np.corrcoef(c, d)[0, 1]
    assert metrics.cophenetic_correlation(x) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "sqeuclidean", "euclidean"])
def test_cophenetic_similarity_of_collapsed_sets(rng, metric):
    """Nearly constant distances, far from the origin: the common part must not cancel."""
    x = 1.0 + 1e-5 * rng.standard_normal((40, 4))
    d = pdist(x - x.mean(axis=0), "sqeuclidean" if metric != "euclidean" else "euclidean")
    if metric == "cosine":
        centred = x / np.linalg.norm(x, axis=1)[:, None] - 0.5
        d = pdist(centred - centred.mean(axis=0), "sqeuclidean")
    c = sch.cophenet(metrics.linkage(x, "average", metric))
    expected = np.corrcoef(c, d)[0, 1]
    assert metrics.cophenetic_correlation(x, "average", metric) == pytest.approx(expected, abs=1e-9)


def test_equal_trees_correlate_by_exactly_one(rng):
    for n in (3, 4, 5, 30, 200):
        z = random_tree(rng, n)
        for distance in ("height", "depth"):
            assert metrics.dendrogram_correlations(z, z, distance).kendall == 1.0


def test_infinite_heights(rng):
    """Squares beyond float64: ranks still correlate, values do not."""
    a, b = random_tree(rng, 12), random_tree(rng, 12)
    finite = metrics.dendrogram_correlations(a, b)
    a[-1, 2] = math.inf
    result = metrics.dendrogram_correlations(a, b)
    assert math.isnan(result.pearson)
    assert result[1:] == finite[1:]
    x = 1e200 * rng.standard_normal((6, 2))
    assert math.isnan(metrics.cophenetic_correlation(x, metric="sqeuclidean"))
    assert all(math.isnan(v) for v in metrics.lca_similarity(x, x, metric="sqeuclidean"))


def test_constant_distances_have_no_correlation():
    equidistant = np.eye(5)
    assert all(math.isnan(v) for v in metrics.lca_similarity(equidistant, equidistant))
    same = np.ones((5, 2))
    assert math.isnan(metrics.cophenetic_correlation(same))
    assert math.isnan(metrics.cophenetic_correlation(same[:2]))
    other = np.random.default_rng(0).standard_normal((5, 2))
    assert all(math.isnan(v) for v in metrics.lca_similarity(same, other))
    similarity = metrics.cophenetic_similarity(same, other)
    assert math.isnan(similarity.d1_to_p2)
    assert math.isnan(similarity.d2_to_p1)


@pytest.mark.parametrize("metric", ["cosine", "sqeuclidean", "euclidean"])
@pytest.mark.parametrize("n", [7, 64, 200])
def test_distances_equal_but_for_rounding_are_constant(rng, metric, n):
    other = rng.standard_normal((n, 4))
    for x in (np.eye(n), 1.1 * np.eye(n), np.linalg.qr(rng.standard_normal((n, n)))[0],
              np.full((n, 3), 0.1), np.zeros((n, 3))):  # fmt: skip
        assert math.isnan(metrics.cophenetic_correlation(x, metric=metric))
        assert np.all(np.isnan(metrics.lca_similarity(other, x, metric=metric)))
        assert np.all(np.isnan(metrics.lca_similarity(x, x, metric=metric, distance="depth")))
        assert np.all(np.isnan(metrics.cophenetic_similarity(other, x, metric=metric)))
    compared = metrics.compare_lca_similarity((x, other), (other, x), n_resamples=2)
    assert np.all(np.isnan(compared.spearman))


def test_ties_of_two_sets_are_drawn_apart(rng):
    """A lattice has many dendrograms: what they have in common is what it tells of its items."""
    lattice = np.arange(40.0)[:, None]
    for distance in ("height", "depth"):
        similarity = metrics.lca_similarity(lattice, lattice, "average", "sqeuclidean", distance)
        assert 0.1 < similarity.kendall < 0.99
    copies = rng.standard_normal((12, 3))[rng.integers(12, size=40)]
    for distance in ("height", "depth"):
        assert metrics.lca_similarity(copies, copies, distance=distance).kendall == 1


@pytest.mark.parametrize("metric", ["cosine", "sqeuclidean", "euclidean"])
def test_distances_that_differ_by_little_are_not_constant(rng, metric):
    """Nearly equidistant rows, against differences in extended precision."""
    x = np.eye(30) + 1e-6 * rng.standard_normal((30, 30))
    y = rng.standard_normal((30, 4))
    wide = x.astype(np.longdouble)
    if metric == "cosine":
        wide /= np.sqrt(np.sum(wide**2, axis=1))[:, None]
    i, j = np.triu_indices(30, 1)
    d = np.sum((wide[i] - wide[j]) ** 2, axis=1)
    d = np.sqrt(d) if metric == "euclidean" else d
    heights = sch.cophenet(metrics.linkage(y, metric=metric))
    expected = np.corrcoef((d - d.mean()).astype(float), heights)[0, 1]
    found = metrics.cophenetic_similarity(x, y, metric=metric).d2_to_p1
    assert found == pytest.approx(expected, abs=1e-7)


# --- Fowlkes-Mallows ------------------------------------------------------------------------------


def test_fowlkes_mallows_is_scikit_learns(rng):
    x, y = two_sets(rng, 40)
    a, b = metrics.linkage(x), metrics.linkage(y)
    result = metrics.fowlkes_mallows(a, b)
    np.testing.assert_array_equal(result.n_clusters, np.arange(2, 40))
    for k, value in zip(result.n_clusters.tolist(), result.similarity.tolist(), strict=True):
        labels = [metrics.cut_tree(z, n_clusters=k) for z in (a, b)]
        assert value == pytest.approx(fowlkes_mallows_score(*labels), abs=1e-12)


def test_fowlkes_mallows_does_not_split_ties(rng):
    """The finest cut into at most k clusters, as SciPy's "maxclust"."""
    a, b = random_tree(rng, 30, levels=5), random_tree(rng, 30, levels=8)
    result = metrics.fowlkes_mallows(a, b)
    for k, value in zip(result.n_clusters.tolist(), result.similarity.tolist(), strict=True):
        labels = [
            metrics.cut_tree(z, height=z[z[:, 2] >= z[len(z) - k, 2], 2].min()) for z in (a, b)
        ]
        assert all(v.max() < k for v in labels)
        assert value == pytest.approx(fowlkes_mallows_score(*labels), abs=1e-12)
    collapsed = metrics.linkage(np.ones((30, 2)))
    for other in (collapsed, metrics.linkage(np.eye(30)), a):
        result = metrics.fowlkes_mallows(collapsed, other)
        np.testing.assert_allclose(result.similarity, result.expected)


def test_fowlkes_mallows_under_permutation(rng):
    """Mean and variance over all 6! relabelings of one tree."""
    n = 6
    a, b = random_tree(rng, n), random_tree(rng, n, levels=2)
    result = metrics.fowlkes_mallows(a, b)
    values = []
    for order in itertools.permutations(range(n)):
        renamed = b.copy()
        leaves = b[:, :2] < n
        renamed[:, :2][leaves] = np.asarray(order)[b[:, :2][leaves].astype(int)]
        values.append(metrics.fowlkes_mallows(a, renamed).similarity)
    np.testing.assert_allclose(result.expected, np.mean(values, axis=0), rtol=1e-12)
    np.testing.assert_allclose(result.variance, np.var(values, axis=0), rtol=1e-9, atol=1e-14)
    small = metrics.fowlkes_mallows(random_tree(rng, 3), random_tree(rng, 3))
    assert small.n_clusters.tolist() == [2]
    assert np.isnan(small.variance[0])
    assert metrics.fowlkes_mallows(random_tree(rng, 2), random_tree(rng, 2)).n_clusters.size == 0


# --- subsets and the bootstrap --------------------------------------------------------------------


def test_subsets_are_fair_and_repeatable():
    drawn = [resampling.subset(12, 5, seed=3, repeat=r) for r in range(2000)]
    assert all(np.all(np.diff(rows) > 0) and rows.size == 5 for rows in drawn)
    share = np.bincount(np.concatenate(drawn)) / 2000
    assert np.abs(share - 5 / 12).max() < 4 * math.sqrt(5 / 12 * 7 / 12 / 2000)
    np.testing.assert_array_equal(drawn[7], resampling.subset(12, 5, seed=3, repeat=7))
    resampled = np.concatenate([resampling.resample(10, seed=1, repeat=r) for r in range(2000)])
    assert scipy.stats.chisquare(np.bincount(resampled, minlength=10)).pvalue > 1e-4


def test_intervals_cover(rng):
    """95% intervals hold the mean over all subsets in about 95 of 100 draws."""
    x, y = two_sets(rng, 60)
    which = ("average", "euclidean")
    truth = np.mean(
        [
            metrics.lca_similarity(x[rows], y[rows], *which)
            for rows in (resampling.subset(60, 20, seed=999, repeat=r) for r in range(1500))
        ],
        axis=0,
    )
    inside = np.zeros(3)
    for seed in range(150):
        result = metrics.lca_similarity(x, y, *which, n_samples=20, n_repeats=8, seed=seed)
        inside += [e.low <= t <= e.high for e, t in zip(result, truth, strict=True)]
        assert all(e.low <= e.mean <= e.high for e in result)
    # Binomial(150, 0.95) is in 132 … 149 with probability 0.998.
    assert np.all((inside >= 131) & (inside <= 149)), inside


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("n", [8, 20])
def test_intervals_of_skewed_values_cover(n, confidence):
    """As skewed as similarities of subsets are, and more: of Beta(2, 12) and its mirror image.

    Student's interval of eight values covers 0.87 and 0.92 of what is said.
    """
    rng = np.random.default_rng(4)
    law = scipy.stats.beta(2, 12)
    values = law.rvs((4000, n), random_state=rng)
    for sign in (1, -1):
        found = [resampling.estimate(sign * v, confidence) for v in values]
        inside = np.mean([e.low <= sign * law.mean() <= e.high for e in found])
        assert abs(inside - confidence) < 0.014, inside
        assert all(e.low < e.mean < e.high for e in found)
    mirrored = resampling.estimate(-values[0], confidence)
    plain = resampling.estimate(values[0], confidence)
    assert mirrored == pytest.approx((-plain.mean, -plain.high, -plain.low))


def test_intervals_without_skewness_are_students():
    values = np.asarray([1.0, 2.0, 4.0, 5.0])
    for some in (values, values[:2]):
        low, high = scipy.stats.t.interval(0.9, some.size - 1, some.mean(), scipy.stats.sem(some))
        assert resampling.estimate(some, 0.9) == pytest.approx((some.mean(), low, high))
    assert resampling.estimate(np.full(4, 3.0), 0.9) == (3, 3, 3)
    assert all(map(math.isnan, resampling.estimate(np.asarray([1.0, math.nan, 2.0]), 0.9)))


def test_uses_of_the_stream_draw_other_words():
    """Of one seed and repeat, and other ones than any sample of a file."""
    n, seed, repeat = 50, 3, 7
    words = [
        resampling._words(n, seed, repeat, stream)[0].tolist()
        for stream in (resampling._SUBSET, resampling._RESAMPLE, resampling._ORDER, 0)
    ]
    assert len({w for some in words for w in some}) == 4 * n
    rows = resampling.resample(n, seed=seed, repeat=repeat)
    uniform = np.asarray(words[1]) / 2**32
    np.testing.assert_array_equal(rows, np.sort((uniform * n).astype(int)))
    chosen = resampling.subset(n, 9, seed=seed, repeat=repeat)
    np.testing.assert_array_equal(chosen, np.sort(np.argsort(words[0])[:9]))
    order = resampling.drawn_order(n, seed=seed, draw=repeat)
    np.testing.assert_array_equal(order, np.argsort(words[2]))


def test_sampled_cophenetic_similarity(rng):
    x, y = two_sets(rng, 60)
    result = metrics.cophenetic_similarity(x, y, n_samples=60, n_repeats=2)
    exact = metrics.cophenetic_similarity(x, y)
    assert isinstance(result, metrics.SampledCopheneticSimilarity)
    for estimate, value in zip(result, exact, strict=True):
        assert estimate == pytest.approx((value, value, value), abs=1e-12)
    narrow = metrics.cophenetic_similarity(x, y, n_samples=30, confidence=0.5)
    wide = metrics.cophenetic_similarity(x, y, n_samples=30, confidence=0.99)
    assert wide.d1_to_p2.low < narrow.d1_to_p2.low < narrow.d1_to_p2.high < wide.d1_to_p2.high


@pytest.mark.parametrize("which", [("average", "cosine"), ("average", "euclidean")])
def test_bootstrap_leaves_copies_out(rng, which):
    """Copies of an item carry no pairs: the naive way deletes them from all pairs."""
    module = importlib.import_module("visreg_core.metrics.trees.tree_bootstrap")
    x, y = two_sets(rng, 30)
    rows = resampling.resample(30, seed=5, repeat=0)
    assert np.unique(rows).size < 30
    other = rows[:, None] != rows
    keep = other[np.triu_indices(30, 1)]
    a, b = (
        sch.cophenet(sch.linkage(pdist(v[rows], which[1]).clip(min=0), which[0]))[keep]
        for v in (x, y)
    )
    got = module._similarity(rows, x, y, method=which[0], metric=which[1])
    assert got == pytest.approx(three(a, b), abs=1e-9)


def test_bootstrap_intervals_are_the_spread_of_resamples(rng):
    """z times the unbiased standard deviation of as many differences."""
    module = importlib.import_module("visreg_core.metrics.trees.tree_bootstrap")
    x, y = two_sets(rng, 30)
    noisy = y + rng.standard_normal(y.shape)
    result = metrics.compare_lca_similarity((x, y), (x, noisy), n_resamples=3, seed=4)
    options = {"method": "average", "metric": "cosine"}
    gaps = []
    for repeat in range(3):
        rows = resampling.resample(30, seed=4, repeat=repeat)
        first, second = (module._similarity(rows, x, v, **options) for v in (y, noisy))
        gaps.append(first.kendall - second.kendall)
    reach = scipy.stats.norm.ppf(0.975) * np.sqrt(np.sum((gaps - np.mean(gaps)) ** 2) / 2)
    assert result.kendall.high - result.kendall.observed == pytest.approx(reach)
    assert result.kendall.share_above == pytest.approx(np.mean(np.asarray(gaps) > 0))


def test_bootstrap_is_paired(rng):
    x, y = two_sets(rng, 80, noise=0.05)
    noisy = y + 1.5 * rng.standard_normal(y.shape)
    result = metrics.compare_lca_similarity((x, y), (x, noisy), n_resamples=40)
    assert result.first == pytest.approx(metrics.lca_similarity(x, y))
    assert result.second == pytest.approx(metrics.lca_similarity(x, noisy))
    for name in ("pearson", "spearman", "kendall"):
        difference = getattr(result, name)
        gap = getattr(result.first, name) - getattr(result.second, name)
        assert difference.observed == pytest.approx(gap)
        assert 0 < difference.low < difference.observed < difference.high
        assert difference.share_above > 0.9
    same = metrics.compare_lca_similarity((x, y), (x, y), n_resamples=5)
    assert same.kendall == (0, 0, 0, 0)
    swapped = metrics.compare_lca_similarity((x, noisy), (x, y), n_resamples=40)
    assert swapped.kendall.low == pytest.approx(-result.kendall.high)


def test_bootstrap_intervals_cover():
    """95 % intervals of the difference hold its mean over draws of the items about 95 times in 100.

    The mean and the scatter over draws are SciPy's. Measured over 150 draws with 40 resamples the
    intervals held it 145 to 147 times.
    """
    rng = np.random.default_rng(3)
    centres, weights = rng.standard_normal((6, 5)), rng.standard_normal((5, 3))

    def drawn():
        x = centres[rng.integers(6, size=40)] + 0.4 * rng.standard_normal((40, 5))
        seen = np.tanh(x @ weights)
        good, bad = (seen + noise * rng.standard_normal(seen.shape) for noise in (0.2, 0.4))
        return x, good, bad

    gaps = []
    for _ in range(200):
        x, good, bad = (sch.cophenet(sch.linkage(v, "average", "euclidean")) for v in drawn())
        gaps.append(np.subtract(three(good, x), three(bad, x)))
    truth, scatter = np.mean(gaps, axis=0), np.std(gaps, axis=0)

    inside, reach = np.zeros(3), np.zeros(3)
    for seed in range(60):
        x, good, bad = drawn()
        result = metrics.compare_lca_similarity(
            (good, x), (bad, x), metric="euclidean", n_resamples=16, seed=seed
        )
        found = result.pearson, result.spearman, result.kendall
        inside += [d.low <= t <= d.high for d, t in zip(found, truth, strict=True)]
        reach += [(d.high - d.low) / 2 for d in found]
    # Binomial(60, 0.95) is below 52 with probability 0.002.
    assert np.all(inside >= 52), inside
    width = reach / 60 / 1.96 / scatter
    assert np.all((width > 0.85) & (width < 1.3)), width


# --- errors ---------------------------------------------------------------------------------------


def test_errors(rng):
    x, y = two_sets(rng, 10)
    z = metrics.linkage(x)
    with pytest.raises(ValueError, match=r"distance to be one of \['depth', 'height'\]; found 'd'"):
        metrics.lca_similarity(x, y, distance="d")
    with pytest.raises(ValueError, match="10 and 9 rows"):
        metrics.lca_similarity(x, y[:9])
    swapped = [0, 1, 2, 4, 3, 5, 6, 7, 8, 9]
    with pytest.raises(ValueError, match=r"different ids in 2 rows, the first at 3: 3 and 4"):
        metrics.lca_similarity(x, y, ids_x=list(range(10)), ids_y=swapped)
    with pytest.raises(ValueError, match="ids of both sets or of neither"):
        metrics.cophenetic_similarity(x, y, ids_x=list("abcdefghij"))
    with pytest.raises(ValueError, match="n_samples <= N = 10; found 11"):
        metrics.lca_similarity(x, y, n_samples=11)
    with pytest.raises(ValueError, match="n_samples to be an integer >= 3"):
        metrics.lca_similarity(x, y, n_samples=2)
    with pytest.raises(ValueError, match="n_repeats to be an integer >= 2"):
        metrics.lca_similarity(x, y, n_samples=5, n_repeats=1)
    with pytest.raises(ValueError, match="confidence between 0 and 1; found 95"):
        metrics.lca_similarity(x, y, n_samples=5, confidence=95)
    with pytest.raises(ValueError, match="seed to be an integer"):
        metrics.lca_similarity(x, y, n_samples=5, seed=-1)
    with pytest.raises(ValueError, match="10 and 9 leaves"):
        metrics.dendrogram_correlations(z, metrics.linkage(x[:9]))
    with pytest.raises(ValueError, match=r"linkage matrix \(N - 1, 4\)"):
        metrics.bakers_gamma(x, z)
    with pytest.raises(ValueError, match="convention to be one of"):
        metrics.bakers_gamma(z, z, convention="pearson")
    with pytest.raises(ValueError, match="both models on the same items; found 10 and 9 rows"):
        metrics.compare_lca_similarity((x, y), (x[:9], y[:9]))
    with pytest.raises(ValueError, match=r"two sets \(x, y\) of embeddings; found ndarray"):
        metrics.compare_lca_similarity(x, y)
    with pytest.raises(TypeError, match="confidence to be a number; found '95%'"):
        metrics.lca_similarity(x, y, n_samples=5, confidence="95%")
    inverted = z.copy()
    inverted[[0, 1], 2] = [2.0, 1.0]
    with pytest.raises(ValueError, match="heights of first not to decrease"):
        metrics.fowlkes_mallows(inverted, z)
    twice = z.copy()
    twice[1, 0] = twice[0, 0]
    with pytest.raises(ValueError, match="not a dendrogram"):
        metrics.fowlkes_mallows(z, twice)
    with pytest.raises(TypeError, match="numpy and torch"):
        metrics.lca_similarity(x, torch.tensor(y))
