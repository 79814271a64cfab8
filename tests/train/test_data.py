"""Data: order and position, long tails, folders, Hugging Face data sets, shards."""

import io
import itertools
import re
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from reference_train import data, images, sources
from reference_train.config import Data
from reference_train.errors import LocalError, TrainError
from reference_train.splits import open_splits
from reference_train.streams import mixed


def picture(value, size=(12, 10)):
    """A grey picture whose brightness tells which it is."""
    return Image.new("RGB", size, (value, value, value))


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 6), ("val", 3)):
        for label, name in enumerate(("ant", "bee")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                picture(100 * label + i).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def of_folder(folder, **settings):
    return Data(source="folder", path=str(folder), size=8, batch_size=4, **settings)


def take(source, settings, count, *, start=0, rank=0, world=1, seed=5):
    made = data.batches(source, settings, seed=seed, rank=rank, world=world, start=start)
    return list(itertools.islice(made, count))


# --- order and position ---------------------------------------------------------------------------


def test_an_epoch_is_a_permutation_shared_out_over_processes():
    orders = [
        list(itertools.islice(data.Order(24, 3, seed=1, rank=r, world=2, start=0), 8))
        for r in range(2)
    ]
    for epoch in range(2):
        read = [i for order in orders for batch in order[4 * epoch : 4 * epoch + 4] for i in batch]
        assert sorted(read) == list(range(24))
    assert orders[0][:4] != orders[0][4:]


def test_two_processes_read_the_batch_of_one():
    one = list(itertools.islice(data.Order(26, 6, seed=1, rank=0, world=1, start=0), 9))
    two = [
        itertools.islice(data.Order(26, 3, seed=1, rank=r, world=2, start=0), 9) for r in range(2)
    ]
    assert one == [a + b for a, b in zip(*two, strict=True)]


@pytest.mark.parametrize("start", [1, 3, 4, 9])
def test_a_position_is_a_place_in_the_same_order(start):
    def from_(position):
        return data.Order(17, 4, seed=2, rank=0, world=1, start=position)

    whole = list(itertools.islice(from_(0), 14))
    assert list(itertools.islice(from_(start), 14 - start)) == whole[start:]


def test_too_few_images_for_a_batch():
    source = open_splits(Data(source="synthetic", samples=7, size=4)).train
    with pytest.raises(TrainError, match="7 training images do not fill one batch of 2 x 4"):
        data.batches_per_epoch(source, Data(batch_size=4), 2)


# --- sources --------------------------------------------------------------------------------------


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    splits = open_splits(Data(source="digits", size=8, channels=1, classes=[3, 5]))
    assert len(splits.bank) + len(splits.test) == 1797
    assert set(splits.train.labels) == {3, 5} and set(splits.test.labels) == set(range(10))
    image, label, _ = splits.bank[0]  # the second of all: every fifth, from the first, is a test's
    digits = load_digits()
    assert label == digits.target[1]
    np.testing.assert_allclose(image[0] / 255, digits.images[1] / 16, atol=0.5 / 255)


def squared(image, size, channels):
    content = io.BytesIO()
    image.save(content, "png")
    return images.Decoder(size, channels)(content)


def test_square_keeps_the_middle_at_the_aspect():
    wide = Image.fromarray(np.repeat(np.arange(60, dtype=np.uint8)[None], 20, axis=0))
    cut = squared(wide, 20, 1)
    np.testing.assert_array_equal(cut[0, 0], np.arange(20, 40))
    halved = squared(wide, 10, 3)
    assert halved.shape == (3, 10, 10)
    np.testing.assert_allclose(halved[0, 5], np.arange(20, 40, 2) + 0.5, atol=1)


def test_sixteen_bits_keep_their_upper_eight():
    deep = Image.fromarray((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8))
    np.testing.assert_array_equal(squared(deep, 8, 3)[1].flatten(), np.arange(64) * 1000 // 256)


def test_a_folder_of_classes(folder):
    splits = open_splits(of_folder(folder))
    assert splits.train.labels.tolist() == [0] * 6 + [1] * 6
    assert splits.test.labels.tolist() == [0] * 3 + [1] * 3
    for index in (0, 7):
        sample = splits.train[index]
        assert sample.image.shape == (3, 8, 8)
        assert sample.image.unique().item() == 100 * sample.label + index % 6


def test_test_folders_are_the_training_folders_classes(folder):
    (folder / "train" / "beetle").mkdir()
    picture(3).save(folder / "train" / "beetle" / "0.png")
    (folder / "val" / "bee").rename(folder / "val" / "beetle")
    assert open_splits(of_folder(folder)).test.labels.tolist() == [0] * 3 + [2] * 3
    (folder / "val" / "beetle").rename(folder / "val" / "wasp")
    with pytest.raises(TrainError, match=r"val: 'wasp' is not a class of data.train_split"):
        open_splits(of_folder(folder))


def test_probes_are_fitted_on_the_long_tail_too(folder):
    settings = {"long_tail": "exponential", "long_tail_max": 4, "long_tail_min": 1}
    splits = open_splits(of_folder(folder, **settings, classes=[0]))
    assert sorted(np.bincount(splits.bank.labels)) == [1, 4]
    assert len(splits.train) == np.bincount(splits.bank.labels)[0]


def test_a_list_of_files(folder):
    (folder / "list.txt").write_text("train/bee/2.png 7\ntrain/ant/0.png 3\n")
    splits = open_splits(of_folder(folder, file_list=str(folder / "list.txt")))
    assert splits.train.labels.tolist() == [7, 3]
    assert splits.train[0].image.unique().item() == 102


def test_what_is_missing_is_one_line(folder, tmp_path):
    for settings, said in (
        ({"path": str(tmp_path / "nowhere")}, f"data.path: no folder {tmp_path / 'nowhere'}"),
        ({"path": str(folder), "train_split": "training"}, "data.path: no folder"),
        ({"path": str(folder), "file_list": "no.txt"}, "data.file_list: "),
        (
            {"path": str(folder), "classes": [9]},
            "data.classes: expected classes with images; found [9]",
        ),
    ):
        with pytest.raises(TrainError) as caught:
            open_splits(Data(source="folder", size=8, **settings))
        assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hugging_face_data_set(tmp_path, streaming):
    table = datasets.Dataset.from_dict(
        {"image": [picture(i) for i in range(12)], "label": [i % 2 for i in range(12)]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    datasets.DatasetDict(train=table, val=table.select(range(4))).save_to_disk(tmp_path / "d")
    settings = Data(
        source="hf", path=str(tmp_path / "d"), size=8, batch_size=4, samples=12, shuffle_buffer=3
    )
    settings.streaming = streaming
    splits = open_splits(settings)
    assert (splits.test is None) == streaming
    read = take(splits.train, settings, 6)
    for epoch in (read[:3], read[3:]):
        values = torch.cat([batch.images[:, 0, 0, 0] for batch in epoch])
        assert sorted(values.tolist()) == list(range(12))
        assert torch.equal(torch.cat([b.labels for b in epoch]), values.long() % 2)
    again = take(splits.train, settings, 2, start=4)
    assert all(torch.equal(a.images, b.images) for a, b in zip(again, read[4:], strict=True))


def test_a_hugging_face_column_that_is_not_there(tmp_path):
    datasets.Dataset.from_dict({"picture": [1]}).save_to_disk(tmp_path / "d")
    with pytest.raises(TrainError, match=r"data.image_key='image': the columns are picture"):
        open_splits(Data(source="hf", path=str(tmp_path / "d"), test_split=None))


def test_labels_that_are_missing_or_no_numbers(tmp_path):
    for name, labels in (("train", [0, 1]), ("unlabelled", [-1, -1]), ("named", ["ant", "bee"])):
        table = {"image": [picture(i) for i in range(2)], "label": labels}
        datasets.Dataset.from_dict(table).save_to_disk(tmp_path / "d" / name)
    (tmp_path / "d" / "dataset_dict.json").write_text(
        '{"splits": ["train", "unlabelled", "named"]}'
    )
    settings = Data(source="hf", path=str(tmp_path / "d"), size=8, test_split="unlabelled")
    splits = open_splits(settings)
    assert splits.bank is not None and splits.test is None
    settings.train_split = "named"
    with pytest.raises(TrainError, match=r"data.label_key='label': expected a column of integers"):
        open_splits(settings)


# --- shards ---------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    """Four shards of six samples; sample i of shard s is grey 10 s + i."""
    for s in range(4):
        with tarfile.open(tmp_path / f"{s}.tar", "w") as archive:
            for i in range(6):
                content = io.BytesIO()
                picture(10 * s + i).save(content, format="png")
                for name, data_ in ((f"{i}.png", content.getvalue()), (f"{i}.cls", b"%d" % i)):
                    info = tarfile.TarInfo(f"{s}_{name}")
                    info.size = len(data_)
                    archive.addfile(info, io.BytesIO(data_))
    return Data(
        source="webdataset",
        path=str(tmp_path / "{0..3}.tar"),
        image_key="jpg;png",
        label_key="cls",
        size=8,
        batch_size=3,
        samples=24,
        shuffle_buffer=4,
    )


def greys(batches):
    return [batch.images[:, 0, 0, 0].tolist() for batch in batches]


def test_shards_are_all_read_once_in_a_pass(shards):
    stream = open_splits(shards).train
    read = take(stream, shards, 16)
    for epoch in (read[:8], read[8:]):
        values = [v for batch in greys(epoch) for v in batch]
        assert sorted(values) == sorted(10 * s + i for s in range(4) for i in range(6))
        assert [v % 10 for v in values] == torch.cat([b.labels for b in epoch]).tolist()
    assert greys(read[:8]) != greys(read[8:])


def test_passes_read_the_shards_in_other_orders(shards):
    shards.shuffle_buffer, shards.batch_size = 1, 6
    read = greys(take(open_splits(shards).train, shards, 24))
    orders = {tuple(batch[0] // 10 for batch in read[4 * i : 4 * i + 4]) for i in range(6)}
    assert len(orders) > 2 and all(sorted(order) == [0, 1, 2, 3] for order in orders)


def test_shards_are_shared_out_over_processes(shards):
    stream = open_splits(shards).train
    read = [greys(take(stream, shards, 4, rank=r, world=2)) for r in range(2)]
    values = [v for process in read for batch in process for v in batch]
    assert sorted(values) == sorted(10 * s + i for s in range(4) for i in range(6))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_resumes_at_its_position(shards, workers):
    shards.workers = workers
    stream = open_splits(shards).train
    whole = greys(take(stream, shards, 12))
    for start in (1, 5):
        assert greys(take(stream, shards, 12 - start, start=start)) == whole[start:]


def test_fewer_shards_than_readers(shards):
    with pytest.raises(TrainError, match="4 shards for 5 readers"):
        take(open_splits(shards).train, shards, 1, world=5)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_with_shards_is_one_line(shards, workers):
    shards.workers, shards.image_key = workers, "gif"
    with pytest.raises(LocalError) as caught:
        take(open_splits(shards).train, shards, 1)
    key = rf"cannot read {shards.path}: data.image_key='gif': \d_0 has png, cls"
    assert re.fullmatch(re.sub("[{}]", ".", key), str(caught.value))
    shards.path, shards.image_key = shards.path.replace("{0..3}", "0"), "png"
    with open(shards.path, "r+b") as file:
        file.truncate(600)
    with pytest.raises(LocalError, match=r"0.tar: .*end of data"):
        take(open_splits(shards).train, shards, 1)


def test_a_stream_needs_the_length_of_an_epoch(shards):
    shards.samples = None
    with pytest.raises(TrainError, match=r"data.samples has to be given"):
        data.batches_per_epoch(open_splits(shards).train, shards, 1)


def test_the_buffer_mixes_and_loses_nothing():
    import random

    out = list(mixed(range(50), 10, random.Random(0)))
    assert sorted(out) == list(range(50)) and out != list(range(50))
    assert all(value <= place + 10 for place, value in enumerate(out))


# --- images that cannot be read -------------------------------------------------------------------


def test_an_unreadable_image_stops_with_its_name(folder):
    (folder / "train/ant/3.png").write_bytes(b"not a picture")
    settings = of_folder(folder)
    with pytest.raises(TrainError, match=r"cannot read .*train/ant/3.png: cannot identify image"):
        take(open_splits(settings).train, settings, 3)


def test_a_broken_chunk_is_an_unreadable_image(folder):
    """Where Pillow raises a SyntaxError."""
    path = folder / "train/ant/3.png"
    content = bytearray(path.read_bytes())
    content[36] = 7  # the length of the first IDAT: the next chunk's name is then no name
    path.write_bytes(content)
    settings = of_folder(folder)
    with pytest.raises(LocalError, match=r"cannot read .*train/ant/3.png: "):
        take(open_splits(settings).train, settings, 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_may_be_skipped(folder, workers):
    whole = (folder / "train/ant/3.png").read_bytes()
    (folder / "train/ant/3.png").write_bytes(whole[: len(whole) // 2])
    settings = of_folder(folder, unreadable="skip", workers=workers)
    read = take(open_splits(settings).train, settings, 3)
    values = sorted(v for batch in greys(read) for v in batch)
    assert values == [0, 1, 2, 4, 4, 5, *range(100, 106)]


# --- long tails -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exponential", "pareto"])
def test_long_tail(kind):
    labels = np.repeat(np.arange(20), 300)
    settings = Data(long_tail=kind, long_tail_max=200, long_tail_min=4)
    kept = sources.long_tail(labels, settings, seed=3)
    assert len(np.unique(kept)) == len(kept)
    sizes = np.sort(np.bincount(labels[kept]))[::-1]
    assert sizes[0] == 200 and sizes[-1] == 4
    if kind == "exponential":
        np.testing.assert_array_equal(sizes, np.rint(200 * (4 / 200) ** (np.arange(20) / 19)))
    else:  # log-survival is linear in log-size with slope -6, once the shift is taken off
        x = 1 + (sizes - 4) / (200 - 4) * ((1 / 21) ** (-1 / 6) - (20 / 21) ** (-1 / 6))
        x += (20 / 21) ** (-1 / 6) - 1
        slope = np.polyfit(np.log(x), np.log(np.arange(1, 21) / 21), 1)[0]
        assert slope == pytest.approx(-6, abs=0.1)
    assert not np.array_equal(kept, sources.long_tail(labels, settings, seed=4))


def test_a_small_class_is_kept_whole():
    labels = np.array([0] * 50 + [1] * 3)
    kept = sources.long_tail(labels, Data(long_tail="exponential", long_tail_max=40), seed=0)
    assert (labels[kept] == 1).sum() == 3
