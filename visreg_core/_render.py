"""A comparison as a terminal table, as JSON, and as one self-contained HTML file."""

from __future__ import annotations

import base64
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from visreg_core import __version__
from visreg_core._hierarchies import LABELLED, PAIR_OF_TREES, TREE, Interval, TreePair
from visreg_core._optional import require
from visreg_core.embeddings._source import one_line
from visreg_core.report import (
    GAUSSIANITY,
    LOSSES,
    PAIR,
    SPECTRUM,
    Comparison,
    Estimate,
    Pair,
    Report,
)

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
    "gaussianity_epps_pulley_z": "sigreg_loss in standard deviations above its mean for rows of "
    "N(0, I)",
    "gaussianity_wasserstein_z": "the same of the mean of gaussian_sliced_wasserstein",
    "cophenetic_correlation": "of the dendrogram's distances with those of the rows",
    "hierarchical_knn_accuracy": "of 20 nearest neighbours, each row by the others",
    "hierarchical_linear_accuracy": "of a linear probe, by 5-fold cross-validation",
    "hierarchical_rand_index": "with as many clusters as classes; 1 where they agree",
    "hierarchical_adjusted_rand_index": "the same, 0 for clusters by chance",
    "sliced_wasserstein": "2-Wasserstein distance of projections, root mean square over slices",
    "linear_cka": "similarity of the two geometries, row by row; 1 up to rotation and scale",
    "lca_similarity_pearson": "of the heights at which the two trees join each pair of rows",
    "lca_similarity_spearman": "the same of their ranks",
    "lca_similarity_kendall": "the same by concordant pairs, tau-b",
    "cophenetic_similarity_d1_to_p2": "of the first tree's heights with the second's distances",
    "cophenetic_similarity_d2_to_p1": "of the second tree's heights with the first's distances",
    "entanglement": "of the tanglegram: 0 level, 1 upside down",
}


class Row(NamedTuple):
    """One line of a table: a name, what it means, one text for each column."""

    name: str
    meaning: str
    cells: list[str]


def number(value: float | None) -> str:
    """Four significant digits; a dash for what is not defined."""
    return "–" if value is None else f"{value:.4g}"


def estimate(e: Estimate | Interval | None) -> str:
    """A value and its standard error over slices, or its interval."""
    if isinstance(e, Interval):
        if e.low is None or e.high is None:
            return number(e.value)
        return f"{e.value:.4g} [{e.low:.3f}, {e.high:.3f}]"
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


def gaussianity_rows(reports: Sequence[Report]) -> list[Row]:
    """Tests against the standard Gaussian, one column for each file."""
    return [Row(n, MEANINGS[n], [number(r.gaussianity[n]) for r in reports]) for n in GAUSSIANITY]


def hierarchy_rows(reports: Sequence[Report]) -> list[Row]:
    """Measures of the dendrogram and, level by level, of the labels; one column for each file."""
    rows = [Row(n, MEANINGS[n], [number(r.hierarchy.measures[n]) for r in reports]) for n in TREE]
    levels = len(reports[0].hierarchy.n_classes)
    for name in LABELLED:
        for level in range(levels):
            cells = [number(r.hierarchy.labelled[name][level]) for r in reports]
            which = f", level {level + 1}" if levels > 1 else ""
            rows.append(Row(f"{name}{which}", MEANINGS[name], cells))
    return rows


def hierarchy_note(comparison: Comparison) -> str:
    """How the trees were made: linkage, distance, rows, classes, clusters."""
    trees = [r.hierarchy for r in comparison.reports]
    parts = [str(comparison.tree)]
    for tree in trees[:1] if len({t.rows for t in trees}) == 1 else trees:
        parts.append(f"{tree.rows:,} rows")
    if trees[0].n_classes:
        levels = ", ".join(map(str, trees[0].n_classes))
        parts.append(f"{levels} classes")
        parts.append(f"clusters by {comparison.tree.clustering}")
    return "; ".join(parts)


