"""The report on a terminal. Tables too wide for it are divided; no cell is ever cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visreg_core.embeddings._source import one_line
from visreg_core.optional import require
from visreg_core.report._model import Comparison, Finding, Report
from visreg_core.report._tables import Table, facts, short_names, tables

_STYLES = {"bad": "bold red", "look": "yellow", "good": "green"}
# Of SIMPLE_HEAD: between two columns, and around all of them.
_GAP, _EDGES = 3, 2


def print_tables(comparison: Comparison) -> None:
    """Print findings and tables to standard output."""
    text = _rich("rich.text").Text
    console = _rich("rich.console").Console(highlight=False)
    if not console.is_terminal:
        console.width = 1 << 14  # nothing wraps the lines of a file or a pipe
    reports = comparison.reports
    names = short_names([r.name for r in reports])
    for name, r in zip(names, reports, strict=True):
        # Text, not markup: a name may have brackets.
        title = one_line(r.name)
        console.print(text(title, style="bold"), soft_wrap=True)
        also = "" if len(reports) == 1 or title == name else f"{name}: "
        console.print(text(f"    {also}{facts(r)}"), soft_wrap=True)
        for note in r.notes:
            console.print(text(f"    {note}"), soft_wrap=True)
        _print_findings(console, r, every=len(reports) == 1)
    for table in tables(comparison):
        _print(console, table)


def _rich(module: str) -> Any:
    return require(module, extra="report", purpose="a report")


def _print_findings(console: Any, r: Report, *, every: bool) -> None:
    text = _rich("rich.text").Text
    padding = _rich("rich.padding").Padding
    console.print()
    for f in r.findings:
        if f.verdict == "good":
            continue
        line = text.assemble((f"{f.verdict:<5}", _STYLES[f.verdict]), (f.subject, "bold"))
        line.append(f": {f.value}")
        console.print(line)
        console.print(padding(text(details(f)), (0, 0, 0, 5), expand=False))
    good = [f for f in r.findings if f.verdict == "good"]
    if good and every:
        for f in good:
            line = text.assemble((f"{f.verdict:<5}", _STYLES[f.verdict]), f"{f.subject}: {f.value}")
            console.print(line)
    elif good:
        console.print(text(f"good {', '.join(f.subject for f in good)}"))
    console.print()


def details(f: Finding) -> str:
    """Range, cause, next step and rows of a finding, in a line."""
    parts = [f"expected {f.expected}"]
    if f.cause:
        parts.append(f"often {f.cause}")
    if f.next_step:
        parts.append(f"next: {f.next_step}")
    if f.rows:
        parts.append(f"rows such as {', '.join(map(str, f.rows))}")
    return "; ".join(parts)


def _print(console: Any, table: Table) -> None:
    text = _rich("rich.text").Text
    console.print(text(table.title, style="bold"))
    if table.note:
        console.print(text(table.note, style="dim"))
    for columns in _parts(table, console.width):
        out = _rich("rich.table").Table(box=_rich("rich.box").SIMPLE_HEAD, pad_edge=False)
        out.add_column("", no_wrap=True)
        for c in columns:
            out.add_column(text(_folded(table, c)), justify="right", no_wrap=True)
        for row in table.rows:
            out.add_row(text(row.name), *(text(row.cells[c]) for c in columns))
        # On a terminal narrower than a name and a number lines wrap: better than cutting them.
        width = console.width
        console.width = max(width, _first(table) + sum(_GAP + _width(table, c) for c in columns))
        console.print(out)
        console.width = width
    if not table.rows:
        console.print()


def _parts(table: Table, width: int) -> list[list[int]]:
    """Columns of each of the tables that fit into this width, one column at the least."""
    parts: list[list[int]] = []
    used = width
    for c in range(len(table.heads)):
        needed = _width(table, c) + _GAP
        if not parts or used + needed > width:
            parts.append([])
            used = _first(table)
        parts[-1].append(c)
        used += needed
    return parts


def _first(table: Table) -> int:
    return _EDGES + max((len(row.name) for row in table.rows), default=0)


def _cells(table: Table, c: int) -> int:
    return max((len(row.cells[c]) for row in table.rows), default=0)


def _width(table: Table, c: int) -> int:
    return max(_cells(table, c), *(len(line) for line in _folded(table, c).split("\n")))


def _folded(table: Table, c: int) -> str:
    """A head on lines about as wide as its cells, broken after underscores."""
    lines = [""]
    for piece in _pieces(table.heads[c]):
        if lines[-1] and len(lines[-1]) + len(piece) > max(12, _cells(table, c)):
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _pieces(head: str) -> Sequence[str]:
    words = head.split("_")
    return [word + "_" for word in words[:-1]] + words[-1:]
