"""What goes wrong is said in one line, and nothing is lost."""

import json
import resource
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from reference_train import checkpoint, train
from reference_train.augment import MultiCrop
from reference_train.train import main
from tests.train import runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The final state of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    codes, printed = runs.run(main, runs.command(folder / "run"), output=folder / "output")
    assert codes == [0], printed
    return runs.state(folder / "run")


def said(printed):
    """Lines of the trainer, without a traceback."""
    assert "Traceback" not in printed, printed
    return [line for line in printed.splitlines() if line.startswith("reference_train")]


def resumed(folder):
    """The state that the same command, run again, ends in; and what it prints."""
    codes, printed = runs.run(main, runs.command(folder / "run"), output=folder / "again")
    assert codes == [0], printed
    return runs.state(folder / "run"), printed


# --- losses that are not finite -------------------------------------------------------------------


def main_with_a_nan(arguments, step, process):
    """One process's crops have a NaN at one step."""
    import os

    original, calls = MultiCrop.forward, []

    def poisoned(self, *given):
        crops = original(self, *given)
        if len(calls) == step and os.environ.get("RANK", "0") == str(process):
            crops[0][0, 3, 0, 2, 2] = torch.nan
        calls.append(step)
        return crops

    MultiCrop.forward = poisoned
    main(arguments)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_nan_stops_the_run_with_step_term_and_dump(tmp_path, processes):
    arguments = runs.command(tmp_path / "run", "run.log_every=4", "run.checkpoint_every=3")
    last = processes - 1
    codes, printed = runs.run(
        main_with_a_nan, arguments, 7, last, output=tmp_path / "output", processes=processes
    )
    assert set(codes) <= {1, -signal.SIGKILL} and 1 in codes, printed
    dump = tmp_path / "run" / "nonfinite-step-000000007.json"
    (line,) = said(printed)
    assert line == (
        f"reference_train: step 7: invariance is nan on process {last}; "
        f"statistics of the batch: {dump}"
    )
    found = json.loads(dump.read_text())
    assert (found["step"], found["process"], found["term"]) == (7, last, "invariance")
    values = found["processes"][last]["values"]
    assert values["crops 0 mean"] == "nan" and values["loss"] == "nan"
    assert len(found["processes"][last]["ids"]) == 16
    if processes == 2:
        assert found["processes"][0]["values"]["crops 0 mean"] != "nan"
    # the last checkpoint is of before
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == [
        "checkpoint-000000003.pt",
        "checkpoint-000000006.pt",
    ]


def test_a_nan_of_the_first_of_two_micro_batches_is_told_with_both(tmp_path):
    arguments = runs.command(tmp_path / "run", "run.accumulate=2")
    codes, printed = runs.run(main_with_a_nan, arguments, 6, 0, output=tmp_path / "output")
    assert codes == [1]
    (line,) = said(printed)
    assert line.startswith("reference_train: step 3: invariance is nan on process 0; ")
    found = json.loads((tmp_path / "run" / "nonfinite-step-000000003.json").read_text())
    (process,) = found["processes"]
    assert process["values"]["crops 0 max"] == "nan" and len(process["ids"]) == 32


def test_an_interruption_is_one_line(tmp_path, capsys, monkeypatch):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", interrupted)
    with pytest.raises(SystemExit, match="130"):
        main(runs.command(tmp_path / "run"))
    assert capsys.readouterr().err == "\nreference_train: interrupted\n"


def test_a_divergence_names_the_term(tmp_path):
    arguments = runs.command(tmp_path / "run", "optim.lr=1e20", "run.log_every=1")
    codes, printed = runs.run(main, arguments, output=tmp_path / "output")
    assert codes == [1]
    (line,) = said(printed)
    assert "nonfinite-step-" in line and (" is nan on" in line or " is inf on" in line)


# --- the disk -------------------------------------------------------------------------------------


