"""The measures at a run's end, against scikit-learn and SciPy on the same images."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.stats import spearmanr
from sklearn.neighbors import KNeighborsClassifier

from reference_train import config, measure
from reference_train.splits import open_splits


@pytest.fixture(scope="module")
def measured():
    settings = config.load("digits", ["run.folder=unused", "probe.max_rows=300"])
    return measure.Measured(settings, open_splits(settings.data), torch.device("cpu"))


def test_knn_of_the_pixels_is_scikit_learns(measured):
    bank, test = measured.features(measure.pixels)
    assert bank.shape == (300, 64) and test.shape == (300, 64)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, test)]
    neighbours = KNeighborsClassifier(20).fit(unit[0], measured.bank_labels)
    expected = neighbours.score(unit[1], measured.test_labels)
    assert measured.knn(measure.pixels) == pytest.approx(expected, abs=0.01)  # ties of votes


def test_trees_are_of_two_views_of_the_same_images_by_class(measured):
    seen = []

    def encoder(images):
        seen.append(images)
        return images.flatten(1)

    measures, test = measured.all(encoder)
    trained = measured.test_labels < 8
    # what was asked for last: two views of the trained classes, two of the unseen ones
    rows = np.concatenate([x.flatten(1).double().numpy() for x in seen])
    counts = np.array([trained.sum()] * 2 + [(~trained).sum()] * 2)
    rows = rows[len(rows) - counts.sum() :]
    first, second, unseen_first, unseen_second = np.split(rows, counts.cumsum()[:3])
    for name, a, b in (
        ("LCA trained classes", first, second),
        ("LCA unseen classes", unseen_first, unseen_second),
    ):
        trees = [cophenet(linkage(x, "average", "cosine")) for x in (a, b)]
        assert measures[name] == pytest.approx(spearmanr(*trees).statistic, abs=1e-6)
        assert not np.allclose(a, b)
    assert len(test) == 300


def test_a_choice_of_rows_is_ordered_and_repeats():
    rows = measure.rows_of(range(1000), 20)
    assert len(set(rows)) == 20 and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, measure.rows_of(range(1000), 20))
    np.testing.assert_array_equal(measure.rows_of(range(7), 20), np.arange(7))


def test_the_trees_images_are_of_all_the_rows(measured, monkeypatch):
    seen = []

    def spy(encoder, source, rows, transform, **named):
        seen.append(rows)
        return torch.randn(len(rows), 4).numpy(), rows

    monkeypatch.setattr(measure, "embed", spy)
    monkeypatch.setattr(measured.config.probe, "tree_rows", 10)
    measured._tree_similarity(measure.pixels, np.arange(100, 300))
    first, second = seen
    np.testing.assert_array_equal(first, second)
    assert len(first) == 10 and first.min() >= 100 and first.max() > 200


def test_the_table_says_what_is_an_accuracy():
    made = measure.table({"trained": {"kNN": 0.925, "RankMe": 20.4, "LCA unseen": np.nan}})
    assert "92.5%" in made and "20.4" in made and "–" in made
