"""The documentation's examples of other engines give the numbers of one process."""

import os
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from visreg_core import sigreg_loss
from visreg_core.slices import random_slices

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(0).standard_normal((500, 6)).astype(np.float32)


@pytest.fixture
def table(tmp_path):
    pandas = pytest.importorskip("pandas")
    for i, rows in enumerate(np.array_split(np.arange(500), 3)):
        frame = pandas.DataFrame({"id": rows, "embedding": list(X[rows])})
        frame.to_parquet(tmp_path / f"part-{i}.parquet")
    np.save(tmp_path / "x.npy", X)
    return tmp_path


def run(*command, cwd):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split("\n")[-2].split()


def check(said):
    assert int(said[0]) == 500
    expected = float(sigreg_loss(X.astype(np.float64), random_slices(6, 256)))
    assert float(said[1]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "files", "needs"),
    [
        ("duckdb", "*.parquet", ["duckdb"]),
        pytest.param("ray", ".", ["ray"], marks=pytest.mark.slow),
        pytest.param("spark", ".", ["pyspark"], marks=pytest.mark.slow),
    ],
)
def test_engines(table, name, files, needs):
    if not all(map(find_spec, needs)) or (name == "spark" and shutil.which("java") is None):
        pytest.skip(f"{name} is not installed")
    (table / "x.npy").unlink()
    check(run(str(ROOT / f"docs/examples/statistics_{name}.py"), files, cwd=table))


def test_torchrun(table):
    pytest.importorskip("torch")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = str(ROOT / "docs/examples/statistics_torchrun.py")
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    check(run(*torchrun, script, "x.npy", cwd=table))
