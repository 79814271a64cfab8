"""The benchmark of cost over N runs, and draws."""

import json

from tests.benchmarks.bench_cost import COLUMNS, QUICK_SIZES
from tests.benchmarks.cost_figure import draw_cost
from tests.benchmarks.measure import fresh_process


def test_quick_run(tmp_path):
    path, figure = tmp_path / "cost.json", tmp_path / "cost.png"
    arguments = (
        "-m",
        "tests.benchmarks.bench_cost",
        "--quick",
        "--rounds",
        "1",
        "--only",
        "SIGReg",
    )
    printed = fresh_process(*arguments, "--json", str(path), "--figure", str(figure))
    content = json.loads(path.read_text())
    assert {"title", "about", "machine", "columns", "rows", "works"} <= set(content)
    assert content["columns"] == list(COLUMNS)
    assert len(content["rows"]) == len(QUICK_SIZES)
    assert all(len(row) == len(COLUMNS) for row in content["rows"])
    assert figure.stat().st_size > 0
    assert "SIGReg" in printed


def test_figure_without_memory(tmp_path):
    works = [
        {"name": "visreg", "size": {"n": n}, "seconds": {c: [n / 1e6]}, "peak_bytes": {c: peak}}
        for n in (1000, 2000)
        for c, peak in (("eager", 8.0 * n), ("kernels, project", None))
    ]
    draw_cost(works, tmp_path / "sweep.svg")
    assert (tmp_path / "sweep.svg").stat().st_size > 0
