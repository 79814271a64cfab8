"""The benchmark of reports runs, reads each row twice, and writes what the manual's page reads."""

import json

from tests.benchmarks.bench_reports import COLUMNS, PART_COLUMNS, QUICK
from tests.benchmarks.measure import fresh_process


def run(tmp_path, *arguments):
    path = tmp_path / "run.json"
    fresh_process(
        *("-m", "tests.benchmarks.bench_reports", "--quick", "--json", str(path)), *arguments
    )
    return json.loads(path.read_text())


def test_files(tmp_path):
    content = run(tmp_path, "--folder", str(tmp_path))
    assert content["columns"] == list(COLUMNS)
    assert len(content["rows"]) == len(QUICK)
    assert [m["reads"] for m in content["measured"]] == [2, 2]
    assert not list(tmp_path.glob("*/rows.npy"))


def test_parts(tmp_path):
    content = run(tmp_path, "--parts", "3000")
    assert [row[:3] for row in content["rows"]] == [
        ["first", "3,000", "4"],
        ["second", "3,000", "4"],
    ]
    assert all(len(row) == len(PART_COLUMNS) for row in content["rows"])
