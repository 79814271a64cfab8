"""Findings: each is made by data that have what it is about, and by none that do not."""

import numpy as np
import pytest

from visreg_core import report
from visreg_core.report import _geometry
from visreg_core.report._survey import Survey


def gaussian(n=600, d=12, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def judged(x, **options):
    found = report.report(x, n_slices=8, **options).findings
    assert [f.verdict for f in found] == sorted(
        (f.verdict for f in found), key=["bad", "look", "good"].index
    )
    return {f.subject: f for f in found if f.verdict != "good"}


def dead(x):
    x[:, [2, 5]] = 0.3
    return x


def rogue(x):
    x[:, 3] *= 90
    return x


def collapsed(x):
    wide = gaussian(600, 200) * 1e-3
    wide[:, :2] += x[:, :2]
    return wide


def cone(x):
    return x + 5


def zero(x):
    x[[4, 9]] = 0
    return x


def repeated(x):
    return np.tile(x[:10], (60, 1))


def norms(x):
    x[::2] *= 10
    return x


def lengths(x):
    return x * np.exp(4 * gaussian(600, 1, seed=1))


def hub(x):
    wide = gaussian(600, 100) + 0.3
    wide[17] = wide.mean(axis=0)
    return wide


def outliers(x):
    centre = np.zeros((600, 12))
    centre[:, 0] = 100
    x = centre + 0.1 * x
    x[:10] = 100 * gaussian(10, 12, seed=1)
    return x


def near(x):
    x[300:330] = x[:30] * (1 + 1e-6) + 1e-6
    return x


def island(x):
    x += 5 * np.eye(12)[0]
    x[40:70] = 5 * np.eye(12)[1] + 0.1 * x[40:70]
    return x


def bimodal(x):
    x[:, 4] = np.sign(x[:, 4])
    return x


CASES = [
    (island, "isolated islands", "30 of 600 rows in 1 group of 30", (40,)),
    (bimodal, "non-Gaussian direction", "dimension 4 has the most weight", ()),
    (dead, "dead dimensions", "2 of 12 do not vary (2, 5)", ()),
    (rogue, "rogue dimension", "dimension 3 has", ()),
    (collapsed, "dimensional collapse", "variance in some", ()),
    (lambda x: np.ones_like(x), "collapse", "all rows are equal", ()),
    (cone, "anisotropy", "mean cosine of two rows 0.9", ()),
    (zero, "zero rows", "2 of 600 rows", (4, 9)),
    (repeated, "repeated rows", "590 rows equal an earlier one (98.3%); one occurs 60 times", None),
    (norms, "mixed norms", "norms vary by", None),
    (hub, "hubs", "the greatest hub is a neighbour of", (17,)),
    (outliers, "outliers", "of 600 rows are far", None),
    (near, "near duplicates", "60 of 600 rows all but equal another", None),
    (lengths, "cosine against Euclidean distance", "of neighbours are the same", ()),
]


@pytest.mark.parametrize(
    ("make", "subject", "value", "about"), CASES, ids=[case[1] for case in CASES]
)
def test_each_is_found(make, subject, value, about):
    found = judged(make(gaussian()))
    assert subject in found, found
    finding = found[subject]
    assert value in finding.value
    assert finding.cause
    assert finding.next_step
    if about is not None:
        assert finding.rows[: len(about)] == about


def test_nothing_is_found_in_gaussian_rows():
    for seed in range(5):
        assert judged(gaussian(seed=seed)) == {}
    assert judged(gaussian(2000, 64)) == {}


def test_islands_against_a_graph():
    networkx = pytest.importorskip("networkx")
    rng = np.random.default_rng(3)
    centres = 30 * rng.standard_normal((6, 8))
    x = centres[rng.choice(6, 400, p=[0.4, 0.3, 0.15, 0.07, 0.05, 0.03])]
    x = x + rng.standard_normal(x.shape)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    near = np.argsort(-(unit @ unit.T) + 9 * np.eye(400), axis=1)[:, :10]
    graph = networkx.Graph((i, j) for i in range(400) for j in near[i].tolist())
    expected = sorted(map(sorted, networkx.connected_components(graph)), key=len)[:-1]
    found = [one.tolist() for one in _geometry.geometry(x).islands]
    assert len(found) == len(expected) >= 4 and sorted(found) == sorted(expected)
    assert list(map(len, found)) == sorted(map(len, found))


def test_directions_of_embeddings_that_are_not_meant_to_be_gaussian():
    found = report.report(20 * bimodal(gaussian()), n_slices=8).findings
    (one,) = (f for f in found if f.subject == "non-Gaussian direction")
    assert one.verdict == "good" and "dimension 4" in one.value


def test_rows_are_numbers_of_the_file():
    x = gaussian(800)
    x[np.arange(0, 800, 5)] = 0
    finding = judged(x, rows=200)["zero rows"]
    drawn = report.report(x, rows=200, n_slices=2)
    assert drawn.rows_read == 200
    assert all(r % 5 == 0 for r in finding.rows)


# --- the pass over the rows -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_survey_against_all_pairs(dtype):
    x = gaussian(90, 7).astype(dtype)
    x[[5, 50, 60]] = x[4]
    x[[70, 71]] = 0
    x[71] = -0.0
    survey = Survey(7)
    for rows in np.array_split(np.random.default_rng(1).permutation(90), 4):
        one = Survey(7)
        one.update(x[rows].astype(np.float64), rows)
        survey.merge(one)
    distinct = len(np.unique(x + 0, axis=0))
    repeats = survey.repeats()
    assert repeats.extra == 90 - distinct == 4
    assert (repeats.most, repeats.rows) == (4, (4, 5, 50, 60))
    assert (survey.n_zero, survey.zero_rows) == (2, [70, 71])
    z = np.delete(x, [70, 71], axis=0).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    cosines = (z @ z.T)[~np.eye(88, dtype=bool)]
    assert survey.mean_cosine() == pytest.approx(cosines.mean(), abs=1e-12)
    lengths = np.linalg.norm(x.astype(np.float64), axis=1)
    assert survey.norm_variation() == pytest.approx(lengths.std() / lengths.mean())


@pytest.mark.parametrize("scale", [1e-170, 1e140])
def test_survey_at_the_ends_of_the_range(scale):
    x = gaussian(40, 5)
    plain, scaled = Survey(5), Survey(5)
    plain.update(x, np.arange(40)), scaled.update(scale * x, np.arange(40))
    assert scaled.n_zero == 0
    assert scaled.mean_cosine() == pytest.approx(plain.mean_cosine())
    assert scaled.norm_variation() == pytest.approx(plain.norm_variation())


def test_columns_that_vary():
    sigma = np.array([1.0, 2.0, 1e-9, 0.0, 0.1])
    assert _geometry.varies(sigma).tolist() == [True, True, False, False, True]
    assert not _geometry.varies(np.zeros(3)).any()


# --- searches -------------------------------------------------------------------------------------


def test_concentrated_distances():
    found = judged(gaussian(300, 3000))
    assert "concentrated distances" in found
    unit = (x := gaussian(300, 3000)) / np.linalg.norm(x, axis=1, keepdims=True)
    apart = 1 - unit @ unit.T
    others = apart[~np.eye(300, dtype=bool)].reshape(300, -1)
    ratio = others.mean() / np.median(others.min(axis=1))
    assert f"{ratio:.3g} times" in found["concentrated distances"].value


def test_queries():
    x = gaussian(600, 12) + 3 * np.eye(12)[0]
    same = {f.subject: f for f in report.report(x, queries=gaussian(200, 12, 1) + 3 * np.eye(12)[0],
                                                 n_slices=2).findings}  # fmt: skip
    assert same["queries far from all rows"].verdict == "good"
    assert same["hubs among answers"].verdict == "good"
    away = -5 * np.eye(12)[0] + 0.01 * gaussian(100, 12, 2)
    found = judged(x, queries=np.concatenate([x[:100], away]))
    far = found["queries far from all rows"]
    unit, rows = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (away, x))
    first, own = 1 - (unit @ rows.T).max(axis=1), 1 - np.sort(rows @ rows.T, axis=1)[:, -2]
    assert (first > np.quantile(own, 0.99)).all()
    assert far.verdict == "bad" and far.value.startswith("50.0% of 200 queries")
    assert set(far.rows) <= set(range(100, 200))
    hub = found["hubs among answers"]
    nearest = np.argsort(-(np.concatenate([rows[:100], unit]) @ rows.T), axis=1)[:, :10]
    counts = np.bincount(nearest.ravel(), minlength=600)
    assert f"nearest of {counts.max()} of 200" in hub.value and hub.rows[0] == counts.argmax()


