"""Where a file stands among public encoders, and ranges that hold what these have."""

import json
from pathlib import Path

import numpy as np
import pytest

import visreg_core
from visreg_core import report
from visreg_core.report import _encoders, _findings, _json, _tables

STORED = Path(visreg_core.__file__).parent / "report" / "encoders.json"
ENCODERS = json.loads(STORED.read_text("utf-8"))["encoders"]


def share(encoder, measure):
    return encoder[measure] / min(encoder["shape"])


def test_the_ranges_hold_trained_encoders():
    trained = [e for e in ENCODERS if "untrained" not in e["name"]]
    assert len(trained) >= 8 and {e["kind"] for e in trained} == {"text", "image", "graph"}
    assert min(share(e, "participation_ratio") for e in trained) > _findings._FEW
    assert max(e["mean_cosine"] for e in trained) < _findings._NARROW
    assert max(e["anti_hubs"] for e in trained) < _findings._ANTI_HUBS
    (random,) = (e for e in ENCODERS if e not in trained)
    assert share(random, "participation_ratio") < _findings._FEW


def test_standing():
    z = np.random.default_rng(0).standard_normal((300, 40)).astype(np.float32)
    found = report.report(z / np.arange(1, 41), n_slices=2)
    of_all = _encoders.standings(found)
    value = found.dimensions["rankme"] / 40
    lower = {e["name"]: share(e, "rankme") for e in ENCODERS if share(e, "rankme") < value}
    higher = {e["name"]: share(e, "rankme") for e in ENCODERS if share(e, "rankme") >= value}
    standing = of_all["rankme"]
    assert standing.value == pytest.approx(value)
    assert standing.lower == max(lower.items(), key=lambda item: item[1])
    assert standing.higher == min(higher.items(), key=lambda item: item[1])
    assert (standing.n_lower, standing.n) == (len(lower), len(ENCODERS))
    (table,) = (t for t in _tables.tables(report.Comparison([found], [])) if "encoders" in t.title)
    assert [row.name for row in table.rows] == list(_encoders.MEASURES)
    cell = table.rows[0].cells[0]
    assert cell.startswith(f"{value:.3g}, above {standing.lower[0]} (")
    read = json.loads(_json.to_json(report.Comparison([found], []), {}))["embeddings"][0]
    assert read["encoders"]["rankme"]["lower"] == standing.lower[0]


def test_ends():
    """Equal rows are below all; what is not defined stands nowhere."""
    found = report.report(np.ones((50, 4), np.float32), n_slices=2)
    of_all = _encoders.standings(found)
    assert of_all["mean_cosine"].higher is None and of_all["participation_ratio"].lower is None
    assert "alpha_req" not in of_all
    (table,) = (t for t in _tables.tables(report.Comparison([found], [])) if "encoders" in t.title)
    assert {r.name: r.cells for r in table.rows}["alpha_req"] == ["–"]
