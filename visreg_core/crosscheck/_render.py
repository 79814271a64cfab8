"""Records as terminal tables and as JSON, with the versions of what was checked."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from visreg_core import __version__
from visreg_core.crosscheck._records import CheckRecord, Combination
from visreg_core.optional import require

_DISTRIBUTIONS = (
    "numpy",
    "scipy",
    "array-api-compat",
    "array-api-strict",
    "torch",
    "jax",
    "jaxlib",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """Versions of this package, Python, the platform and the libraries that are installed."""
    found = {
        "visreg-core": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for distribution in _DISTRIBUTIONS:
        try:
            found[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def to_json(records: Sequence[CheckRecord], settings: Mapping[str, Any]) -> str:
    """Versions, settings and records; an error that is not finite is null."""
    return json.dumps(
        {
            "versions": versions(),
            "settings": dict(settings),
            "agrees": all(r.agrees for r in records),
            "records": [
                {**r._asdict(), "error": r.error if math.isfinite(r.error) else None}
                for r in records
            ],
        },
        indent=1,
        allow_nan=False,
    )


def print_tables(records: Sequence[CheckRecord]) -> None:
    """Print every record, the disagreements again, and a summary line for each combination."""
    rich = {
        part: require(f"rich.{part}", extra="report", purpose="visreg check")
        for part in ("box", "console", "table", "text")
    }
    console = rich["console"].Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # lines of files and pipes need not wrap

    def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        out = rich["table"].Table(
            title=rich["text"].Text(title, style="bold"),
            title_justify="left",
            box=rich["box"].SIMPLE_HEAD,
            pad_edge=False,
        )
        for head in heads:
            right = head in ("error", "tolerance", "seconds", "checks", "differ")
            out.add_column(head, justify="right" if right else "left", no_wrap=head != "note")
        for row in rows:
            # Text, not markup: a message may have brackets.
            bad = "differs" in row
            out.add_row(*(rich["text"].Text(c, style="bold red" if bad else "") for c in row))
        console.print(out)

    heads = ("check", "of", "error", "tolerance", "verdict", "seconds", "note")
    combined: dict[Combination, list[CheckRecord]] = {}
    for r in records:
        if r.of != "difference":
            combined.setdefault(Combination(r.backend, r.device, r.dtype), []).append(r)
    for combination, of_one in combined.items():
        table(" · ".join(combination), heads, map(_row, of_one))
    differences = [r for r in records if r.of == "difference"]
    if differences:
        table(
            "the reference's gradients against central differences of its values",
            heads,
            map(_row, differences),
        )
    bad = [r for r in records if not r.agrees]
    if bad:
        table(
            "disagreements",
            ("where", *heads),
            ((" · ".join((r.backend, r.device, r.dtype)), *_row(r)) for r in bad),
        )
    table(
        "against float64 NumPy",
        (
            "backend",
            "device",
            "dtype",
            "checks",
            "differ",
            "verdict",
            "closest to its tolerance",
            "seconds",
        ),
        (_summary(c, of_one) for c, of_one in combined.items()),
    )
    console.print("  ".join(f"{name} {v}" for name, v in versions().items()), soft_wrap=True)
    if bad:
        console.print(f"{len(bad)} of {len(records)} checks differ")
    else:
        console.print(f"all {len(records)} checks agree")


def _name(r: CheckRecord) -> str:
    return f"{r.function} ({r.variant})" if r.variant else r.function


def _verdict(agrees: bool) -> str:
    return "agrees" if agrees else "differs"


def _row(r: CheckRecord) -> tuple[str, ...]:
    error = "–" if math.isnan(r.error) else f"{r.error:.1e}"
    seconds = f"{r.seconds:.3f}"
    return _name(r), r.of, error, f"{r.tolerance:.0e}", _verdict(r.agrees), seconds, r.note


def _summary(combination: Combination, records: Sequence[CheckRecord]) -> tuple[str, ...]:
    differ = sum(not r.agrees for r in records)
    measured = [r for r in records if r.tolerance > 0 and not math.isnan(r.error)]
    closest = ""
    if measured:
        r = max(measured, key=lambda r: r.error / r.tolerance)
        closest = f"{_name(r)}, {r.of}: {r.error:.1e} of {r.tolerance:.0e}"
    seconds = f"{sum(r.seconds for r in records):.1f}"
    return (*combination, str(len(records)), str(differ), _verdict(not differ), closest, seconds)
