"""Folders as torchvision's ImageFolder reads them, and the same pixels by every way in."""

import io
import itertools
import os
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from reference_train import data, images
from reference_train.config import Data
from reference_train.errors import LocalError, TrainError
from reference_train.folders import images_below
from reference_train.splits import open_splits

# torchvision 0.2x, datasets/folder.py
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def image_folder(directory):
    """`find_classes` and `make_dataset` of torchvision, transcribed."""
    classes = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir())
    assert classes
    instances, available = [], set()
    for index, target in enumerate(classes):
        for root, _, fnames in sorted(os.walk(os.path.join(directory, target), followlinks=True)):
            for fname in sorted(fnames):
                if fname.lower().endswith(IMG_EXTENSIONS):
                    instances.append((os.path.join(root, fname), index))
                    available.add(index)
    if len(available) != len(classes):
        raise FileNotFoundError
    return classes, instances


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def as_torchvision(found):
    paths = [str(path) for path in found.paths]
    return found.classes, list(zip(paths, found.labels.tolist(), strict=True))


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images, from the training split of a data set, with a test split."""
    for split, name, i in itertools.product(("train", "val"), ("ant", "bee"), range(3)):
        path = tmp_path / split / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (100 * (name == "bee") + i,) * 3).save(path)
    return tmp_path


def of_folder(path, **settings):
    return Data(source="folder", path=str(path), size=8, batch_size=2, **settings)


# --- which files ----------------------------------------------------------------------------------


def test_order_and_suffixes_are_torchvisions(tmp_path):
    touch(
        tmp_path / "f",
        "b/2.png", "b/10.PNG", "b/x.y.JpEg", "B/0.jpg", "a b/0.webp", "a/0.bmp", "a/sub/1.tif",
        "a/sub/deep/2.tiff", "a/sub-2/3.ppm", "a/sub.2/4.pgm", "a/z.png", "ü/0.jpeg", "0/0.png",
    )  # fmt: skip
    found = images_below(tmp_path / "f")
    assert as_torchvision(found) == image_folder(tmp_path / "f")
    assert len(found.paths) == 13 and found.left_out is None


def test_links_to_class_folders_and_to_folders_inside_are_followed(tmp_path):
    touch(
        tmp_path, "all/n01/0.png", "all/n01/1.png", "all/n02/0.png", "all/n03/0.png", "other/5.png"
    )
    (tmp_path / "some/n02").mkdir(parents=True)
    (tmp_path / "some/n01").symlink_to(tmp_path / "all/n01")
    (tmp_path / "some/n03").symlink_to("../all/n03")
    (tmp_path / "some/n02/more").symlink_to(tmp_path / "other")
    (tmp_path / "some/n02/9.png").symlink_to(tmp_path / "other/5.png")
    found = images_below(tmp_path / "some")
    assert as_torchvision(found) == image_folder(tmp_path / "some")
    assert found.labels.tolist() == [0, 0, 1, 1, 2]
    assert found.left_out is None


def test_links_in_circles_end(tmp_path):
    touch(tmp_path, "f/a/0.png", "f/b/0.png")
    (tmp_path / "f/a/self").symlink_to(tmp_path / "f/a")
    (tmp_path / "f/a/b").symlink_to(tmp_path / "f/b")
    (tmp_path / "f/b/a").symlink_to(tmp_path / "f/a")
    found = images_below(tmp_path / "f")
    names = [str(path.relative_to(tmp_path / "f")) for path in found.paths]
    assert names == ["a/0.png", "a/b/0.png", "b/0.png", "b/a/0.png"]
    assert "4 links to a folder that they lie in ('self', " in found.left_out


JUNK = [
    ".DS_Store", "._ant", ".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/ant/._0.png",
    "@eaDir/0.png", "readme.txt", "stray.png", "Thumbs.db", "ant/.ipynb_checkpoints/0.png",
    "ant/@eaDir/0.png/thumb.jpg", "ant/._0.png", "ant/.hidden.jpg", "ant/Thumbs.db", "bee/0.gif",
]  # fmt: skip


def test_what_is_left_out_is_counted(folder):
    clean = image_folder(folder / "train")
    touch(folder / "train", *JUNK)
    found = images_below(folder / "train")
    assert as_torchvision(found) == clean
    assert found.left_out == (
        f"{folder / 'train'}: left out 4 hidden files ('.DS_Store', '._ant', '._0.png', 1 more), "
        "5 hidden or system folders ('.ipynb_checkpoints', '@eaDir', '__MACOSX', 2 more), "
        "3 files beside the class folders ('Thumbs.db', 'readme.txt', 'stray.png'), "
        "2 files of other suffixes ('Thumbs.db', '0.gif')"
    )
    splits = open_splits(of_folder(folder))
    assert splits.bank.labels.tolist() == [0] * 3 + [1] * 3  # one stray image changes no label
    assert splits.notes == (found.left_out,)


def test_a_class_without_images_is_refused_as_by_torchvision(folder):
    touch(folder / "train", "cow/._0.png", "cow/0.heic")
    touch(folder / "clean", "ant/0.png", "cow/0.heic")
    with pytest.raises(FileNotFoundError):
        image_folder(folder / "clean")
    with pytest.raises(TrainError) as caught:
        open_splits(of_folder(folder))
    said = str(caught.value)
    assert "train: no image in 'cow', 1 of 3 class folders" in said
    assert said.endswith(
        "left out 1 hidden files ('._0.png'), 1 files of other suffixes ('0.heic')"
    )


def test_images_without_class_folders_have_no_labels(tmp_path):
    touch(tmp_path / "train", "1.png", "0.jpg", ".DS_Store", ".cache/3.png", "list.txt")
    splits = open_splits(of_folder(tmp_path, test_split=None))
    assert [path.name for path in splits.train.paths] == ["0.jpg", "1.png"]
    assert splits.bank is None
    assert splits.notes == (
        f"{tmp_path / 'train'}: left out 1 hidden files ('.DS_Store'), 1 hidden or system folders "
        "('.cache'), 1 files of other suffixes ('list.txt')",
        "train: 2 of 2 images have no label: no probe and no evaluation",
    )


def test_labels_that_are_partly_missing_are_said(folder):
    lines = "train/ant/0.png 0\ntrain/bee/0.png -1\ntrain/bee/1.png 1\n"
    (folder / "list.txt").write_text(lines)
    splits = open_splits(of_folder(folder, file_list=str(folder / "list.txt")))
    assert splits.bank is None
    assert splits.notes == ("train: 1 of 3 images have no label: no probe and no evaluation",)


# --- which pixels ---------------------------------------------------------------------------------


def encoded(image, kind="png", **settings):
    content = io.BytesIO()
    image.save(content, kind, **settings)
    return content.getvalue()


def turned(orientation, pixels):
    """EXIF's orientations as the standard draws them: where the first row and column lie."""
    return {
        1: pixels,
        2: pixels[:, ::-1],  # top, right
        3: pixels[::-1, ::-1],  # bottom, right
        4: pixels[::-1],  # bottom, left
        5: pixels.swapaxes(0, 1),  # left, top
        6: pixels.swapaxes(0, 1)[:, ::-1],  # right, top
        7: pixels.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
        8: pixels.swapaxes(0, 1)[::-1],  # left, bottom
    }[orientation]


