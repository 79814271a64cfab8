"""Conditions such as ``rankme<50``, under which a command ends with exit status 3."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from visreg_core.report._model import (
    DIMENSIONS,
    GAUSSIANITY,
    GEOMETRY,
    LABELLED,
    LOSSES,
    PAIR,
    PAIR_OF_TREES,
    TREE,
    Comparison,
    Interval,
    Measurement,
    Pair,
)
from visreg_core.report._tables import sample_of

_OPERATORS = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


class Condition(NamedTuple):
    """`name` `sign` `bound`, as in rankme < 50."""

    name: str
    sign: str
    bound: float

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.bound:g}"


def parse(text: str, known: Sequence[str]) -> Condition:
    """Condition of a text like ``rankme<50``; ValueError listing what is known."""
    match = re.fullmatch(r"\s*(\w+)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*", text)
    if match is None:
        raise ValueError(f"expected NAME, one of < <= > >= == !=, NUMBER; found {text!r}")
    name, sign, bound = match.groups()
    if name not in known:
        raise ValueError(f"expected one of {', '.join(known)}; found {name!r}")
    try:
        number = float(bound)
    except ValueError:
        number = math.nan
    if math.isnan(number):  # which no value meets, whatever it is
        raise ValueError(f"expected a number after {name}{sign}; found {bound!r}")
    return Condition(name, sign, number)


def known_names(*, pairs: bool) -> tuple[str, ...]:
    """Names that conditions may use: those of files, and those of pairs of files."""
    of_files = LABELLED + DIMENSIONS + GEOMETRY + TREE + LOSSES + GAUSSIANITY
    return of_files + (PAIR if pairs else ())


class Value(NamedTuple):
    """A value that a condition is about: its label, the measure, the number of rows if not all."""

    label: str
    found: Measurement | Interval | None
    sample: str


def met(conditions: Sequence[Condition], comparison: Comparison) -> list[str]:
    """One line for each file, level of its labels, or pair of files that meets a condition.

    A value that is NaN, or that these files do not have, meets every condition: a check that
    cannot be made must not pass. So does the value of a sample whose interval has a number in it
    that would, and one of histograms whose bound reaches one. The line says of how many rows a
    value is.
    """
    return [
        f"{value.label}: {c.name} = {_shown(value)} {verb} {c}"
        for c in conditions
        for value in _values(c.name, comparison)
        if (verb := _verb(c, value))
    ]


def samples(conditions: Sequence[Condition], comparison: Comparison) -> list[str]:
    """One line for each condition on a value of a sample, whether met or not."""
    lines = []
    for name in dict.fromkeys(c.name for c in conditions):
        found = {v.sample for v in _values(name, comparison) if v.sample}
        if found:
            lines.append(f"{name} is that of {', '.join(sorted(found))}")
    return lines


def _verb(c: Condition, value: Value) -> str:
    """ "meets", "may meet", or nothing."""
    found = value.found
    if found is None or math.isnan(found.value) or _OPERATORS[c.sign](found.value, c.bound):
        return "meets"
    bound = found.bound if isinstance(found, Measurement) else None
    if bound and any(_OPERATORS[c.sign](found.value + b, c.bound) for b in (-bound, bound)):
        return "may meet"
    if not value.sample:
        return ""
    if isinstance(found, Interval) and found.low is not None and found.high is not None:
        if c.sign in ("==", "!="):
            within = found.low <= c.bound <= found.high
            return "may meet" if within else ""
        if any(_OPERATORS[c.sign](end, c.bound) for end in (found.low, found.high)):
            return "may meet"
    return ""


def _shown(value: Value) -> str:
    found = value.found
    if found is None:
        return "not defined"
    text = f"{found.value:.6g}"
    if isinstance(found, Measurement) and found.bound:
        text += f" (to {found.bound:.2g})"
    if isinstance(found, Interval) and found.low is not None:
        text += f" [{found.low:.4g}, {found.high:.4g}]"
    return f"{text}, of {value.sample}," if value.sample else text


def _values(name: str, comparison: Comparison) -> Iterator[Value]:
    if name in PAIR:
        for p in comparison.pairs:
            yield Value(f"{p.first} and {p.second}", p.measure(name), _sample(name, p, comparison))
        return
    for r in comparison.reports:
        sample = sample_of(name, r)
        if name in LOSSES:
            yield Value(r.name, r.losses[name], sample)
        elif name not in LABELLED:
            single = {**r.dimensions, **r.geometry, **r.gaussianity, **r.hierarchy.measures}
            yield Value(r.name, Measurement(single[name]), sample)
        elif r.labelled is None:
            yield Value(r.name, None, "")
        else:
            for level, found in enumerate(r.labelled.measures[name], 1):
                yield Value(f"{r.name}, level {level}", found, sample)


def _sample(name: str, pair: Pair, comparison: Comparison) -> str:
    r = comparison.reports[0]
    if name in PAIR_OF_TREES or name == "mutual_knn":
        return sample_of("cophenetic_correlation", r)
    if name == "drift_p" and pair.drift is not None:
        rows, read = pair.drift.rows, [x.rows_read for x in comparison.reports]
        if any(n not in read for n in rows):
            return f"{' and '.join(f'{n:,}' for n in rows)} rows"
        return ""
    return sample_of(name, r)
