"""Random-walk affinity, transition matrix and walk sampling."""

import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose

from tests.core import reference
from visreg_core import (
    _xp,
    random_slices,
    random_walk_affinity,
    random_walk_pairs,
    sample_random_walk,
    transition_matrix,
)

pytestmark = pytest.mark.lean_on_jax(dtype=["float32"])


def tolerance(where):
    return 1e-11 if where.dtype == "float64" else 2e-3


@pytest.mark.parametrize("scale", ["local", "global"])
@pytest.mark.parametrize("symmetrize", [False, True])
@pytest.mark.parametrize(("neighbors", "percentile"), [(10, 20), (4, 50), (12, 35), (1, 20)])
@pytest.mark.lean_on_jax(neighbors=[4])
def test_affinity_is_the_formula(where, scale, symmetrize, neighbors, percentile, rng):
    a, b = (rng.normal(size=(2, 12, 4))).astype(np.float32).astype(np.float64)
    options = {"scale": scale, "symmetrize": symmetrize}
    expected = reference.random_walk_affinity(a, b, neighbors, percentile, **options)
    got = random_walk_affinity(where.asarray(a), where.asarray(b), neighbors, percentile, **options)
    assert where.backend.owns(got)
    assert where.backend.dtype_name(got) == where.dtype
    assert_allclose(where.to_numpy(got), expected, rtol=0, atol=tolerance(where))


def test_defaults(where, rng):
    a, b = rng.normal(size=(2, 12, 4))
    got = random_walk_affinity(where.asarray(a), where.asarray(b))
    expected = reference.random_walk_affinity(a, b, 10, 20)
    assert_allclose(where.to_numpy(got), expected, rtol=0, atol=tolerance(where))


def test_rows_keep_their_neighbors_and_mass(where, rng):
    a, b = rng.normal(size=(2, 12, 4))
    w = where.to_numpy(random_walk_affinity(where.asarray(a), where.asarray(b), 4))
    assert np.all(np.count_nonzero(w, axis=1) <= 4)
    assert_allclose(w.max(axis=1), 1, rtol=1e-6)
    assert np.all(w >= 0)


def test_ties_go_by_index(where):
    """Identical rows: every distance is equal, the first n_neighbors are kept with weight 1."""
    a = where.asarray(np.ones((6, 2)))
    w = where.to_numpy(random_walk_affinity(a, a, 3))
    expected = np.zeros((6, 6))
    expected[:, :3] = 1
    assert_allclose(w, expected, rtol=0, atol=1e-6)


def nearest_by_differences(a, b, k):
    """Of unit rows in extended precision; and half the squared distances."""
    u, v = (x / np.sqrt(np.sum(x * x, axis=1))[:, None] for x in map(np.longdouble, (a, b)))
    d = np.stack([np.sum((v - row) ** 2, axis=1) for row in u]) / 2
    return np.argsort(d, axis=1, kind="stable")[:, :k], d


@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("clusters", [1, 10])
@pytest.mark.lean_on_jax(spread=[1e-3])
def test_neighbours_in_tight_bundles(where, spread, clusters, rng):
    """Of directions that are nearly one, as a collapsing model's are, or a few."""
    centres = rng.normal(size=(clusters, 48))
    which = rng.integers(clusters, size=150)
    a, b = (
        (centres[which] + spread * rng.normal(size=(150, 48))).astype(where.dtype) for _ in "ab"
    )
    a, b = (x if where.dtype == "float64" else x.astype(np.float32) for x in (a, b))
    expected, d = nearest_by_differences(a, b, 5)
    w = where.to_numpy(random_walk_affinity(where.asarray(a), where.asarray(b), 5, 100))
    kept = np.take_along_axis(w, expected, axis=1)
    adjusted = np.take_along_axis(d, expected, axis=1).astype(np.float64)
    adjusted -= adjusted[:, :1]
    # The nearest has weight 1 and the last exp(−1), unless 1e-7 is larger than its distance.
    scale = np.maximum(adjusted[:, -1:], 1e-7)
    assert_allclose(kept, np.exp(-((adjusted / scale) ** 2)), rtol=0, atol=2e-3)
    assert np.all(np.count_nonzero(w, axis=1) == 5)


