"""Linear segmentation: a folder of images and masks, the head, and mIoU."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from reference_train import segment
from reference_train.errors import TrainError
from reference_train.settings import Data
from tests.train.test_finetune import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Grey images of a dark and a bright half, of random directions; their masks have 1 and 2."""
    root = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    for split, count in (("training", 24), ("validation", 8)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            mask = np.ones((24, 24), dtype=np.uint8)
            place = slice(12 * rng.integers(2), None)
            mask[place, :][:12, :] = 2
            mask = mask if i % 2 else mask.T.copy()
            pixels = np.where(mask == 2, 200, 50) + rng.integers(-20, 20, mask.shape)
            mask[0, :3] = 0  # what is ignored
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / split / f"{i:02}.png")
            Image.fromarray(mask).save(root / "annotations" / split / f"{i:02}.png")
    return root


def naive_miou(predicted, truth, ignored=-1):
    """Over all images, class by class, with sets of pixels."""
    found = []
    for c in sorted({*np.unique(truth), *np.unique(predicted[truth != ignored])} - {ignored}):
        a = {tuple(p) for p in np.argwhere((predicted == c) & (truth != ignored))}
        b = {tuple(p) for p in np.argwhere(truth == c)}
        found.append(len(a & b) / len(a | b))
    return float(np.mean(found))


def test_miou_is_that_of_sets_of_pixels(rng):
    truth = torch.from_numpy(rng.integers(-1, 4, (3, 6, 5)))
    predicted = torch.from_numpy(rng.integers(0, 5, (3, 6, 5)))  # class 5 of 6 is nowhere
    counts = sum(segment.confusion(p, t, 6) for p, t in zip(predicted, truth, strict=True))
    iou = segment.intersection_over_union(counts)
    assert iou.isnan().tolist() == [False] * 5 + [True]
    expected = naive_miou(predicted.numpy(), truth.numpy())
    assert iou[:5].mean().item() == pytest.approx(expected)


def test_numbers_of_classes_close_up_over_the_ignored_one(folder):
    raw = np.array(Image.open(folder / "annotations" / "training" / "00.png")).astype(int)
    for ignore in (0, 1, 255):
        mask = segment.Masks(folder, "training", 8, 1, ignore).mask(0).numpy()
        expected = [-1 if v == ignore else v - (v > ignore) for v in raw.ravel()]
        assert mask.ravel().tolist() == expected


def test_patches_are_classified(folder):
    """Bright and dark patches are told apart by a random transformer's features."""
    _, encoder = tiny("augment.global_size=24", "model.patch=4")
    before = [p.clone() for p in encoder.parameters()]
    splits = [segment.Masks(folder, s, 24, 1, 0) for s in ("training", "validation")]
    data = Data(channels=1, mean=[0.5], std=[0.3])
    found = segment.segment(encoder, data, *splits, epochs=12, cpu=True)
    assert found["mIoU"] > 0.8 and found["pixel accuracy"] > 0.9
    assert list(found["IoU by class"]) == ["0", "1"]
    for p, q in zip(before, encoder.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_command(folder, tmp_path, capsys, monkeypatch):
    from transformers import ViTConfig, ViTModel

    monkeypatch.chdir(tmp_path)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4}
    ViTModel(ViTConfig(**shape, intermediate_size=32, image_size=24)).save_pretrained("vit")
    given = ["--model", "hf:vit", "--images", str(folder), "--size", "24", "--epochs", "2", "--cpu"]
    segment.main(given)
    printed = json.loads(capsys.readouterr().out)
    stored = json.loads((tmp_path / "runs" / "models" / "hf-vit" / "segment.json").read_text())
    assert stored.items() >= printed.items() and 0 < printed["mIoU"] < 1
    (folder / "annotations" / "training" / "03.png").rename(tmp_path / "03.png")
    with pytest.raises(SystemExit):
        segment.main(given)
    (tmp_path / "03.png").rename(folder / "annotations" / "training" / "03.png")
    assert "images and masks of the same names; found no" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        segment.main([*given[2:]])
    assert "expected either RUN or --model" in capsys.readouterr().err


def test_a_class_too_many_is_named(folder):
    splits = [segment.Masks(folder, s, 8, 1, 0) for s in ("training", "validation")]
    with pytest.raises(TrainError, match=r"expected 1 classes .*found .*png has class 2"):
        segment.segment(tiny()[1], Data(channels=1), *splits, classes=1, epochs=1, cpu=True)
