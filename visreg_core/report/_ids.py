"""Ids: what names the rows of a file, and files of the same items joined by it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from visreg_core.embeddings import Embeddings, EmbeddingsError
from visreg_core.embeddings._source import one_line, parsing, pick
from visreg_core.optional import require

NAME = "ids"  # what the trainer's exports call them


def with_ids(stored: Embeddings, ids: Any) -> Embeddings:
    """The embeddings with these ids: an array, or what `read_ids` reads for the file."""
    label = f"ids of {stored.name}"
    found = read_ids(stored.name, ids) if isinstance(ids, str | os.PathLike) else np.asarray(ids)
    return replace(stored, ids=_checked(found, stored, label))


def carried(stored: Embeddings, spec: str) -> Embeddings:
    """The embeddings with the ids beside them in a file, or a folder, of the trainer's exports."""
    if stored.ids is not None:
        return stored
    path, name = _split(spec)
    beside = path.with_name(f"{NAME}.npy")
    if path.suffix == ".safetensors" and name is not None:
        found = _of_safetensors(path, NAME, spec, missing_ok=True)
    elif path.suffix == ".npy" and path.name != beside.name and beside.is_file():
        found = read_ids(spec, str(beside))
    else:
        found = None
    if found is None or len(found) != stored.shape[0]:
        return stored
    return replace(stored, ids=_checked(found, stored, f"ids of {stored.name}"))


def read_ids(spec: str, ids: str | os.PathLike[str]) -> np.ndarray:
    """Ids of a file: of a file of their own, or the column or array of this name in it."""
    text = os.fspath(ids)
    path, name = _split(text)
    if path.exists():
        return _read(path, name, text)
    here, _ = _split(spec)
    with parsing(text, f"an array named {one_line(text, 60)!r}, or a file"):
        if here.suffix == ".npy":
            return _read(here.with_name(f"{text}.npy"), None, spec)
        return _read(here, text, spec)


def _split(spec: str) -> tuple[Path, str | None]:
    if "::" in spec and not Path(spec).exists():
        file, _, name = spec.partition("::")
        return Path(file), name
    return Path(spec), None


def _read(path: Path, name: str | None, label: str) -> np.ndarray:
    from visreg_core.report._files import column, table_columns

    suffix = path.suffix.lower()
    with parsing(label, "a readable file of ids"):
        if not path.exists():
            raise EmbeddingsError(label, "no such file", "an existing one")
        if suffix == ".npy":
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return np.asarray(archive[pick(label, list(archive), name)])
        if suffix == ".safetensors":
            found = _of_safetensors(path, name or NAME, label)
            assert found is not None
            return found
        if suffix in (".h5", ".hdf5"):
            h5py = require("h5py", extra="io", purpose=f"{one_line(label)}: reading HDF5")
            with h5py.File(path, "r") as file:
                values = file[name or NAME]
                return np.asarray(values.asstr()[()] if values.dtype.kind == "O" else values[()])
        return column(label, pick(label, table_columns(path, label), name), path)


def _of_safetensors(
    path: Path, name: str, label: str, *, missing_ok: bool = False
) -> np.ndarray | None:
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    if name not in header and missing_ok:
        return None
    tensor = header[pick(label, [k for k in header if k != "__metadata__"], name)]
    if tensor["dtype"] not in ("I64", "I32") or len(tensor["shape"]) != 1:
        found = f"{tensor['dtype']} of shape {tuple(tensor['shape'])}"
        raise EmbeddingsError(label, f"{name}: {found}", "ids (N,) of I64 or I32")
    dtype = np.dtype("<i8" if tensor["dtype"] == "I64" else "<i4")
    first, last = tensor["data_offsets"]
    return np.fromfile(path, dtype, (last - first) // dtype.itemsize, offset=8 + length + first)


def _checked(ids: np.ndarray, stored: Embeddings, label: str) -> np.ndarray:
    """Ids of all rows, each once."""
    if ids.dtype == object:
        missing = [i for i, v in enumerate(ids.tolist()) if v is None or v != v]
        if missing:
            found = f"no id in {len(missing):,} rows, the first at {missing[0]}"
            raise EmbeddingsError(label, found, "one for each row")
        ids = np.asarray([str(v) for v in ids.tolist()])
    if ids.ndim != 1 or ids.dtype.kind not in "iuUS":
        found = f"{ids.dtype} of shape {ids.shape}"
        raise EmbeddingsError(label, found, "integers or strings (N,)")
    if len(ids) != stored.shape[0]:
        raise EmbeddingsError(label, f"{len(ids):,}", f"{stored.shape[0]:,}, one for each row")
    order = np.argsort(ids, kind="stable")
    same = ids[order][1:] == ids[order][:-1]
    if same.any():
        first = int(np.argmax(same))
        rows = order[first], order[first + 1]
        count = int(np.count_nonzero(same))
        found = f"id {ids[rows[0]]} in rows {rows[0]} and {rows[1]}"
        more = "" if count == 1 else f" and {count - 1:,} more repeated ones"
        raise EmbeddingsError(label, found + more, "each id once")
    return ids


def join(files: Sequence[Embeddings]) -> list[Embeddings]:
    """The items that all files have, in the first one's order; notes say what is missing where."""
    without = next((f.name for f in files if f.ids is None), None)
    if without is not None:
        raise EmbeddingsError(without, "no ids", "ids in every file, or in none")
    known = [f.names(np.arange(f.shape[0])) for f in files]
    numbers = {i.dtype.kind in "iu" for i in known}
    if len(numbers) > 1:
        raise EmbeddingsError("ids", "numbers in one file, strings in another", "ids of one kind")
    common = known[0]
    for other in known[1:]:
        common = common[np.isin(common, other)]
    if len(common) < 2:
        names = " and ".join(one_line(f.name, 80) for f in files[:3])
        raise EmbeddingsError(names, f"{len(common)} ids in all files", "two or more")
    joined = []
    for f, i in zip(files, known, strict=True):
        order = np.argsort(i, kind="stable")
        rows = order[np.searchsorted(i[order], common)]
        lacking = len(i) - len(common)
        note = f"joined by ids: {len(common):,} items in all files"
        note += f", {lacking:,} of this one are not in every other" if lacking else ""
        joined.append(replace(f.ordered(rows), notes=(*f.notes, note)))
    return joined
