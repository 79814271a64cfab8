"""The best of several files, trends over steps, frames, and the schema of the JSON."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from scipy.stats import spearmanr

from visreg_core import report
from visreg_core.cli import main
from visreg_core.report import _html, _json, _measures
from visreg_core.report._model import TreeOptions
from visreg_core.report._tables import tables

RNG = np.random.default_rng(0)
OPTIONS = {"n_slices": 4, "tree": TreeOptions(rows=40)}
SCHEMA = Path(__file__).parents[3] / "docs" / "report.schema.json"


def checkpoints():
    """Their spread grows with the step, their center wanders."""
    return [s * RNG.standard_normal((60, 4)) + c for s, c in ((1, 0), (2, 2), (3, -1), (4, 1))]


@pytest.fixture(scope="module")
def compared():
    x = checkpoints()
    labels = np.arange(60) % 3
    return report.compare(
        [x[2], x[0], x[3], x[1]], steps=[300, 20, 1000, 100], labels=labels, **OPTIONS
    )


def test_files_are_put_in_the_order_of_their_steps(compared):
    assert compared.steps == (20, 100, 300, 1000)
    scales = [r.losses["scale_loss"].value for r in compared.reports]
    assert scales == sorted(scales)


def test_trends(compared):
    found = {(t.measure.name, t.measure.level): t for t in _measures.trends(compared)}
    for name in ("scale_loss", "center_loss", "shape_loss"):
        values = [r.losses[name].value for r in compared.reports]
        trend = found[name, None]
        assert (trend.first, trend.last) == (values[0], values[-1])
        assert trend.spearman == pytest.approx(spearmanr(compared.steps, values).statistic)
    assert found["scale_loss", None].spearman == pytest.approx(1)
    assert ("hierarchical_knn_accuracy", 1) in found
    (table,) = (t for t in tables(compared) if t.title == "Trend")
    assert table.heads == ["step 20", "step 1000", "correlation"]


def test_the_best_is_marked(compared):
    rows = {row.name: row.cells for table in tables(compared) for row in table.rows}
    losses = [r.losses["gaussian_sliced_wasserstein"].value for r in compared.reports]
    marked = [c.endswith(" *") for c in rows["gaussian_sliced_wasserstein"]]
    assert marked == [v == min(losses) for v in losses]
    assert not any(c.endswith("*") for c in rows["alpha_req"])
    single = report.report(checkpoints()[0], **OPTIONS)
    assert not any(
        cell.endswith("*")
        for table in tables(report.Comparison([single], []))
        for row in table.rows
        for cell in row.cells
    )
    assert _measures.best("rankme", [1.0, None, 3.0, float("nan"), 3.0]) == [0, 0, 1, 0, 1]
    assert not any(_measures.best("rankme", [2.0, 2.0]))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames(compared, library):
    frame = compared.to_frame(library)
    assert type(frame).__module__.startswith(library)
    assert list(frame.columns) == [
        "file", "measure", "level", "value", "standard_error", "bound", "low", "high", "sample",
    ]  # fmt: skip
    every = list(zip(*(frame[c].to_list() for c in ("measure", "value")), strict=True))
    each = len(every) // 4
    for r, start in zip(compared.reports, range(0, len(every), each), strict=True):
        mine = dict(every[start : start + each])
        assert mine["shape_loss"] == r.losses["shape_loss"].value
        assert mine["rankme"] == r.dimensions["rankme"]


def test_the_schema_of_the_json(compared):
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    x = checkpoints()[0]
    paired = report.compare([x, 2 * x], paired=True, **OPTIONS)
    for comparison in (compared, paired):
        jsonschema.validate(json.loads(_json.to_json(comparison, {})), schema)


def test_the_schema_has_every_name(compared):
    schema = json.loads(SCHEMA.read_text())
    read = json.loads(_json.to_json(compared, {}))
    assert set(schema["required"]) == set(schema["properties"]) == set(read)
    assert schema["properties"]["schema"]["const"] == read["schema"] == _json.SCHEMA
    assert set(schema["$defs"]["report"]["properties"]) == set(read["embeddings"][0])


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for step, x in zip((5, 40, 300), checkpoints(), strict=False):
        np.save(f"step{step}.npy", x)
    np.save("none.npy", x)
    arguments = ["--slices", "4", "--json", "t.json"]
    assert main(["compare", "step300.npy", "step5.npy", "step40.npy", "--trend", *arguments]) == 0
    assert "Trend" in capsys.readouterr().out
    read = json.loads((tmp_path / "t.json").read_text())
    assert read["steps"] == [5, 40, 300]
    assert [e["file"] for e in read["embeddings"]] == ["step5.npy", "step40.npy", "step300.npy"]
    for files, message in (
        (["step5.npy", "none.npy"], "expected a step, a number, in the name of each file"),
        (["step5.npy", "step5.npy"], "expected 2 different steps; found [5, 5]"),
    ):
        assert main(["compare", *files, "--trend", "--slices", "4"]) == 2
        assert message in capsys.readouterr().err


def test_matrices_of_pairs(monkeypatch):
    files = checkpoints()[:3]
    found = report.compare(files, paired=True, **OPTIONS)
    drawn = {}
    monkeypatch.setattr(
        _html, "matrices", lambda measures, names: drawn.update(measures) or "<svg></svg>"
    )
    _html.to_html(found, {})
    assert set(drawn) == set(_html._IN_MATRICES)
    for (i, j), pair in zip(((0, 1), (0, 2), (1, 2)), found.pairs, strict=True):
        assert drawn["linear_cka"][i, j] == drawn["linear_cka"][j, i] == pair.linear_cka
        assert np.isnan(drawn["linear_cka"][i, i])
