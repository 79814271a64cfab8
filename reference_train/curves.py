"""A picture of a run's metrics over its steps."""

from __future__ import annotations

import math
from pathlib import Path

from reference_train.logs import read_log


def draw_curves(folder: Path) -> Path:
    """``curves.png``: every metric of ``metrics.jsonl`` over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_log(folder / "metrics.jsonl")
    names = [k for k in rows[-1] if k not in ("step", "epoch")]
    columns = 3
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(10, 2.2 * lines))
    figure.subplots_adjust(left=0.05, right=0.98, bottom=0.04, top=0.97, wspace=0.2, hspace=0.35)
    FigureCanvasAgg(figure)
    for i, name in enumerate(names):
        axes = figure.add_subplot(lines, columns, i + 1)
        axes.plot([row["step"] for row in rows], [row.get(name, math.nan) for row in rows])
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
    path = folder / "curves.png"
    figure.savefig(path, dpi=110)
    return path
