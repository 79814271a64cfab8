"""States that merge: the same result however the rows are divided, exact or within its bound."""

import io

import ml_dtypes
import numpy as np
import pytest
from scipy.special import ndtri

from visreg_core import (
    gaussian_sliced_wasserstein,
    random_slices,
    shape_loss,
    sigreg_loss,
    sliced_wasserstein,
)
from visreg_core.embeddings._sampling import draw
from visreg_core.statistics import (
    CrossScatter,
    SliceDistributions,
    Statistics,
    _moments,
    _slices,
    _state,
)

K = 12


def rows(n=3000, d=6, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + rng.standard_normal(d)
    return z.astype(dtype)


def stored(state):
    """The same state, written to a file of arrays and read from it."""
    file = io.BytesIO()
    np.savez(file, **state.to_arrays())
    file.seek(0)
    return type(state).from_arrays(np.load(file, allow_pickle=False))


def divided(z, parts, seed, make, add):
    """A state for each part of the shuffled rows, through arrays, merged in pairs."""
    order = np.random.default_rng(seed).permutation(len(z))
    states = []
    for numbers in np.array_split(order, parts):
        state = make()
        for some in np.array_split(numbers, 3):
            add(state, z[some], some)
        states.append(stored(state))
    while len(states) > 1:
        for one, other in zip(states[::2], states[1::2], strict=False):
            one.merge(other)
        states = states[::2]
    return states[0]


def first_of(z, parts=1, seed=0, sample=50):
    return divided(
        z, parts, seed, lambda: Statistics(z.shape[1], n_slices=K, sample=sample),
        lambda s, block, numbers: s.update(block, numbers=numbers),
    )  # fmt: skip


# --- however the rows are divided ----------------------------------------------------------------


@pytest.fixture(params=["kept", "folded"])
def kept(request, monkeypatch):
    """Moments of rows that are kept, or of the scatter matrix."""
    if request.param == "folded":
        monkeypatch.setattr(_moments, "KEPT_VALUES", 0)


@pytest.mark.parametrize("parts", [2, 7, 64])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.usefixtures("kept")
def test_partitions(parts, dtype):
    z = rows(dtype=dtype)
    z[[5, 2000]] = np.nan
    whole, other = first_of(z).result(), first_of(z, parts, seed=parts).result()
    assert other.n == whole.n == 2998
    assert other.moments.mean == pytest.approx(whole.moments.mean, rel=1e-9)
    scatter = whole.moments.scatter()
    assert np.abs(other.moments.scatter() - scatter).max() < 1e-9 * np.abs(scatter).max()
    assert other.sigreg == pytest.approx(whole.sigreg, rel=1e-9)
    assert other.n_bad == 2
    assert other.bad.tolist() == whole.bad.tolist() == [5, 2000]
    for mine, its in zip(other.sample, whole.sample, strict=True):
        assert np.array_equal(mine, its)


@pytest.mark.parametrize("parts", [2, 7, 64])
def test_partitions_of_the_second_pass(parts):
    z = rows(dtype=np.float32)
    first = first_of(z)
    whole, other = (
        divided(z, p, p, first.distributions, lambda s, block, _: s.update(block))
        for p in (1, parts)
    )
    for name in ("shape", "gaussian"):
        mine, its = getattr(whole, name), getattr(other, name)
        assert np.array_equal(mine.counts, its.counts)
        assert mine.sums == pytest.approx(its.sums, rel=1e-9, abs=1e-9)
    for mine, its in zip(whole.result(), other.result(), strict=True):
        assert mine.value == pytest.approx(its.value, rel=1e-9)


def test_partitions_of_pairs():
    a, b = rows(), rows(d=4, seed=1) + 1e6
    both = np.concatenate([a, b], axis=1)
    found = divided(
        both, 7, 0, lambda: CrossScatter(6, 4), lambda s, z, _: s.update(z[:, :6], z[:, 6:])
    ).result()
    expected = (a - a.mean(0)).T @ (b - b.mean(0))
    assert np.abs(found - expected).max() < 1e-9 * np.abs(expected).max()
    with pytest.raises(ValueError, match="expected rows of the same items; found 2 and 3"):
        CrossScatter(6, 4).update(a[:2], b[:3])


def test_the_sample_is_that_of_embeddings():
    z = rows()
    numbers, sample = first_of(z, 7).result().sample
    assert numbers.tolist() == draw(len(z), 50, 0).tolist()
    assert np.array_equal(sample, z[numbers])
    fewer, _ = first_of(z, 7).sample.result(20)
    assert fewer.tolist() == draw(len(z), 20, 0).tolist()
    assert len(first_of(z[:30]).result().sample[0]) == 30


# --- what they are -------------------------------------------------------------------------------


@pytest.mark.usefixtures("kept")
def test_moments_and_sigreg():
    z = rows()
    found = first_of(z, 3).result()
    assert found.moments.mean == pytest.approx(z.mean(0))
    assert found.moments.sigma == pytest.approx(z.std(0))
    assert found.moments.scatter() / (len(z) - 1) == pytest.approx(np.cov(z.T))
    for center in (False, True):
        expected = np.linalg.svd(z - center * z.mean(0), compute_uv=False)
        assert found.moments.singular_values(center=center) == pytest.approx(expected)
    slices = random_slices(6, K)
    for k in range(K):
        expected = float(sigreg_loss(z, slices[:, k : k + 1]))
        assert found.sigreg[k] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("x", [0.0, 0.5, -1.0, 100.25, 1e9, -3e-9])
def test_each_value_on_the_circle(x):
    """The largest error is that of a value half-way between two points."""
    cell = 2 * np.pi / (2048 * 3 / 16)
    for value in (x, x + cell / 2, x + 0.49 * cell):
        state = _slices.CharacteristicSums(1)
        state.update(np.array([[value]]), np.ones((1, 1)))
        t = np.linspace(0, 3, 17)[1:]
        expected = np.stack([np.cos(t * value), np.sin(t * value)])
        assert np.abs(state.sums[0] - expected).max() < (2e-8 if abs(x) < 1e6 else 1e-6)


def heavy(n, d, rng):
    return rng.standard_cauchy((n, d))


def ties(n, d, rng):
    return rng.integers(0, 3, (n, d)).astype(float)


def constant(n, d, rng):
    return np.full((n, d), 0.1)


def partly(n, d, rng):
    z = rng.standard_normal((n, d))
    z[:, : d // 2] = 5.0
    return z


def normal(n, d, rng):
    return rng.standard_normal((n, d))


@pytest.mark.parametrize("make", [normal, heavy, ties, constant, partly])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("n", [2, 900])
def test_histograms_are_within_their_bound(make, scale, n):
    z = scale * make(n, 4, np.random.default_rng(3))
    first = Statistics(4, n_slices=K)
    first.update(z)
    second = first.distributions()
    second.update(z)
    found = stored(second).result()
    for loss, (value, bound) in (
        (shape_loss, found.shape),
        (gaussian_sliced_wasserstein, found.gaussian),
    ):
        for k in range(K):
            exact = float(loss(z, first.slices[:, k : k + 1]))
            rounding = 1e-10 * (exact + 1)
            assert value[k] - rounding <= exact <= value[k] + bound[k] + rounding
        spread = np.var(z @ first.slices, axis=0) if loss is not shape_loss else 1
        assert np.all(bound <= 0.03 * np.sqrt(spread) + 1e-12)


def test_the_bound_of_large_samples_is_small():
    z = np.random.default_rng(0).standard_normal((20_000, 3))
    first = Statistics(3, n_slices=4)
    first.update(z)
    second = first.distributions()
    second.update(z)
    value, bound = second.result().gaussian
    exact = float(gaussian_sliced_wasserstein(z, first.slices))
    assert np.all(bound < 3e-5)
    # Of values that lie dense within bins the least distance is nearly the distance.
    assert 0 <= exact - value.mean() < 2e-6


def test_quantile_sums_of_many_rows(monkeypatch):
    ends = np.array([[0, 1, 2, 500, 9_000, 19_999, 20_000]])
    exact = _slices._quantile_sums(20_000, ends)
    q = ndtri(np.arange(1, 20_001) / 20_001)
    assert exact[0][0, 3] == pytest.approx(q[:500].sum())
    monkeypatch.setattr(_slices, "_SUMMED", 0)
    for mine, its in zip(_slices._quantile_sums(20_000, ends), exact, strict=True):
        assert np.abs(mine - its).max() < 0.3  # whatever N is


@pytest.mark.parametrize("make", [normal, heavy, ties, constant, partly])
@pytest.mark.parametrize(("n", "m"), [(800, 800), (700, 40), (2, 3)])
def test_two_samples_are_within_their_bound(make, n, m):
    rng = np.random.default_rng(0)
    found = []
    for z in (x := make(n, 4, rng), y := 1.1 * make(m, 4, rng) + 0.2):
        first = Statistics(4, n_slices=K)
        first.update(z)
        second = first.distributions()
        second.update(z)
        found.append(second)
    a, b = found
    values, bound = _slices.between_two(a.gaussian, a.affine, b.gaussian, b.affine)
    exact = float(sliced_wasserstein(x, y, first.slices))
    assert abs(np.sqrt(values.mean()) - exact) <= bound + 1e-9 * exact
    if make is normal and n == m:
        assert np.sqrt(values.mean()) == pytest.approx(exact, rel=1e-2)


def test_torch_is_summed_where_it_is():
    torch = pytest.importorskip("torch")
    z = rows(dtype=np.float32)
    here, there = Statistics(6, n_slices=K), Statistics(6, n_slices=K)
    here.update(z)
    there.update(torch.tensor(z, requires_grad=True))
    assert there.result().sigreg == pytest.approx(here.result().sigreg, rel=1e-4)
    assert there.result().moments.sigma == pytest.approx(here.result().moments.sigma, rel=1e-12)


# --- sizes and errors ----------------------------------------------------------------------------


def test_size_at_768():
    first = Statistics(768, n_slices=256)
    first.update(np.random.default_rng(0).standard_normal((3000, 768), dtype=np.float32))
    second = first.distributions()
    bytes_ = [sum(a.nbytes for a in s.to_arrays().values()) for s in (first, second)]
    cross = 8 * (768 * 768 + 2 * 768 + 1)
    assert bytes_[0] < 12e6
    assert bytes_[1] < 46e6
    assert sum(bytes_) + cross < 64 * 2**20


def test_errors():
    state = Statistics(6, n_slices=2)
    for wrong, message in (
        (rows()[:, :5], r"expected rows \(B, 6\); found \(3000, 5\)"),
        (rows()[0], r"expected rows \(B, 6\); found \(6,\)"),
        ([[1.0] * 6], r"expected rows \(B, 6\); found list"),
    ):
        with pytest.raises(ValueError, match=message):
            state.update(wrong)
    with pytest.raises(TypeError, match="expected rows of dtype float16"):
        state.update(np.ones((4, 6), int))
    with pytest.raises(ValueError, match="expected 3000 integers; found int64"):
        state.update(rows(), numbers=np.arange(4))
    with pytest.raises(ValueError, match="expected two finite rows or more; found 0"):
        state.result()
    with pytest.raises(ValueError, match="expected a state of the same dim"):
        state.merge(Statistics(6, n_slices=2, seed=1))
    a, b = first_of(rows()), first_of(rows(seed=1))
    with pytest.raises(ValueError, match="of the same first pass; found other moments"):
        a.distributions().merge(b.distributions())


def test_arrays_are_plain():
    first = first_of(rows())
    for state in (first, first.distributions()):
        assert all(isinstance(a, np.ndarray) for a in state.to_arrays().values())
        assert all(a.dtype != object for a in state.to_arrays().values())
    assert isinstance(stored(first.distributions()), SliceDistributions)


def test_rows_far_from_finite():
    z = rows(10)
    z[3, 2], z[4, 1], z[5, 0] = np.inf, -1e200, 1e149
    assert _state.finite(z).tolist() == [i not in (3, 4) for i in range(10)]


def test_a_constant_column_has_no_deviation():
    z = rows()
    z[:, 2] = 0.3
    assert z.mean(axis=0)[2] != 0.3  # rounding
    sigma = first_of(z).result().moments.sigma
    assert sigma[2] == 0 and (np.delete(sigma, 2) > 0).all()
