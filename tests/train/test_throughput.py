"""The benchmark of a step's parts names the bottleneck."""

import json
import time

import pytest
import torch

from reference_train import sources, throughput
from reference_train.throughput import Rates
from tests.train import runs


def test_loading_and_the_device_work_side_by_side():
    """Crops and training one after the other: 1 / (1/600 + 1/300) = 200 images a second."""
    slow = Rates(decoding=30, loading=60, crops=600, training=300, step=58)
    assert slow.device == pytest.approx(200)
    assert slow.bottleneck(2) == (
        "loading: the device could take 200 images/s, for which decoding needs about 7 cores; "
        "data.workers=2"
    )
    quick = slow._replace(loading=250)
    assert quick.bottleneck(2) == "training: 67% of the device's time; loading gives 250 images/s"
    cropping = quick._replace(crops=300, training=600)
    assert cropping.bottleneck(2).startswith("crops: 67% of the device's time")


def test_a_stretch_is_a_mean_without_its_start(monkeypatch):
    clock, done = [0.0], []
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock[0])

    def work(batch):
        done.append(batch)
        clock[0] += 100 if batch < 2 else batch

    seconds = throughput.stretch(work, iter(range(50)), 3, torch.device("cpu"))
    assert seconds == (2 + 3 + 4) / 3 and done == [0, 1, 2, 3, 4]


def main_with_slow_images(arguments):
    """Each image takes two tenths of a second, asleep."""
    read = sources.Subset.__getitem__

    def slow(self, index):
        time.sleep(0.2)
        return read(self, index)

    sources.Subset.__getitem__ = slow
    throughput.main(arguments)


def test_slow_images_are_the_bottleneck(tmp_path):
    command = runs.command(tmp_path / "run", "data.batch_size=2", "--steps", "1")
    codes, printed = runs.run(main_with_slow_images, command, output=tmp_path / "o")
    assert codes == [0], printed
    found = json.loads((tmp_path / "run" / "throughput.json").read_text())
    rates = found["images per second"]
    assert rates["loading"] <= 5 and rates["step"] <= 5 and rates["decoding"] > 50  # of CPU time
    assert found["bottleneck"].startswith("loading: the device could take ")
    assert (
        found["provenance"]["versions"]["torch"] and f"bottleneck: {found['bottleneck']}" in printed
    )


def test_wrong_settings_are_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        throughput.main(runs.command(tmp_path / "run", "--steps", "0"))
    said = capsys.readouterr().err
    assert said == "reference_train.throughput: --steps: expected at least 1; found 0\n"
