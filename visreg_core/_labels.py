"""Labels of saved embeddings: a file with one row for each item, and the tree of their classes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from visreg_core.embeddings._source import EmbeddingsError, parsing
from visreg_core.metrics.class_tree import named_labels

_EXPECTED = "integers or strings of shape (N,) or (N, L)"


def load_labels(file: str, n: int, class_tree: str | None = None) -> np.ndarray:
    """Labels (N, L) of N items, column 0 the coarsest level.

    Parameters
    ----------
    file : str
        A ``.npy`` file of integers or strings, (N,) or (N, L); or a ``.csv`` file of N lines with
        one column for each level, which a line of column names may precede.
    n : int
        How many items there are.
    class_tree : str, optional
        A CSV file of paths from coarse to fine, one for each class, as `hierarchical_labels` reads
        it; `file` then holds the finest level alone, and labels are the paths to the classes.

    Returns
    -------
    numpy.ndarray (N, L)
        Integers or strings.

    Raises
    ------
    EmbeddingsError
        One line: the file, what was found, what was expected.
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
            file, f"labels of {labels.shape[1]} levels", "one level beside a tree of classes"
        )
    expected = "a CSV file of paths from coarse to fine, one for each class"
    with parsing(class_tree, expected):
        try:
            return named_labels([str(c) for c in labels[:, 0]], Path(class_tree))
        except ValueError as error:  # "expected A; found B"
            wanted, _, found = str(error).removeprefix("expected ").partition("; found ")
            raise EmbeddingsError(class_tree, found, wanted) from None


def _read_npy(file: str) -> np.ndarray:
    with parsing(file, "a whole .npy file of labels"):
        mapped = np.load(file, mmap_mode="r", allow_pickle=False)
        return np.array(mapped)


def _read_csv(file: str, n: int) -> np.ndarray:
    with (
        parsing(file, "a readable .csv file of labels"),
        open(file, newline="", encoding="utf-8-sig") as stream,
    ):
        rows = [[cell.strip() for cell in row] for row in csv.reader(stream) if row]
    if len(rows) == n + 1:  # names of the columns
        del rows[0]
    widths = sorted({len(row) for row in rows})
    if len(widths) != 1:
        found = f"lines of {widths[0]} to {widths[-1]} columns" if rows else "no lines"
        raise EmbeddingsError(file, found, "lines with one column for each level")
    return np.asarray(rows, dtype=np.str_)
