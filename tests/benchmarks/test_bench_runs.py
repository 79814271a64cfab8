"""The benchmarks run, compare equal things, and write what the manual's page reads."""

import json

import numpy as np
import pytest

from tests.benchmarks.bench_losses import COLUMNS, NAMES, assert_agree
from tests.benchmarks.measure import fresh_process, interleaved_times
from tests.benchmarks.profile_visreg import STAGES, line_shares, stage_shares
from tests.benchmarks.works import WORKS


def test_names():
    assert tuple(WORKS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_candidates_agree(name):
    work = WORKS[name]
    inputs = work.inputs(quick=True)
    before = [a.copy() for a in inputs]
    outcomes = {c: prepare(*inputs)() for c, prepare in work.candidates.items()}
    for candidate, outcome in outcomes.items():
        assert_agree({candidate: outcome, work.baseline: outcomes[work.baseline]})
    for a, b in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("value", "gradient", "message"),
    [(1.01, 1.0, "expected one value"), (1.0, 1.02, "gradients .* differ")],
)
def test_disagreement_is_told(value, gradient, message):
    ones = np.ones(5)
    with pytest.raises(AssertionError, match=message):
        assert_agree({"a": (value, (gradient * ones,)), "b": (1.0, (ones,))})


def test_times_are_interleaved():
    calls = []
    functions = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    for times in interleaved_times(functions, 3):
        assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}
    assert calls == ["a", "a", "b", "b"] * 3  # the first of each pair is not timed


def test_profile_sees_the_package():
    work = WORKS["visreg"]
    run = work.candidates["NumPy"](*work.inputs(quick=True))
    shares = line_shares(run, seconds=0.3)
    stages = stage_shares(shares)
    assert set(stages) == {*STAGES, "rest"}
    assert sum(stages.values()) == pytest.approx(1)
    assert stages["rest"] < 1


def test_command_writes_the_page(tmp_path):
    path = tmp_path / "bench.json"
    printed = fresh_process(
        "-m", "tests.benchmarks.bench_losses", "--quick", "--only", "sw", "--json", str(path)
    )
    content = json.loads(path.read_text())
    assert {"title", "about", "machine", "columns", "rows", "works"} <= set(content)
    assert content["columns"] == list(COLUMNS)
    assert [len(row) for row in content["rows"]] == [len(COLUMNS)] * 2
    assert "POT" in printed
    (work,) = content["works"]
    assert set(work["memory"]) == set(work["seconds"]) == set(WORKS["sw"].candidates)


def test_command_of_jax_writes_the_page(tmp_path):
    """All its losses agree with the plain formulas, and the file is one that the manual reads."""
    path = tmp_path / "jax.json"
    fresh_process("-m", "tests.benchmarks.bench_jax", "--quick", "--json", str(path))
    content = json.loads(path.read_text())
    assert {"title", "about", "machine", "columns", "rows", "works"} <= set(content)
    assert [work["name"] for work in content["works"]] == ["visreg", "sigreg", "vicreg", "barlow"]
    assert {len(row) for row in content["rows"]} == {len(content["columns"])}
