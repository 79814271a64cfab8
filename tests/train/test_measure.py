"""The measures at a run's end, against scikit-learn and SciPy on the same images."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.stats import spearmanr
from sklearn.neighbors import KNeighborsClassifier

from reference_train import config, embedding, measure
from reference_train.errors import LocalError
from reference_train.probe import Probed, by_class_size
from reference_train.sources import Unreadable
from reference_train.splits import open_splits


@pytest.fixture(scope="module")
def measured():
    settings = config.load("digits", ["run.folder=unused", "probe.max_rows=300"])
    return measure.Measured(settings, open_splits(settings.data), torch.device("cpu"))


def test_knn_of_the_pixels_is_scikit_learns(measured):
    f = measured.features(measure.pixels)
    assert f.bank.shape == (300, 64) and f.test.shape == (300, 64)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (f.bank, f.test)]
    neighbours = KNeighborsClassifier(20).fit(unit[0], f.bank_labels)
    expected = neighbours.score(unit[1], f.test_labels)
    assert measured.knn(f) == pytest.approx(expected, abs=0.01)  # ties of votes


def test_trees_are_of_two_views_of_the_same_images_by_class(measured):
    seen = []

    def encoder(images):
        seen.append(images)
        return images.flatten(1)

    measures, f, _ = measured.all(encoder)
    trained = f.test_labels < 8
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
    assert len(f.test) == 300


def test_the_online_probe_is_judged_on_the_classes_that_it_is_trained_on(measured):
    class Perfect(torch.nn.Module):  # on classes 0 ... 7, as if it had seen these images
        def __init__(self):
            super().__init__()
            self.backbone, self.unused = torch.nn.Flatten(), torch.nn.Linear(1, 1)
            test = measured.splits.test
            images = measured.embed(torch.nn.Flatten(), test, np.arange(len(test.labels)))[0]
            self.images, self.labels = torch.from_numpy(images), torch.as_tensor(test.labels)

        def probe(self, features):
            nearest = torch.cdist(features, self.images).argmin(1)
            return torch.nn.functional.one_hot(self.labels[nearest] % 8, 8)

    assert measured.online(Perfect()) == 1


def test_a_choice_of_rows_is_ordered_and_repeats():
    rows = measure.rows_of(range(1000), 20)
    assert len(set(rows)) == 20 and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, measure.rows_of(range(1000), 20))
    np.testing.assert_array_equal(measure.rows_of(range(7), 20), np.arange(7))


def test_the_trees_images_are_of_all_the_rows(measured, monkeypatch):
    seen = []

    def spy(encoder, source, rows, transform, **named):
        assert transform is measured.crop
        seen.append(rows)
        return torch.randn(len(rows), 4).numpy(), rows

    monkeypatch.setattr(measure, "embed", spy)
    monkeypatch.setattr(measured.config.probe, "tree_rows", 10)
    measured._tree_similarity(measure.pixels, np.arange(100, 300))
    first, second = seen
    np.testing.assert_array_equal(first, second)
    assert len(first) == 10 and first.min() >= 100 and first.max() > 200


def test_the_table_says_what_is_an_accuracy():
    row = {"kNN": 0.925, "RankMe": 20.4, "LCA unseen": np.nan}
    made = measure.table({"trained": row, "protocol": {}})
    assert "92.5%" in made and "20.4" in made and "–" in made


def shares(source, transform, world, **named):
    """What so many processes would embed, put together by row."""
    given = {"batch_size": 7, "device": torch.device("cpu"), "skip": True, **named}
    parts = [
        embedding.embed(
            measure.pixels, source, np.arange(40), transform, rank=r, world=world, **given
        )
        for r in range(world)
    ]
    features, rows = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(rows)
    return features[order], rows[order]


def test_shares_of_processes_are_the_whole_with_its_random_crops(measured):
    """Batches of 7 on 1, 2 and 9 processes, of which the last three have none; and on workers."""
    source = measured.splits.test
    for transform, seed in ((measured.resize, None), (measured.crop, 5)):
        whole, rows = shares(source, transform, 1, seed=seed)
        np.testing.assert_array_equal(rows, np.arange(40))
        for world, workers in ((2, 0), (9, 0), (2, 1)):
            found, rows = shares(source, transform, world, seed=seed, workers=workers)
            np.testing.assert_array_equal(rows, np.arange(40))
            np.testing.assert_array_equal(found, whole)
    images = source.images[:40].double().numpy().reshape(40, -1) / 255
    plain, _ = shares(source, measured.resize, 1)
    np.testing.assert_allclose(plain, (images - 0.3) / 0.38, rtol=1e-5, atol=1e-6)


def test_an_image_that_cannot_be_read_is_left_out_or_named(measured):
    class Damaged:
        labels = np.zeros(40, dtype=np.int64)

        def __getitem__(self, index):
            good = index % 5 and not 14 <= index < 21  # the third batch has no image at all
            return measured.splits.test[index] if good else Unreadable(f"{index}.png", "cut\nshort")

    expected = [i for i in range(40) if i % 5 and not 14 <= i < 21]
    found, rows = shares(Damaged(), measured.resize, 2)
    np.testing.assert_array_equal(rows, expected)
    whole, _ = shares(measured.splits.test, measured.resize, 1)
    np.testing.assert_array_equal(found, whole[expected])
    with pytest.raises(LocalError, match=r"^cannot read 0\.png: cut short$"):
        shares(Damaged(), measured.resize, 1, skip=False)


def test_embedding_leaves_the_random_numbers_of_the_training_alone(measured):
    before = torch.get_rng_state()
    shares(measured.splits.test, measured.crop, 1, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_pixels_are_measured_where_images_are_small(measured, monkeypatch):
    monkeypatch.setattr(
        measured, "all", lambda encoder: ({"kNN": 1.0}, None, Probed({0.1: 1.0}, None))
    )
    learner = torch.nn.Module()
    learner.backbone = torch.nn.Module()
    learner.backbone.depth = 1
    results, _, said = measure.closing_table(measured, {"trained": learner})
    assert list(results) == ["trained", "pixels", "protocol"]
    assert "kNN neighbours: 20" in said
    monkeypatch.setattr(measured.config.augment, "global_size", 33)
    results, _, said = measure.closing_table(measured, {"trained": learner})
    assert list(results) == ["trained", "protocol"]
    assert "pixels: left out, images of 1089 numbers (at most 1024)" in said


def test_accuracy_by_the_size_of_a_class():
    train = np.repeat([0, 1, 2, 3], [101, 100, 20, 19])
    labels = np.array([0, 0, 1, 1, 2, 3, 3, 3, 4])
    predicted = np.array([0, 1, 1, 1, 0, 3, 3, 0, 4])
    found = by_class_size(predicted, labels, train)
    assert found == {"many-shot": 1 / 2, "medium-shot": 2 / 3, "few-shot": 3 / 4}
    assert list(by_class_size(predicted[:2], labels[:2], train)) == ["many-shot"]
