"""The command for CUDA machines runs where there is none, and writes what it saw."""

import json

import pytest

from tests.benchmarks.bench_gpu import WORKS
from tests.benchmarks.measure import fresh_process

pytestmark = pytest.mark.backends("torch")


def test_command_runs_tiny(backend, tmp_path):
    path = tmp_path / "gpu.json"
    fresh_process("-m", "tests.benchmarks.bench_gpu", "--tiny", "--json", str(path))
    content = json.loads(path.read_text())
    assert [w for w in content["works"] if "failed" in w] == []
    seen = {(w["loss"], w["candidate"]) for w in content["works"]}
    for loss in {w.loss for w in WORKS}:
        assert {(loss, "module"), (loss, "published"), (loss, "floor")} <= seen
    for work in content["works"]:
        assert {"synchronised", "back_to_back", "host", "peak_bytes"} <= set(work)
    steps = [s["step"] for s in content["steps"]]
    assert steps[0] == "ceilings" and steps[-1] == "done"
    assert {"verdict", "trees", "two samples"} <= set(steps)
    assert [s for s in content["steps"] if "failed" in s] == []
    assert not path.with_name("gpu.json.part").exists()
