"""The rows drawn as points to look at: two principal components, drawn by Bokeh in the page.

Hovering shows a row's number or id and its classes; the wheel and a box zoom.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from visreg_core.embeddings._source import one_line
from visreg_core.optional import require
from visreg_core.report._model import Report
from visreg_core.report._tree_figures import class_colors

_ONE_COLOR = "#1f5fa8"
_LETTERS, _TEXT = 60, 200  # of an id or a class, and of a text


class Maps(NamedTuple):
    """What the page needs: a library, a script, and for each file a title and an element."""

    library: str
    script: str
    figures: list[tuple[str, str]]


def maps(reports: Sequence[Report], names: Sequence[str]) -> Maps:
    """Maps of all files."""
    embed = require("bokeh.embed", extra="report", purpose="an HTML report")
    resources = require("bokeh.resources", extra="report", purpose="an HTML report")
    library = resources.Resources(mode="inline", components=["bokeh"]).render_js()
    planes = [plane(r.pictures.drawn.points) for r in reports]
    script, elements = _named(
        *embed.components(
            [_figure(r, xy) for r, (xy, _) in zip(reports, planes, strict=True)], wrap_script=False
        )
    )
    titles = []
    for r, name, (_, shares) in zip(reports, names, planes, strict=True):
        which = f"Map of {name}" if len(names) > 1 else "Map"
        share = " and ".join(f"{s:.0%}" for s in shares)
        colored = ""
        if r.hierarchy.labels is not None:
            level = f"level {_level(r) + 1}" if r.hierarchy.labels.shape[1] > 1 else "labels"
            colored = f", coloured by {level}"
        titles.append(
            f"{which}: two principal components, {share} of the variance, of "
            f"{r.hierarchy.rows:,} rows{colored}"
        )
    return Maps(library, script, list(zip(titles, elements, strict=True)))


def _named(script: str, elements: Sequence[str]) -> tuple[str, list[str]]:
    """The same with names in place of random ones, so that the same report is the same bytes."""
    random = re.findall(r'"docid":\s*"([^"]+)"', script)
    random += [name for e in elements for name in re.findall(r'<div id="([^"]+)"', e)]
    parts = [script, *elements]
    for i, name in enumerate(dict.fromkeys(random)):
        parts = [part.replace(name, f"map-{i}") for part in parts]
    return parts[0], parts[1:]


def plane(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two principal components (T, 2) of rows (T, D), and their shares of the variance.

    Each has the sign that makes its largest value positive, so that checkpoints turn less.
    """
    from scipy.linalg import eigh

    z = points.astype(np.float64)
    z -= z.mean(axis=0)
    z /= float(np.abs(z).max(initial=0)) or 1.0  # squares must not underflow
    n, d = z.shape
    gram = z.T @ z if d <= n else z @ z.T
    total = float(np.trace(gram)) or 1.0
    few = min(2, len(gram))
    values, vectors = eigh(gram, subset_by_index=(len(gram) - few, len(gram) - 1))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    xy = z @ vectors if d <= n else vectors * np.sqrt(values)
    largest = xy[np.argmax(np.abs(xy), axis=0), np.arange(few)]
    xy = xy * np.where(largest < 0, -1, 1)
    pad = 2 - few
    return np.pad(xy, ((0, 0), (0, pad))), np.pad(values / total, (0, pad))


def _level(r: Report) -> int:
    """The coarsest level of more than one class."""
    counts = [i for i, count in enumerate(r.hierarchy.n_classes) if count > 1]
    return counts[0] if counts else 0


def _figure(r: Report, xy: np.ndarray) -> Any:
    plotting = require("bokeh.plotting", extra="report", purpose="an HTML report")
    models = require("bokeh.models", extra="report", purpose="an HTML report")
    found = r.hierarchy
    xy = xy.astype(np.float32)
    shown = [("row", "@row")]
    data: dict[str, Any] = {
        "x": xy[:, 0],
        "y": xy[:, 1],
        "row": [one_line(str(name), _LETTERS) for name in r.pictures.drawn.names.tolist()],
        "color": [_ONE_COLOR] * len(xy),
    }
    if r.pictures.drawn.texts is not None:
        data["text"] = [one_line(str(text), _TEXT) for text in r.pictures.drawn.texts.tolist()]
        shown.append(("text", "@text"))
    if found.labels is not None:
        to_hex = require("matplotlib.colors", extra="report", purpose="an HTML report").to_hex
        level = _level(r)
        colors = [to_hex(c) for c in class_colors(found.n_classes[level])]
        data["color"] = [colors[c] for c in found.labels[:, level].tolist()]
        for k, (codes, classes) in enumerate(zip(found.labels.T, found.classes, strict=True)):
            named = [one_line(c, _LETTERS) for c in classes]
            data[f"level{k + 1}"] = [named[c] for c in codes.tolist()]
            shown.append(
                (f"level {k + 1}" if len(found.classes) > 1 else "label", f"@level{k + 1}")
            )
    figure = plotting.figure(
        height=420,
        sizing_mode="stretch_width",
        tools="pan,wheel_zoom,box_zoom,reset",
        active_scroll="wheel_zoom",
        x_axis_label="first component",
        y_axis_label="second component",
        match_aspect=True,
    )
    figure.toolbar.logo = None
    figure.scatter(
        "x", "y", source=models.ColumnDataSource(data), size=5, line_color=None,
        fill_color="color", fill_alpha=0.65,
    )  # fmt: skip
    figure.add_tools(models.HoverTool(tooltips=shown))
    return figure
