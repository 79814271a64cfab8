"""Labels of saved embeddings: a file with one row for each item, and the tree of their classes."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import numpy as np

from visreg_core.embeddings._source import (
    EmbeddingsError,
    EmbeddingsWarning,
    listing,
    one_line,
    parsing,
)
from visreg_core.embeddings._table_index import (
    RowNumbers,
    counted,
    is_number,
    leading_index,
    left_out,
)
from visreg_core.metrics.trees.class_tree import named_labels, read_paths

_EXPECTED = "integers or strings of shape (N,) or (N, L)"


def load_labels(file: str, n: int, class_tree: str | None = None) -> np.ndarray:
    """Labels (N, L) of N items, column 0 the coarsest level.

    file : a ``.npy`` file of integers or strings, (N,) or (N, L); or a ``.csv`` file of N lines
        with one column for each level, which a line of column names may precede. An index, as
        `visreg_core.embeddings.load` knows it, is not a level and is left out
    n : how many items there are
    class_tree : a CSV file of paths from coarse to fine, one for each class, as
        `hierarchical_labels` reads it; `file` then holds the finest level alone, and labels are the
        paths to the classes
    Returns (N, L) integers or strings. EmbeddingsError, one line, for a file that cannot be read.
    """
    for path in filter(None, (file, class_tree)):
        if not Path(path).exists():
            raise EmbeddingsError(path, "no such file", "an existing one")
    suffix = Path(file).suffix.lower()
    if suffix == ".npy":
        labels = _read_npy(file)
    elif suffix == ".csv":
        labels = _read_csv(file, n)
    else:
        raise EmbeddingsError(file, f"suffix {suffix!r}", "labels in a .npy or .csv file")
    if labels.ndim not in (1, 2) or labels.dtype.kind not in "biuUS" or labels.size == 0:
        raise EmbeddingsError(file, f"{labels.dtype} of shape {labels.shape}", _EXPECTED)
    if len(labels) != n:
        raise EmbeddingsError(file, f"labels of {len(labels)} items", f"{n}, one for each row")
    labels = labels.reshape(n, -1)
    if class_tree is None:
        return labels
    if labels.shape[1] != 1:
        raise EmbeddingsError(
            file, f"labels of {labels.shape[1]} levels", "one level, with a tree of classes"
        )
    expected = "a CSV file of paths from coarse to fine, one for each class"
    with parsing(class_tree, expected):
        try:
            paths, notes = read_paths(Path(class_tree))
            named = named_labels([str(c) for c in labels[:, 0]], paths)
        except ValueError as error:  # "expected A; found B"
            wanted, _, found = str(error).removeprefix("expected ").partition("; found ")
            raise EmbeddingsError(class_tree, found, wanted) from None
    for note in notes:
        _say(class_tree, note)
    return named


def _read_npy(file: str) -> np.ndarray:
    with parsing(file, "a whole .npy file of labels"):
        labels = np.array(np.load(file, mmap_mode="r", allow_pickle=False))
        # A class of bytes has the name that a tree of classes gives it.
        return np.char.decode(labels, "utf-8") if labels.dtype.kind == "S" else labels


def _read_csv(file: str, n: int) -> np.ndarray:
    with (
        parsing(file, "a readable .csv file of labels"),
        open(file, newline="", encoding="utf-8-sig") as stream,
    ):
        rows = [[cell.strip() for cell in row] for row in csv.reader(stream) if row]
    names = _header(file, rows, n)
    widths = sorted({len(row) for row in rows})
    if len(widths) != 1:
        found = f"lines of {widths[0]} to {widths[-1]} columns" if rows else "no lines"
        raise EmbeddingsError(file, found, "lines with one column for each level")
    width = widths[0]
    if names and len(names) not in (width, width - 1):
        found = f"{len(names)} names above lines of {width} columns"
        raise EmbeddingsError(file, found, "a name for each column")
    names = [""] * (width - len(names)) + names
    index = leading_index(names) if any(names) else 0
    numbers = RowNumbers()
    for row in rows:
        numbers.see(row[index])
    index += numbers.found and width - index > 1
    for note in left_out(names[:index]):
        _say(file, note)
    missing = [i for i, row in enumerate(rows) if "" in row[index:]]
    if missing:
        found = f"no label in {len(missing)} rows ({listing(map(str, missing), 5)})"
        raise EmbeddingsError(file, found, "a label for each item on each level")
    return np.asarray([row[index:] for row in rows], dtype=np.str_)


def _header(file: str, rows: list[list[str]], n: int) -> list[str]:
    """The first of n + 1 rows, taken off, where it names the columns; none of n rows does."""
    first, rest = rows[:1], rows[1:]
    classes = {cell for row in rest for cell in row}
    if len(rows) == n and n > 1:
        numbers = all(map(is_number, classes))
        if numbers and not any(map(is_number, first[0])):
            raise EmbeddingsError(
                file, f"labels of {n - 1} items below a line of names", f"{n}, one for each row"
            )
    if len(rows) != n + 1:
        return []
    names = rows.pop(0)
    start = leading_index(names)
    if classes.issuperset(names):  # column names are no classes, unless numbered by pandas
        if names[start:] != counted(len(names) - start):
            raise EmbeddingsError(file, f"labels of {n + 1} items", f"{n}, one for each row")
        _say(file, f"took the first line ({listing(names)}) for names of columns")
    return names


def _say(file: str, note: str) -> None:
    warnings.warn(one_line(f"{file}: {note}"), EmbeddingsWarning, stacklevel=5)