def test_recall_of_an_index():
    x = gaussian(300, 12)
    x[[4, 9]] = np.nan
    good = np.flatnonzero(np.isfinite(x[:, 0]))
    unit = x[good] / np.linalg.norm(x[good], axis=1, keepdims=True)
    order = good[np.argsort(-(unit @ unit.T), axis=1)[:, :11]]  # the row itself first
    index = np.full((300, 11), -1)
    index[good] = order

    def said(neighbors):
        found = report.report(x, neighbors=neighbors, drop_bad_rows=True, n_slices=2).findings
        return next(f for f in found if f.subject == "recall of the index")

    assert said(index).value.startswith("100.0% of the 10 nearest of 298 rows")
    assert said(index[:, 1:]).verdict == "good"
    index[good[:149], 6:] = -1
    bad = said(index)
    assert bad.verdict == "bad" and bad.value.startswith("75.0% of the 10 nearest")
    assert "of 50% of the rows less than" in bad.value and bad.rows[0] == good[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": gaussian(5, 3)}, "found 3; expected queries of 12 dimensions"),
        ({"queries": np.full((5, 12), np.nan)}, "found NaN or Inf; expected finite queries"),
        ({"neighbors": np.full((600, 2), 600)}, "found 600 … 600; expected row numbers"),
        ({"neighbors": np.ones((600, 2))}, "found no integers; expected row numbers"),
        ({"neighbors": np.ones((5, 2), int)}, "found 5; expected 600"),
        ({"neighbors": np.ones((600, 2), int), "rows": 50}, "expected all rows"),
    ],
)
def test_wrong_searches(options, message):
    with pytest.raises(ValueError, match=message):
        report.report(gaussian(), n_slices=2, **options)


def test_the_largest_rows():
    """Of equal norms those that come first, however rows are divided."""
    x = np.random.default_rng(0).integers(1, 4, (400, 1)).astype(float)
    x[[200, 350]] = 9
    expected = np.lexsort((np.arange(400), -x[:, 0]))[:5]
    whole, other = Survey(1), Survey(1)
    whole.update(x[:3], np.arange(3))
    other.update(x[3:], np.arange(3, 400))
    whole.merge(other)
    assert whole.largest.tolist() == expected.tolist()
