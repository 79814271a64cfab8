"""Labels in reports: all rows answer, the asked have intervals, conditions say of how many."""

import numpy as np
import pytest
from scipy.stats import binomtest

from visreg_core import metrics, report
from visreg_core.embeddings import load
from visreg_core.report import _conditions, _labelled, _model, _nearest
from visreg_core.report._labelled import Levels


def rows(n, seed=0, d=6, classes=5):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, classes, n)
    x = np.random.default_rng(99).standard_normal((classes, d))[codes]
    return x + 0.8 * rng.standard_normal((n, d)), codes


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_are_those_of_all_rows_however_the_file_is_cut(tmp_path, monkeypatch, metric):
    x, codes = rows(400)
    x[7] = 0
    x[30:35] = x[29]
    np.save(tmp_path / "x.npy", x)
    tree = report.TreeOptions(metric=metric, rows=50)
    whole = report.report(load(tmp_path / "x.npy"), labels=codes, tree=tree, n_slices=2)
    found = whole.labelled.measures["hierarchical_knn_accuracy"]
    assert found[0].value == metrics.hierarchical_knn_accuracy(x, codes, metric=metric)[0]
    monkeypatch.setattr(_nearest, "_BLOCK_VALUES", 1)
    cut = report.report(load(tmp_path / "x.npy"), labels=codes, tree=tree, n_slices=2)
    assert cut.labelled == whole.labelled


def test_rows_asked_are_told_from_all_others(monkeypatch):
    """Asking fewer rows changes which are asked, not what they are told."""
    x, codes = rows(600)
    every = report.report(x, labels=codes, n_slices=2).labelled
    asked = report.report(x, labels=codes, label_rows=200, n_slices=2).labelled
    assert (every.asked, asked.asked, asked.among) == (600, 200, 600)
    for name in _model.ASKED:
        whole, part = every.measures[name][0], asked.measures[name][0]
        assert whole.low is None
        assert part.low < part.value < part.high
    monkeypatch.setattr(_labelled, "_PRODUCTS", 1)
    monkeypatch.setattr(_labelled, "_FEWEST_CLASSIFIED", 50)
    assert report.report(x, labels=codes, n_slices=2).labelled.asked == 50


def test_intervals_cover_the_value_of_all_rows():
    x, codes = rows(1000)
    truth = report.report(x, labels=codes, n_slices=2, tree=report.TreeOptions(rows=20)).labelled
    covered = dict.fromkeys(_model.ASKED, 0)
    for seed in range(40):
        part = report.report(
            x, labels=codes, label_rows=100, n_slices=2, seed=seed,
            tree=report.TreeOptions(rows=20),
        ).labelled  # fmt: skip
        for name in covered:
            found = part.measures[name][0]
            covered[name] += found.low <= truth.measures[name][0].value <= found.high
    assert all(34 <= count <= 40 for count in covered.values())


def test_wilsons_interval():
    told, true = np.array([0] * 30 + [1] * 10), np.zeros(40, int)
    found = _labelled.accuracy(told, true, 10**9)
    expected = binomtest(30, 40).proportion_ci(method="wilson")
    assert found == pytest.approx((0.75, *expected), abs=1e-6)
    assert _labelled.accuracy(told, true, 40) == (0.75, None, None)


def test_majority_against_counting():
    votes = np.random.default_rng(0).integers(0, 4, (200, 7))
    told, share = _labelled.majority(votes)
    for row, t, s in zip(votes, told, share, strict=True):
        counts = np.bincount(row)
        assert (t, s) == (counts.argmax(), counts.max() / 7)


