"""Every measure of a report by its name: as rows of a data frame, the best of several, a trend."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from visreg_core.optional import require
from visreg_core.report._model import (
    DIMENSIONS,
    GAUSSIANITY,
    GEOMETRY,
    LABELLED,
    LOSSES,
    TREE,
    Comparison,
    Interval,
    Measurement,
    Report,
)

# 1 where a larger value is better, −1 where a smaller one is; others have no better or worse.
BETTER: dict[str, int] = {
    **dict.fromkeys(("rankme", "participation_ratio", "stable_rank"), 1),
    **dict.fromkeys((*LABELLED, *TREE), 1),
    **dict.fromkeys(("condition_number", "uniformity", "anti_hubs", *LOSSES), -1),
}


class Measure(NamedTuple):
    """A measure of one file; `level` of its labels, from 1, or None."""

    name: str
    level: int | None
    found: Measurement | Interval | None


def measures_of(r: Report) -> Iterator[Measure]:
    """All measures of one file, in the order of the tables."""
    if r.labelled is not None:
        for name in LABELLED:
            for level, found in enumerate(r.labelled.measures[name], 1):
                yield Measure(name, level, found)
    plain = {**r.dimensions, **r.geometry, **r.hierarchy.measures, **r.gaussianity}
    for name in (*DIMENSIONS, *GEOMETRY, *TREE):
        yield Measure(name, None, Measurement(plain[name]))
    for name in LOSSES:
        yield Measure(name, None, r.losses[name])
    for name in GAUSSIANITY:
        yield Measure(name, None, Measurement(plain[name]))


def best(name: str, found: Sequence[float | None]) -> list[bool]:
    """Which of several files' values are the best; none where all are, or nothing is better."""
    known = [v for v in found if v is not None and not math.isnan(v)]
    if name not in BETTER or len(known) < 2 or min(known) == max(known):
        return [False] * len(found)
    top = max(known) if BETTER[name] > 0 else min(known)
    return [v == top for v in found]


def frame(reports: Sequence[Report], backend: str) -> Any:
    """A row for each measure of each file, as a frame of pandas or polars."""
    from visreg_core.report._tables import sample_of

    narwhals = require("narwhals", extra="report", purpose="to_frame")
    rows: list[dict[str, Any]] = []
    for r in reports:
        for name, level, found in measures_of(r):
            of = {
                "file": r.name,
                "measure": name,
                "level": level or 0,
                "sample": sample_of(name, r),
            }
            rows.append({**of, **({} if found is None else found._asdict())})
    columns = ("file", "measure", "level", *_FIELDS, "sample")
    kinds = {"file": narwhals.String, "measure": narwhals.String, "level": narwhals.Int64,
             "sample": narwhals.String}  # fmt: skip
    return narwhals.from_dict(
        {c: [row.get(c) for row in rows] for c in columns},
        schema={c: kinds.get(c, narwhals.Float64) for c in columns},
        backend=backend,
    ).to_native()


_FIELDS = ("value", "standard_error", "bound", "low", "high")


class Trend(NamedTuple):
    """A measure over the steps of several files: first and last value, rank correlation."""

    measure: Measure
    first: float
    last: float
    spearman: float


def trends(comparison: Comparison) -> list[Trend]:
    """Trends of the measures that every file has."""
    from scipy.stats import rankdata

    found = []
    for each in zip(*map(measures_of, comparison.reports), strict=True):
        values = [math.nan if m.found is None else m.found.value for m in each]
        if any(map(math.isnan, values)):
            continue
        ranks = rankdata(values)
        constant = ranks.min() == ranks.max()
        steps = rankdata(comparison.steps)
        centred, of_steps = ranks - ranks.mean(), steps - steps.mean()
        scale = math.sqrt(float(centred @ centred) * float(of_steps @ of_steps))
        rho = math.nan if constant else float(centred @ of_steps) / scale
        found.append(Trend(each[0], values[0], values[-1], rho))
    return found


def step_of(name: str) -> int:
    """The last number in a file's name."""
    numbers = re.findall(r"\d+", re.split(r"[/\\]", name.split("::")[0])[-1])
    if not numbers:
        numbers = re.findall(r"\d+", name)
    if not numbers:
        raise ValueError(f"expected a step, a number, in the name of each file; found {name}")
    return int(numbers[-1])
