"""Which columns of a table are its index: row numbers or ids, neither dimensions nor labels.

One rule for CSV files of embeddings, of labels and of trees of classes, for Parquet and Arrow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

# What pandas writes for an index: nothing, what it calls a column without a name when it has read
# such a file, what `reset_index` makes of it, and what it calls one in Arrow; and what people call
# the ids of items.
_NAME = re.compile(r"|Unnamed: \d+(\.\d+)?|index|__index_level_\d+__|ids?|ID|uuid")

# From this many rows on, integers that count the rows are row numbers.
_COUNTED_ROWS = 3


def leading_index(names: Sequence[str]) -> int:
    """How many of the first columns of a CSV header are an index.

    Those whose names say so; and all that precede the names ``0, 1, 2, …`` which pandas gives to
    the columns of a matrix.
    """
    named = next((i for i, name in enumerate(names) if not _NAME.fullmatch(name)), 0)
    start = next((i for i, name in enumerate(names) if is_number(name)), 0)
    columns = len(names) - start
    return start if columns > 1 and list(names[start:]) == counted(columns) else named


def counted(count: int) -> list[str]:
    """``["0", "1", …]``, pandas' names of the columns of a matrix."""
    return [str(i) for i in range(count)]


def is_number(cell: str) -> bool:
    """Whether Python reads this text as a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def left_out(names: Sequence[str]) -> tuple[str, ...]:
    """The note on columns left out, by name or else by position; empty without any."""
    shown = ", ".join(name or f"column {i + 1}" for i, name in enumerate(names))
    return (f"left out the table's index ({shown})",) if names else ()


class RowNumbers:
    """Whether the first cells of all rows count the rows, from 0 or from 1."""

    def __init__(self) -> None:
        self._rows = 0
        self._from: str | None = None

    def see(self, cell: str) -> None:
        """The next row's first cell."""
        if self._rows == 0 and cell in ("0", "1"):
            self._from = cell
        if self._from is not None and cell != str(int(self._from) + self._rows):
            self._from = None
        self._rows += 1

    @property
    def found(self) -> bool:
        """Whether they do, over enough rows to be sure."""
        return self._from is not None and self._rows >= _COUNTED_ROWS


def arrow_index(schema: Any) -> list[str]:
    """Names of the columns of an Arrow schema that are an index: pandas' metadata says which."""
    about = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    said = about.get("index_columns", [])  # names, or descriptions of ranges, which are no columns
    stored = {name for name in said if isinstance(name, str)}
    return [name for name in schema.names if name in stored or _NAME.fullmatch(name)]
