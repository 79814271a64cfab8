"""The test of drift: p-values are uniform without drift, small with one, and paired rows count."""

import numpy as np
import pytest
from scipy.stats import kstest, wasserstein_distance

from visreg_core import report, sliced_wasserstein
from visreg_core.metrics.two_sample import SidesDistance, own_sides
from visreg_core.report import _conditions, _drift, _tables
from visreg_core.report._compute import embeddings_of
from visreg_core.slices import random_slices


def silent(*_):
    pass


def drift(x, y, *, paired=False, seed=0, slices=16):
    w = random_slices(x.shape[1], slices)
    a, b = embeddings_of(x), embeddings_of(y)
    of_a, of_b = (
        e.sample(_drift.drift_rows(e, [o]), seed=seed).to_numpy() for e, o in ((a, b), (b, a))
    )
    sizes = len(x), len(y)
    return _drift.drift_test(of_a, of_b, sizes, w, paired=paired, seed=seed, tick=silent)


def samples(seed, n=80, m=60, d=5):
    rng = np.random.default_rng(seed)
    return rng.standard_t(4, (n, d)), rng.standard_t(4, (m, d)), rng


def test_p_values_are_uniform_without_drift():
    p = [drift(*samples(seed)[:2], seed=seed).p for seed in range(150)]
    assert kstest(p, "uniform").pvalue > 0.001
    assert np.mean(np.array(p) <= 0.05) < 0.11


def test_drift_is_seen_and_chance_is_not():
    """The case of the error bar: two halves are sixty of its own errors from 0."""
    x = np.random.default_rng(0).standard_normal((4000, 16))
    halves = report.compare([x[::2], x[1::2]], n_slices=64).pairs[0]
    value, error, _ = halves.sliced_wasserstein
    assert value > 20 * error
    assert halves.drift.by_chance == pytest.approx(value, rel=0.15)
    assert halves.drift.p > 0.05
    moved = report.compare([x[::2], x[1::2] + 0.1], n_slices=64).pairs[0]
    assert moved.drift.p == 0.005
    assert moved.sliced_wasserstein.value > moved.drift.by_chance_95


def test_chance_is_the_distance_of_fresh_samples():
    fresh = []
    for seed in range(60):
        x, y, _ = samples(seed)
        fresh.append(sliced_wasserstein(x, y, random_slices(5, 16)))
    found = drift(*samples(1000)[:2])
    assert found.by_chance == pytest.approx(np.mean(fresh), rel=0.25)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 9), (12, 8), (3, 1000)])
def test_distance_of_every_size(n, m):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(n), rng.standard_normal(m)
    found = SidesDistance(np.concatenate([x, y])[None], n, m)(own_sides(n, m))
    one = np.ones((1, 1))
    assert found == pytest.approx(
        float(sliced_wasserstein(x[:, None], y[:, None], one, power=True)), rel=1e-12
    )
    # W₁² is at most W₂².
    assert found >= wasserstein_distance(x, y) ** 2 - 1e-12


def test_paired_rows_change_sides_with_their_partners():
    """Noise far below the spread of the rows: only their partners can tell it from none."""
    rng = np.random.default_rng(0)
    x = 3 * rng.standard_normal((300, 4))
    y = 1.02 * x
    assert drift(x, y).p > 0.2
    assert drift(x, y, paired=True).p == 0.005
    assert drift(x, rng.permutation(x)).p == 1.0


def test_large_files_are_sampled_and_say_so(monkeypatch):
    x, y, _ = samples(0, 400, 300)
    whole = drift(x, y)
    monkeypatch.setattr(_drift, "_ROWS", 70)
    monkeypatch.setattr(_drift, "_CELLS", 700)
    part = drift(x, y)
    assert (whole.rows, part.rows) == ((400, 300), (40, 30))
    assert (whole.n_slices, part.n_slices) == (16, 10)
    # What chance does at the files' own sizes, from samples of a tenth.
    assert part.by_chance == pytest.approx(whole.by_chance, rel=0.35)
    found = report.compare([x, y], n_slices=16)
    condition = _conditions.parse("drift_p<0.5", _conditions.known_names(pairs=True))
    assert _conditions.samples([condition], found) == ["drift_p is that of 40 and 30 rows"]


def test_length_alone_pairs_nothing():
    x, y, _ = samples(0, 50, 50)
    found = report.compare([x, y], n_slices=4)
    (pair,) = found.pairs
    assert (pair.linear_cka, pair.mutual_knn, pair.trees) == (None, None, None)
    assert (
        "with --paired, for files in which row i is the same item" in _tables.tables(found)[0].note
    )
    paired = report.compare([x, y], n_slices=4, paired=True).pairs[0]
    assert paired.trees is not None
    with pytest.raises(ValueError, match="expected files of one number of rows for --paired"):
        report.compare([x, y[:40]], n_slices=4, paired=True)