def main_with_a_full_disk(arguments, step):
    """From one checkpoint on no file may grow past ten kilobytes."""
    original = checkpoint.save
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limited(folder, state, keep):
        if state["step"] == step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        return original(folder, state, keep)

    checkpoint.save = limited
    main(arguments)


def test_a_full_disk_loses_nothing(tmp_path, whole):
    arguments = runs.command(tmp_path / "run")
    codes, printed = runs.run(main_with_a_full_disk, arguments, 5, output=tmp_path / "output")
    assert codes == [1]
    path = tmp_path / "run" / "checkpoint-000000005.pt"
    assert said(printed) == [
        f"reference_train: cannot write {path}: File too large; "
        "the last checkpoint is checkpoint-000000004.pt"
    ]
    assert not list((tmp_path / "run").glob("*.tmp"))
    runs.assert_same(resumed(tmp_path)[0], whole)


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="1"):
        main(runs.command(tmp_path / "file" / "run"))
    assert "Not a directory" in capsys.readouterr().err


# --- images ---------------------------------------------------------------------------------------


def pictures(folder, count=40):
    for split in ("train", "val"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
    for i in range(count):
        for split in ("train", "val"):
            value = (5 * i) % 256
            image = Image.new("L", (8, 8), value)
            image.putpixel((i % 8, 3), 255 - value)
            image.save(folder / split / "ab"[i % 2] / f"{i}.png")
    return ["data.source=folder", f"data.path={folder}", "data.classes=null", "run.max_steps=6"]


def test_a_missing_data_folder_is_one_line(tmp_path, capsys):
    given = ["data.source=folder", f"data.path={tmp_path / 'gone'}"]
    with pytest.raises(SystemExit, match="1"):
        main(runs.command(tmp_path / "run", *given))
    printed = capsys.readouterr().err.splitlines()
    assert printed == [f"reference_train: data.path: no folder {tmp_path / 'gone'}"]


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_run_goes_on_from_an_unreadable_image_once_it_is_mended(tmp_path, log_every):
    settings = [*pictures(tmp_path / "data"), f"run.log_every={log_every}"]
    codes, printed = runs.run(
        main, runs.command(tmp_path / "whole", *settings), output=tmp_path / "output"
    )
    assert codes == [0], printed
    expected = runs.state(tmp_path / "whole", 6)
    bad = tmp_path / "data" / "train" / "b" / "13.png"
    content = bad.read_bytes()
    bad.write_bytes(content[:40])
    arguments = runs.command(tmp_path / "run", *settings, "run.checkpoint_every=100")
    codes, printed = runs.run(main, arguments, output=tmp_path / "stopped")
    (line,) = said(printed)
    assert codes == [1] and line.startswith(f"reference_train: cannot read {bad}: ")
    bad.write_bytes(content)
    codes, printed = runs.run(main, arguments, output=tmp_path / "again")
    assert codes == [0], printed
    found = runs.state(tmp_path / "run", 6)
    found["config"]["run"]["checkpoint_every"] = 1
    runs.assert_same(found, expected)


def test_the_evaluation_skips_unreadable_images_too(tmp_path):
    settings = pictures(tmp_path / "data")
    for path in ("train/b/13.png", "val/a/4.png", "val/b/5.png"):
        (tmp_path / "data" / path).write_bytes(b"not a picture")
    settings += [*runs.EVALUATED, "probe.max_rows=100", "data.unreadable=skip"]
    codes, printed = runs.run(
        main, runs.command(tmp_path / "run", *settings), output=tmp_path / "o"
    )
    assert codes == [0], printed
    embeddings = tmp_path / "run" / "embeddings"
    # the files in the order of their names, twenty of each class
    files = sorted((tmp_path / "data" / "val").rglob("*.png"))
    read = [i for i, path in enumerate(files) if path.read_bytes() != b"not a picture"]
    assert np.load(embeddings / "ids.npy").tolist() == read
    assert np.load(embeddings / "labels.npy").tolist() == [int(i >= 20) for i in read]
    assert len(np.load(embeddings / "trained.npy")) == 38


# --- checkpoints ----------------------------------------------------------------------------------


def stopped_run(folder):
    """A finished run, whose last checkpoints a test then damages."""
    codes, printed = runs.run(main, runs.command(folder / "run"), output=folder / "output")
    assert codes == [0], printed
    names = sorted(p.name for p in (folder / "run").glob("checkpoint-*"))
    assert names == [f"checkpoint-{step:09d}.pt" for step in (10, 11, 12)]
    return [folder / "run" / name for name in names]


def truncated(path):
    path.write_bytes(path.read_bytes()[:5000])


def a_bit_flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def emptied(path):
    path.write_bytes(b"")


def foreign(path):
    torch.save({"weights": torch.zeros(2)}, path)


class Executed:
    """An object that unpickling would call."""

    def __reduce__(self):
        return (print, ("executed",))


def hostile(path):
    torch.save({"format": checkpoint.FORMAT, "state": Executed()}, path)


DAMAGES = [truncated, a_bit_flipped, emptied, foreign, hostile]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_reading_a_damaged_checkpoint_is_one_line(tmp_path, whole, damage, capsys):
    path = checkpoint.save(tmp_path, {**whole, "step": 1}, keep=1)
    damage(path)
    with pytest.raises(train.TrainError) as caught:
        checkpoint.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def test_damaged_checkpoints_are_passed_over(tmp_path, whole):
    tenth, eleventh, twelfth = stopped_run(tmp_path)
    truncated(twelfth)
    foreign(eleventh)
    state, printed = resumed(tmp_path)
    lines = printed.splitlines()
    assert sum("skipped" in line for line in lines) == 2
    assert f"resuming from {tenth}" in lines
    runs.assert_same(state, whole)


def test_another_runs_folder_is_refused(tmp_path):
    stopped_run(tmp_path)
    arguments = runs.command(tmp_path / "run", "optim.lr=0.5")
    codes, printed = runs.run(main, arguments, output=tmp_path / "again")
    assert codes == [1]
    (line,) = said(printed)
    assert "holds another run (optim.lr=0.002, not 0.5): give run.folder another name" in line
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["optim"]["lr"] == 0.002  # the run's own configuration is still beside it


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, whole, monkeypatch):
    path, seen = checkpoint.path_of(tmp_path, 4), []
    monkeypatch.setattr(checkpoint.os, "fsync", lambda descriptor: seen.append(path.exists()))
    checkpoint.save(tmp_path, {**whole, "step": 4}, keep=1)
    assert seen == [False, True]  # the file under its temporary name, then the folder


