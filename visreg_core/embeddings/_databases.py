"""Vectors of search libraries and databases: FAISS's flat indexes, Lance, SQLite."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from visreg_core.embeddings._source import (
    Embeddings,
    EmbeddingsError,
    embeddings,
    one_line,
    pick,
)
from visreg_core.embeddings._tables import bytes_note, of_bytes, of_columns, table
from visreg_core.optional import require


def read_faiss(path: Path, name: str | None, label: str) -> Embeddings:
    """A flat index, which is read as a whole; of one with ids (IndexIDMap) those, too."""
    faiss = require("faiss", extra="faiss", purpose=f"{one_line(label)}: reading FAISS")
    if name is not None:
        raise EmbeddingsError(label, f"the name {name!r}", "an index, which holds one array")
    whole = faiss.read_index(str(path))
    has_ids = isinstance(whole, faiss.IndexIDMap)
    index = faiss.downcast_index(whole.index) if has_ids else whole
    if not isinstance(index, faiss.IndexFlat):
        found = f"a FAISS {type(index).__name__}"
        raise EmbeddingsError(label, found, "a flat index, which keeps vectors as they are")
    held = whole, index  # the index belongs to the one with ids and ends with it

    def pieces(rows: int) -> Iterator[np.ndarray]:
        _, index = held
        for start in range(0, index.ntotal, rows):
            yield index.reconstruct_n(start, min(rows, index.ntotal - start))

    stored = embeddings(label, (index.ntotal, index.d), np.dtype(np.float32), pieces)
    return replace(stored, ids=faiss.vector_to_array(whole.id_map)) if has_ids else stored


def read_lance(path: Path, name: str | None, label: str) -> Embeddings:
    """A column of lists, or all columns of numbers, of a Lance dataset."""
    lance = require("lance", extra="lance", purpose=f"{one_line(label)}: reading Lance")
    dataset = lance.dataset(str(path))
    columns = of_columns(dataset.schema, name, label)

    def batches(count: int) -> Iterator[object]:
        return dataset.to_batches(columns=columns.names, batch_size=count, scan_in_order=True)

    return table(batches, columns, dataset.count_rows(), label)


def read_sqlite(path: Path, name: str | None, label: str) -> Embeddings:
    """A column of float32 bytes, ``FILE::TABLE.COLUMN``, in the order of the rows' numbers.

    Or one of sqlite-vec's ``vec0`` tables, by its extension.
    """

    @contextlib.contextmanager
    def opened(vectors: bool = False) -> Iterator[sqlite3.Connection]:
        uri = f"{path.resolve().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
            if vectors:
                _load_vec(database, label)
            yield database

    with opened() as database:
        known = _vector_columns(database)
    chosen = pick(label, list(known), name)
    of, column = (part.replace('"', '""') for part in known[chosen][:2])
    vectors = known[chosen].vec0
    with opened(vectors) as database:
        ((rows,),) = database.execute(f'SELECT count(*) FROM "{of}"')

    def pieces(count: int) -> Iterator[np.ndarray]:
        with opened(vectors) as database:
            cursor = database.execute(f'SELECT "{column}" FROM "{of}" ORDER BY rowid')
            while some := cursor.fetchmany(count):
                yield of_bytes([value for (value,) in some], label)

    first = next(pieces(1), None)
    if first is None:
        raise EmbeddingsError(label, "no rows", "(N, D) with N >= 2 rows and D >= 1")
    shape = rows, first.shape[1]
    return embeddings(label, shape, np.dtype(np.float32), pieces, (bytes_note(chosen),))


class _Column(NamedTuple):
    table: str
    name: str
    vec0: bool


def _vector_columns(database: sqlite3.Connection) -> dict[str, _Column]:
    """Columns of bytes, and the float vectors of vec0 tables without what these consist of."""
    tables = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
    virtual = {of: sql for of, sql in tables if re.search(r"\busing\s+vec0\b", sql, re.IGNORECASE)}
    found = []
    for of, _ in tables:
        if of in virtual:
            names = re.findall(r"(\w+)\W*\s+float\s*\[", virtual[of], re.IGNORECASE)
            found += [_Column(of, column, True) for column in names]
        elif not of.startswith(tuple(f"{v}_" for v in virtual)):
            query = "SELECT name FROM pragma_table_info(?) WHERE upper(type) = 'BLOB'"
            found += [_Column(of, column, False) for (column,) in database.execute(query, (of,))]
    return {f"{c.table}.{c.name}": c for c in found}


def _load_vec(database: sqlite3.Connection, label: str) -> None:
    if not hasattr(database, "enable_load_extension"):
        expected = "a Python whose sqlite3 loads extensions, of which sqlite-vec is one"
        raise EmbeddingsError(label, "a vec0 table", expected)
    extension = require("sqlite_vec", extra="sqlite", purpose=f"{one_line(label)}: a vec0 table")
    database.enable_load_extension(True)
    extension.load(database)
    database.enable_load_extension(False)
