"""CKA and mutual neighbours against the definitions written with N × N matrices."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from visreg_core import metrics
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
    assert metrics.linear_cka(x, y) == pytest.approx(expected[0], rel=1e-13)
    assert metrics.mutual_knn(x, y, 5) == expected[1]


def naive_neighbours(z, k, metric):
    """The k nearest rows by extended precision; a zero vector is at cosine distance 1 from all."""
    z = np.asarray(z).astype(np.longdouble)
    zero = ~z.any(axis=1)
    if metric == "cosine":
        z = z / np.where(zero, 1, np.sqrt(np.sum(z * z, axis=1)))[:, None]
    distance = np.sum((z[:, None] - z) ** 2, axis=2) / 2
    if metric == "cosine":
        distance[zero] = distance[:, zero] = 1
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1, kind="stable")[:, :k]


def naive_mutual_knn(x, y, k, metric):
    nx, ny = (naive_neighbours(z, k, metric).tolist() for z in (x, y))
    return np.mean([len(set(a) & set(b)) for a, b in zip(nx, ny, strict=True)]) / k


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
    value = metrics.mutual_knn(backend.asarray(x), backend.asarray(y), 9, metric="euclidean")
    assert value == pytest.approx(naive_mutual_knn(x, y, 9, "euclidean"), rel=1e-12)


def test_mutual_knn_extremes(where, rng):
    x = where.asarray(rng.standard_normal((30, 4)))
    zeros = where.asarray(np.zeros((30, 4)))
    assert metrics.mutual_knn(x, x, 3) == 1
    assert metrics.mutual_knn(x, zeros, 29) == 1
    # All distances equal: neighbours by index, so that every row has 0 … k.
    assert metrics.mutual_knn(zeros, zeros, 3) == 1


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