def test_copies_tie_wherever_they_stand(where, rng):
    """Rows that are equal go by index, at any number of rows."""
    for n in (40, 150):
        b = rng.normal(size=(9, 5)).astype(where.dtype)[rng.integers(9, size=n)]
        a = rng.normal(size=(n, 5)).astype(where.dtype)
        expected, _ = nearest_by_differences(a, b, 7)
        w = where.to_numpy(random_walk_affinity(where.asarray(a), where.asarray(b), 7, 100))
        found = np.zeros((n, n), dtype=bool)
        np.put_along_axis(found, expected, True, axis=1)
        assert np.array_equal(w > 0, found)


@pytest.mark.backends("numpy")
def test_not_a_number_spoils_its_own_rows(where, rng):
    a, b = rng.normal(size=(2, 12, 4)).astype(where.dtype)
    a[3] = b[5] = np.nan
    w = random_walk_affinity(a, b, 4)
    assert np.all(np.isfinite(np.delete(np.delete(w, 3, axis=0), 5, axis=1)))
    assert np.all(np.delete(w, 3, axis=0)[:, 5] == 0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])  # whose squares float32 has not
def test_cosine_distance_ignores_scale(where, scale, rng):
    a, b = rng.normal(size=(2, 12, 4))
    expected = where.to_numpy(random_walk_affinity(where.asarray(a), where.asarray(b), 5))
    scaled = random_walk_affinity(where.asarray(scale * a), where.asarray(b / scale), 5)
    assert_allclose(where.to_numpy(scaled), expected, rtol=0, atol=tolerance(where))


@pytest.mark.dtypes("float64")
@pytest.mark.lean_on_jax(spread=[])
@pytest.mark.parametrize("spread", [1e-3, 1e-5])
def test_the_least_scale(where, spread, rng):
    """Rows of one direction but for `spread`, at distances of its square: σ is theirs at 1e-6, and
    1e-7, by which all are near, at 1e-10."""
    a, b = 1 + spread * rng.normal(size=(2, 12, 4))
    expected = reference.random_walk_affinity(a, b, 5, 50)
    got = where.to_numpy(random_walk_affinity(where.asarray(a), where.asarray(b), 5, 50))
    assert_allclose(got, expected, rtol=0, atol=1e-6)
    near = np.sort(got, axis=1)[:, -5]  # each row's fifth neighbour
    assert np.all(near > 0.99) if spread == 1e-5 else np.all(near < 0.9)


def test_zero_rows_are_finite(where, rng):
    a, b = rng.normal(size=(2, 12, 4))
    a[2] = 0
    b[5] = 0
    w = where.to_numpy(random_walk_affinity(where.asarray(a), where.asarray(b), 4))
    assert np.all(np.isfinite(w))
    assert np.all(w.sum(axis=1) > 0)


def test_transition_matrix_is_row_stochastic(where, rng):
    w = rng.uniform(size=(7, 7))
    p = transition_matrix(where.asarray(w))
    assert where.backend.owns(p)
    assert where.backend.dtype_name(p) == where.dtype
    assert_allclose(where.to_numpy(p), w / w.sum(1, keepdims=True),
                    rtol=1e-13 if where.dtype == "float64" else 1e-6)  # fmt: skip


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_frequencies_match_the_transition_matrix(n_steps, rng):
    n, draws = 6, 4000
    p = transition_matrix(rng.uniform(size=(n, n)) ** 3)
    walks = np.stack([sample_random_walk(p, step=s, n_steps=n_steps) for s in range(draws)])
    expected = np.linalg.matrix_power(p, n_steps)
    for i in range(n):
        counts = np.bincount(walks[:, i], minlength=n)
        assert scipy.stats.chisquare(counts, draws * expected[i] / expected[i].sum()).pvalue > 1e-4
    for i in range(1, n):  # rows walk independently
        table = np.histogram2d(walks[:, 0], walks[:, i], bins=n)[0]
        table = table[table.sum(1) > 50][:, table.sum(0) > 50]
        assert scipy.stats.chi2_contingency(table).pvalue > 1e-5


