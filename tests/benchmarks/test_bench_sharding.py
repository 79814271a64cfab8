"""The benchmark of sharding runs and writes what the manual's page reads."""

import json

from tests.benchmarks.bench_sharding import COLUMNS, SIZES
from tests.benchmarks.measure import fresh_process


def test_quick_run(tmp_path):
    path = tmp_path / "sharding.json"
    arguments = ("-m", "tests.benchmarks.bench_sharding", "--quick", "--rounds", "2")
    printed = fresh_process(*arguments, "--only", "visreg exchange", "--json", str(path))
    content = json.loads(path.read_text())
    assert {"title", "about", "machine", "columns", "rows", "works"} <= set(content)
    assert content["columns"] == list(COLUMNS)
    assert [row[1] for row in content["rows"]] == list(SIZES)
    assert all(len(row) == len(COLUMNS) for row in content["rows"])
    sent = [float(row[-1]) for row in content["rows"]]
    assert sent[0] == 0 and min(sent[1:]) > 0
    assert "visreg exchange" in printed
