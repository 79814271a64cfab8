"""HDF5, and what it shares with Zarr: chunked stores, which are read along their chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from visreg_core.embeddings._source import (
    Embeddings,
    EmbeddingsError,
    check_chunk,
    check_dtype,
    check_shape,
    embeddings,
    one_line,
    pick,
)
from visreg_core.optional import require

# At most so many members of a store are searched for arrays.
ENTRIES = 1000


def read_hdf5(path: Path, name: str | None, label: str) -> Embeddings:
    """One dataset of an HDF5 file."""
    h5py = require("h5py", extra="io", purpose=f"{one_line(label)}: reading HDF5")
    with h5py.File(path, "r") as file:
        dataset = None if name is None else _named(h5py, file, name, label)
        if dataset is None:
            names: list[str] = []

            def visit(key: str, item: Any) -> bool | None:
                if isinstance(item, h5py.Dataset):
                    names.append(key)
                return True if len(names) >= ENTRIES else None

            file.visititems(visit)  # follows hard links only, and each object once
            if name is None and len(names) == ENTRIES:
                found = f"{ENTRIES} arrays or more"
                raise EmbeddingsError(label, found, "FILE::name to say which")
            dataset = file[pick(label, names, name)]
        key = dataset.name
        check_dtype(label, dataset.dtype.name)
        check_shape(label, dataset.shape or ())
        if dataset.external or dataset.is_virtual:
            raise EmbeddingsError(label, "values kept in another file", "values in this file")
        _check_stored(dataset, path.stat().st_size, label)
        shape, dtype, chunk_rows = dataset.shape, dataset.dtype, (dataset.chunks or (1,))[0]

    def pieces(rows: int) -> Iterator[np.ndarray]:
        with h5py.File(path, "r") as file:
            yield from along_chunks(file[key], rows, chunk_rows)

    return embeddings(label, shape, dtype, pieces)


def _named(h5py: Any, file: Any, name: str, label: str) -> Any:
    """The dataset of this name, behind hard and soft links but in this very file; None if none."""
    here, parts, steps = file, name.split("/"), 0
    while parts:
        part, steps = parts.pop(0), steps + 1
        if part in ("", "."):
            continue
        link = here.get(part, getlink=True) if isinstance(here, h5py.Group) else None
        if isinstance(link, h5py.HardLink):
            here = here[part]
        elif isinstance(link, h5py.SoftLink) and steps < ENTRIES:  # some run in circles
            parts = link.path.split("/") + parts
            here = file if link.path.startswith("/") else here
        elif isinstance(link, h5py.ExternalLink):
            raise EmbeddingsError(label, "a link to another file", "an array in this file")
        else:
            return None
    return here if isinstance(here, h5py.Dataset) else None


def _check_stored(dataset: Any, file_bytes: int, label: str) -> None:
    """Refuse chunks that were never written, which read as fill values, or cannot be valid."""
    declared = math.prod(dataset.shape) * dataset.dtype.itemsize
    if dataset.chunks is None:
        found = dataset.id.get_storage_size()
        if found != declared:
            raise EmbeddingsError(
                label, f"{found} bytes", f"{declared} bytes for shape {dataset.shape}"
            )
        return
    check_chunk(label, math.prod(dataset.chunks) * dataset.dtype.itemsize, file_bytes)
    found = dataset.id.get_num_chunks()
    expected = chunk_count(dataset.shape, dataset.chunks)
    if found != expected:
        raise EmbeddingsError(label, f"{found} chunks", f"all {expected} chunks")


def chunk_count(shape: tuple[int, ...], chunks: tuple[int, ...]) -> int:
    return math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True))


def along_chunks(array: Any, rows: int, chunk_rows: int) -> Iterator[np.ndarray]:
    """Pieces of whole chunks, so that each is unpacked once."""
    step = max(rows // chunk_rows, 1) * chunk_rows
    for start in range(0, array.shape[0], step):
        yield array[start : start + step]