def test_a_damaged_later_checkpoint_does_not_push_out_new_ones(tmp_path, whole):
    checkpoint.path_of(tmp_path, 12).write_bytes(b"damaged")
    for step in (4, 5, 6):
        checkpoint.save(tmp_path, {**whole, "step": step}, keep=2)
    found = sorted(p.name for p in tmp_path.glob("checkpoint-*"))
    assert found == [f"checkpoint-{step:09d}.pt" for step in (5, 6, 12)]


def test_settings_that_do_not_touch_the_arithmetic_may_change(tmp_path, whole):
    stopped_run(tmp_path)[2].unlink()
    arguments = runs.command(tmp_path / "run", "run.log_every=3", "run.keep=1")
    codes, printed = runs.run(main, arguments, output=tmp_path / "again")
    assert codes == [0], printed
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-000000012.pt"]
    found = runs.state(tmp_path / "run")
    found["config"]["run"].update(log_every=whole["config"]["run"]["log_every"], keep=3)
    runs.assert_same(found, whole)


def test_a_finished_run_only_makes_its_table_again(tmp_path):
    arguments = runs.command(tmp_path / "run", *runs.EVALUATED, "run.max_steps=2")
    for _ in range(2):
        codes, printed = runs.run(main, arguments, output=tmp_path / "output")
        assert codes == [0], printed
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        assert set(results) == {"trained", "untrained", "pixels", "protocol", "provenance"}
        (tmp_path / "run" / "results.json").unlink()
