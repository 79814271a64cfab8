"""Crops of whole images: the pixels are Pillow's, the boxes as they are drawn; decoding."""

import io
import math
import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from reference_train import crops, data, images
from reference_train.augment import MultiCrop
from reference_train.config import Augment, Data, load
from reference_train.errors import TrainError
from reference_train.folders import Paths
from reference_train.sources import Sample
from reference_train.splits import open_splits
from tests.train.test_loop import PLAIN


def photo(width, height, seed=0):
    """A smooth picture with some noise."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 17), np.cos(y / 23), np.sin((x + y) / 31)], axis=-1)
    noise = np.random.default_rng(seed).normal(0, 8, waves.shape)
    return Image.fromarray((127 + 100 * waves + noise).clip(0, 255).astype(np.uint8))


def encoded(image, kind="jpeg", **settings):
    content = io.BytesIO()
    image.save(content, kind, **settings)
    return content.getvalue()


# --- resampling and boxes -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [7, 32, 96])
def test_a_box_is_resampled_as_by_pillow(size):
    """Enlarged and reduced, at the borders, and beside what is no image."""
    shapes = [(60, 40), (31, 64), (64, 64)]
    boxes = [(3.25, 1.5, 50.5, 20.75), (0.0, 0.0, 31.0, 64.0), (40.0, 50.0, 24.0, 14.0)]
    pictures = [photo(w, h, seed=i) for i, (h, w) in enumerate(shapes)]
    canvas = torch.full((3, 3, 64, 64), 255.0)  # white, which no crop may see
    for i, picture in enumerate(pictures):
        h, w = shapes[i]
        canvas[i, :, :h, :w] = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    made = crops.resample(canvas, torch.tensor(boxes), torch.tensor(shapes), size)
    for picture, (top, left, height, width), crop in zip(pictures, boxes, made, strict=True):
        for channel, band in enumerate(picture.split()):
            exact = band.convert("F").resize(
                (size, size), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
            )
            np.testing.assert_allclose(crop[channel], np.asarray(exact), atol=2e-3)


def test_boxes_have_uniform_areas_and_logarithms_of_ratios():
    torch.manual_seed(0)
    sizes = torch.tensor([[375, 500]]).expand(20_000, 2)
    top, left, height, width = crops.random_boxes(sizes, [0.05, 0.3], [0.75, 4 / 3]).T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 375.001).all() and (left + width <= 500.001).all()
    area, ratio = height * width / (375 * 500), (width / height).log()
    for values, low, high in ((area, 0.05, 0.3), (ratio, math.log(0.75), math.log(4 / 3))):
        assert values.min() >= low - 1e-5 and values.max() <= high + 1e-5
        quantiles = torch.quantile(values, torch.tensor([0.1, 0.5, 0.9]))
        expected = low + torch.tensor([0.1, 0.5, 0.9]) * (high - low)
        torch.testing.assert_close(quantiles, expected, atol=0.02 * (high - low), rtol=0)
    for begin, length, side in ((top, height, 375), (left, width, 500)):
        place = begin / (side - length)
        assert place.mean().item() == pytest.approx(0.5, abs=0.01)
        assert place.var().item() == pytest.approx(1 / 12, abs=0.005)


def test_where_no_box_fits_the_largest_in_the_middle_is_taken():
    """As torchvision's fallback: an image of 10 x 100 has no crop of its whole area."""
    sizes = torch.tensor([[10, 100], [100, 10]])
    boxes = crops.random_boxes(sizes, [0.9, 1.0], [0.75, 1.25])
    expected = [[0, (100 - 12.5) / 2, 10, 12.5], [(100 - 10 / 0.75) / 2, 0, 10 / 0.75, 10]]
    torch.testing.assert_close(boxes, torch.tensor(expected))


def test_a_batch_of_images_of_several_sizes_sees_only_images():
    """Grey images of 40 to 80 pixels in one batch: no crop is darker at its border."""
    made = [
        Sample(torch.full((3, h, w), 204, dtype=torch.uint8), 0, i)
        for i, (h, w) in enumerate([(40, 80), (80, 50), (60, 60)])
    ]
    batch = data.collate(made)
    assert batch.images.shape == (3, 3, 80, 80)
    assert batch.sizes.tolist() == [[40, 80], [80, 50], [60, 60]]
    settings = Augment(n_global=2, n_local=3, global_size=32, local_size=16, **PLAIN)
    both = MultiCrop(settings, Data(mean=[0.0] * 3, std=[1.0] * 3))(batch.images, batch.sizes)
    assert [tuple(c.shape) for c in both] == [(2, 3, 3, 32, 32), (3, 3, 3, 16, 16)]
    for views in both:
        torch.testing.assert_close(views, torch.full_like(views, 0.8), atol=1e-5, rtol=0)


