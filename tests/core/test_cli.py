"""The command: exit statuses, one line for wrong input, whole output files or none."""

import json
import os
import pty
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.core.embeddings.files import WRITERS, mutated
from visreg_core.cli import _outputs, _progress, main


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with a.npy (60, 5), b.npy (60, 5) and c.npy (40, 3), which is the current one."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.save("a.npy", rng.standard_normal((60, 5)))
    np.save("b.npy", rng.standard_normal((60, 5)).astype(np.float32))
    np.save("c.npy", rng.standard_normal((40, 3)))
    return tmp_path


def listing(folder):
    return sorted(p.name for p in folder.iterdir())


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "visreg_core", *arguments],
        capture_output=True, text=True, check=False, **options,
    )  # fmt: skip


@pytest.mark.usefixtures("files")
def test_report(capsys):
    assert main(["report", "a.npy", "--slices", "8"]) == 0
    out, err = capsys.readouterr()
    assert "60 × 5 float64\n" in out
    for name in ("visreg_loss", "gaussian_sliced_wasserstein", "rankme", "condition_number"):
        assert name in out
    assert err == ""


@pytest.mark.usefixtures("files")
def test_compare(capsys):
    assert main(["compare", "a.npy", "b.npy", "c.npy", "--slices", "8"]) == 0
    out, err = capsys.readouterr()
    assert "a – b" in out
    assert "drift_p" in out
    assert "linear_cka" not in out
    assert err == ""