@pytest.mark.parametrize("n_steps", [1, 4])
def test_the_walk_is_the_inverse_cdf_of_the_documented_stream(where, n_steps, rng):
    """Walker i at step t takes the uniform of the first word of counter (i, 2**28 + t)."""
    n, seed, step = 40, 9, 2**31 + 5
    p = rng.uniform(size=(n, n)).astype(np.float32).astype(np.float64)
    got = sample_random_walk(where.asarray(p), seed=seed, step=step, n_steps=n_steps)
    cumulative = np.cumsum(p, axis=1) / p.sum(axis=1, keepdims=True)
    expected = np.arange(n)
    for t in range(n_steps):
        words = [reference.threefry2x32(seed, step, i, (1 << 28) + t)[0] for i in range(n)]
        u = [((w >> 9) + 0.5) / 2**23 for w in words]
        expected = np.array(
            [np.searchsorted(cumulative[at], v) for at, v in zip(expected, u, strict=True)]
        )
    assert np.array_equal(where.to_numpy(got), expected)


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("scale", ["local", "global"])
@pytest.mark.parametrize("symmetrize", [False, True])
@pytest.mark.lean_on_jax(scale=["local"])
def test_pairs_are_the_walk_on_the_affinity(where, n_steps, scale, symmetrize, rng):
    """By the formula's affinity and the inverse CDF, one row at a time."""
    n, neighbors, seed, step = 40, 6, 3, 2**31 + 8
    a, b = rng.normal(size=(2, n, 4)).astype(np.float32).astype(np.float64)
    options = {"scale": scale, "symmetrize": symmetrize}
    w = reference.random_walk_affinity(a, b, neighbors, 50, **options)
    cumulative = np.cumsum(w, axis=1) / w.sum(axis=1, keepdims=True)
    expected = np.arange(n)
    for t in range(n_steps):
        words = [reference.threefry2x32(seed, step, i, (1 << 28) + t)[0] for i in range(n)]
        u = [((word >> 9) + 0.5) / 2**23 for word in words]
        expected = np.array(
            [np.searchsorted(cumulative[at], v) for at, v in zip(expected, u, strict=True)]
        )
    pairs, weights = random_walk_pairs(
        where.asarray(a), where.asarray(b), neighbors, 50, **options,
        n_steps=n_steps, seed=seed, step=step,
    )  # fmt: skip
    assert where.backend.owns(pairs) and where.backend.owns(weights)
    assert where.backend.dtype_name(weights) == where.dtype
    assert np.array_equal(where.to_numpy(pairs), expected)
    assert_allclose(
        where.to_numpy(weights), w[np.arange(n), expected], rtol=0, atol=tolerance(where)
    )


@pytest.mark.backends("torch")
@pytest.mark.dtypes("float32")
def test_no_gradient(where, rng):
    a, b = (where.asarray(v).requires_grad_() for v in rng.normal(size=(2, 12, 4)))
    assert not random_walk_affinity(a, b, 3).requires_grad
    assert not random_walk_pairs(a, b, 3)[1].requires_grad


def test_many_rows_are_worked_on_in_tiles(rng):
    a, b = rng.normal(size=(2, 1500, 3))
    unit_a, unit_b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    pairs, weights = random_walk_pairs(a, b, 1)
    assert np.array_equal(pairs, np.argmax(unit_a @ unit_b.T, axis=1))
    assert np.all(weights == 1)


def test_steps_are_independent(rng):
    p = np.full((4, 4), 0.25)
    walks = np.stack([sample_random_walk(p, step=s) for s in range(2000)])
    table = np.histogram2d(walks[:-1, 0], walks[1:, 0], bins=4)[0]
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-4


def test_the_same_pairs_on_every_backend(where, rng):
    p = transition_matrix(rng.uniform(size=(9, 9)).astype(np.float32))
    p = np.asarray(p, dtype=np.float64)
    for n_steps in (1, 3):
        for step in range(5):
            got = sample_random_walk(where.asarray(p), seed=3, step=step, n_steps=n_steps)
            expected = sample_random_walk(p, seed=3, step=step, n_steps=n_steps)
            assert where.backend.owns(got)
            assert where.backend.dtype_name(got).startswith("int")
            assert got.shape == (9,)
            assert np.array_equal(where.to_numpy(got), expected)