def pair_rows(pairs: Sequence[Pair]) -> list[Row]:
    """Measures of two files, one column for each pair."""
    return [Row(n, MEANINGS[n], [estimate(p.measure(n)) for p in pairs]) for n in PAIR]


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
    console.print(text_module.Text(f"trees: {hierarchy_note(comparison)}"), soft_wrap=True)

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
    table("gaussianity", heads, gaussianity_rows(comparison.reports))
    table("hierarchy", heads, hierarchy_rows(comparison.reports))
    if comparison.pairs:
        table("pairs (trees: [95 % interval])", pair_heads(comparison), pair_rows(comparison.pairs))


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
                "gaussianity": {name: _json_number(v) for name, v in r.gaussianity.items()},
                "hierarchy": {
                    "method": comparison.tree.method,
                    "metric": comparison.tree.metric,
                    "rows": r.hierarchy.rows,
                    **{name: _json_number(v) for name, v in r.hierarchy.measures.items()},
                    "n_classes": list(r.hierarchy.n_classes),
                    **{n: [_json_number(v) for v in vs] for n, vs in r.hierarchy.labelled.items()},
                },
            }
            for r in comparison.reports
        ],
        "pairs": [
            {
                "first": p.first,
                "second": p.second,
                "sliced_wasserstein": p.sliced_wasserstein and _json_estimate(p.sliced_wasserstein),
                "linear_cka": _json_number(p.linear_cka),
                **{name: _json_interval(p.trees, name) for name in PAIR_OF_TREES},
            }
            for p in comparison.pairs
        ],
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _json_estimate(e: Estimate) -> dict[str, Any]:
    return {"value": _json_number(e.value), "standard_error": _json_number(e.standard_error)}


def _json_interval(trees: TreePair | None, name: str) -> dict[str, Any] | None:
    if trees is None:
        return None
    return {k: _json_number(v) for k, v in trees.measures[name]._asdict().items()}


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
        {"title": "Gaussianity", "heads": heads, "rows": gaussianity_rows(comparison.reports)},
        {
            "title": "Hierarchy",
            "note": hierarchy_note(comparison),
            "heads": heads,
            "rows": hierarchy_rows(comparison.reports),
        },
    ]
    if comparison.pairs:
        tables.append(
            {
                "title": "Pairs",
                "note": f"trees: {hierarchy_note(comparison)} [95 % interval for as many others]",
                "heads": pair_heads(comparison),
                "rows": pair_rows(comparison.pairs),
            }
        )
    drawn = figures([r.pictures for r in comparison.reports])
    trees = _tree_figures(comparison)
    return environment.from_string(template).render(
        version=__version__,
        files=[
            {"head": head if len(heads) > 1 else "", "name": one_line(r.name), "facts": facts(r)}
            for head, r in zip(heads, comparison.reports, strict=True)
        ],
        tables=tables,
        figures=[
            _figure(title, svg, "wide" if len(heads) > 1 and i >= 2 else "")
            for i, (title, svg) in enumerate(drawn.items())
        ]
        + trees,
        settings={key: value for key, value in settings.items() if value is not None},
    )


def _figure(
    title: str, svg: str, shape: str, legend: Sequence[Sequence[tuple[str, str]]] = ()
) -> dict[str, Any]:
    """What the template draws: `shape` is a class of its style, `legend` colours and names."""
    source = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    named = [[(color, one_line(name, 60)) for color, name in level] for level in legend]
    return {"title": title, "source": source, "shape": shape, "legend": named}


def _tree_figures(comparison: Comparison) -> list[dict[str, Any]]:
    """Dendrogram of every file and tanglegram of every pair of one length."""
    from visreg_core._tree_figures import dendrogram, legend, tanglegram

    reports, heads = comparison.reports, file_heads(comparison)
    drawn = []
    for head, r in zip(heads, reports, strict=True):
        which = "Dendrogram" if len(heads) == 1 else f"Dendrogram {head}"
        title = f"{which}: {comparison.tree}, {r.hierarchy.rows:,} rows"
        drawn.append(_figure(title, dendrogram(r.hierarchy), "page", legend(r.hierarchy)))
    for pair, (i, j) in zip(
        comparison.pairs, itertools.combinations(range(len(reports)), 2), strict=True
    ):
        if pair.trees is not None:
            first, second = reports[i].hierarchy.linkage, reports[j].hierarchy.linkage
            title = f"Tanglegram {heads[i]} {heads[j]}: {comparison.tree}, {len(first) + 1:,} rows"
            svg = tanglegram(first, second, pair.trees, (heads[i], heads[j]))
            drawn.append(_figure(title, svg, "page"))
    return drawn
