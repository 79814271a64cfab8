"""Figures of a report, as self-contained SVG: of dimensions, hubs, classes, and pairs of files.

Names of files are drawn as they are: nothing in them is taken for mathematics.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from visreg_core.embeddings._source import one_line
from visreg_core.optional import require
from visreg_core.report._model import Confusion, Pictures

_COLORS = ("#1f5fa8", "#c8553d", "#3f7d4e", "#8457a6", "#b8862b", "#4a4a4a")
# R² from which on a power law is drawn.
_FITS = 0.9
# Letters of a class; files up to which numbers are written into matrices of pairs.
_LETTERS, _NUMBERED = 24, 10
# Share of the largest eigenvalue below which others would only stretch the axis.
_LEAST = 1e-10
_STYLE = {
    "svg.hashsalt": "visreg",  # the same report is the same bytes
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.grid": True,
    "grid.color": "#e7e9ed",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def figures(pictures: Sequence[Pictures], names: Sequence[str]) -> dict[str, str]:
    """Every figure of a report: title to SVG text.

    pictures : sequence of Pictures; one for each file, in the report's order
    names : sequence of str; short names of the files; a single file's is not drawn
    Returns SVG documents by name, all text drawn as paths.
    """
    # A dollar sign in a name does not start mathematics.
    heads = [f"{name}: ".replace("$", r"\$") for name in names] if len(names) > 1 else [""]
    return {
        "Eigenvalues of the covariance": _spectrum(pictures, heads),
        "Standard deviation of each dimension": _deviations(pictures, heads),
        "How many rows each row drawn is near to": _hubs(pictures, heads),
        "Projections against the Gaussian": _quantiles(pictures, heads),
        "Correlation of the dimensions": _correlation(pictures, heads),
    }


def _color(number: int) -> str:
    return _COLORS[number % len(_COLORS)]


def _spectrum(pictures: Sequence[Pictures], heads: Sequence[str]) -> str:
    def draw(figure: Any) -> None:
        ax = figure.subplots()
        for i, p in enumerate(pictures):
            rank = np.arange(1, len(p.eigenvalues) + 1)
            positive = p.eigenvalues > _LEAST * p.eigenvalues[0]
            ax.plot(
                rank[positive],
                p.eigenvalues[positive],
                marker="o",
                markersize=2.5,
                linewidth=1,
                color=_color(i),
                alpha=0.45,
                label=f"{heads[i]}{_spectrum_name(p)}",
            )
            if p.fit.r_squared >= _FITS:
                fitted = np.array([p.fit.first, p.fit.last])
                ax.plot(
                    fitted,
                    np.exp(p.fit.log_amplitude) * fitted**-p.fit.alpha,
                    color=_color(i),
                    linestyle=(0, (4, 2)),
                    linewidth=1.8,
                    label=f"{heads[i]}α = {p.fit.alpha:.2f}, R² = {p.fit.r_squared:.3f}, "
                    f"ranks {p.fit.first} to {p.fit.last}",
                )
        ax.set(xlabel="rank", ylabel="eigenvalue")
        if any((p.eigenvalues > 0).any() for p in pictures):
            ax.set(xscale="log", yscale="log")
            figure.legend(loc="outside lower left")
        else:
            ax.set_title("all eigenvalues are 0", loc="left")

    return svg_document(draw, _below(sum(1 + (p.fit.r_squared >= _FITS) for p in pictures)))


def _spectrum_name(p: Pictures) -> str:
    name = "eigenvalues"
    below = int(np.sum(p.eigenvalues <= _LEAST * p.eigenvalues[0]))
    if below:
        name += f" ({below} below {_LEAST:g} of the largest not drawn)"
    if p.fit.r_squared < _FITS:
        name += f"; no power law (R² = {p.fit.r_squared:.2f})"
    return name


def _below(entries: int) -> tuple[float, float]:
    """Size of a figure with a legend of so many lines below it."""
    return 5.6, 3.6 + 0.19 * entries


def _deviations(pictures: Sequence[Pictures], heads: Sequence[str]) -> str:
    def draw(figure: Any) -> None:
        ax = figure.subplots()
        ax.axhline(1, color="#8a8f98", linewidth=1)
        for i, p in enumerate(pictures):
            ax.plot(p.sigma, color=_color(i), linewidth=1, drawstyle="steps-mid")
            if len(pictures) > 1:
                ax.lines[-1].set_label(heads[i].removesuffix(": "))
        ax.set(xlabel="dimension", ylabel="standard deviation")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_ylim(bottom=0)
        if len(pictures) > 1:
            figure.legend(loc="outside lower left")

    return svg_document(draw, _below(len(pictures) if len(pictures) > 1 else 1))


def _quantiles(pictures: Sequence[Pictures], heads: Sequence[str]) -> str:
    def draw(figure: Any) -> None:
        for i, (p, ax) in enumerate(zip(pictures, _panels(figure, len(pictures)), strict=True)):
            ends = p.quantiles[[0, -1]]
            ax.plot(ends, ends, color="#8a8f98", linewidth=1)
            for kind, points, (index, value), alpha in (
                ("median", p.median, p.median_slice, 0.45),
                ("worst", p.worst, p.worst_slice, 1.0),
            ):
                ax.plot(
                    p.quantiles,
                    points,
                    linestyle="none",
                    marker="o",
                    markersize=2.2,
                    color=_color(i),
                    alpha=alpha,
                    label=f"{kind} slice ({index}): {value:.3g}",
                )
            ax.set(xlabel="Gaussian quantile", ylabel="normalised projection")
            ax.set_title(f"{heads[i]}shape loss by slice", loc="left")
            ax.legend(loc="upper left", bbox_to_anchor=(0, -0.16), markerscale=2)

    return svg_document(draw, _panel_size(len(pictures)))


def _correlation(pictures: Sequence[Pictures], heads: Sequence[str]) -> str:
    def draw(figure: Any) -> None:
        panels = _panels(figure, len(pictures))
        for i, (p, ax) in enumerate(zip(pictures, panels, strict=True)):
            d = len(p.sigma)
            image = ax.imshow(
                p.correlation,
                cmap="RdBu_r",
                vmin=-1,
                vmax=1,
                interpolation="nearest",
                extent=(-0.5, d - 0.5, d - 0.5, -0.5),
            )
            ax.grid(visible=False)
            for axis in (ax.xaxis, ax.yaxis):  # no half dimensions
                axis.get_major_locator().set_params(integer=True)
            shown = len(p.dimensions)
            some = f"{shown} of {d} dimensions" if shown < d else f"{d} dimensions"
            ax.set_title(f"{heads[i]}{some}", loc="left")
        figure.colorbar(image, ax=panels, fraction=0.046, pad=0.03)

    return svg_document(draw, _panel_size(len(pictures)))


def _hubs(pictures: Sequence[Pictures], heads: Sequence[str]) -> str:
    """Histogram of the rows among whose nearest each is: 0 is an anti-hub, the far end a hub."""

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        for i, p in enumerate(pictures):
            near = p.drawn.neighbors
            counts = np.bincount(np.bincount(near.ravel(), minlength=len(near)))
            ax.step(np.arange(len(counts)), counts, where="mid", color=_color(i), linewidth=1.2)
            if len(pictures) > 1:
                ax.lines[-1].set_label(heads[i].removesuffix(": "))
        k = pictures[0].drawn.neighbors.shape[1]
        ax.axvline(k, color="#8a8f98", linewidth=1)
        ax.set(xlabel=f"rows among whose {k} nearest it is", ylabel="rows", yscale="log")
        if len(pictures) > 1:
            figure.legend(loc="outside lower left")

    return svg_document(draw, _below(len(pictures) if len(pictures) > 1 else 1))


def confusion(found: Confusion) -> str:
    """Shares of the rows of each class that their neighbours take for each class."""
    counts = np.array(found.counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [one_line(c, _LETTERS).replace("$", r"\$") for c in found.classes]

    def draw(figure: Any) -> None:
        ax = figure.subplots()
        image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        ax.set(xlabel="class by its neighbours", ylabel="class")
        ax.set_xticks(range(len(names)), names, rotation=90)
        ax.set_yticks(range(len(names)), names)
        ax.grid(visible=False)
        figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03)

    side = 2.6 + 0.17 * len(names)
    return svg_document(draw, (max(side, 4.4) + 0.8, max(side, 4.0)))


def matrices(measures: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """A matrix (F, F) of each measure of pairs of F files, its numbers in its cells."""
    heads = [name.replace("$", r"\$") for name in names]

    def draw(figure: Any) -> None:
        panels = _panels(figure, len(measures))
        for (title, values), ax in zip(measures.items(), panels, strict=False):
            ax.imshow(values, cmap="Blues", interpolation="nearest")
            middle = (np.nanmin(values) + np.nanmax(values)) / 2
            for i, j in np.ndindex(*values.shape):
                if len(names) <= _NUMBERED and np.isfinite(values[i, j]):
                    ink = "white" if values[i, j] > middle else "#20242b"
                    ax.text(j, i, f"{values[i, j]:.2g}", ha="center", va="center", color=ink)
            ax.set_xticks(range(len(heads)), heads, rotation=90)
            ax.set_yticks(range(len(heads)), heads)
            ax.grid(visible=False)
            ax.set_title(title, loc="left")

    return svg_document(draw, _panel_size(len(measures)))


def _panel_size(count: int) -> tuple[float, float]:
    columns = min(count, 3)
    return (4.4 * columns + 1.2 * (columns == 1), 4.2 * -(-count // columns))


def _panels(figure: Any, count: int) -> list[Any]:
    """One panel for each file, three in a row."""
    columns = min(count, 3)
    panels = figure.subplots(-(-count // columns), columns, squeeze=False).ravel()
    for unused in panels[count:]:
        unused.set_axis_off()
    return list(panels[:count])


def svg_document(draw: Any, size: tuple[float, float]) -> str:
    """Draw on a figure of its own, outside of pyplot's state, and return the SVG document."""
    matplotlib = require("matplotlib", extra="report", purpose="an HTML report")
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about layouts of degenerate data, which draw all the same
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _short(buffer.getvalue())


def _short(svg: str) -> str:
    """The same picture in half the letters: tenths of a point, no metadata, no indentation."""
    svg = re.sub(r"<\?.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(?<![\d.])(\d{2,}\.\d)\d+", r"\1", svg).replace('"', "'")
    svg = re.sub(r"(?<=\d)\.0(?!\d)", "", re.sub(r"\s+", " ", svg))
    return re.sub(r" ?([MLQCz<>]) ?", r"\1", svg)