def test_a_certain_step_is_taken(where):
    """Rows with a single 1, and inverse CDFs whose last sum rounds below 1."""
    n = 11
    shift = np.roll(np.eye(n), 1, axis=1)
    for step in range(20):
        got = where.to_numpy(sample_random_walk(where.asarray(shift), step=step))
        assert np.array_equal(got, (np.arange(n) + 1) % n)
        got = where.to_numpy(sample_random_walk(where.asarray(shift), step=step, n_steps=3))
        assert np.array_equal(got, (np.arange(n) + 3) % n)


def test_impossible_steps_are_never_taken(where, rng):
    p = rng.uniform(size=(8, 8)) * (rng.uniform(size=(8, 8)) < 0.5)
    p[:, 0] += 0.01
    p[:, -1] = 0
    p = where.to_numpy(transition_matrix(where.asarray(p)))
    for step in range(200):
        got = where.to_numpy(sample_random_walk(where.asarray(p), step=step))
        assert np.all(p[np.arange(8), got] > 0)


@pytest.mark.backends("numpy", "torch")
def test_impossible_steps_are_not_taken_where_sums_round(where, rng, monkeypatch):
    """A parallel cumulative sum rounds each entry its own way and need not be monotone."""
    exact = _xp.cumulative_sum

    def rough(xp, x):
        return exact(xp, x) * where.asarray(1 + 0.05 * rng.normal(size=tuple(x.shape)))

    monkeypatch.setattr(_xp, "cumulative_sum", rough)
    p = rng.uniform(size=(30, 30)) * (rng.uniform(size=(30, 30)) < 0.3)
    p[:, 4] += 0.1
    for step in range(30):
        got = where.to_numpy(sample_random_walk(where.asarray(p), step=step))
        assert np.all(p[np.arange(30), got] > 0)


def test_no_steps_stay(where):
    p = where.asarray(np.full((5, 5), 0.2))
    try:
        got = sample_random_walk(p, n_steps=0)
    except ValueError as error:
        assert "n_steps" in str(error)
    else:
        assert np.array_equal(where.to_numpy(got), np.arange(5))


def test_walks_and_slices_draw_other_words():
    """Their domains differ: uniforms of the walk do not reappear as those of the slices."""
    n = 400
    p = np.full((n, n), 1 / n)
    walk = sample_random_walk(p, seed=1, step=2) / n
    slices = random_slices(n, 1, seed=1, step=2)[:, 0]
    assert abs(scipy.stats.spearmanr(walk, slices)[0]) < 0.2
    assert abs(scipy.stats.spearmanr(walk, np.abs(slices))[0]) < 0.2


@pytest.mark.backends("jax")
@pytest.mark.dtypes("float32")
def test_affinity_and_walk_under_jit(where, rng):
    import jax

    a, b = (where.asarray(v) for v in rng.normal(size=(2, 12, 4)))

    @jax.jit
    def pairs(a, b, step):
        w = random_walk_affinity(a, b, 5)
        return w, sample_random_walk(transition_matrix(w), step=step, n_steps=2)

    w, got = pairs(a, b, where.backend.xp.asarray(4, dtype="int32"))
    expected = random_walk_affinity(a, b, 5)
    assert_allclose(w, expected, rtol=0, atol=1e-3)
    assert np.array_equal(got, sample_random_walk(transition_matrix(w), step=4, n_steps=2))


@pytest.mark.backends("torch")
@pytest.mark.dtypes("float32")
def test_affinity_and_walk_under_compile(where, rng):
    torch = where.backend.xp
    a, b = (where.asarray(v) for v in rng.normal(size=(2, 12, 4)))

    def pairs(a, b, step):
        w = random_walk_affinity(a, b, 5)
        return w, sample_random_walk(transition_matrix(w), step=step, n_steps=2)

    torch._dynamo.reset()
    step = torch.tensor(4)
    got = torch.compile(pairs, fullgraph=True, backend="eager")(a, b, step)
    expected = pairs(a, b, step)
    assert_allclose(got[0], expected[0], rtol=0, atol=1e-4)
    assert torch.equal(got[1], expected[1])