def test_outputs(files):
    arguments = [
        "--slices",
        "8",
        "--seed",
        "7",
        "--rows",
        "50",
        "--json",
        "o.json",
        "--html",
        "o.html",
    ]
    assert main(["report", "a.npy", *arguments]) == 0
    read = json.loads((files / "o.json").read_text())
    assert read["settings"] == {
        "rows": 50, "drop_bad_rows": False, "slices": 8, "seed": 7, "tree_rows": 2000,
        "linkage": "average", "metric": "cosine", "labels": None, "ids": None,
        "class_tree": None, "label_rows": None, "probe": "discriminant", "paired": False,
        "trend": False, "clustering": "dendrogram", "backend": "numpy", "device": None,
        "engine": "local", "scheduler": None, "text": None, "queries": None, "neighbors": None,
    }  # fmt: skip
    assert read["embeddings"][0]["rows_read"] == 50
    assert (files / "o.html").read_text().startswith("<!doctype html>")
    assert listing(files) == ["a.npy", "b.npy", "c.npy", "o.html", "o.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert (files / "o.json").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("command", ["report", "compare", "check"])
def test_the_manual_names_every_option(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    options = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert {o for o in options if o not in page} == set()


@pytest.mark.usefixtures("files")
def test_fail_if(capsys):
    assert main(["report", "a.npy", "--slices", "8", "--fail-if", "rankme<1"]) == 0
    conditions = ["--fail-if", "rankme<1", "--fail-if", "rankme<50"]
    assert main(["report", "a.npy", "--slices", "8", "--json", "o.json", *conditions]) == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("visreg: a.npy: rankme = 4.")
    assert err.endswith("meets rankme<50\n")
    assert os.path.exists("o.json")  # what was asked for is still written
    assert main(["compare", "a.npy", "b.npy", "--slices", "8", "--fail-if", "linear_cka<2"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fail-if", "rank<5"], "expected one of hierarchical_knn_accuracy, "),
        (["--fail-if", "linear_cka<5"], "found 'linear_cka'"),
        (["--rows", "1"], "expected an integer >= 2; found '1'"),
        (["--fail-if", "rankme<nan"], "expected a number after rankme<; found 'nan'"),
        (["--slices", "x"], "expected an integer >= 2 and <= 1048576; found 'x'"),
        (["--slices", "99999999999"], "<= 1048576"),
        (["--seed", "4294967296"], "<= 4294967295"),
        (["--backend", "tensorflow"], "invalid choice"),
        (["--unknown"], "unrecognized arguments"),
    ],
)
def test_wrong_arguments(files, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(["report", "a.npy", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert listing(files) == ["a.npy", "b.npy", "c.npy"]


def bad_rows(path):
    z = np.ones((10, 3))
    z[4, 1] = np.nan
    np.save(path, z)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.write_bytes(b""), "found first bytes b''; expected"),
        (lambda p: np.save(p, np.zeros((1, 3))), "expected (N, D) with N >= 2"),
        (lambda p: np.save(p, np.zeros((5, 3), int)), "found dtype int64; expected float16"),
        (bad_rows, "found NaN or Inf in 1 of 10 rows (4); expected finite values"),
    ],
)
@pytest.mark.parametrize(
    "command", [["report"], ["compare", "a.npy"], ["compare", "c.npy", "a.npy"]]
)
def test_wrong_input(files, capsys, command, write, message):
    write(files / "z.npy")
    before = listing(files)
    arguments = ["--json", "o.json", "--html", "o.html", "--slices", "4"]
    assert main([*command, "z.npy", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("visreg: z.npy: found ")
    assert message in err
    assert err.count("\n") == 1
    assert listing(files) == before


@pytest.mark.parametrize("kind", ["npy", "csv", "safetensors"])
def test_mutated_input(files, tmp_path_factory, capsys, kind):
    """A report and its file, or one line and no file."""
    made = tmp_path_factory.mktemp("originals")
    WRITERS[kind](made)
    rng = random.Random(kind)
    for original in sorted(made.iterdir()) * 15:
        mutated(original, files / f"z{original.suffix}", rng)
        status = main(["report", f"z{original.suffix}", "--slices", "2", "--json", "o.json"])
        out, err = capsys.readouterr()
        if status == 0:
            json.loads((files / "o.json").read_text())
            (files / "o.json").unlink()
            assert err == ""
        else:
            assert status == 2
            assert (out, err.count("\n")) == ("", 1)
        assert listing(files) == ["a.npy", "b.npy", "c.npy", f"z{original.suffix}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "no/o.json"], "no/o.json: expected a folder that can be written"),
        (["--html", "."], "expected a file to write"),
        (["--json", "/dev/null"], "expected a file to write; found a folder or a device"),
        (["--json", "o", "--html", "o"], "expected a file of its own"),
        (["--json", "a.npy"], "expected a file of its own"),
        (["--json", "o" * 300], "File name too long"),
        (["--device", "cuda:0"], "expected a device of numpy; found 'cuda:0'"),
        (["--backend", "torch", "--device", "nowhere"], "expected a device of torch"),
    ],
)
def test_wrong_outputs_and_devices(files, capsys, arguments, message):
    assert main(["report", "a.npy", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert listing(files) == ["a.npy", "b.npy", "c.npy"]
    assert np.load("a.npy").shape == (60, 5)


def test_a_backend_that_is_not_installed(files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert main(["report", "a.npy", "--backend", "cupy"]) == 2
    assert capsys.readouterr().err == (
        "visreg: --backend cupy needs cupy: pip install 'visreg-core[cupy]'\n"
    )


@pytest.mark.parametrize("failing", ["fsync", "replace", "chmod"])
def test_no_output_is_left_half_done(files, monkeypatch, capsys, failing):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device", "o.html")

    if failing == "fsync":
        real = os.fdopen

        def fdopen(*arguments, **options):
            stream = real(*arguments, **options)
            if arguments[0] and os.path.exists("once"):
                stream.close()
                fail()
            (files / "once").write_text("")
            return stream

        monkeypatch.setattr(_outputs.os, "fdopen", fdopen)
    else:
        monkeypatch.setattr(_outputs.os, failing, fail)
    (files / "o.json").write_text("before")
    arguments = ["--json", "o.json", "--html", "o.html", "--slices", "4"]
    assert main(["report", "a.npy", *arguments]) == 2
    monkeypatch.undo()
    assert "No space left on device" in capsys.readouterr().err
    assert (files / "o.json").read_text() == "before"
    assert set(listing(files)) - {"once"} == {"a.npy", "b.npy", "c.npy", "o.json"}


def test_an_output_may_be_a_link(files):
    (files / "target").write_text("before")
    (files / "link.json").symlink_to("target")
    assert main(["report", "a.npy", "--slices", "4", "--json", "link.json"]) == 0
    assert (files / "link.json").is_symlink()
    assert json.loads((files / "target").read_text())["embeddings"]


def test_as_a_program(files):
    done = run("report", "a.npy", "--slices", "4", cwd=files)
    assert (done.returncode, done.stderr) == (0, "")
    assert "rankme" in done.stdout
    wrong = run("report", "missing.npy", cwd=files)
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert wrong.stderr.count("\n") == 1
    assert "Traceback" not in wrong.stderr
    assert run(cwd=files).returncode == 2
    assert run("--version").stdout.startswith("visreg-core ")


def test_an_ascii_terminal(files):
    done = run("report", "a.npy", "--slices", "4", cwd=files,
               env={**os.environ, "PYTHONIOENCODING": "ascii"})  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("condition", "status"), [("rankme<0", 0), ("rankme>0", 3)])
def test_a_reader_that_leaves(files, condition, status):
    """It changes nothing of the verdict."""
    command = (
        f"{sys.executable} -m visreg_core report a.npy --slices 4 --fail-if '{condition}' | true"
    )
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=files, capture_output=True, check=False
    )
    assert done.returncode == status
    assert done.stderr.count(b"\n") == (status == 3)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_under_the_output(files):
    command = f"{sys.executable} -m visreg_core report a.npy --slices 4 > /dev/full"
    done = subprocess.run(["bash", "-c", command], cwd=files, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr == b"visreg: standard output: No space left on device\n"


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_what_a_cpu_computes_by_is_said(files, library):
    done = run("report", "a.npy", "--slices", "8", "--backend", library, cwd=files)
    said = f"visreg: --backend {library}: its device is the CPU, where numpy is faster and computes"
    assert (done.returncode, done.stderr) == (0, said + "\n")


def test_progress_is_shown_on_a_terminal_only(files, monkeypatch):
    """Silent into a pipe; on a terminal, once a second has passed, the bar names the work."""
    program = (
        "import sys; from visreg_core.cli import _progress; _progress._PATIENCE = 0.0\n"
        "from visreg_core.cli import main; sys.exit(main(['report', 'a.npy', '--slices', '4']))"
    )
    piped = subprocess.run(
        [sys.executable, "-c", program], cwd=files, capture_output=True, check=True
    )
    assert piped.stderr == b""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=files, stdout=subprocess.DEVNULL, stderr=follower,
        env={**os.environ, "TERM": "xterm"},
    ) as child:  # fmt: skip
        os.close(follower)
        shown = b""
        try:
            while chunk := os.read(leader, 4096):
                shown += chunk
        except OSError:  # how Linux says that the other side has closed
            pass
    os.close(leader)
    assert child.returncode == 0
    assert b"moments" in shown


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    with _progress.ProgressBar() as bar:
        for second in range(40):
            now[0] = float(second)
            bar("slices", second, 40)
    assert capsys.readouterr().err == "visreg: 15 s: slices, 38%\nvisreg: 30 s: slices, 75%\n"


def test_check_takes_losses_of_a_module(tmp_path):
    """The manual's own loss, in a file beside the command's caller."""
    page = (Path(__file__).parents[2] / "docs" / "own_loss.md").read_text()
    block = re.search(r"^```python\n(.*?)^```", page, re.M | re.S).group(1)
    (tmp_path / "mine.py").write_text(block)
    asked = ["check", "--backends", "numpy", "--dtype", "float32", "--with"]
    done = run(*asked, "mine", "--only", "norm_loss", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "norm_loss" in done.stdout and "visreg_loss" not in done.stdout
    done = run(*asked, "nobodys", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "visreg: --with nobodys: No module named 'nobodys'\n"
    done = run(*asked, "mine", "--only", "norm_los", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
