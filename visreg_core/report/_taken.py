"""What people hold, as embeddings and labels: arrays, lists, tables, paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from visreg_core import _xp
from visreg_core.embeddings import Embeddings, EmbeddingsError
from visreg_core.embeddings._source import embeddings, listing, one_line
from visreg_core.report._files import open_embeddings, open_labels
from visreg_core.report._labels import load_labels

_KINDS = "an array (N, D), nested lists, a table of numbers, a path or Embeddings"


def embeddings_of(data: Any) -> Embeddings:
    """Embeddings of whatever holds them; EmbeddingsError, one line, where it does not.

    Whole numbers up to 16 bits and booleans are read as float32, which holds them exactly, larger
    ones as float64.
    """
    if isinstance(data, Embeddings):
        return data
    if isinstance(data, str | os.PathLike):
        return open_embeddings(os.fspath(data))
    name, values = type(data).__name__, data
    if _is_table(data):
        values = _table(name, data)
    elif _is_series(data):
        values = _rows(data)
    elif _xp.is_array(data):
        values = _xp.to_numpy(_xp.stop_gradient(data))
    array = _array(name, values)
    if array.dtype.kind in "biu":
        array = array.astype(np.float32 if array.dtype.itemsize <= 2 else np.float64)
    elif array.dtype.kind == "O":
        raise EmbeddingsError(name, "values that are no numbers", _KINDS)

    def pieces(rows: int) -> Iterator[np.ndarray]:
        for start in range(0, len(array), rows):
            yield array[start : start + rows]

    return embeddings(name, array.shape, array.dtype, pieces)


def labels_of(labels: Any, n: int, of: str) -> np.ndarray:
    """Labels (N, L) of n rows, the coarsest level first; EmbeddingsError where they are not."""
    if isinstance(labels, str | os.PathLike):
        spec = os.fspath(labels)
        array = open_labels(spec, n) if "::" in spec else load_labels(spec, n)
    elif _is_table(labels):
        array = np.stack([_column(labels[c]) for c in _names(labels)], axis=1)
    elif _is_series(labels):
        array = _column(labels)
    elif _xp.is_array(labels):
        array = _xp.to_numpy(labels)
    else:
        array = _array("labels", labels)
    if array.ndim not in (1, 2) or array.dtype.kind not in "biuUSf" or array.size == 0:
        found = f"{array.dtype} of shape {array.shape}"
        raise EmbeddingsError("labels", found, "integers or strings, (N,) or (N, L)")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
        found = f"no label in {len(bad):,} rows, the first at {bad[0]}"
        raise EmbeddingsError("labels", found, "one for each row")
    if len(array) != n:
        raise EmbeddingsError("labels", f"{len(array):,}", f"{n:,}, one for each row of {of}")
    return array.reshape(n, -1)


def _is_table(data: Any) -> bool:
    """Whether this is a frame of pandas or polars, a table of pyarrow or a dataset of datasets."""
    named = hasattr(data, "columns") or hasattr(data, "column_names")
    return named and hasattr(data, "shape") and len(data.shape) == 2


def _is_series(data: Any) -> bool:
    """Whether this is a column of such a table."""
    return hasattr(data, "to_numpy")


def _names(table: Any) -> list[str]:
    return list(table.column_names if hasattr(table, "column_names") else table.columns)


def _table(name: str, data: Any) -> np.ndarray:
    """The one column of vectors of a table, or its columns of numbers, one for each dimension."""
    columns = {str(c): np.asarray(data[c]) for c in _names(data)}
    lists = [c for c, v in columns.items() if v.ndim == 2 or (v.dtype == object and _is_vector(v))]
    if len(lists) == 1:
        return _array(name, _rows(columns[lists[0]]))
    if lists:
        raise EmbeddingsError(
            name, f"columns of vectors {listing(lists)}", "one of them: table[NAME]"
        )
    floats = [c for c, v in columns.items() if v.dtype.kind == "f"]
    if not floats:
        raise EmbeddingsError(name, f"columns {listing(columns)}", "columns of floating numbers")
    return np.stack([columns[c] for c in floats], axis=1)


def _is_vector(column: np.ndarray) -> bool:
    return len(column) > 0 and isinstance(column[0], list | tuple | np.ndarray)


def _rows(column: Any) -> list[np.ndarray]:
    """The vectors of a column."""
    return [np.asarray(row) for row in np.asarray(column)]


def _column(series: Any) -> np.ndarray:
    """A column of labels as integers or strings; categories are their names."""
    values = np.asarray(series.to_numpy() if hasattr(series, "to_numpy") else series)
    if values.dtype.kind in "biuUS":
        return values
    missing = [i for i, v in enumerate(values.tolist()) if v is None or v != v]
    if missing:
        found = f"no label in {len(missing):,} rows, the first at {missing[0]}"
        raise EmbeddingsError("labels", found, "one for each row")
    return values if values.dtype.kind == "f" else np.asarray([str(v) for v in values.tolist()])


def _array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise EmbeddingsError(name, one_line(error, 120), "rows of one length") from None
