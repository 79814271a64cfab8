"""A report on a dask cluster is the local one, also where a worker is killed in the middle."""

import json
import os
import signal

import distributed
import numpy as np
import pytest

from visreg_core import report
from visreg_core.cli import main
from visreg_core.report import _dask, _json, _streaming
from visreg_core.report._files import open_embeddings
from visreg_core.report._model import Comparison, TreeOptions

pytestmark = pytest.mark.filterwarnings("ignore")
X = np.random.default_rng(0).standard_normal((900, 6)).astype(np.float32)
OPTIONS = {"n_slices": 6, "tree": TreeOptions(rows=50)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    x = X.copy()
    x[450] = np.nan
    for i, part in enumerate(np.array_split(x, 12)):
        np.save(folder / f"part-{i}.npy", part)
    return folder


@pytest.fixture(scope="module")
def running():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster


def numbers(found):
    return json.loads(_json.to_json(Comparison([found], []), {}))


def test_it_is_the_local_report(files, running, monkeypatch):
    there = report.report(
        files, engine="dask", scheduler=running.scheduler_address, drop_bad_rows=True, **OPTIONS
    )
    monkeypatch.setattr(_streaming, "PROJECTION_BYTES", 0)
    here = report.report(files, drop_bad_rows=True, **OPTIONS)
    assert there.dropped.tolist() == here.dropped.tolist() == [450]
    mine, its = (r["embeddings"][0] for r in map(numbers, (here, there)))
    for part in ("dimensions", "losses", "geometry"):
        for name, value in mine[part].items():
            value, other = (
                float(v["value"] if isinstance(v, dict) else v) for v in (value, its[part][name])
            )
            assert other == pytest.approx(value, rel=1e-9, nan_ok=True), name
    assert mine["hierarchy"] == its["hierarchy"]  # of the same sample
    assert [f["subject"] for f in mine["findings"]] == [f["subject"] for f in its["findings"]]


def test_a_worker_that_is_killed(files, running):
    workers = [w.pid for w in running.workers.values()]
    seen, killed = [], []

    def tick(doing, done, total):
        seen.append((doing, done, total))
        if done == total // 2 and doing in ("moments", "slices") and len(killed) < 2:
            victim = next(iter(running.workers.values())).pid
            killed.append(victim)
            os.kill(victim, signal.SIGKILL)

    options = {"engine": "dask", "scheduler": running.scheduler_address, "drop_bad_rows": True}
    calm = report.report(files, **options, **OPTIONS)
    hit = report.report(files, tick=tick, **options, **OPTIONS)
    assert len(killed) == 2
    assert killed[0] in workers
    assert numbers(calm) == numbers(hit)
    assert ("moments", 12, 12) in seen
    assert ("slices", 12, 12) in seen


def test_files_that_are_mapped_are_divided(files, monkeypatch):
    monkeypatch.setattr(_dask, "_PART_VALUES", 6 * 40)
    parts = _dask.parts_of(open_embeddings(str(files / "part-3.npy")))
    assert [(p.start, p.stop, p.number) for p in parts] == [(0, 40, 0), (40, 75, 40)]
    every = _dask.parts_of(open_embeddings(str(files)))
    assert [p.number for p in every][:3] == [0, 40, 75]
    rows = [(n, b) for p in every for n, b in p.blocks()]
    assert [n for n, _ in rows] == [p.number for p in every]
    assert np.array_equal(
        np.concatenate([b for _, b in rows]), open_embeddings(str(files)).to_numpy(), equal_nan=True
    )


def test_the_command(files, running, capsys, monkeypatch):
    monkeypatch.chdir(files)
    address = running.scheduler_address
    dask = ["--engine", "dask", "--scheduler", address, "--slices", "4", "--drop-bad-rows"]
    assert main(["report", "part-*.npy", *dask]) == 0
    assert "900 × 6 float32, 1 row with NaN or Inf left out (450)" in capsys.readouterr().out
    assert main(["compare", "part-1.npy", "part-2.npy", *dask, "--fail-if", "drift_p<0"]) == 0
    assert "sliced_wasserstein" in capsys.readouterr().out
    for arguments, message in (
        (["compare", "part-1.npy", "part-2.npy", "--paired"], "engine 'local' for paired files"),
        (["report", "part-1.npy", "--rows", "20"], "engine 'local' for rows drawn"),
    ):
        assert main([*arguments, *dask]) == 2
        assert message in capsys.readouterr().err
    assert main(["report", "part-1.npy", "--scheduler", address]) == 2
    assert "expected engine 'dask' beside a scheduler" in capsys.readouterr().err
    assert main(["report", "part-6.npy", "--engine", "dask", "--scheduler", address]) == 2
    assert "found NaN or Inf in 1 of 75 rows (0)" in capsys.readouterr().err


def test_arrays_are_not_sent():
    with pytest.raises(ValueError, match="rows of this process; expected a file that every worker"):
        report.report(X, engine="dask", **OPTIONS)
