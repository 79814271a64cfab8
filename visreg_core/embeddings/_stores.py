"""HDF5 and Zarr: chunked stores, which are read along their chunks."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from visreg_core._optional import require
from visreg_core.embeddings._source import (
    Embeddings,
    EmbeddingsError,
    check_chunk,
    check_dtype,
    check_shape,
    embeddings,
    listing,
    one_line,
    pick,
)

# A store is searched for its arrays no further than this.
_ENTRIES = 1000


def read_hdf5(path: Path, name: str | None, label: str) -> Embeddings:
    """One dataset of an HDF5 file."""
    h5py = require("h5py", extra="io", purpose=f"{one_line(label)}: reading HDF5")
    with h5py.File(path, "r") as file:
        names: list[str] = []

        def visit(key: str, item: Any) -> bool | None:
            if isinstance(item, h5py.Dataset):
                names.append(key)
            return True if len(names) >= _ENTRIES else None

        file.visititems(visit)  # follows hard links only, and each object once
        key = pick(label, names, None if name is None else name.strip("/"))
        dataset = file[key]
        check_dtype(label, dataset.dtype.name)
        check_shape(label, dataset.shape or ())
        if dataset.external or dataset.is_virtual:
            raise EmbeddingsError(label, "values kept in another file", "values in this file")
        _check_stored(dataset, path.stat().st_size, label)
        shape, dtype, chunk_rows = dataset.shape, dataset.dtype, (dataset.chunks or (1,))[0]

    def pieces(rows: int) -> Iterator[np.ndarray]:
        with h5py.File(path, "r") as file:
            yield from _along_chunks(file[key], rows, chunk_rows)

    return embeddings(label, shape, dtype, pieces)


def _check_stored(dataset: Any, file_bytes: int, label: str) -> None:
    """What was never written reads as a fill value: refuse it, and chunks that cannot be."""
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
    expected = _chunk_count(dataset.shape, dataset.chunks)
    if found != expected:
        raise EmbeddingsError(label, f"{found} chunks", f"all {expected} chunks")


def read_zarr(path: Path, name: str | None, label: str) -> Embeddings:
    """One array of a Zarr directory, version 2 or 3."""
    arrays = {
        "/".join(folder.relative_to(path).parts): folder for folder in _zarr_arrays(path, label)
    }
    folder = arrays[pick(label, list(arrays), None if name is None else name.strip("/"))]
    shape, chunks = _zarr_layout(folder, label)
    check_shape(label, shape)
    # Names of chunks differ between versions; whatever is no metadata is one.
    files = [
        Path(base, entry)
        for base, _, entries in os.walk(folder)
        for entry in entries
        if not entry.startswith((".z", "zarr.json"))
    ]
    expected = _chunk_count(shape, chunks)
    if len(files) != expected:
        raise EmbeddingsError(label, f"{len(files)} chunks", f"all {expected} chunks")
    zarr = require("zarr", extra="io", purpose=f"{one_line(label)}: reading Zarr")
    array = zarr.open_array(folder, mode="r")
    check_dtype(label, array.dtype.name)
    stored = max(file.stat().st_size for file in files)
    check_chunk(label, math.prod(chunks) * array.dtype.itemsize, stored)

    def pieces(rows: int) -> Iterator[np.ndarray]:
        return _along_chunks(zarr.open_array(folder, mode="r"), rows, chunks[0])

    return embeddings(label, shape, array.dtype, pieces)


def _zarr_arrays(path: Path, label: str) -> list[Path]:
    """Folders below `path` that hold an array; links are not followed."""
    found = []
    for seen, (base, folders, entries) in enumerate(os.walk(path)):
        if seen >= _ENTRIES:
            raise EmbeddingsError(label, f"more than {_ENTRIES} folders", "a smaller store")
        if ".zarray" in entries or (
            "zarr.json" in entries and _metadata(base, "zarr.json").get("node_type") == "array"
        ):
            found.append(Path(base))
            folders.clear()  # below an array there are only chunks
    return found


def _metadata(folder: str | Path, file: str) -> dict[str, Any]:
    loaded = json.loads(Path(folder, file).read_text("utf-8"))
    if not isinstance(loaded, dict):
        raise ValueError(f"{file} is no JSON object")
    return loaded


# Codecs that only rearrange or unpack bytes. numcodecs also has `pickle`, which runs its input.
_CODECS = {
    "blosc", "bytes", "bz2", "crc32", "crc32c", "delta", "endian", "gzip", "lz4", "lzma",
    "sharding_indexed", "shuffle", "transpose", "zlib", "zstd",
}  # fmt: skip


def _zarr_layout(folder: Path, label: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and chunk shape of an array, once its codecs are known to be harmless."""
    if (folder / ".zarray").exists():
        about = _metadata(folder, ".zarray")
        shape, chunks = about["shape"], about["chunks"]
        codecs = [about.get("compressor"), *(about.get("filters") or [])]
        names = [codec["id"] for codec in codecs if codec is not None]
        if "O" in str(about["dtype"]):
            raise EmbeddingsError(label, "Python objects, which are never read", "numbers")
    else:
        about = _metadata(folder, "zarr.json")
        shape, chunks = about["shape"], about["chunk_grid"]["configuration"]["chunk_shape"]
        names = _codec_names(about["codecs"])
    strange = [n for n in names if n.removeprefix("numcodecs.") not in _CODECS]
    if strange:
        raise EmbeddingsError(label, f"codec {listing(strange)}", f"one of {sorted(_CODECS)}")
    if len(chunks) != len(shape) or not all(
        type(n) is int and n >= 0 and type(c) is int and c >= 1
        for n, c in zip(shape, chunks, strict=True)
    ):
        raise EmbeddingsError(label, f"shape {shape} in chunks {chunks}", "positive integers")
    return tuple(shape), tuple(chunks)


def _codec_names(codecs: list[dict[str, Any]]) -> list[str]:
    """Names of the codecs, with those inside shards."""
    names = []
    for codec in codecs:
        inner = codec.get("configuration") or {}
        names += [codec["name"], *_codec_names(inner.get("codecs", []))]
        names += _codec_names(inner.get("index_codecs", []))
    return names


def _chunk_count(shape: tuple[int, ...], chunks: tuple[int, ...]) -> int:
    return math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True))


def _along_chunks(array: Any, rows: int, chunk_rows: int) -> Iterator[np.ndarray]:
    """Pieces of whole chunks, so that none is unpacked twice."""
    step = max(rows // chunk_rows, 1) * chunk_rows
    for start in range(0, array.shape[0], step):
        yield array[start : start + step]
