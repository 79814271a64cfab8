"""A run from the command line to the table, what it leaves behind, and several processes."""

import csv
import importlib.metadata
import json

import numpy as np
import pytest
import torch
import torch.distributed as dist

from reference_train import baselines, evaluate
from reference_train.logs import read_log
from reference_train.model import AllReducedBatchNorm, Outputs, synchronised
from reference_train.train import main
from tests.train import runs
from visreg_core import cli

KEPT = [*runs.EVALUATED, "run.log_every=3", "run.evaluate_every=1", "run.validate_every=0.042"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a finished run, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = runs.command(folder / "run", *KEPT, "run.tensorboard=true")
    codes, printed = runs.run(main, arguments, output=folder / "output", curves=True)
    assert codes == [0], printed
    return folder / "run", printed


def test_the_table_compares_with_untrained_and_pixels(finished):
    folder, printed = finished
    results = json.loads((folder / "results.json").read_text())
    rows = ["trained", "untrained", "pixels"]
    assert list(results) == [*rows, "protocol", "provenance"]
    for measures in (results[row] for row in rows):
        assert list(measures) == [
            "linear probe",
            "kNN",
            "RankMe",
            "LCA trained classes",
            "LCA unseen classes",
        ]
        assert 0 <= measures["kNN"] <= 1
    for name in (*rows, "linear probe", "LCA unseen", "of the run's"):
        assert name in printed


def test_metrics_are_in_both_formats_and_on_tensorboard(finished):
    folder, _ = finished
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in lines] == list(range(1, 13))  # at every checkpoint, too
    assert {"loss", "invariance", "scale", "shape", "center", "probe_accuracy"} <= set(lines[0])
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["loss"]) for r in rows] == [r["loss"] for r in lines]
    for row in lines:
        regularizer = row["scale"] + row["shape"] + row["center"]
        assert row["regularizer"] == pytest.approx(regularizer, rel=1e-5)
        assert row["loss"] == pytest.approx(0.4 * row["invariance"] + 0.6 * regularizer, rel=1e-5)
    evaluations = read_log(folder / "evaluations.jsonl")
    assert [row["step"] for row in evaluations] == [3, 6, 9, 12]
    assert ["knn" in row for row in evaluations] == [False, False, False, True]
    assert all("probe_validation" in row for row in evaluations)
    assert list((folder / "tensorboard").iterdir())
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_configuration_and_versions_are_kept(finished):
    folder, _ = finished
    assert json.loads((folder / "config.json").read_text())["model"]["width"] == 16
    facts = json.loads((folder / "environment.json").read_text())
    assert facts["versions"]["torch"] == importlib.metadata.version("torch")
    assert facts["processes"] == 1


def test_report_and_compare_read_the_embeddings(finished, capsys):
    folder, _ = finished
    names = [str(folder / "embeddings" / f"{n}.npy") for n in ("pixels", "untrained", "trained")]
    labels = str(folder / "embeddings" / "labels.npy")
    assert cli.main(["report", names[2], "--labels", labels, "--slices", "8"]) in (0, None)
    assert cli.main(["compare", *names, "--paired", "--slices", "8"]) in (0, None)
    assert "Hierarchies of pairs" in capsys.readouterr().out
    assert len(np.load(names[0])) == len(np.load(labels)) == 40


def test_a_resumed_run_cuts_the_metrics_that_are_done_again(finished, tmp_path):
    import shutil

    folder, _ = finished
    shutil.copytree(folder, tmp_path / "run")
    for step in (11, 12):
        (tmp_path / "run" / f"checkpoint-{step:09d}.pt").unlink()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')  # a line that a kill cut short
    arguments = runs.command(tmp_path / "run", *KEPT)
    codes, printed = runs.run(main, arguments, output=tmp_path / "output")
    assert codes == [0], printed
    for name in ("metrics.jsonl", "metrics.csv", "evaluations.csv"):
        assert (tmp_path / "run" / name).read_text() == (folder / name).read_text(), name


