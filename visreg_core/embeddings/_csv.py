"""CSV through NumPy, in pieces; the cells of an index are never read as numbers."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from visreg_core.embeddings._source import (
    Embeddings,
    EmbeddingsError,
    embeddings,
    listing,
    no_name,
    one_line,
)
from visreg_core.embeddings._table_index import (
    RowNumbers,
    counted,
    is_number,
    leading_index,
    left_out,
)

_LINE_CHARACTERS = 1 << 26


def read_csv(path: Path, name: str | None, label: str) -> Embeddings:
    """The numbers of a CSV file as float64; a first line that is not numbers names the columns."""
    no_name(label, name, ".csv")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        lines = _lines(stream, label)
        first = next(lines, None)
        names = None if first is None else _header(first, label)
        row = first if names is None else next(lines, None)
        if row is None:
            raise EmbeddingsError(label, "no rows", "(N, D) with N >= 2 rows and D >= 1")
        cells = _cells(row)
        index = _named_index(names, len(cells), label)
        columns = _CsvColumns(cells, index)
        rows = 1 + sum(columns.see(line) for line in lines)
    index, notes = columns.index(names, label)
    width = len(cells)

    def pieces(count: int) -> Iterator[np.ndarray]:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = islice(_lines(stream, label), 0 if names is None else 1, None)
            done = 0
            while block := list(islice(lines, count)):
                yield _parse(block, index, width, done, label)
                done += len(block)

    return embeddings(label, (rows, width - index), np.dtype(np.float64), pieces, notes)


def _header(first: str, label: str) -> list[str] | None:
    """The names of the columns, or None where the first line is a row of numbers."""
    names = _cells(first)
    numbers = [is_number(name) for name in names]
    if not any(numbers):
        return names
    start = leading_index(names)
    # pandas names columns 0, 1, 2, … if nobody else does.
    if names[start:] == counted(len(names) - start) and len(names) > 1:
        return names
    if all(numbers):
        return None
    raise EmbeddingsError(
        label,
        f"a first line of names and numbers, {one_line(first.strip(), 60)!r}",
        "a line of names or a row of numbers",
    )


def _named_index(names: list[str] | None, width: int, label: str) -> int:
    """How many columns the header calls an index; it may leave their single name out."""
    if names is None:
        return 0
    if len(names) == width:
        return leading_index(names)
    if len(names) == width - 1:  # R's way to write row names
        return 1
    raise EmbeddingsError(
        label, f"{len(names)} names above rows of {width} fields", "a name for each column"
    )


class _CsvColumns:
    """Columns of integers besides those that the header calls an index, by one pass.

    A column of integers among columns of fractions is an index, an id or a label, not a dimension.
    Cells are examined as text, because they are all floats once read.
    """

    def __init__(self, cells: list[str], index: int) -> None:
        self._index, self._first = index, cells
        self._numbers = RowNumbers()
        self._numbers.see(cells[index])
        # Columns of integers alone so far, and whether they vary.
        self._integers: dict[int, bool] = {}
        if all(map(is_number, cells[index:])):
            self._integers = {i: False for i in range(index, len(cells)) if _is_integer(cells[i])}

    def see(self, line: str) -> int:
        """The next line; 1, so that lines can be counted."""
        if self._integers:
            cells = _cells(line)
            if len(cells) != len(self._first) or not all(
                is_number(cells[i]) for i in self._integers
            ):
                self._integers = {}  # a row that is refused when it is read
                return 1
            self._integers = {
                i: varies or cells[i] != self._first[i]
                for i, varies in self._integers.items()
                if _is_integer(cells[i])
            }
            self._numbers.see(cells[self._index])
        return 1

    def index(self, names: list[str] | None, label: str) -> tuple[int, tuple[str, ...]]:
        """How many of the first columns to leave out, and the note on it."""
        index, width = self._index, len(self._first)
        integers = [i for i, varies in self._integers.items() if varies]
        if self._numbers.found and index in integers and width - index > 1:
            integers.remove(index)
            index += 1
        if names is None or len(names) < width:
            names = [""] * (width - len(names or [])) + (names or [])
        if integers and len(self._integers) < width - self._index:
            shown = listing(names[i] or f"column {i + 1}" for i in integers)
            raise EmbeddingsError(
                label,
                f"integers in {shown} beside columns of fractions",
                "dimensions only (1.0 for a fraction that is 1), or an index without a name",
            )
        return index, left_out(names[:index])


def _lines(stream: IO[str], label: str) -> Iterator[str]:
    """Lines that are not blank, none longer than the limit."""
    while line := stream.readline(_LINE_CHARACTERS):
        if len(line) == _LINE_CHARACTERS:
            raise EmbeddingsError(label, "a line without end", f"under {_LINE_CHARACTERS} letters")
        if not line.isspace():
            yield line


def _cells(line: str) -> list[str]:
    """The fields of a line, without quotes and the space around them."""
    if '"' in line:
        return [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True))]
    return [cell.strip() for cell in line.split(",")]


def _is_integer(cell: str) -> bool:
    return re.fullmatch(r"[+-]?\d+", cell) is not None


def _sound(line: str, width: int) -> bool:
    """Whether a line has that many fields and closes its quotes."""
    if '"' in line:
        return line.count('"') % 2 == 0 and len(_cells(line)) == width
    return line.count(",") + 1 == width


def _parse(block: list[str], index: int, width: int, done: int, label: str) -> np.ndarray:
    """One block of lines; where NumPy cannot read it, find the row at fault."""
    # Checked first: NumPy does not count the fields of a row when it is given the columns to read,
    # and continues on the next line if a quote is not closed.
    bad = next((i for i, line in enumerate(block) if not _sound(line, width)), None)
    if bad is None:
        try:
            return np.loadtxt(
                block,
                delimiter=",",
                comments=None,
                quotechar='"',
                usecols=range(index, width) if index else None,
                ndmin=2,
                dtype=np.float64,
            )
        except ValueError:
            rows = (
                i for i, line in enumerate(block) if not all(map(is_number, _cells(line)[index:]))
            )
            bad = next(rows, None)
            if bad is None:
                raise
    raise EmbeddingsError(
        label,
        f"row {done + bad} of {len(_cells(block[bad]))} fields, "
        f"{one_line(block[bad].strip(), 60)!r}",
        f"{width - index} numbers in each row" + (" beside its index" if index else ""),
    )
