"""Conditions such as ``rankme<50``, under which a command ends with exit status 3."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from visreg_core._hierarchies import LABELLED, TREE
from visreg_core.report import GAUSSIANITY, LOSSES, PAIR, SPECTRUM, Comparison

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
    return LOSSES + SPECTRUM + GAUSSIANITY + TREE + LABELLED + (PAIR if pairs else ())


def met(conditions: Sequence[Condition], comparison: Comparison) -> list[str]:
    """One line for each file, level of its labels, or pair of files that meets a condition.

    A value that is NaN, or that these files do not have, meets every condition: a check that
    cannot be made must not pass.
    """
    return [
        f"{label}: {c.name} = {'not defined' if value is None else f'{value:.6g}'} meets {c}"
        for c in conditions
        for label, value in _values(c.name, comparison)
        if value is None or math.isnan(value) or _OPERATORS[c.sign](value, c.bound)
    ]


def _values(name: str, comparison: Comparison) -> Iterator[tuple[str, float | None]]:
    if name in PAIR:
        for p in comparison.pairs:
            found = p.measure(name)
            yield f"{p.first} and {p.second}", None if found is None else found.value
        return
    for r in comparison.reports:
        if name not in LABELLED:
            one_each = {**r.gaussianity, **r.spectrum, **r.hierarchy.measures}
            yield r.name, r.losses[name].value if name in r.losses else one_each[name]
        elif not r.hierarchy.labelled:
            yield r.name, None
        else:
            for level, value in enumerate(r.hierarchy.labelled[name], 1):
                yield f"{r.name}, level {level}", value