def test_alike_images_are_a_plain_batch():
    squares = [Sample(torch.full((1, 4, 4), i, dtype=torch.uint8), i, 7 + i) for i in range(3)]
    batch = data.collate(squares)
    assert batch.sizes is None and batch.images[:, 0, 3, 3].tolist() == [0, 1, 2]
    assert (batch.labels.tolist(), batch.ids.tolist()) == ([0, 1, 2], [7, 8, 9])


# --- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "side", "expected"),
    [
        ((500, 375), 640, (500, 375)),  # as it is
        ((2272, 1704), 640, (568, 426)),  # a quarter, as it is decoded
        ((1704, 2272), 640, (426, 568)),
        ((3000, 1000), 640, (640, 213)),  # 750 would be too much, 375 too little
        ((700, 100), 640, (640, 91)),
    ],
)
def test_whole_images_are_large_photos_at_a_fraction(shape, side, expected):
    pixels = images.Decoder(8, 3, side)(io.BytesIO(encoded(photo(*shape))))
    assert (pixels.shape[2], pixels.shape[1]) == expected


def test_a_fraction_of_a_photo_is_the_photo_reduced():
    picture = photo(1200, 900)
    content = encoded(picture, quality=95, subsampling=0)
    half = picture.resize((600, 450), Image.Resampling.BOX)
    square = picture.resize((171, 128), Image.Resampling.BICUBIC).crop((21, 0, 149, 128))
    for decoder, reduced in ((images.Decoder(8, 3, 640), half), (images.Decoder(128, 3), square)):
        pixels = decoder(io.BytesIO(content)).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(pixels - np.asarray(reduced)).mean() < 1.5


def test_squares_are_cut_before_they_are_reduced():
    """One resampling of the middle gives what reducing all of it and cutting gave."""
    picture = photo(500, 375)
    pixels = images.Decoder(256, 3)(io.BytesIO(encoded(picture, "png")))
    reduced = picture.resize((341, 256), Image.Resampling.BICUBIC).crop((42, 0, 298, 256))
    difference = pixels.permute(1, 2, 0).numpy().astype(int) - np.asarray(reduced)
    assert np.abs(difference).max() <= 1


def test_whole_images_are_trained_on_and_squares_are_evaluated(tmp_path):
    for split, name in (("train", "a"), ("val", "a")):
        (tmp_path / split / name).mkdir(parents=True)
        for i in range(4):
            photo(40 + 10 * i, 30).save(tmp_path / split / name / f"{i}.png")
    settings = Data(source="folder", path=str(tmp_path), size=16, whole=50, batch_size=4)
    splits = open_splits(settings)
    assert {s.bank[i].image.shape for s in (splits,) for i in range(4)} == {(3, 16, 16)}
    assert splits.test[2].image.shape == (3, 16, 16)
    widths = sorted(splits.train[i].image.shape[2] for i in range(4))
    assert widths == [40, 50, 50, 50]
    batch = next(data.batches(splits.train, settings, seed=0, rank=0, world=1, start=0))
    assert batch.images.shape == (4, 3, 30, 50) and len(batch.sizes) == 4


@pytest.mark.parametrize("override", ["augment.rotate=5", "augment.translate=0.1"])
def test_whole_images_are_not_moved(override):
    given = ["run.folder=x", "data.source=folder", "data.path=x", "data.whole=64"]
    others = ["augment.rotate=0", "augment.translate=0"]
    load("digits", [*given, *others])
    with pytest.raises(TrainError, match=r"expected 0 with data\.whole"):
        load("digits", [*given, *others, override])


# --- transparency and palettes --------------------------------------------------------------------


def test_transparent_and_palette_images_warn_of_nothing():
    """Also where every colour of a palette has its own transparency; the colours are Pillow's."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (8, 8, 4), dtype=np.uint8), "RGBA")
    palette = colours.convert("RGB").quantize(16)
    contents = {
        "RGBA": encoded(colours, "png"),
        "P": encoded(palette, "png"),
        "P, a transparent colour": encoded(palette, "png", transparency=3),
        "P, transparencies": encoded(palette, "png", transparency=bytes(range(16))),
        "L, a transparent grey": encoded(colours.convert("L"), "png", transparency=9),
    }
    for name, content in contents.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(2):
                found = images.Decoder(8, 3)(io.BytesIO(content)).permute(1, 2, 0)
        np.testing.assert_array_equal(found, expected, err_msg=name)


# --- many files -----------------------------------------------------------------------------------


def test_names_of_files_are_exact_and_small(tmp_path):
    names = [f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(50_000)]
    names[7] = "ü/ä b.png"
    names[8] = os.fsdecode(b"\xff/not-utf8.png")
    paths = Paths(tmp_path, iter(names))
    assert len(paths) == 50_000
    for i in (0, 1, 7, 8, 9, 49_999):
        assert paths[i] == tmp_path / names[i]
    with pytest.raises(IndexError):
        paths[50_000]
    bytes_of = paths._content.nbytes + paths._ends.nbytes
    assert bytes_of * 1_281_167 / 50_000 < 60e6
