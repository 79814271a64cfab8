"""The benchmark of the kernels runs where there is no device, and says what ran."""

import json

import pytest
import torch

from tests.benchmarks.bench_torch_cuda import COLUMNS, assert_agree, cases
from tests.benchmarks.measure import fresh_process


def test_cases_are_those_of_the_targets():
    heading, step = cases(tiny=False)["heading"], cases(tiny=False)["step"]
    assert (heading.v, heading.n, heading.d, heading.k) == (8, 50_000, 10_000, 2500)
    assert heading.dtype == torch.bfloat16
    assert (step.v, step.n, step.d, step.k) == (10, 512, 256, 4096)


def test_command_runs_tiny(tmp_path):
    path = tmp_path / "bench.json"
    printed = fresh_process(
        "-m", "tests.benchmarks.bench_torch_cuda", "--tiny", "--only", "step", "--json", str(path)
    )
    content = json.loads(path.read_text())
    assert {"title", "about", "machine", "columns", "rows", "works"} <= set(content)
    assert content["columns"] == list(COLUMNS)
    assert all(len(row) == len(COLUMNS) for row in content["rows"])
    assert [work["name"] for work in content["works"]] == ["visreg", "sigreg"]
    if not torch.cuda.is_available():
        for work in content["works"]:
            assert set(work["seconds"]) == {"eager", "compiled", "core", "two products"}
        assert "kernels," not in printed  # nothing is called by what did not run


def test_disagreement_is_told():
    ones = torch.ones(2, 3)
    assert_agree({"a": (1.0, ones), "floor": (None, ones), "b": (1.0, ones)}, torch.float32)
    with pytest.raises(AssertionError, match=r"expected value 1.0; found 1.1 by b"):
        assert_agree({"a": (1.0, ones), "b": (1.1, ones)}, torch.float32)
    with pytest.raises(AssertionError, match=r"gradients differ by .*: b"):
        assert_agree({"a": (1.0, ones), "b": (1.0, 1.1 * ones)}, torch.float32)
