"""Inputs that `visreg_core.embeddings.load` does not read: many files, URLs, other tables.

Tables are read as a whole, by pyarrow. A table's one column of vectors, or else its floating
columns, are the embeddings; columns of anything else are left out, which is noted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from visreg_core.embeddings import FORMATS, Embeddings, EmbeddingsError, _databases, load
from visreg_core.embeddings._many import (
    INDEX,
    in_folder,
    in_index,
    is_pattern,
    joined,
    matching,
    open_all,
)
from visreg_core.embeddings._remote import fetch, is_url, matching_urls
from visreg_core.embeddings._source import embeddings, listing, one_line, parsing, pick
from visreg_core.embeddings._tar import read_tar
from visreg_core.optional import require
from visreg_core.report._ids import carried

_TABLES = (".jsonl", ".ndjson", ".tsv", ".tab")
_LABEL_TABLES = (*_TABLES, ".csv", ".parquet", ".pq", ".arrow", ".feather")
_PARQUET = (".parquet", ".pq")
_DATABASES = {
    ".faiss": _databases.read_faiss,
    ".lance": _databases.read_lance,
    ".sqlite": _databases.read_sqlite,
    ".db": _databases.read_sqlite,
}


def open_embeddings(spec: str) -> Embeddings:
    """What `load` opens, and the files of this module; EmbeddingsError, one line, for others.

    A pattern, a folder of shards or an index of .safetensors files is one input, its files one
    after the other; a URL is fetched first. Ids that the trainer's exports have come with them.
    """
    if is_url(spec):
        return _of_urls(spec)
    files = shards(spec)
    if files != [spec]:
        return open_all(spec, files, open_embeddings)
    path, name = _split(spec)
    return carried(_open_one(spec, path, name), spec)


def shards(spec: str) -> list[str]:
    """The files that an input consists of; of a single one, and of a URL, itself."""
    if is_url(spec):
        return [spec]
    path, name = _split(spec)
    index = path if path.name.endswith(INDEX) else next(iter(sorted(path.glob(f"*{INDEX}"))), None)
    if index is not None and index.is_file():
        with parsing(spec, "a readable index of .safetensors files"):
            return in_index(index, name, spec)
    if is_pattern(str(path)):
        files = matching(str(path), KNOWN)
    elif path.is_dir() and path.suffix not in (".zarr", ".lance") and not _is_dataset(path):
        files = in_folder(path, spec, KNOWN)
    elif path.exists():
        return [spec]
    else:
        raise EmbeddingsError(spec, "no such file", "an existing one")
    return files if name is None else [f"{file}::{name}" for file in files]


def _of_urls(spec: str) -> Embeddings:
    url, _, name = spec.partition("::")
    urls = matching_urls(url)
    local = {str(fetch(u)): u for u in urls}
    end = f"::{name}" if name else ""
    try:
        opened = [replace(open_embeddings(file + end), name=u + end) for file, u in local.items()]
    except EmbeddingsError as error:
        said = str(error)
        for file, u in local.items():
            said = said.replace(file, u)
        error.args = (said,)
        raise
    note = f"fetched {sum(Path(f).stat().st_size for f in local):,} bytes"
    stored = opened[0] if len(opened) == 1 else joined(spec, opened)
    return replace(stored, notes=(*stored.notes, note))


def _open_one(spec: str, path: Path, name: str | None) -> Embeddings:
    suffix = path.suffix.lower()
    if suffix in _TABLES or _is_dataset(path):
        return _of_table(spec, _table(path, spec), name)
    if suffix in _DATABASES:
        with parsing(spec, f"a readable {suffix}"):
            return _DATABASES[suffix](path, name, spec)
    if suffix == ".tar":
        with parsing(spec, "a WebDataset shard"):
            return read_tar(path, name, spec)
    if name is None and path.is_file():
        if suffix == ".npy" and (quantised := _quantised(path)) is not None:
            return _of_array(spec, quantised)
        if suffix in _PARQUET and _has_other_columns(path, spec):
            return _of_table(spec, _table(path, spec), None)
    return load(spec)


def table_columns(path: Path, label: str) -> list[str]:
    """Names of a table's columns."""
    return list(_table(path, label).column_names)


def column(label: str, name: str, path: Path) -> np.ndarray:
    """One column of ids: integers or strings, none of them missing."""
    return _labels(label, _table(path, label).column(name))