def test_a_condition_never_hides_its_sample():
    x, codes = rows(2000)
    one = report.report(x, labels=codes, label_rows=300, n_slices=2)
    found = report.Comparison([one], [])
    knn = one.labelled.measures["hierarchical_knn_accuracy"][0]

    def met(text):
        condition = _conditions.parse(text, _conditions.known_names(pairs=False))
        return _conditions.met([condition], found), _conditions.samples([condition], found)

    clear, said = met(f"hierarchical_knn_accuracy<{knn.low - 0.01}")
    assert clear == []
    assert said == ["hierarchical_knn_accuracy is that of 300 of 2,000 rows"]
    (line,), _ = met(f"hierarchical_knn_accuracy<{(knn.low + knn.value) / 2}")
    assert "may meet" in line
    assert "of 300 of 2,000 rows" in line
    (line,), _ = met(f"hierarchical_knn_accuracy<{knn.value + 1e-9}")
    assert "], of 300 of 2,000 rows, meets" in line
    assert met("rankme<0") == ([], [])


# --- labels that say nothing ----------------------------------------------------------------------


def subjects(found, verdict):
    return {f.subject: f.value for f in found.findings if f.verdict == verdict}


def test_labels_of_one_class_and_of_one_row_each():
    x, _ = rows(60)
    labels = np.stack([np.zeros(60, int), np.arange(60)], axis=1)
    found = report.report(x, labels=labels, n_slices=2)
    assert all(values == (None, None) for values in found.labelled.measures.values())
    bad = subjects(found, "bad")
    assert "all 60 rows are of one class" in bad["labels, level 1"]
    assert "no two have one label" in bad["labels, level 2"]


def test_levels_that_are_no_hierarchy():
    x, codes = rows(90, classes=6)
    fine = report.report(x, labels=np.stack([codes // 2, codes], axis=1), n_slices=2)
    assert not any("levels 1 and 2" in f.subject for f in fine.findings)
    turned = report.report(x, labels=np.stack([codes, codes // 2], axis=1), n_slices=2)
    assert "from fine to coarse" in subjects(turned, "bad")["labels, levels 1 and 2"]
    crossed = report.report(x, labels=np.stack([np.arange(90) % 2, codes], axis=1), n_slices=2)
    assert "in several of the coarser" in subjects(crossed, "look")["labels, levels 1 and 2"]


def test_wrong_labels_are_named():
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(4), 50)
    x = 20 * np.eye(4, 8)[codes] + rng.standard_normal((200, 8))
    labels = codes.copy()
    labels[[3, 77, 120]] = (labels[[3, 77, 120]] + 1) % 4
    (finding,) = [
        f for f in report.report(x, labels=labels, n_slices=2).findings
        if f.subject == "labels likely wrong"
    ]  # fmt: skip
    assert finding.rows == (3, 77, 120)
    labels = np.where((codes == 2) & (np.arange(200) % 3 == 0), 3, codes)
    found = report.report(x, labels=np.where(codes == 3, 0, labels), n_slices=2)
    assert any(f.subject == "confused classes" for f in found.findings)


def test_levels_keep_rows_and_names():
    levels = Levels.of(np.array([["b", "x"], ["a", "y"], ["b", "z"]]))
    assert levels.names == (("a", "b"), ("x", "y", "z"))
    assert levels.at(np.array([2, 0])).codes[1].tolist() == [2, 0]
    assert levels.sizes(0).tolist() == [1, 2]


def test_confusions_by_the_neighbours():
    rng = np.random.default_rng(0)
    codes = rng.integers(3, size=200)
    x = rng.standard_normal((3, 5))[codes] + 0.7 * rng.standard_normal((200, 5))
    names = np.array(["a", "b", "c"])[codes]
    fine, coarse = np.arange(200) // 2, names
    found = report.report(x, labels=np.stack([coarse, fine], axis=1), n_slices=2).labelled
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    near = np.argsort(-(unit @ unit.T) + 9 * np.eye(200), axis=1)[:, :20]
    counts = np.zeros((3, 3), int)
    for own, others in zip(codes, codes[near], strict=True):
        counts[own, np.bincount(others, minlength=3).argmax()] += 1
    assert found.confusion[0].classes == ("a", "b", "c")
    assert np.array_equal(found.confusion[0].counts, counts)
    assert found.confusion[1] is None  # 100 classes
    assert counts.trace() < 200
