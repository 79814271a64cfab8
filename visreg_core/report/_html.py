"""The report as one self-contained HTML file, with its style and figures."""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any
from urllib.parse import quote

import numpy as np

from visreg_core import __version__, threads
from visreg_core.embeddings._source import one_line
from visreg_core.optional import MissingExtraError, require
from visreg_core.report._figures import confusion, figures, matrices
from visreg_core.report._map import maps
from visreg_core.report._model import Comparison, Report
from visreg_core.report._tables import facts, short_names, tables
from visreg_core.report._tree_figures import dendrogram, differing, legend, tanglegram

# Pairs of trees that are drawn: all of four files; of more, up to so many neighbours in their
# order, evenly spread.
_PAIRS, _NEIGHBORS = 6, 4
_IN_MATRICES = ("sliced_wasserstein", "linear_cka", "mutual_knn", "lca_similarity_pearson")
_UNESCAPED = " !$()*+,-./:;=?@[]^_`{|}~'<>"


@threads.blas_on_one_thread()
def to_html(comparison: Comparison, settings: Mapping[str, Any]) -> str:
    """The page; names are escaped wherever they stand."""
    jinja2 = require("jinja2", extra="report", purpose="an HTML report")
    template = resources.files("visreg_core").joinpath("report/report.html").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    reports = comparison.reports
    names = short_names([r.name for r in reports])
    several = len(reports) > 1
    drawn = figures([r.pictures for r in reports], names)
    page: str = environment.from_string(template).render(
        version=__version__,
        verdict=verdict(reports),
        files=[
            {
                "head": name if several and name != one_line(r.name) else "",
                "name": one_line(r.name),
                "facts": facts(r),
                "notes": r.notes,
                "findings": [f for f in r.findings if f.verdict != "good"],
                "good": [f for f in r.findings if f.verdict == "good"],
            }
            for name, r in zip(names, reports, strict=True)
        ],
        tables=tables(comparison),
        maps=maps(reports, names),
        figures=[
            _figure(title, svg, "wide" if several and i >= 3 else "")
            for i, (title, svg) in enumerate(drawn.items())
        ]
        + _confusions(comparison, names)
        + _matrices(comparison, names)
        + _trees(comparison, names),
        settings={k: v for k, v in settings.items() if v is not None and v is not False},
    )
    return page


def framed(comparison: Comparison) -> str | None:
    """The page in a frame, whose style leaves a notebook's alone; None without the extra."""
    try:
        page = to_html(comparison, {})
    except MissingExtraError:
        return None
    style = "width: 100%; height: 40rem; border: 0"
    return f'<iframe srcdoc="{html.escape(page)}" style="{style}"></iframe>'


def verdict(reports: Sequence[Report]) -> str:
    """The page's first sentence."""
    counts = {v: sum(f.verdict == v for r in reports for f in r.findings) for v in ("bad", "look")}
    if not any(counts.values()):
        return "No problem was found."
    said = [f"{counts[v]} {words}" for v, words in (("bad", "bad"), ("look", "to look at"))
            if counts[v]]  # fmt: skip
    return f"Findings: {', '.join(said)}."


def _figure(
    title: str, svg: str, shape: str, key: Sequence[Sequence[tuple[str, str]]] = ()
) -> dict[str, Any]:
    """What the template draws: `shape` is a class of its style, `key` colours and names."""
    # A third shorter than base64: in an address between double quotes few characters are escaped.
    source = "data:image/svg+xml," + quote(svg, safe=_UNESCAPED)
    named = [[(color, one_line(name, 60)) for color, name in level] for level in key]
    return {"title": title, "source": source, "shape": shape, "legend": named}


def _confusions(comparison: Comparison, names: Sequence[str]) -> list[dict[str, Any]]:
    """Which classes are taken for which, of the finest level of few enough classes, by file."""
    drawn = []
    for name, r in zip(names, comparison.reports, strict=True):
        each = () if r.labelled is None else r.labelled.confusion
        shown = [(level, found) for level, found in enumerate(each, 1) if found is not None]
        for level, found in shown[-1:]:
            which = f" of {name}" if len(names) > 1 else ""
            title = f"Classes by the neighbours{which}" + (f", level {level}" if each[1:] else "")
            drawn.append(_figure(title, confusion(found), ""))
    return drawn


def _matrices(comparison: Comparison, names: Sequence[str]) -> list[dict[str, Any]]:
    """Measures of every pair of three files or more."""
    count = len(names)
    found = {}
    for measure in _IN_MATRICES:
        values = np.full((count, count), np.nan)
        for pair, (i, j) in zip(
            comparison.pairs, itertools.combinations(range(count), 2), strict=True
        ):
            one = pair.measure(measure)
            if one is not None:
                values[i, j] = values[j, i] = one.value
        if count > 2 and np.isfinite(values).any():
            found[measure] = values
    return [_figure("Pairs of files", matrices(found, names), "wide")] if found else []


def _trees(comparison: Comparison, names: Sequence[str]) -> list[dict[str, Any]]:
    """Dendrogram of every file and tanglegrams of pairs of the same items."""
    reports = comparison.reports
    drawn = []
    for name, r in zip(names, reports, strict=True):
        which = "Dendrogram" if len(names) == 1 else f"Dendrogram of {name}"
        title = f"{which}: {comparison.tree}, {r.hierarchy.rows:,} rows"
        drawn.append(_figure(title, dendrogram(r.hierarchy), "page", legend(r.hierarchy)))
    few = len(comparison.pairs) <= _PAIRS
    last = len(reports) - 2
    chosen = set(np.linspace(0, last, min(_NEIGHBORS, last + 1)).round().astype(int).tolist())
    for pair, (i, j) in zip(
        comparison.pairs, itertools.combinations(range(len(reports)), 2), strict=True
    ):
        if pair.trees is not None and (few or (j == i + 1 and i in chosen)):
            first, second = reports[i].hierarchy.linkage, reports[j].hierarchy.linkage
            which = f"Tanglegram of {names[i]} and {names[j]}"
            if not few:
                which += " (neighbours in the order given)"
                which += f", {_NEIGHBORS} of {last + 1} such pairs" * (last >= _NEIGHBORS)
            title = f"{which}: {comparison.tree}, {len(first) + 1:,} rows"
            svg = tanglegram(first, second, pair.trees, (names[i], names[j]))
            drawn.append(_figure(title, svg, "page"))
            if pair.trees.branches:
                title = (
                    f"Branches of {names[i]} that {names[j]} arranges most differently, and what "
                    "its tree makes of their rows"
                )
                svg = differing(first, second, pair.trees, (names[i], names[j]))
                drawn.append(_figure(title, svg, "page"))
    return drawn
