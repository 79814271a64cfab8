"""The benchmark of slices runs, and draws."""

import json

from tests.benchmarks.bench_slices import COLUMNS
from tests.benchmarks.measure import fresh_process


def test_quick_run(tmp_path):
    path, figure = tmp_path / "slices.json", tmp_path / "slices.png"
    arguments = ("-m", "tests.benchmarks.bench_slices", "--quick")
    printed = fresh_process(*arguments, "--json", str(path), "--figure", str(figure))
    content = json.loads(path.read_text())
    assert {"title", "about", "machine", "columns", "rows", "works"} <= set(content)
    assert content["columns"] == list(COLUMNS)
    assert len(content["rows"]) == 3 * 2 * 4
    assert figure.stat().st_size > 0
    assert "SIGReg" in printed