@pytest.mark.parametrize(
    "overrides",
    [
        ["run.precision=bfloat16", "run.accumulate=2", "run.clip_norm=0.1", "model.norm=layer"],
        ["optim.name=lars", "optim.lr=0.1", "run.precision=float64", "optim.decay=constant"],
        ["method.name=dino", "method.prototypes=32", "augment.n_local=1", "augment.local_size=4"],
    ],
    ids=["bfloat16", "lars", "dino"],
)
def test_runs_of_other_kinds(tmp_path, overrides):
    arguments = runs.command(tmp_path / "run", *overrides, "run.max_steps=4")
    codes, printed = runs.run(main, arguments, output=tmp_path / "output")
    assert codes == [0], printed
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_run_on_shards_resumes_at_its_place(tmp_path):
    import io
    import tarfile

    from PIL import Image

    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for i in range(40):
                content = io.BytesIO()
                Image.new("L", (8, 8), 3 * i + shard).save(content, format="png")
                info = tarfile.TarInfo(f"{i}.png")
                info.size = content.tell()
                content.seek(0)
                archive.addfile(info, content)
    given = [f"data.path='{tmp_path}/{{0..1}}.tar'", "data.source=webdataset", "data.samples=80"]
    given += ["data.image_key=png", "data.classes=null", "run.max_steps=6"]
    arguments = runs.command(tmp_path / "run", *given)
    states = []
    for _ in range(2):
        codes, printed = runs.run(main, arguments, output=tmp_path / "output")
        assert codes == [0], printed
        states.append(runs.state(tmp_path / "run", 6))
        for step in (5, 6):
            (tmp_path / "run" / f"checkpoint-{step:09d}.pt").unlink()
    assert "resuming from" in printed
    runs.assert_same(*states)


def test_wandb_that_is_not_installed_is_one_line(tmp_path):
    arguments = runs.command(tmp_path / "run", "run.wandb=true")
    codes, printed = runs.run(main, arguments, output=tmp_path / "output")
    assert codes == [1]
    assert printed == "reference_train: run.wandb=true needs the package wandb\n"


def test_without_labels_there_is_no_probe_and_no_table(tmp_path):
    given = [*runs.EVALUATED, "data.source=synthetic", "data.classes=null"]
    arguments = runs.command(tmp_path / "run", *given)
    codes, printed = runs.run(main_without_labels, arguments, output=tmp_path / "output")
    assert codes == [0], printed
    assert "linear probe" not in printed
    assert "probe_loss" not in (tmp_path / "run" / "metrics.csv").read_text()
    assert "train: 256 of 256 images have no label: no probe and no evaluation\n" in printed
    assert "val: 64 of 64 images have no label: nothing is tested\n" in printed


def test_what_is_left_out_of_a_folder_is_said_once(tmp_path):
    from PIL import Image

    for i in range(40):
        path = tmp_path / "images/train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 6 * i).save(path)
    (tmp_path / "images/train/._a").write_bytes(b"")
    (tmp_path / "images/train/b/notes.txt").write_bytes(b"")
    given = ["data.source=folder", f"data.path={tmp_path / 'images'}", "data.classes=null"]
    arguments = runs.command(tmp_path / "run", *given, "run.max_steps=2", "data.batch_size=4")
    codes, printed = runs.run(main, arguments, output=tmp_path / "output", processes=2)
    assert codes == [0, 0], printed
    line = (
        f"{tmp_path / 'images/train'}: left out 1 hidden files ('._a'), "
        "1 files of other suffixes ('notes.txt')\n"
    )
    assert printed.count(line) == 1


def main_without_labels(arguments):
    """The synthetic source with its labels taken away."""
    from reference_train import sources

    original = sources.ImageArrays.__init__

    def unlabelled(self, images, labels):
        original(self, images, np.full(len(labels), -1))

    sources.ImageArrays.__init__ = unlabelled
    main(arguments)


