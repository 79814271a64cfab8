"""Parquet and Arrow through pyarrow, read piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from visreg_core.embeddings._source import (
    Embeddings,
    EmbeddingsError,
    embeddings,
    listing,
    one_line,
    pick,
)
from visreg_core.embeddings._table_index import arrow_index, left_out
from visreg_core.optional import require

# Parquet's footer is Thrift, whose declared sizes are allocated before they are read.
_THRIFT_BYTES = 1 << 26
_FLOATS = {"halffloat": np.float16, "float": np.float32, "double": np.float64}


def read_parquet(path: Path, name: str | None, label: str) -> Embeddings:
    """A column of lists, or all columns of numbers, of a Parquet file, by row groups' pages."""
    parquet = _pyarrow("pyarrow.parquet", label)

    def opened() -> Any:
        return parquet.ParquetFile(
            path,
            memory_map=True,
            thrift_string_size_limit=_THRIFT_BYTES,
            thrift_container_size_limit=_THRIFT_BYTES >> 4,
        )

    with opened() as file:
        columns = of_columns(file.schema_arrow, name, label)
        rows = file.metadata.num_rows
        stored = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
    if sum(stored) != rows:
        raise EmbeddingsError(label, f"{sum(stored)} rows in row groups", f"{rows} as announced")

    def batches(count: int) -> Iterator[Any]:
        with opened() as file:
            yield from file.iter_batches(count, columns=columns.names, use_threads=False)

    return table(batches, columns, rows, label)


def read_arrow(path: Path, name: str | None, label: str) -> Embeddings:
    """A column of lists, or all columns of numbers, of an Arrow IPC file or stream, mapped."""
    arrow = _pyarrow("pyarrow", label)
    ipc = _pyarrow("pyarrow.ipc", label)

    def batches(count: int) -> Iterator[Any]:
        with arrow.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                reader = ipc.open_file(source)
                yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                source.seek(0)
                yield from ipc.open_stream(source)

    rows, schema = 0, None
    for batch in batches(1):
        rows, schema = rows + batch.num_rows, batch.schema
    if schema is None:
        raise EmbeddingsError(label, "no rows", "(N, D) with N >= 2 rows and D >= 1")
    columns = of_columns(schema, name, label)
    return table(batches, columns, rows, label)


def _pyarrow(module: str, label: str) -> Any:
    return require(module, extra="io", purpose=f"{one_line(label)}: reading Arrow and Parquet")


class TableColumns(NamedTuple):
    names: list[str]  # one column of lists, or a column for each dimension
    dtype: np.dtype
    notes: tuple[str, ...] = ()


def of_columns(schema: Any, name: str | None, label: str) -> TableColumns:
    """The columns to read and the dtype of their numbers."""
    if len(set(schema.names)) != len(schema.names):
        raise EmbeddingsError(label, "two columns of one name", "different names")
    types = {field.name: field.type for field in schema}
    lists = [c for c, t in types.items() if _value_type(t) is not None]
    index = [c for c in arrow_index(schema) if c not in lists]
    types = {c: t for c, t in types.items() if c not in index}
    if name is None and not lists:
        found = {str(t) for t in types.values()}
        if not types or not found <= set(_FLOATS):
            shown = listing(f"{c} ({t})" for c, t in types.items())
            raise EmbeddingsError(
                label,
                f"columns {shown}" if types else "no columns",
                "one column of lists of floating numbers, or floating columns only",
            )
        dtype = np.result_type(*(_FLOATS[t] for t in found))
        return TableColumns(list(types), dtype, left_out(index))
    if name is not None and _is_binary(types.get(name)):
        return TableColumns([name], np.dtype(np.float32), (bytes_note(name),))
    column = pick(label, lists, name)
    value_type = str(_value_type(types[column]))
    if value_type not in _FLOATS:
        raise EmbeddingsError(
            label, f"lists of {value_type}", "lists of float16, float32 or float64"
        )
    tensor = getattr(types[column], "shape", None)  # of a tensor in every row
    if tensor is not None and len(tensor) != 1:
        raise EmbeddingsError(label, f"tensors of shape {tuple(tensor)}", "a vector in every row")
    return TableColumns([column], np.dtype(_FLOATS[value_type]))


_BINARY = {"binary", "large_binary", "fixed_size_binary", "binary_view"}


def _is_binary(column_type: Any) -> bool:
    return str(column_type).split("[")[0] in _BINARY


_LISTS = {"list", "large_list", "fixed_size_list", "list_view", "large_list_view"}


def _value_type(column_type: Any) -> Any:
    """Type of the numbers in a column of lists; None for every other column."""
    storage = getattr(column_type, "storage_type", column_type)  # fixed-shape tensors
    return storage.value_type if str(storage).split("<")[0] in _LISTS else None


def table(batches: Any, columns: TableColumns, rows: int, label: str) -> Embeddings:
    """Embeddings of record batches; the first row gives the length of the lists."""

    def pieces(count: int) -> Iterator[np.ndarray]:
        for batch in batches(count):
            # Offsets and lengths are the file's: check them before they are used.
            batch.validate(full=True)
            # A batch may be the whole file, mapped: only some of its rows are copied at once.
            for start in range(0, batch.num_rows, count):
                rows = batch.slice(start, count)
                yield _matrix([rows.column(c) for c in columns.names], columns.dtype, label)

    first = next(pieces(1), None)
    if first is None:
        raise EmbeddingsError(label, "no rows", "(N, D) with N >= 2 rows and D >= 1")
    return embeddings(label, (rows, first.shape[1]), columns.dtype, pieces, columns.notes)


def _matrix(arrays: list[Any], dtype: np.dtype, label: str) -> np.ndarray:
    """(rows, D) numbers of one column of lists, or of D columns; a missing number is NaN."""
    array = getattr(arrays[0], "storage", arrays[0])
    if _is_binary(array.type):
        return of_bytes(array.to_pylist(), label)
    if _value_type(array.type) is None:
        numbers = [a.to_numpy(zero_copy_only=False) for a in arrays]
        return np.stack(numbers, axis=1, dtype=dtype)
    if array.null_count:
        raise EmbeddingsError(label, f"{array.null_count} missing lists", "a list in every row")
    # Offsets may have gaps and any order: only Arrow knows the lists' lengths, and joins them.
    lengths = _pyarrow("pyarrow.compute", label).list_value_length(array)
    lengths = np.unique(lengths.to_numpy(zero_copy_only=False))
    if len(lengths) != 1:
        raise EmbeddingsError(
            label, f"lists of {lengths[0]} to {lengths[-1]} numbers", "lists of one length"
        )
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)


def bytes_note(name: str) -> str:
    """What is said of a column that `of_bytes` reads."""
    return f"bytes of {name} read as float32 numbers, the least significant byte first"


def of_bytes(rows: list[bytes | None], label: str) -> np.ndarray:
    """Vectors that were stored as the bytes of their float32 numbers, as databases do."""
    known = [r for r in rows if isinstance(r, bytes)]
    if len(known) < len(rows):
        raise EmbeddingsError(
            label, f"{len(rows) - len(known)} missing vectors", "one in every row"
        )
    sizes = {len(r) for r in known}
    if len(sizes) != 1 or min(sizes) % 4 or not min(sizes):
        found = f"values of {min(sizes)} to {max(sizes)} bytes"
        raise EmbeddingsError(label, found, "4 bytes for each dimension, as many in each row")
    return np.frombuffer(b"".join(known), "<f4").reshape(len(known), -1)