def ways_in(tmp_path, content, suffix):
    """The first image of two, by every source that reads files."""
    for i in range(2):
        touch(tmp_path / "train/c", f"{i}.{suffix}")
        (tmp_path / f"train/c/{i}.{suffix}").write_bytes(content)
    (tmp_path / "list.txt").write_text("".join(f"train/c/{i}.{suffix} 0\n" for i in range(2)))
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for i in range(2):
            archive.add(tmp_path / f"train/c/{i}.{suffix}", f"{i}.{suffix}")
    for name, column in {
        "bytes": [{"bytes": content, "path": None}] * 2,
        "paths": [str(tmp_path / f"train/c/{i}.{suffix}") for i in range(2)],
    }.items():
        datasets.Dataset.from_dict(
            {"image": column, "label": [0, 0]},
            features=datasets.Features(
                {"image": datasets.Image(), "label": datasets.Value("int64")}
            ),
        ).save_to_disk(tmp_path / name)
    common = {"size": 8, "batch_size": 2, "test_split": None, "samples": 2}
    file_list = str(tmp_path / "list.txt")
    hf = {"source": "hf", **common}
    return {
        "folder": Data(source="folder", path=str(tmp_path), **common),
        "list": Data(source="folder", path=str(tmp_path), file_list=file_list, **common),
        "table of bytes": Data(path=str(tmp_path / "bytes"), **hf),
        "table of paths": Data(path=str(tmp_path / "paths"), **hf),
        "stream of bytes": Data(path=str(tmp_path / "bytes"), streaming=True, **hf),
        "stream of paths": Data(path=str(tmp_path / "paths"), streaming=True, **hf),
        "shards": Data(
            source="webdataset", path=str(tmp_path / "0.tar"), image_key=suffix, **common
        ),
    }


