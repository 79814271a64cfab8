"""The benchmark of dendrograms runs and writes what the manual's page reads."""

import json

from tests.benchmarks.bench_trees import COLUMNS, works
from tests.benchmarks.measure import fresh_process


def test_quick_run(tmp_path):
    path = tmp_path / "trees.json"
    arguments = ("-m", "tests.benchmarks.bench_trees", "--quick", "--rounds", "1")
    printed = fresh_process(*arguments, "--json", str(path))
    content = json.loads(path.read_text())
    assert content["columns"] == list(COLUMNS)
    assert [row[0] for row in content["rows"]] == list(works(10))
    assert all(len(row) == len(COLUMNS) for row in content["rows"])
    assert content["timed"]["scipy_linkage"]["ratio"] == 1
    assert "lca_similarity" in printed
