"""Where results come from, and what a run says on the way."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from reference_train import environment, progress
from reference_train.config import Data
from reference_train.splits import open_splits
from reference_train.train import main
from tests.train import runs

ROOT = Path(__file__).parents[2]


def repository(folder):
    """A repository with one commit of one file, and its name by Git's own command."""
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    (folder / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    head = (folder / ".git" / "HEAD").read_text().split()[1]
    return (folder / ".git" / head).read_text().strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs Git")
def test_the_commit_is_gits_and_marked_where_files_differ(tmp_path, monkeypatch):
    named = repository(tmp_path)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    asked = environment.commit.__wrapped__
    assert asked() == named
    (tmp_path / "other").write_text("untracked")
    assert asked() == named
    (tmp_path / "file").write_text("2")
    assert asked() == named + "+"
    shutil.rmtree(tmp_path / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert asked() is None


def test_a_result_says_where_it_comes_from(tmp_path):
    environment.write_result(tmp_path / "a.json", {"accuracy": 0.5, "names": ["ä"]})
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["accuracy"] == 0.5 and found["names"] == ["ä"]
    facts = found["provenance"]
    assert facts["versions"]["torch"] == importlib.metadata.version("torch")
    assert facts["commit"] == environment.commit()
    assert facts["processor"] and facts["cores"] == len(os.sched_getaffinity(0))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", facts["date"])


def test_every_file_of_results_is_written_with_its_provenance():
    """No module writes a result as JSON by itself."""
    others = {"logs.py", "environment.py", "export.py"}  # the last writes models, not results
    for path in (ROOT / "reference_train").glob("*.py"):
        if path.name not in others:
            written = re.findall(r"write_atomically\(\s*(.*?),", path.read_text())
            # settings, facts of the run, and what is known of a failed step
            assert all(
                any(name in call for name in ("config.json", "environment.json", "classes.json"))
                or call == "path"
                for call in written
            ), (path.name, written)


def test_a_run_on_another_machine_keeps_the_first_ones_facts(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    first = environment.environment(1, cpu, tmp_path)
    assert first["before"] == []
    (tmp_path / "environment.json").write_text(json.dumps(first))
    again = environment.environment(1, cpu, tmp_path)
    assert again["before"] == []
    (tmp_path / "environment.json").write_text(json.dumps(again))
    third = environment.environment(2, cpu, tmp_path)
    assert [facts["processes"] for facts in third["before"]] == [1]
    (tmp_path / "environment.json").write_text(json.dumps(third))
    monkeypatch.setattr(environment, "commit", lambda: "another")
    fourth = environment.environment(2, cpu, tmp_path)
    assert fourth["commit"] == "another"
    assert [facts["processes"] for facts in fourth["before"]] == [1, 2]


# --- names of classes -----------------------------------------------------------------------------


def test_class_names_are_stored_with_a_run(tmp_path):
    arguments = runs.command(tmp_path / "run", "run.max_steps=1")
    codes, printed = runs.run(main, arguments, output=tmp_path / "output")
    assert codes == [0], printed
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == list("0123456789")


def test_class_names_of_folders_and_tables(tmp_path):
    picture = Image.new("RGB", (8, 8))
    for split in ("train", "val"):
        for name in ("wasp", "ant"):
            (tmp_path / split / name).mkdir(parents=True)
            picture.save(tmp_path / split / name / "0.png")
    assert open_splits(Data(source="folder", path=str(tmp_path), size=8)).classes == ["ant", "wasp"]
    label = {"named": datasets.ClassLabel(names=["bee", "cow"]), "plain": datasets.Value("int64")}
    for kind, feature in label.items():
        table = datasets.Dataset.from_dict(
            {"image": [picture] * 2, "label": [0, 1]},
            features=datasets.Features({"image": datasets.Image(), "label": feature}),
        )
        datasets.DatasetDict(train=table, val=table).save_to_disk(tmp_path / kind)
        found = open_splits(Data(source="hf", path=str(tmp_path / kind), size=8, classes=[1]))
        assert found.classes == (["bee", "cow"] if kind == "named" else None)


# --- what a run says ------------------------------------------------------------------------------


def test_lines_without_a_terminal_have_rates_of_the_clock(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress, "memory", lambda device: 2_340_000_000)
    accelerator = SimpleNamespace(is_main_process=True, device=torch.device("cpu"))
    told = progress.Progress(accelerator, 100, 400, images=32)
    for seconds, done in ((10, 150), (12, 160), (40, 250), (41, 400)):
        clock[0] = 100 + seconds
        told.report(done, loss=1 / done)
    lines = capsys.readouterr().err.splitlines()
    # the reading after 12 seconds comes too soon after a line; its own rate is not the next one's
    assert [line for line in lines if line.startswith("step ")] == [
        "step 150 of 400: loss 0.0067, images/s 160, memory 2.34 GB, 0.2 s a step, 0:00:50 left",
        "step 250 of 400: loss 0.0040, images/s 103, memory 2.34 GB, 0.311 s a step, 0:00:40 left",
        "step 400 of 400: loss 0.0025, images/s 4800, memory 2.34 GB, 0.00667 s a step, "
        "0:00:00 left",
    ]


def test_other_processes_say_nothing(capsys):
    accelerator = SimpleNamespace(is_main_process=False, device=torch.device("cpu"))
    progress.Progress(accelerator, 0, 10, images=32).report(10, loss=1.0)
    assert capsys.readouterr().err == ""


def test_memory_is_what_the_process_has_held():
    before = progress.memory(torch.device("cpu"))
    held = np.ones(200_000_000, dtype=np.uint8)
    assert progress.memory(torch.device("cpu")) >= before
    assert held.nbytes < progress.memory(torch.device("cpu")) < 64e9


def test_a_run_without_a_terminal_tells_how_far_it_is(tmp_path):
    arguments = runs.command(tmp_path / "run", "run.max_steps=3")
    codes, printed = runs.run(main, arguments, output=tmp_path / "output")
    assert codes == [0], printed
    lines = [line for line in printed.splitlines() if line.startswith("step ")]
    assert lines[-1].startswith("step 3 of 3: loss ") and lines[-1].endswith(" 0:00:00 left")
