"""A stream's place: whoever reads a lane goes on exactly, and reads nothing that was before."""

import io
import itertools
import tarfile

import pytest
import torch
from PIL import Image

from reference_train import data, streams
from reference_train.config import Data
from reference_train.errors import TrainError
from reference_train.splits import open_splits

SHARDS, SAMPLES = 8, 6


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def shards(folder, mode="w", unreadable=()):
    """Shard s has 6 + s % 3 samples; sample i of it is grey 20 s + i, with i as its label."""
    for s in range(SHARDS):
        with tarfile.open(folder / f"{s}.tar", mode) as archive:
            for i in range(SAMPLES + s % 3):
                content = io.BytesIO()
                Image.new("L", (8, 8), 20 * s + i).save(content, format="png")
                png = b"none" if (s, i) in unreadable else content.getvalue()
                add(archive, f"{s}_{i}.png", png)
                add(archive, f"._{s}_{i}.png", b"of macOS")
                add(archive, f"{s}_{i}.cls", b"%d" % i)
            add(archive, "__index__/0.json", b"{}")
    return Data(
        source="webdataset", path=str(folder / "{0..7}.tar"), image_key="png", label_key="cls",
        size=8, channels=1, batch_size=2, shuffle_buffer=4, samples=SHARDS * SAMPLES,
    )  # fmt: skip


def reading(settings, rank=0, world=1, start=0, **where):
    source = open_splits(settings, 5).train
    return data.batches(source, settings, seed=5, rank=rank, world=world, start=start, **where)


def greys(batches):
    return [batch.images[:, 0, 0, 0].tolist() for batch in batches]


def of_processes(settings, world, count, start=0, **where):
    """Micro-batches in the order of steps and processes, and the places after them."""
    read = [reading(settings, r, world, start, **where) for r in range(world)]
    taken = [greys(itertools.islice(each, count)) for each in read]
    places = {}
    for each in read:
        for lane, place in each.places.items():
            places[lane] = max(place, places.get(lane, place))
    lanes = {each.lanes for each in read}
    assert len(lanes) == 1
    return [batch for step in zip(*taken, strict=True) for batch in step], places, lanes.pop()


@pytest.mark.parametrize("start", [0, 1, 5, 13, 14, 15, 30])
def test_other_processes_and_workers_go_on_with_the_same_micro_batches(tmp_path, start):
    """Four lanes: of 2 processes x 2 workers, then of others; 55 samples a pass."""
    settings = shards(tmp_path)
    settings.workers = 2
    whole, _, lanes = of_processes(settings, 2, 45)
    assert lanes == 4
    before, places, _ = of_processes(settings, 2, start)
    assert before == whole[: 2 * start]
    for world, workers in ((1, 0), (1, 2), (2, 0), (4, 0)):
        settings.workers = workers
        micro = 2 * start // world
        if micro * world != 2 * start:
            continue
        rest, *_ = of_processes(settings, world, 6, micro, lanes=4, places=places)
        assert rest == whole[2 * start : 2 * start + 6 * world], (world, workers)


def test_readers_that_do_not_divide_the_lanes_are_refused(tmp_path):
    settings = shards(tmp_path)
    with pytest.raises(TrainError, match=r"began with 4 lanes .* a divisor of 4; found 3"):
        reading(settings, world=3, lanes=4, places={})


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("kept", [True, False], ids=["place", "batches alone"])
def test_what_was_before_is_not_read_again(tmp_path, monkeypatch, mode, kept):
    """Far into a second pass; a place that is not known follows from the batches before."""
    settings = shards(tmp_path, mode)
    whole = reading(settings)
    expected = greys(itertools.islice(whole, 45))
    first = reading(settings)
    for _ in range(40):
        next(first)
    content, contents = streams._content, []

    def counted(archive, member):
        contents.append(member.name)
        return content(archive, member)

    monkeypatch.setattr(streams, "_content", counted)
    where = {"lanes": first.lanes, "places": first.places} if kept else {}
    again = reading(settings, start=40, **where)
    assert greys(itertools.islice(again, 5)) == expected[40:]
    if mode == "w":  # five batches of two and a buffer of four, each an image and its label
        assert len(contents) <= 2 * (10 + 4)


def test_skipped_images_do_not_move_the_place(tmp_path):
    settings = shards(tmp_path, unreadable={(0, 1), (1, 2), (3, 0), (3, 1), (6, 5)})
    settings.unreadable = "skip"
    expected = greys(itertools.islice(reading(settings), 40))
    for start in (3, 9, 17, 25, 33):
        first = reading(settings)
        for _ in range(start):
            next(first)
        again = reading(settings, start=start, lanes=first.lanes, places=first.places)
        assert greys(itertools.islice(again, 7)) == expected[start : start + 7], start


def test_samples_are_counted_as_webdataset_groups_them(tmp_path):
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    shards(tmp_path)
    for s in range(SHARDS):
        path = tmp_path / f"{s}.tar"
        with path.open("rb") as file:
            files = [{**found, "__url__": ""} for found in tar_file_iterator(file)]
        files = [found for found in files if not found["fname"].startswith("._")]
        grouped = list(group_by_keys(files))
        assert streams.ShardStream.count(str(path)) == len(grouped) == SAMPLES + s % 3


def test_labels_stay_with_their_images(tmp_path):
    for batch in itertools.islice(reading(shards(tmp_path), start=11), 30):
        assert torch.equal(batch.images[:, 0, 0, 0] % 20, batch.labels)
