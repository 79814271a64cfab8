"""Logs of a run: rows with a step, as JSON lines and as CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any


class Log:
    """Rows with a step, as JSON lines and as CSV; rows after `step` are removed on a resume."""

    def __init__(self, folder: Path, name: str, step: int) -> None:
        self.jsonl, self.csv = folder / f"{name}.jsonl", folder / f"{name}.csv"
        self.rows = [row for row in read_log(self.jsonl) if row["step"] <= step]
        self._write()

    def add(self, row: dict[str, Any]) -> None:
        """Append a row to both files."""
        new_columns = not self.rows or list(row) != list(self.rows[-1])
        self.rows.append(row)
        if new_columns:
            self._write()
            return
        with self.jsonl.open("a") as file:
            file.write(json.dumps(row) + "\n")
        with self.csv.open("a", newline="") as file:
            csv.DictWriter(file, list(row)).writerow(row)

    def _write(self) -> None:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        write_atomically(self.jsonl, "".join(json.dumps(row) + "\n" for row in self.rows))
        temporary = self.csv.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        temporary.replace(self.csv)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; a last line that was cut short is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_atomically(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
