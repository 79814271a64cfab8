"""Tables: Parquet and Arrow through pyarrow, CSV through NumPy; all read piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from visreg_core._optional import require
from visreg_core.embeddings._source import (
    Embeddings,
    EmbeddingsError,
    embeddings,
    listing,
    no_name,
    one_line,
    pick,
)

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
        columns, dtype = _columns(file.schema_arrow, name, label)
        rows = file.metadata.num_rows
        stored = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
    if sum(stored) != rows:
        raise EmbeddingsError(label, f"{sum(stored)} rows in row groups", f"{rows} as announced")

    def batches(count: int) -> Iterator[Any]:
        with opened() as file:
            yield from file.iter_batches(count, columns=columns, use_threads=False)

    return _table(batches, columns, dtype, rows, label)


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
    columns, dtype = _columns(schema, name, label)
    return _table(batches, columns, dtype, rows, label)


def _pyarrow(module: str, label: str) -> Any:
    return require(module, extra="io", purpose=f"{one_line(label)}: reading Arrow and Parquet")


def _columns(schema: Any, name: str | None, label: str) -> tuple[list[str], np.dtype]:
    """The columns to read and the dtype of their numbers."""
    if len(set(schema.names)) != len(schema.names):
        raise EmbeddingsError(label, "two columns of one name", "different names")
    types = {field.name: field.type for field in schema}
    lists = [c for c, t in types.items() if _value_type(t) is not None]
    if name is None and not lists:
        found = {str(t) for t in types.values()}
        if not types or not found <= set(_FLOATS):
            shown = listing(f"{c} ({t})" for c, t in types.items())
            raise EmbeddingsError(
                label,
                f"columns {shown}" if types else "no columns",
                "one column of lists of floating numbers, or floating columns only",
            )
        return list(types), np.result_type(*(_FLOATS[t] for t in found))
    column = pick(label, lists, name)
    value_type = str(_value_type(types[column]))
    if value_type not in _FLOATS:
        raise EmbeddingsError(
            label, f"lists of {value_type}", "lists of float16, float32 or float64"
        )
    return [column], np.dtype(_FLOATS[value_type])


def _value_type(column_type: Any) -> Any:
    """Type of the numbers in a column of lists; None for every other column."""
    storage = getattr(column_type, "storage_type", column_type)  # fixed-shape tensors
    return getattr(storage, "value_type", None) if "list" in str(storage) else None


def _table(batches: Any, columns: list[str], dtype: np.dtype, rows: int, label: str) -> Embeddings:
    """Embeddings of record batches; the first batch tells how long the lists are."""

    def pieces(count: int) -> Iterator[np.ndarray]:
        for batch in batches(count):
            # Offsets and lengths are the file's own: nothing may follow them unchecked.
            batch.validate(full=True)
            if batch.num_rows:
                yield _matrix([batch.column(c) for c in columns], dtype, label)

    first = next(pieces(1), None)
    if first is None:
        raise EmbeddingsError(label, "no rows", "(N, D) with N >= 2 rows and D >= 1")
    return embeddings(label, (rows, first.shape[1]), dtype, pieces)


def _matrix(columns: list[Any], dtype: np.dtype, label: str) -> np.ndarray:
    """(rows, D) numbers of one column of lists, or of D columns; a missing number is NaN."""
    column = getattr(columns[0], "storage", columns[0])
    if _value_type(column.type) is None:
        numbers = [c.to_numpy(zero_copy_only=False) for c in columns]
        return np.stack(numbers, axis=1, dtype=dtype)
    if column.null_count:
        raise EmbeddingsError(label, f"{column.null_count} missing lists", "a list in every row")
    values = column.flatten().to_numpy(zero_copy_only=False)
    if hasattr(column, "offsets"):
        lengths = np.unique(np.diff(column.offsets.to_numpy()))
        if len(lengths) != 1:
            raise EmbeddingsError(
                label, f"lists of {lengths[0]} to {lengths[-1]} numbers", "lists of one length"
            )
    return values.reshape(len(column), -1)


_LINE_CHARACTERS = 1 << 26


def read_csv(path: Path, name: str | None, label: str) -> Embeddings:
    """The numbers of a CSV file as float64; a first line that is not numbers names the columns."""
    no_name(label, name, ".csv")
    with path.open(encoding="utf-8-sig") as stream:
        lines = _lines(stream, label)
        first = next(lines, None)
        header = 0 if first is None else _header_lines(first, label)
        row = next(lines, None) if header else first
        if row is None:
            raise EmbeddingsError(label, "no rows", "(N, D) with N >= 2 rows and D >= 1")
        rows, width = 1 + sum(1 for _ in lines), row.count(",") + 1

    def pieces(count: int) -> Iterator[np.ndarray]:
        with path.open(encoding="utf-8-sig") as stream:
            lines = islice(_lines(stream, label), header, None)
            done = 0
            while block := list(islice(lines, count)):
                yield _parse(block, width, done, label)
                done += len(block)

    return embeddings(label, (rows, width), np.dtype(np.float64), pieces)


def _header_lines(first: str, label: str) -> int:
    """1 if the first line names the columns, 0 if it is a row of numbers."""
    fields = [field.strip() for field in first.split(",")]
    numbers = [_numbers(field) for field in fields]
    if any(numbers) and not all(numbers):
        raise EmbeddingsError(
            label,
            f"a first line of names and numbers, {one_line(first.strip(), 60)!r}",
            "a line of names or a row of numbers",
        )
    # pandas names columns 0, 1, 2, … if nobody else does.
    counted = len(fields) > 1 and fields == [str(i) for i in range(len(fields))]
    return 1 if counted or not any(numbers) else 0


def _lines(stream: IO[str], label: str) -> Iterator[str]:
    """Lines that are not blank, none longer than the limit."""
    while line := stream.readline(_LINE_CHARACTERS):
        if len(line) == _LINE_CHARACTERS:
            raise EmbeddingsError(label, "a line without end", f"under {_LINE_CHARACTERS} letters")
        if not line.isspace():
            yield line


def _numbers(line: str) -> bool:
    try:
        [float(field) for field in line.split(",")]
    except ValueError:
        return False
    return True


def _parse(block: list[str], width: int, done: int, label: str) -> np.ndarray:
    """One block of lines; where NumPy cannot read it, say which row is to blame."""
    try:
        return np.loadtxt(block, delimiter=",", comments=None, ndmin=2, dtype=np.float64)
    except ValueError:
        for i, line in enumerate(block):
            fields = line.strip().split(",")
            if len(fields) != width or not _numbers(line):
                raise EmbeddingsError(
                    label,
                    f"row {done + i} of {len(fields)} fields, {one_line(line.strip(), 60)!r}",
                    f"{width} numbers in each row",
                ) from None
        raise
