"""A comparison as a terminal table, as JSON, and as one self-contained HTML file."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from visreg_core import __version__
from visreg_core._optional import require
from visreg_core.embeddings._source import one_line
from visreg_core.report import LOSSES, SPECTRUM, Comparison, Estimate, Pair, Report

# What each number is, and where a standard Gaussian of many rows stands.
MEANINGS: dict[str, str] = {
    "visreg_loss": "scale + shape + center; 0 for the standard Gaussian",
    "scale_loss": "mean squared distance of the standard deviations from 1",
    "shape_loss": "squared distance from Gaussian quantiles, of normalised projections",
    "center_loss": "mean squared batch mean",
    "gaussian_sliced_wasserstein": "the same of the projections as they are",
    "sigreg_loss": "Epps-Pulley statistic of the projections, times the number of rows",
    "variance_loss": "VICReg: how far standard deviations fall below 1",
    "covariance_loss": "VICReg: squared covariances of different dimensions",
    "rankme": "exponential of the entropy of the singular values; at most D",
    "effective_rank": "Roy and Vetterli's measure, which RankMe without ε equals",
    "stable_rank": "sum of squared singular values over the largest",
    "participation_ratio": "(Σλ)² / Σλ² of the covariance's eigenvalues",
    "alpha_req": "exponent of the power law of the eigenvalues; 0 is a flat spectrum",
    "condition_number": "largest over smallest singular value",
    "sliced_wasserstein": "2-Wasserstein distance of projections, root mean square over slices",
    "linear_cka": "similarity of the two geometries, row by row; 1 up to rotation and scale",
}


class Row(NamedTuple):
    """One line of a table: a name, what it means, one text for each column."""

    name: str
    meaning: str
    cells: list[str]


def number(value: float | None) -> str:
    """Four significant digits; a dash for what is not defined."""
    return "–" if value is None else f"{value:.4g}"


def estimate(e: Estimate | None) -> str:
    """A value and its standard error over slices."""
    if e is None or e.standard_error is None:
        return number(None if e is None else e.value)
    return f"{e.value:.4g} ± {e.standard_error:.2g}"


def facts(r: Report) -> str:
    """Shape, dtype and rows in one line."""
    read = "" if r.rows_read == r.shape[0] else f", {r.rows_read:,} rows drawn"
    return f"{r.shape[0]:,} × {r.shape[1]:,} {r.dtype}{read}, {r.bad_rows} bad rows"


def loss_rows(reports: Sequence[Report]) -> list[Row]:
    """Losses, one column for each file."""
    return [Row(n, MEANINGS[n], [estimate(r.losses[n]) for r in reports]) for n in LOSSES]


def spectrum_rows(reports: Sequence[Report]) -> list[Row]:
    """Measures of the spectrum, one column for each file."""
    return [Row(n, MEANINGS[n], [number(r.spectrum[n]) for r in reports]) for n in SPECTRUM]


def pair_rows(pairs: Sequence[Pair]) -> list[Row]:
    """Measures of two files, one column for each pair."""
    return [
        Row(
            "sliced_wasserstein",
            MEANINGS["sliced_wasserstein"],
            [estimate(p.sliced_wasserstein) for p in pairs],
        ),
        Row("linear_cka", MEANINGS["linear_cka"], [number(p.linear_cka) for p in pairs]),
    ]


def pair_heads(comparison: Comparison) -> list[str]:
    """``[1] [2]`` for each pair, in the order of the pairs."""
    count = len(comparison.reports)
    return [f"[{i + 1}] [{j + 1}]" for i in range(count) for j in range(i + 1, count)]


def file_heads(comparison: Comparison) -> list[str]:
    """``value`` for a single file, ``[1]``, ``[2]``, … for several."""
    count = len(comparison.reports)
    return ["value"] if count == 1 else [f"[{i + 1}]" for i in range(count)]


# --- terminal ------------------------------------------------------------------------------------


def print_tables(comparison: Comparison) -> None:
    """Print files and tables to standard output."""
    console_module = require("rich.console", extra="report", purpose="a report")
    box_module = require("rich.box", extra="report", purpose="a report")
    table_module = require("rich.table", extra="report", purpose="a report")
    text_module = require("rich.text", extra="report", purpose="a report")
    console = console_module.Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # nothing wraps a file's or a pipe's lines
    heads = file_heads(comparison)
    for head, r in zip(heads, comparison.reports, strict=True):
        prefix = "" if len(heads) == 1 else f"{head} "
        # Text, not markup: a name may have brackets.
        console.print(text_module.Text(f"{prefix}{one_line(r.name)}", style="bold"), soft_wrap=True)
        console.print(text_module.Text(f"    {facts(r)}"))

    def table(title: str, heads: Sequence[str], rows: Sequence[Row]) -> None:
        out = table_module.Table(box=box_module.SIMPLE_HEAD, pad_edge=False)
        out.add_column(text_module.Text(title), no_wrap=True)
        for head in heads:
            out.add_column(text_module.Text(head), justify="right", no_wrap=True)
        for row in rows:
            out.add_row(row.name, *row.cells)
        console.print(out)

    table("losses (± error over slices)", heads, loss_rows(comparison.reports))
    table("spectrum", heads, spectrum_rows(comparison.reports))
    if comparison.pairs:
        table("pairs", pair_heads(comparison), pair_rows(comparison.pairs))


# --- JSON ----------------------------------------------------------------------------------------


def to_json(comparison: Comparison, settings: Mapping[str, Any]) -> str:
    """The numbers as a JSON document.

    Values that JSON has no number for are the strings "NaN", "Infinity" and "-Infinity", which
    both Python's ``float`` and JavaScript's ``Number`` read back.
    """
    document = {
        "visreg_core": __version__,
        "settings": dict(settings),
        "embeddings": [
            {
                "file": r.name,
                "shape": list(r.shape),
                "dtype": r.dtype,
                "rows_read": r.rows_read,
                "bad_rows": r.bad_rows,
                "losses": {name: _json_estimate(e) for name, e in r.losses.items()},
                "spectrum": {name: _json_number(v) for name, v in r.spectrum.items()},
            }
            for r in comparison.reports
        ],
        "pairs": [
            {
                "first": p.first,
                "second": p.second,
                "sliced_wasserstein": p.sliced_wasserstein and _json_estimate(p.sliced_wasserstein),
                "linear_cka": _json_number(p.linear_cka),
            }
            for p in comparison.pairs
        ],
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _json_estimate(e: Estimate) -> dict[str, Any]:
    return {"value": _json_number(e.value), "standard_error": _json_number(e.standard_error)}


def _json_number(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


# --- HTML ----------------------------------------------------------------------------------------


def to_html(comparison: Comparison, settings: Mapping[str, Any]) -> str:
    """One HTML file that needs nothing beside it: style and figures are inside, names escaped."""
    jinja2 = require("jinja2", extra="report", purpose="an HTML report")
    from visreg_core.figures import figures

    template = resources.files("visreg_core").joinpath("templates/report.html").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    heads = file_heads(comparison)
    tables: list[dict[str, Any]] = [
        {
            "title": "Losses",
            "note": "± standard error of the mean over random slices",
            "heads": heads,
            "rows": loss_rows(comparison.reports),
        },
        {"title": "Spectrum", "heads": heads, "rows": spectrum_rows(comparison.reports)},
    ]
    if comparison.pairs:
        rows = pair_rows(comparison.pairs)
        tables.append({"title": "Pairs", "heads": pair_heads(comparison), "rows": rows})
    drawn = figures([r.pictures for r in comparison.reports])
    return environment.from_string(template).render(
        version=__version__,
        files=[
            {"head": head if len(heads) > 1 else "", "name": one_line(r.name), "facts": facts(r)}
            for head, r in zip(heads, comparison.reports, strict=True)
        ],
        tables=tables,
        figures={
            title: "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
            for title, svg in drawn.items()
        },
        settings={key: value for key, value in settings.items() if value is not None},
        wide=len(heads) > 1,
    )
