"""CKA and mutual neighbours against the definitions written with N × N matrices."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from visreg_core import metrics
from visreg_core._xp import neighbours
from visreg_core.losses.random_walk import nearest
from visreg_core.metrics import similarity


def centring(n):
    return np.eye(n) - 1 / n


def naive_cka(x, y):
    """tr(KHLH) / √(tr(KHKH) tr(LHLH)), Kornblith et al. 2019, eq. 2 and 3."""
    h = centring(x.shape[0])
    k, m = x @ x.T, y @ y.T

    def hsic(a, b):
        return np.trace(a @ h @ b @ h)

    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def naive_unbiased_cka(x, y):
    """Song et al. 2012, eq. 5, with the matrices written out."""
    n = x.shape[0]
    one = np.ones(n)

    def hsic(a, b):
        a, b = a - np.diag(np.diag(a)), b - np.diag(np.diag(b))
        return (
            np.trace(a @ b)
            + (one @ a @ one) * (one @ b @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ a @ b @ one)
        ) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


NAIVE = {"biased": naive_cka, "unbiased": naive_unbiased_cka}


def two_sets(rng, n, dx, dy):
    x = rng.standard_normal((n, dx)) + 0.5
    y = x[:, :1] * rng.standard_normal(dy) + rng.standard_normal((n, dy)) - 2.0
    return x, y


@pytest.mark.parametrize("convention", NAIVE)
@pytest.mark.parametrize("shape", [(40, 5, 7), (9, 30, 41)])
def test_cka_is_its_definition(where, rng, convention, shape):
    x, y = two_sets(rng, *shape)
    value = metrics.linear_cka(where.asarray(x), where.asarray(y), convention=convention)
    expected = NAIVE[convention](x, y)
    assert type(value) is float
    assert value == pytest.approx(expected, abs=1e-11 if where.dtype == "float64" else 1e-4)


@pytest.mark.parametrize("convention", NAIVE)
@pytest.mark.parametrize("shape", [(9, 3, 60), (4, 1, 1)])
def test_cka_of_odd_shapes(rng, convention, shape):
    x, y = two_sets(rng, *shape)
    value = metrics.linear_cka(x, y, convention=convention)
    assert value == pytest.approx(NAIVE[convention](x, y), abs=1e-11)


def test_cka_from_covariances(rng):
    x, y = two_sets(rng, 50, 5, 7)
    joint = np.cov(np.hstack([x, y]).T)
    blocks = joint[:5, :5], joint[5:, 5:], joint[:5, 5:]
    expected = metrics.linear_cka(x, y)
    assert metrics.linear_cka_from_covariances(*blocks) == pytest.approx(expected, rel=1e-12)
    large = [1e200 * b for b in blocks]
    assert metrics.linear_cka_from_covariances(*large) == pytest.approx(expected, rel=1e-12)
    zero = np.zeros_like(blocks[0])
    assert math.isnan(metrics.linear_cka_from_covariances(zero, blocks[1], 0 * blocks[2]))
    with pytest.raises(ValueError, match=r"\(Dx, Dy\); found \(5, 5\), \(7, 7\), \(7, 5\)"):
        metrics.linear_cka_from_covariances(*blocks[:2], blocks[2].T)


@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-8, 0.3, 1e8]), shift=st.floats(-9, 9))
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("convention", NAIVE)
def test_cka_invariances(convention, seed, scale, shift):
    rng = np.random.default_rng(seed)
    x, y = two_sets(rng, 30, 6, 4)
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    value = metrics.linear_cka(x, y, convention=convention)
    moved = metrics.linear_cka(scale * (x @ rotation + shift), y, convention=convention)
    order = rng.permutation(30)
    permuted = metrics.linear_cka(y[order], x[order], convention=convention)
    assert moved == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True)
    assert permuted == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True)
    own = metrics.linear_cka(x, 3 * x - 1, convention=convention)
    assert own == pytest.approx(1.0, abs=1e-12)


def test_unbiased_cka_of_wide_independent_sets_is_near_zero(rng):
    x, y = rng.standard_normal((60, 2000)), rng.standard_normal((60, 2000))
    assert metrics.linear_cka(x, y) > 0.9
    assert abs(metrics.linear_cka(x, y, convention="unbiased")) < 0.2


@pytest.mark.dtypes("float32")
def test_cka_at_extreme_scales_in_float32(where, rng):
    x, y = two_sets(rng, 40, 5, 7)
    x[:, 0] *= 1000
    expected = naive_cka(x, y)
    for scale in (1e-18, 1e18):
        value = metrics.linear_cka(where.asarray(scale * x), where.asarray(y))
        assert value == pytest.approx(expected, rel=1e-5)


def test_cka_of_a_constant_is_nan(where, rng):
    x, y = where.asarray(np.full((8, 3), 0.1)), where.asarray(rng.standard_normal((8, 4)))
    for convention in NAIVE:
        assert math.isnan(metrics.linear_cka(x, y, convention=convention))
        assert math.isnan(metrics.linear_cka(x, x, convention=convention))


def test_blocks_of_gram_matrices_add_up(rng, monkeypatch):
    x, y = two_sets(rng, 23, 60, 70)
    expected = metrics.linear_cka(x, y), metrics.mutual_knn(x, y, 5)
    monkeypatch.setattr(similarity, "_BLOCK", 4 * 23)
    for name in ("_BLOCK", "_MIN_ROWS"):
        monkeypatch.setattr(neighbours, name, 4)
    assert metrics.linear_cka(x, y) == pytest.approx(expected[0], rel=1e-13)
    assert metrics.mutual_knn(x, y, 5) == expected[1]


def naive_distances(z, metric):
    """Half the squared ones by extended precision; a zero vector is at cosine distance 1."""
    z = np.asarray(z).astype(np.longdouble)
    zero = ~z.any(axis=1)
    if metric == "cosine":
        z = z / np.where(zero, 1, np.sqrt(np.sum(z * z, axis=1)))[:, None]
    distance = np.stack([np.sum((z - row) ** 2, axis=1) for row in z]) / 2
    if metric == "cosine":
        distance[zero] = distance[:, zero] = 1
    np.fill_diagonal(distance, np.inf)
    return distance


def naive_neighbours(z, k, metric):
    """The k nearest rows, equal distances by index."""
    return np.argsort(naive_distances(z, metric), axis=1, kind="stable")[:, :k]


def naive_mutual_knn(x, y, k, metric):
    """Correlation of the probabilities to be a neighbour if ties were drawn, row by row."""
    n = len(x)
    total = 0.0
    for dx, dy in zip(naive_distances(x, metric), naive_distances(y, metric), strict=True):
        p, q = np.zeros((2, n))
        for share, d in ((p, dx), (q, dy)):
            last = np.sort(d)[k - 1]
            nearer, tied = d < last * (1 - 1e-14), abs(d - last) <= last * 1e-14
            share[nearer], share[tied] = 1, (k - nearer.sum()) / tied.sum()
        p, q = (np.delete(share, np.argmax(np.isinf(dx))) for share in (p, q))
        chance = k * k / (n - 1)
        r = 0.0 if min(np.ptp(p), np.ptp(q)) == 0 else np.corrcoef(p, q)[0, 1]
        total += chance + (k - chance) * r
    return total / (n * k)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("mean", [0.0, 1e2, 1e4])
def test_mutual_knn_by_definition(where, rng, metric, mean):
    """Far from the origin, too: single precision products of such rows have no digit left."""
    x, y = two_sets(rng, 40, 5, 7)
    x, y = (x + mean).astype(where.dtype), (y - mean).astype(where.dtype)
    x[3] = y[30] = 0
    value = metrics.mutual_knn(where.asarray(x), where.asarray(y), 7, metric=metric)
    assert type(value) is float
    assert value == pytest.approx(naive_mutual_knn(x, y, 7, metric), rel=1e-12)


def test_naive_neighbours_are_scikit_learns(rng):
    x, _ = two_sets(rng, 40, 5, 7)
    for metric in ("cosine", "euclidean"):
        found = NearestNeighbors(n_neighbors=7, metric=metric).fit(x)
        expected = found.kneighbors(return_distance=False)
        np.testing.assert_array_equal(naive_neighbours(x, 7, metric), expected)


@pytest.mark.parametrize("shift", [0.0, 4096.0, 1e6])
def test_ties_go_by_index(backend, rng, shift):
    """Whole numbers tie exactly, wherever they are."""
    x = (rng.integers(-2, 3, (60, 3)) + shift).astype(np.float32)
    y = np.arange(60.0, dtype=np.float32)[:, None]
    z = backend.asarray(x)
    found, _ = similarity.nearest(z, z, 9, metric="euclidean", leave_one_out=True)
    np.testing.assert_array_equal(found, naive_neighbours(x, 9, "euclidean"))
    value = metrics.mutual_knn(z, backend.asarray(y), 9, metric="euclidean")
    assert value == pytest.approx(naive_mutual_knn(x, y, 9, "euclidean"), rel=1e-12)


def tight(rng, n, d, spread=1e-3, clusters=10):
    """Clusters whose width is a small part of their distance from each other."""
    centres = rng.standard_normal((clusters, d))
    return centres[rng.integers(clusters, size=n)] + spread * rng.standard_normal((n, d))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dim", [64, 250])  # screened in float64, and in float32
@pytest.mark.lean_on_jax(dim=[64], metric=["cosine"])
def test_neighbours_inside_tight_clusters(where, rng, metric, dim):
    """By differences in extended precision; and an isometry changes nothing."""
    x = tight(rng, 280, dim).astype(where.dtype)
    z = where.asarray(x)
    found, distance = similarity.nearest(z, z, 10, metric=metric, leave_one_out=True)
    expected = naive_neighbours(x, 10, metric)
    np.testing.assert_array_equal(found, expected)
    if metric == "cosine":
        exact = np.take_along_axis(naive_distances(x, metric), expected, axis=1)
        np.testing.assert_allclose(distance, exact.astype(float), rtol=1e-4)
    mirrored = where.asarray(x[:, ::-1].copy())
    assert metrics.mutual_knn(z, mirrored, metric=metric) == 1


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda rng: tight(rng, 700, 130, 1e-5), "float32"),
        (lambda rng: tight(rng, 700, 130, 1e-3, clusters=2), "float32"),
        (lambda rng: 1 + 1e-3 * rng.standard_normal((400, 200)), "float32"),
        (lambda rng: 1 + 1e-7 * rng.standard_normal((400, 200)), "float64"),
        (lambda rng: tight(rng, 400, 130) * 10.0 ** rng.integers(-3, 3, (400, 1)), "float32"),
        (lambda rng: np.sign(rng.standard_normal((300, 130))), "float32"),
        (lambda rng: np.repeat(tight(rng, 100, 130), 4, axis=0), "float32"),
        (lambda rng: np.concatenate([rng.standard_normal((300, 130)), np.full((1, 130), 1e6)]),
         "float32"),
    ],
    ids="tight two-clusters collapsed collapsed-64 scales signs copies outlier".split(),
)  # fmt: skip
def test_neighbours_of_wide_rows(rng, metric, make, dtype):
    x = make(rng).astype(dtype)
    found, _ = similarity.nearest(x, x, 10, metric=metric, leave_one_out=True)
    whole = np.array_equal(abs(x), np.ones_like(x))  # whose ties are exact if they stay whole
    np.testing.assert_array_equal(found, naive_neighbours(x, 10, "euclidean" if whole else metric))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [3, 4, 5])
def test_the_last_of_the_neighbours_may_be_one_of_close_rows(rng, metric, k):
    """Rows in pairs, whose distances from others float32 cannot tell apart, a few in clusters."""
    x, y = (
        np.concatenate([tight(rng, 20, 400, 0.2, 2), rng.standard_normal((90, 400))])
        for _ in range(2)
    )
    x, y = (z.repeat(2, axis=0) for z in (x, y))
    x, y = ((z + 1e-6 * rng.standard_normal(z.shape)).astype(np.float32) for z in (x, y))
    expected = naive_mutual_knn(x, y, k, metric)
    assert metrics.mutual_knn(x, y, k, metric=metric) == pytest.approx(expected, rel=1e-9)
    if metric == "cosine":
        a, b = (
            z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x.astype(float), y.astype(float))
        )
        near = np.argsort(-a @ b.T, axis=1)[:, :k]
        found = nearest(x, y, k).index
        np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(near, axis=1))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_blocks_that_float32_products_lose(rng, metric, mean):
    """Many numbers, for float32, in clusters of few rows, and so twice: other memory each time."""
    for seed in range(2):
        x = np.random.default_rng(seed).standard_normal((12, 300))
        x = np.repeat(x + mean, 25, axis=0) + 1e-4 * rng.standard_normal((300, 300))
        x = x[rng.permutation(300)].astype(np.float32)
        found, _ = similarity.nearest(x, x, 10, metric=metric, leave_one_out=True)
        np.testing.assert_array_equal(found, naive_neighbours(x, 10, metric))


def test_queries_beside_the_rows(rng):
    """In small blocks, more neighbours than rows that differ, and a zero vector among them."""
    rows = np.repeat(tight(rng, 30, 5), 3, axis=0).astype(np.float32)
    rows[40] = 0
    queries = tight(rng, 20, 5).astype(np.float32)
    queries[7] = 0
    for metric in ("cosine", "euclidean"):
        both = np.concatenate([queries, rows])
        distance = naive_distances(both, metric)[:20, 20:]
        expected = np.argsort(distance, axis=1, kind="stable")
        found, _ = similarity.nearest(queries, rows, 90, metric=metric)
        np.testing.assert_array_equal(found, expected)
        found, _ = similarity.nearest(queries, rows, 4, metric=metric)
        np.testing.assert_array_equal(found, expected[:, :4])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_products_on_a_device(rng, metric, monkeypatch):
    """As where there is one: of each row the host sees the least products, or makes its own."""
    import torch

    place = similarity._xp.namespace(torch.zeros(1)), torch.device("cpu")
    for x in (tight(rng, 200, 20), np.sign(rng.standard_normal((200, 9))), np.ones((30, 2))):
        x = x.astype(np.float32)
        here, _ = similarity.nearest(x, x, 10, metric=metric, leave_one_out=True)
        value = metrics.mutual_knn(x, x[:, ::-1], metric=metric)
        with monkeypatch.context() as patch:
            patch.setattr(similarity, "_elsewhere", lambda x: place)
            there, _ = similarity.nearest(x, x, 10, metric=metric, leave_one_out=True)
            assert metrics.mutual_knn(x, x[:, ::-1], metric=metric) == pytest.approx(value)
        np.testing.assert_array_equal(there, here)
        np.testing.assert_array_equal(there, here)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_copies_are_equal(where, rng, metric):
    """Wherever they stand in a product: an isometry has the same neighbours."""
    x = rng.standard_normal((70, 6))
    x = x[rng.integers(70, size=200)].astype(where.dtype)
    z, mirrored = where.asarray(x), where.asarray(x[:, ::-1].copy())
    found, _ = similarity.nearest(z, z, 7, metric=metric, leave_one_out=True)
    np.testing.assert_array_equal(found, naive_neighbours(x, 7, metric))
    assert metrics.mutual_knn(z, mirrored, 7, metric=metric) == 1


def test_equal_directions_are_equal(rng):
    """Though their rounding differs: 0.1 and 0.3 times a row are not three times each other."""
    x = rng.standard_normal((20, 5))
    x = np.concatenate([0.1 * x, 0.3 * x, 0.7 * x])
    found, _ = similarity.nearest(x, x, 2, metric="cosine", leave_one_out=True)
    own = np.arange(60)[:, None] % 20 + np.asarray([0, 20, 40])
    expected = [[j for j in row if j != i] for i, row in enumerate(own.tolist())]
    np.testing.assert_array_equal(found, expected)


def test_zero_vectors_are_as_near_as_right_angles():
    for rows in ([[1, 0], [0, 0], [0, 1], [-1, 0]], [[1, 0], [0, 1], [0, 0], [-1, 0]]):
        x = np.asarray(rows, dtype=np.float32)
        found, distance = similarity.nearest(x, x, 3, metric="cosine", leave_one_out=True)
        assert found[0].tolist() == [1, 2, 3]
        assert distance[0].tolist() == [1, 1, 2]


def two_points(rng, n):
    return np.repeat(np.eye(2), n // 2, axis=0)


def a_few_points(rng, n):
    return rng.standard_normal((9, 4))[np.sort(rng.integers(9, size=n))]


@pytest.mark.parametrize("make", [lambda rng, n: np.ones((n, 3)), two_points, a_few_points])
def test_ties_do_not_score(rng, make):
    """Against other embeddings, whose items may stand in any order, on average as by chance."""
    n, k = 80, 10
    x, chance = make(rng, n), k / (n - 1)
    ordered = np.arange(n)[:, None] + rng.standard_normal((n, 2))
    for y in (ordered, make(rng, n)):
        values = [metrics.mutual_knn(x, y[rng.permutation(n)], k) for _ in range(60)]
        # Rounding and the mean: clipping at 0 is the one thing that might raise it.
        assert np.mean(values) == pytest.approx(chance, abs=4 * np.std(values) / 8 + 1e-9)
        for _ in range(3):  # items that tie, exchanged
            order = np.lexsort((rng.random(n), np.unique(x, axis=0, return_inverse=True)[1]))
            other = np.lexsort((rng.random(n), np.unique(x, axis=0, return_inverse=True)[1]))
            moved = np.empty(n, dtype=int)
            moved[order] = other
            assert metrics.mutual_knn(x[moved], y, k) == pytest.approx(
                metrics.mutual_knn(x, y, k), abs=1e-12
            )


def test_mutual_knn_extremes(where, rng):
    x = where.asarray(rng.standard_normal((30, 4)))
    zeros = where.asarray(np.zeros((30, 4)))
    ones = where.asarray(np.ones((30, 4)))
    assert metrics.mutual_knn(x, x, 3) == 1
    assert metrics.mutual_knn(x, zeros, 29) == 1
    for collapsed in (zeros, ones):
        for other in (x, zeros, ones):
            assert metrics.mutual_knn(collapsed, other, 3) == pytest.approx(3 / 29, rel=1e-12)


def test_bad_input(rng):
    x, y = two_sets(rng, 10, 3, 4)
    for function in (metrics.linear_cka, metrics.mutual_knn):
        with pytest.raises(ValueError, match="10 and 9 rows"):
            function(x, y[:9])
        with pytest.raises(ValueError, match="first at 1: 'b' and 'c'"):
            function(x, y, ids_x=list("abcdefghij"), ids_y=list("acbdefghij"))
        with pytest.raises(ValueError, match="found those of one"):
            function(x, y, ids_x=range(10))
        with pytest.raises(ValueError, match=r"10 ids.*\(9,\)"):
            function(x, y, ids_x=range(10), ids_y=range(9))
    assert metrics.linear_cka(x, y, ids_x=range(10), ids_y=range(10)) == metrics.linear_cka(x, y)
    with pytest.raises(ValueError, match=r"k <= N - 1 = 9.*k = 10"):
        metrics.mutual_knn(x, y, 10)
    with pytest.raises(ValueError, match="k to be an integer"):
        metrics.mutual_knn(x, y, 2.5)
    with pytest.raises(ValueError, match=r"metric.*cosine"):
        metrics.mutual_knn(x, y, 2, metric="manhattan")
    with pytest.raises(ValueError, match=r"convention.*biased"):
        metrics.linear_cka(x, y, convention="debiased")
    with pytest.raises(ValueError, match="N >= 4"):
        metrics.linear_cka(x[:3], y[:3], convention="unbiased")


def test_mixed_inputs(rng):
    import torch

    x, y = two_sets(rng, 10, 3, 4)
    with pytest.raises(TypeError, match="numpy and torch"):
        metrics.linear_cka(x, torch.tensor(y))
    mixed = metrics.linear_cka(torch.tensor(x, dtype=torch.float32), torch.tensor(y))
    assert mixed == pytest.approx(naive_cka(x.astype(np.float32).astype(float), y), rel=1e-12)


def test_unbiased_cka_of_rows_far_larger_than_the_others(rng):
    """Their squares are nearly all of both kernels, and none of HSIC₁."""
    x, y = rng.normal(size=(2, 16, 40)).astype(np.float32)
    x[:3], y[:3] = 3e3 * np.eye(3, 40), 3e3 * np.eye(3, 40)[::-1]

    wanted = naive_unbiased_cka(x.astype(np.float64), y.astype(np.float64))
    assert metrics.linear_cka(x, y, convention="unbiased") == pytest.approx(wanted, rel=1e-6)