def first(settings):
    source = open_splits(settings).train
    return next(iter(data.batches(source, settings, seed=0, rank=0, world=1, start=0))).images[0]


WAYS = [
    "folder", "list", "table of bytes", "table of paths", "stream of bytes", "stream of paths",
    "shards",
]  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_stand_upright_by_every_way_in(tmp_path, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(pixels), exif=exif.tobytes())
    found = {name: first(settings) for name, settings in ways_in(tmp_path, content, "png").items()}
    assert list(found) == WAYS
    for name, image in found.items():
        assert np.array_equal(image.permute(1, 2, 0), turned(orientation, pixels)), name


def test_a_photo_that_is_not_square(tmp_path):
    """Turned before it is cut: the middle is that of the upright photo."""
    pixels = np.arange(8 * 24, dtype=np.uint8).reshape(8, 24)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(pixels), exif=exif.tobytes())
    for name, settings in ways_in(tmp_path, content, "png").items():
        assert np.array_equal(first(settings)[0], turned(6, pixels)[8:16]), name


@pytest.mark.parametrize("kind", ["jpeg", "webp", "tiff"])
def test_orientation_in_other_formats(kind):
    exif = Image.Exif()
    exif[0x0112] = 8
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("RGB")
    plain, tagged = (encoded(picture, kind, **a) for a in ({}, {"exif": exif.tobytes()}))
    upright, found = (images.Decoder(8, 3)(io.BytesIO(c)) for c in (plain, tagged))
    assert torch.equal(found, torch.rot90(upright, 1, (1, 2)))


@pytest.mark.parametrize(
    "damaged",
    [
        b"nonsense",
        b"II*\0\x08\0\0\0",  # no entries where they should begin
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0",  # orientation 9
    ],
)
def test_damaged_exif_is_none(tmp_path, damaged):
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    content = encoded(picture, "png", exif=damaged)
    for name, settings in ways_in(tmp_path, content, "png").items():
        assert np.array_equal(first(settings)[0], np.asarray(picture)), name


def test_exif_that_ends_too_early_is_followed(tmp_path):
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    entry = b"\x12\x01\x03\0\x01\0\0\0\x03\0\0\0"  # orientation 3, and no end of the entries
    content = encoded(picture, exif=b"II*\0\x08\0\0\0\x01\0" + entry)
    for name, settings in ways_in(tmp_path, content, "png").items():
        assert np.array_equal(first(settings)[0], turned(3, np.asarray(picture))), name


DEEP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


