"""Where a file stands among embeddings of public encoders.

`encoders.json` has what `docs/examples/measure_encoders.py` measured of them.
"""

from __future__ import annotations

import bisect
import functools
import json
import math
from importlib import resources
from typing import NamedTuple

from visreg_core.report._model import Report

# Measures compared; those of rank as shares of the largest possible one, min(N, D).
MEASURES: dict[str, bool] = {
    "rankme": True,
    "participation_ratio": True,
    "alpha_req": False,
    "mean_cosine": False,
    "norm_variation": False,
    "uniformity": False,
    "anti_hubs": False,
}


class Standing(NamedTuple):
    """A value among those of the encoders: the next lower and higher one, how many are lower."""

    value: float
    lower: tuple[str, float] | None
    higher: tuple[str, float] | None
    n_lower: int
    n: int

    def __str__(self) -> str:
        ends = [
            f"{side} {found[0]} ({found[1]:.3g})"
            for side, found in (("above", self.lower), ("below", self.higher))
            if found is not None
        ]
        return f"{self.value:.3g}, {', '.join(ends)}"


@functools.cache
def known(measure: str) -> list[tuple[float, str]]:
    """The encoders' values of a measure, the least first, with their names."""
    text = resources.files("visreg_core").joinpath("report/encoders.json").read_text("utf-8")
    return sorted(
        (_comparable(measure, e[measure], e["shape"]), e["name"])
        for e in json.loads(text)["encoders"]
    )


def _comparable(measure: str, value: float, shape: tuple[int, int]) -> float:
    return value / min(shape) if MEASURES[measure] else value


def standings(r: Report) -> dict[str, Standing]:
    """Where a file stands, by measure; without those that it does not have."""
    values = {**r.dimensions, **r.geometry}
    shape = r.rows_read, r.shape[1]
    found = {}
    for measure in MEASURES:
        value, others = _comparable(measure, values[measure], shape), known(measure)
        if math.isnan(value):
            continue
        place = bisect.bisect_left([v for v, _ in others], value)
        lower, higher = (
            (others[i][1], others[i][0]) if 0 <= i < len(others) else None
            for i in (place - 1, place)
        )
        found[measure] = Standing(value, lower, higher, place, len(others))
    return found
