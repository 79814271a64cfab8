"""The report as a JSON document."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from visreg_core import __version__
from visreg_core.report._encoders import standings
from visreg_core.report._measures import trends
from visreg_core.report._model import SAME_ITEMS, Comparison, Interval, Measurement, Pair, Report

SCHEMA = 1
"""Version of the document, docs/report.schema.json: raised where a name goes or changes meaning."""


def to_json(comparison: Comparison, settings: Mapping[str, Any]) -> str:
    """The numbers and findings as a JSON document.

    Values that JSON numbers cannot express are the strings "NaN", "Infinity" and "-Infinity", which
    both Python's ``float`` and JavaScript's ``Number`` read back.
    """
    document = {
        "schema": SCHEMA,
        "visreg_core": __version__,
        "settings": dict(settings),
        "embeddings": [_report(r, comparison) for r in comparison.reports],
        "pairs": [_pair(p) for p in comparison.pairs],
        "by_ids": comparison.by_ids,
        "steps": list(comparison.steps),
        "trends": [
            {
                "measure": t.measure.name,
                "level": t.measure.level,
                "first": _number(t.first),
                "last": _number(t.last),
                "spearman": _number(t.spearman),
            }
            for t in (trends(comparison) if comparison.steps else [])
        ],
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _report(r: Report, comparison: Comparison) -> dict[str, Any]:
    labelled = r.labelled
    return {
        "file": r.name,
        "shape": list(r.shape),
        "dtype": r.dtype,
        "rows_read": r.rows_read,
        "bad_rows": len(r.dropped),
        "notes": list(r.notes),
        "findings": [{**f._asdict(), "rows": list(f.rows)} for f in r.findings],
        "dimensions": {name: _number(v) for name, v in r.dimensions.items()},
        "geometry": {
            "rows": r.hierarchy.rows,
            **{name: _number(v) for name, v in r.geometry.items()},
        },
        "gaussian": {name: _number(v) for name, v in r.gaussian.items()},
        "encoders": {
            name: {
                "value": _number(s.value),
                "lower": s.lower and s.lower[0],
                "higher": s.higher and s.higher[0],
                "n_lower": s.n_lower,
                "n": s.n,
            }
            for name, s in standings(r).items()
        },
        "losses": {name: _fields(e) for name, e in r.losses.items()},
        "gaussianity": {name: _number(v) for name, v in r.gaussianity.items()},
        "hierarchy": {
            "method": comparison.tree.method,
            "metric": comparison.tree.metric,
            "rows": r.hierarchy.rows,
            **{name: _number(v) for name, v in r.hierarchy.measures.items()},
        },
        "labels": labelled
        and {
            "n_classes": list(labelled.n_classes),
            "rows_asked": labelled.asked,
            "rows_among": labelled.among,
            "rows_drawn": r.hierarchy.rows,
            "linear": labelled.probe,
            **{n: [_estimate(v) for v in values] for n, values in labelled.measures.items()},
        },
    }


def _pair(p: Pair) -> dict[str, Any]:
    return {
        "first": p.first,
        "second": p.second,
        "sliced_wasserstein": _estimate(p.sliced_wasserstein),
        "drift_p": p.drift and p.drift.p,
        "drift": p.drift and {**p.drift._asdict(), "rows": list(p.drift.rows)},
        **{name: _estimate(p.measure(name)) for name in SAME_ITEMS},
        "changed_neighbors": p.changed and p.changed._asdict(),
        "branches": p.trees
        and [
            {
                "correlation": b.correlation,
                "height": _number(b.height),
                "rows": p.trees.rows[b.leaves].tolist(),
            }
            for b in p.trees.branches
        ],
    }


def _estimate(e: Measurement | Interval | None) -> Any:
    """Its fields, or the bare number where it has but one."""
    if e is None:
        return None
    fields = _fields(e)
    single = isinstance(e, Measurement) and e.standard_error is None
    return fields["value"] if single else fields


def _fields(e: Measurement | Interval) -> dict[str, float | str | None]:
    return {k: _number(v) for k, v in e._asdict().items()}


def _number(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