@pytest.mark.parametrize(
    ("image", "kind", "suffix"),
    [
        (Image.fromarray(DEEP), "png", "png"),
        (Image.fromarray(DEEP), "tiff", "tif"),
        (Image.fromarray(DEEP.astype(">u2")), "tiff", "tif"),
    ],
)
def test_sixteen_bits_by_every_way_in(tmp_path, image, kind, suffix):
    assert image.mode.startswith("I;16")
    for name, settings in ways_in(tmp_path, encoded(image, kind), suffix).items():
        assert np.array_equal(first(settings)[0], DEEP // 256), name


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (DEEP.astype(np.int32) * 100, r"32-bit integers \(mode I\)"),
        (DEEP.astype(np.float32) / 65535, r"floating numbers \(mode F\)"),
    ],
)
def test_pixels_of_unknown_range_are_refused_by_every_way_in(tmp_path, pixels, said):
    content = encoded(Image.fromarray(pixels), "tiff")
    for settings in ways_in(tmp_path, content, "tiff").values():
        with pytest.raises(
            LocalError, match=f"cannot read .*: expected pixels of 8 or 16 bits; found {said}"
        ):
            first(settings)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_by_every_way_in(tmp_path, mode):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    kind = "tiff" if mode == "CMYK" else "png"
    content = encoded(picture.convert(mode), kind)
    expected = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
    for name, settings in ways_in(tmp_path, content, kind).items():
        assert np.array_equal(first(settings).permute(1, 2, 0), expected), name


@pytest.mark.parametrize("prefix", ["", "a/", "./a/b/"])
def test_shards_that_macos_has_packed(tmp_path, prefix):
    png = encoded(Image.new("RGB", (8, 8), (9, 9, 9)))
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for i in range(3):
            for name, content in (
                (f"._{i}.png", b"Mac OS X"),
                (f"{i}.png", png),
                (f"{i}.cls", b"5"),
            ):
                info = tarfile.TarInfo(prefix + name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    settings = Data(source="webdataset", path=str(tmp_path / "0.tar"), image_key="png",
                    label_key="cls", size=8, batch_size=3, samples=3)  # fmt: skip
    source = open_splits(settings).train
    batch = next(iter(data.batches(source, settings, seed=0, rank=0, world=1, start=0)))
    assert batch.images.unique().item() == 9 and batch.labels.tolist() == [5, 5, 5]


# --- columns of images ----------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_that_convert_or_are_no_images(tmp_path, streaming):
    def opened(column, feature):
        table = datasets.Dataset.from_dict({"image": column, "label": [0, 1]})
        table.cast_column("image", feature).save_to_disk(tmp_path / "d")
        return open_splits(
            Data(
                source="hf", path=str(tmp_path / "d"), test_split=None, streaming=streaming, size=8
            )
        )

    png = encoded(Image.new("RGB", (8, 8)))
    with pytest.raises(TrainError, match="found a column that converts them to L"):
        opened([png] * 2, datasets.Image(mode="L"))
    assert len(opened([png] * 2, datasets.Image(mode="RGB")).notes) == 0
    with pytest.raises(TrainError, match="expected a column of images; found"):
        opened([1, 2], datasets.Value("int64"))


@pytest.mark.parametrize("label", [1.5, None, "1", True])
def test_labels_of_a_stream_are_integers(tmp_path, label):
    png = encoded(Image.new("RGB", (8, 8)))
    datasets.Dataset.from_dict({"image": [png] * 2, "label": [label] * 2}).save_to_disk(
        tmp_path / "d"
    )
    settings = Data(
        source="hf", path=str(tmp_path / "d"), streaming=True, batch_size=2, size=8, samples=2
    )
    with pytest.raises(LocalError, match=f"'label': expected integers; found {label!r}"):
        first(settings)


def test_a_missing_image_of_a_table_is_unreadable(tmp_path):
    png = encoded(Image.new("RGB", (8, 8), (9, 9, 9)))
    datasets.Dataset.from_dict({"image": [png, None, png], "label": [0, 0, 0]}).save_to_disk(
        tmp_path / "d"
    )
    for streaming in (False, True):
        settings = Data(
            source="hf",
            path=str(tmp_path / "d"),
            test_split=None,
            streaming=streaming,
            size=8,
            batch_size=3,
            samples=3,
        )
        with pytest.raises(LocalError, match=r"cannot read .*: cannot identify image file"):
            first(settings)
        settings.unreadable = "skip"
        assert first(settings).unique().item() == 9