def test_help_lists_settings_and_recipes(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    printed = capsys.readouterr().out
    assert caught.value.code == 0
    assert "optim.lr" in printed and "visreg_vit_b16_imagenet1k" in printed


# --- two processes --------------------------------------------------------------------------------


def _join():
    import os

    dist.init_process_group("gloo")
    return int(os.environ["RANK"])


def normalised_in_two(rows, cotangent, path):
    """Each process has its part of the rows; written: its outputs, gradients and statistics."""
    rank = _join()
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(rows.shape[1])).double()
    module = synchronised(module, torch.device("cpu"))
    assert isinstance(module[0], AllReducedBatchNorm)
    share = slice(0, 5) if rank == 0 else slice(5, None)
    x = rows[share].clone().requires_grad_()
    y = module(x)
    y.backward(cotangent[share])
    norm = module[0]
    found = [y.detach(), x.grad, norm.weight.grad, norm.running_mean, norm.running_var]
    torch.save(found, f"{path}-{rank}.pt")
    dist.destroy_process_group()


def test_batch_norm_over_two_processes_is_that_of_the_whole_batch(tmp_path):
    torch.manual_seed(1)
    rows, cotangent = torch.randn(2, 12, 3, dtype=torch.float64)
    rows = rows * torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64) + 3
    codes, printed = runs.run(
        normalised_in_two, rows, cotangent, tmp_path / "found", output=tmp_path / "o", processes=2
    )
    assert codes == [0, 0], printed
    parts = [torch.load(tmp_path / f"found-{r}.pt", weights_only=True) for r in range(2)]
    norm = torch.nn.BatchNorm1d(3).double()
    x = rows.clone().requires_grad_()
    y = norm(x)
    y.backward(cotangent)
    torch.testing.assert_close(torch.cat([p[0] for p in parts]), y.detach())
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), x.grad)
    torch.testing.assert_close(parts[0][2] + parts[1][2], norm.weight.grad)
    for part in parts:
        torch.testing.assert_close(part[3], norm.running_mean)
        torch.testing.assert_close(part[4], norm.running_var)


def test_the_table_of_two_processes_is_that_of_one(tmp_path):
    """At the run's end, by `evaluate` on two processes, and by `evaluate` on one."""
    given = [*runs.EVALUATED, "probe.batch_size=8", "run.max_steps=2", "run.evaluate_every=1"]
    arguments = runs.command(tmp_path / "run", *given)
    codes, printed = runs.run(main, arguments, output=tmp_path / "output", processes=2)
    assert codes == [0, 0], printed
    tables = [json.loads((tmp_path / "run" / "results.json").read_text())]
    for processes in (1, 2):
        line = ["table", str(tmp_path / "run"), "--cpu"]
        codes, printed = runs.run(
            evaluate.main, line, output=tmp_path / f"output{processes}", processes=processes
        )
        assert codes == [0] * processes, printed
        tables.append(json.loads((tmp_path / "run" / "table.json").read_text()))
    for found in tables:
        del found["provenance"]
    assert tables[0] == tables[1] == tables[2]
    (row,) = read_log(tmp_path / "run" / "evaluations.jsonl")
    assert row["knn"] == tables[0]["trained"]["kNN"]


def contrasted_in_two(views, path):
    """SimCLR's loss and gradient with the negatives of both processes."""
    rank = _join()
    own = views[:, 4 * rank : 4 * rank + 4].clone().requires_grad_()
    loss = baselines.SimCLR(0.2, "global")(Outputs(own, own, None), [], 0)["loss"]
    loss.backward()
    torch.save([loss.detach(), own.grad], f"{path}-{rank}.pt")
    dist.destroy_process_group()


def test_simclr_over_two_processes_is_that_of_the_whole_batch(tmp_path):
    torch.manual_seed(2)
    views = torch.randn(2, 8, 5, dtype=torch.float64)
    codes, printed = runs.run(
        contrasted_in_two, views, tmp_path / "found", output=tmp_path / "o", processes=2
    )
    assert codes == [0, 0], printed
    parts = [torch.load(tmp_path / f"found-{r}.pt", weights_only=True) for r in range(2)]
    whole = views.clone().requires_grad_()
    loss = baselines.SimCLR(0.2, "local")(Outputs(whole, whole, None), [], 0)["loss"]
    loss.backward()
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, loss.detach())
    gradient = torch.cat([p[1] for p in parts], dim=1) / 2  # what averaging over processes does
    torch.testing.assert_close(gradient, whole.grad)