def _quantised(path: Path) -> np.ndarray | None:
    """An array of whole numbers of at most 16 bits, mapped; None for any other."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # a damaged file may raise anything, and `load` says what is wrong with it
        return None
    return array if array.dtype.kind in "iub" and array.dtype.itemsize <= 2 else None


def _has_other_columns(path: Path, spec: str) -> bool:
    """Whether there are floating columns, no vectors, and other columns."""
    parquet = require("pyarrow.parquet", extra="io", purpose=f"{one_line(spec)}: reading tables")
    try:
        kinds = {_kind(field.type) for field in parquet.read_schema(path)}
    except Exception:  # as above
        return False
    return kinds == {"float", "other"}


def open_labels(spec: str, n: int) -> np.ndarray:
    """Labels of ``file::column,column``, the coarsest level first."""
    path, names = _split(spec)
    if not path.exists():
        raise EmbeddingsError(spec, "no such file", "an existing one")
    if path.suffix.lower() not in _LABEL_TABLES and not _is_dataset(path):
        found = f"suffix {path.suffix!r}"
        raise EmbeddingsError(spec, found, f"a table, {', '.join(_LABEL_TABLES)}, before ::")
    table = _table(path, spec)
    columns = []
    for name in (names or "").split(","):
        if name not in table.column_names:
            raise EmbeddingsError(
                spec, f"columns {listing(table.column_names)}", f"one named {one_line(name, 60)!r}"
            )
        columns.append(_labels(spec, table.column(name)))
    if table.num_rows != n:
        raise EmbeddingsError(spec, f"labels of {table.num_rows} items", f"{n}, one for each row")
    if len({c.dtype.kind in "US" for c in columns}) > 1:
        columns = [c.astype(np.str_) for c in columns]
    return np.stack(columns, axis=1)


def _labels(spec: str, column: Any) -> np.ndarray:
    if column.null_count:
        first = next(i for i, v in enumerate(column) if not v.is_valid)
        found = f"no label in {column.null_count} rows, the first at {first}"
        raise EmbeddingsError(spec, found, "one for each row")
    values = np.asarray(column.to_pylist())
    if values.dtype.kind not in "biuUS" or values.ndim != 1:
        raise EmbeddingsError(spec, f"a column of {column.type}", "integers or strings")
    return values


def _split(spec: str) -> tuple[Path, str | None]:
    if "::" in spec and not Path(spec).exists():
        file, _, name = spec.partition("::")
        return Path(file), name
    return Path(spec), None


def _is_dataset(path: Path) -> bool:
    """Whether `datasets` saved this folder (`Dataset.save_to_disk`)."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def _table(path: Path, spec: str) -> Any:
    purpose = f"{one_line(spec)}: reading tables"
    suffix = path.suffix.lower()
    with parsing(spec, "a readable table"):
        if not path.exists():
            raise EmbeddingsError(spec, "no such file", "an existing one")
        if _is_dataset(path):
            return _saved(path, spec, purpose)
        if suffix in (".jsonl", ".ndjson"):
            return require("pyarrow.json", extra="io", purpose=purpose).read_json(path)
        if suffix in (".parquet", ".pq"):
            return require("pyarrow.parquet", extra="io", purpose=purpose).read_table(path)
        if suffix in (".arrow", ".feather"):
            return require("pyarrow.feather", extra="io", purpose=purpose).read_table(path)
        csv = require("pyarrow.csv", extra="io", purpose=purpose)
        tab = "\t" if suffix in (".tsv", ".tab") else ","
        return csv.read_csv(path, parse_options=csv.ParseOptions(delimiter=tab))


def _saved(path: Path, spec: str, purpose: str) -> Any:
    """The shards of a saved dataset, in the order in which its state names them."""
    import json

    arrow = require("pyarrow", extra="io", purpose=purpose)
    ipc = require("pyarrow.ipc", extra="io", purpose=purpose)
    state = json.loads((path / "state.json").read_text("utf-8"))
    if state.get("_indices_data_files"):
        found = "a selection of rows stored with the data"
        raise EmbeddingsError(spec, found, "rows in their order: flatten_indices() before saving")
    tables = []
    for shard in state["_data_files"]:
        with arrow.memory_map(str(path / Path(shard["filename"]).name)) as source:
            tables.append(ipc.open_stream(source).read_all())
    return arrow.concat_tables(tables)


def _of_table(spec: str, table: Any, name: str | None) -> Embeddings:
    kinds = {c: _kind(table.schema.field(c).type) for c in table.column_names}
    lists = [c for c, kind in kinds.items() if kind == "list"]
    floats = [c for c, kind in kinds.items() if kind == "float"]
    if name is not None or lists:
        used = [pick(spec, lists, name)]
        array = _vectors(spec, table.column(used[0]))
    elif floats:
        used = floats
        array = np.stack([table.column(c).to_numpy() for c in used], axis=1)
    else:
        found = f"columns {listing(f'{c} ({table.schema.field(c).type})' for c in kinds)}"
        raise EmbeddingsError(spec, found, "a column of vectors, or floating columns")
    left = [c for c in kinds if c not in used]
    notes: tuple[str, ...] = (f"left out columns {listing(left)}",) if left else ()
    return _of_array(spec, array, notes)


def _of_array(spec: str, array: np.ndarray, notes: tuple[str, ...] = ()) -> Embeddings:
    dtype = array.dtype
    if dtype.kind in "iub":
        bits = ", not as packed bits" if dtype == np.uint8 else ""
        notes += (f"{dtype} numbers read as float32{bits}",)
        dtype = np.dtype(np.float32)

    def pieces(rows: int) -> Iterator[np.ndarray]:
        for start in range(0, len(array), rows):
            yield array[start : start + rows].astype(dtype, copy=False)

    return embeddings(spec, array.shape, dtype, pieces, notes)


def _kind(column_type: Any) -> str:
    text = str(column_type)
    if "list" in text.split("<")[0]:
        return "list"
    return "float" if text in ("halffloat", "float", "double") else "other"


def _vectors(spec: str, column: Any) -> np.ndarray:
    if column.null_count:
        raise EmbeddingsError(spec, f"{column.null_count} missing lists", "a list in every row")
    lengths = {len(v) for v in column}
    if len(lengths) != 1:
        found = f"lists of {min(lengths)} to {max(lengths)} numbers" if lengths else "no rows"
        raise EmbeddingsError(spec, found, "lists of one length")
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(parts).reshape(len(column), -1)


KNOWN = (*FORMATS, *_TABLES, *_DATABASES, ".tar")
"""Suffixes of the files that the commands read."""
