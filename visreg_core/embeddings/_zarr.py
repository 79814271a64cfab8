"""Zarr directories, version 2 and 3, by their published layout; zarr itself unpacks the chunks."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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
from visreg_core.embeddings._stores import ENTRIES, along_chunks, chunk_count
from visreg_core.optional import require


def read_zarr(path: Path, name: str | None, label: str) -> Embeddings:
    """One array of a Zarr directory."""
    folder = None if name is None else _named(path, name)
    if folder is None:
        arrays = {
            "/".join(found.relative_to(path).parts): found
            for found in _arrays(path, label, partly=name is not None)
        }
        folder = arrays[pick(label, list(arrays), None if name is None else name.strip("/"))]
    layout = _layout(folder, label)
    check_shape(label, layout.shape)
    files = _chunk_files(folder, layout)
    expected = chunk_count(layout.shape, layout.chunks)
    if len(files) != expected:
        raise EmbeddingsError(label, f"{len(files)} chunks", f"all {expected} chunks")
    if layout.shard is not None:
        missing = sum(_missing(file, at, layout, label) for at, file in files.items())
        if missing:
            inside = chunk_count(layout.shape, layout.shard.chunks)
            raise EmbeddingsError(
                label, f"{inside - missing} chunks inside shards", f"all {inside} chunks"
            )
    zarr = require("zarr", extra="io", purpose=f"{one_line(label)}: reading Zarr")

    def opened() -> Any:
        return zarr.open_array(folder, mode="r", zarr_format=layout.version)

    dtype = opened().dtype
    check_dtype(label, dtype.name)
    stored = max(file.stat().st_size for file in files.values())
    check_chunk(label, math.prod(layout.chunks) * dtype.itemsize, stored)

    def pieces(rows: int) -> Iterator[np.ndarray]:
        return along_chunks(opened(), rows, layout.chunks[0])

    return embeddings(label, layout.shape, dtype, pieces)


# --- finding the array ----------------------------------------------------------------------------


def _is_array(folder: Path) -> bool:
    if (folder / ".zarray").exists():
        return True
    about = folder / "zarr.json"
    return about.exists() and _metadata(about).get("node_type") == "array"


def _named(path: Path, name: str) -> Path | None:
    """The folder of the array of this name, unless it lies outside the store."""
    folder = path / name.strip("/")
    inside = folder.resolve().is_relative_to(path.resolve())
    return folder if inside and _is_array(folder) else None


def _arrays(path: Path, label: str, *, partly: bool) -> list[Path]:
    """Folders below `path` that hold an array; links are not followed."""
    found = []
    for seen, (base, folders, _) in enumerate(os.walk(path)):
        if seen >= ENTRIES and partly:
            break
        if seen >= ENTRIES:
            raise EmbeddingsError(label, f"more than {ENTRIES} folders", "FILE::name to say which")
        if _is_array(Path(base)):
            found.append(Path(base))
            folders.clear()  # below an array there are only chunks
    return found


def _metadata(file: Path) -> dict[str, Any]:
    loaded = json.loads(file.read_text("utf-8"))
    if not isinstance(loaded, dict):
        raise ValueError(f"{file.name} is no JSON object")
    return loaded


# --- its layout -----------------------------------------------------------------------------------

# Codecs that only rearrange or unpack bytes. numcodecs also has `pickle`, which runs its input.
_CODECS = {
    "blosc", "bytes", "bz2", "crc32", "crc32c", "delta", "endian", "gzip", "lz4", "lzma",
    "sharding_indexed", "shuffle", "transpose", "zlib", "zstd",
}  # fmt: skip


class _Shard(NamedTuple):
    """How a chunk of the grid is divided into chunks of its own."""

    chunks: tuple[int, ...]
    index_first: bool
    checksum_bytes: int


class _Layout(NamedTuple):
    version: int
    shape: tuple[int, ...]
    chunks: tuple[int, ...]  # of the grid: the shape of what one file holds
    prefix: str  # of the names of chunks: c/0/1, c.0.1 or 0.1
    separator: str
    shard: _Shard | None


def _layout(folder: Path, label: str) -> _Layout:
    """Shape, chunks and their names, once the codecs are known to be harmless."""
    old, new = folder / ".zarray", folder / "zarr.json"
    if old.exists() and new.exists():
        raise EmbeddingsError(
            label, "an array described by .zarray and by zarr.json", "one of them"
        )
    if old.exists():
        about = _metadata(old)
        codecs = [about.get("compressor"), *(about.get("filters") or [])]
        _check_codecs([codec["id"] for codec in codecs if codec is not None], label)
        if "O" in str(about["dtype"]):
            raise EmbeddingsError(label, "Python objects, which are never read", "numbers")
        shape, chunks = _grid(about["shape"], about["chunks"], label)
        return _Layout(2, shape, chunks, "", str(about.get("dimension_separator", ".")), None)
    about = _metadata(new)
    _check_codecs(_codec_names(about["codecs"]), label)
    shape, chunks = _grid(
        about["shape"], about["chunk_grid"]["configuration"]["chunk_shape"], label
    )
    names = about["chunk_key_encoding"]
    default = names["name"] == "default"
    separator = (names.get("configuration") or {}).get("separator", "/" if default else ".")
    prefix = f"c{separator}" if default else ""
    shard = _shard(about["codecs"], chunks, label)
    return _Layout(3, shape, chunks, prefix, str(separator), shard)


def _grid(shape: Any, chunks: Any, label: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if len(chunks) != len(shape) or not all(
        type(n) is int and n >= 0 and type(c) is int and c >= 1
        for n, c in zip(shape, chunks, strict=True)
    ):
        raise EmbeddingsError(label, f"shape {shape} in chunks {chunks}", "positive integers")
    return tuple(shape), tuple(chunks)


def _check_codecs(names: list[str], label: str) -> None:
    strange = [n for n in names if n.removeprefix("numcodecs.") not in _CODECS]
    if strange:
        raise EmbeddingsError(label, f"codec {listing(strange)}", f"one of {sorted(_CODECS)}")


def _codec_names(codecs: list[dict[str, Any]]) -> list[str]:
    """Names of the codecs, with those inside shards."""
    names = []
    for codec in codecs:
        inner = codec.get("configuration") or {}
        names += [codec["name"], *_codec_names(inner.get("codecs", []))]
        names += _codec_names(inner.get("index_codecs", []))
    return names


def _shard(codecs: list[dict[str, Any]], chunks: tuple[int, ...], label: str) -> _Shard | None:
    """How the files are divided; only where they hold one plain index of their chunks."""
    if _codec_names(codecs).count("sharding_indexed") == 0:
        return None
    about = codecs[0].get("configuration") or {}
    index = [codec["name"] for codec in about.get("index_codecs", [])]
    big = any("big" in str(codec) for codec in about.get("index_codecs", []))
    nested = "sharding_indexed" in _codec_names(about.get("codecs", []))
    if len(codecs) != 1 or nested or big or index not in (["bytes"], ["bytes", "crc32c"]):
        raise EmbeddingsError(label, "shards within other codecs", "shards with a plain index")
    _, inner = _grid(chunks, about["chunk_shape"], label)
    if any(whole % part for whole, part in zip(chunks, inner, strict=True)):
        raise EmbeddingsError(label, f"chunks {inner} in shards {chunks}", "whole chunks in each")
    return _Shard(inner, about.get("index_location") == "start", 4 * (len(index) - 1))


# --- its chunks -----------------------------------------------------------------------------------


def _chunk_files(folder: Path, layout: _Layout) -> dict[tuple[int, ...], Path]:
    """Files by the place of their chunk in the grid; a file of another name is no chunk."""
    number = "(0|[1-9][0-9]*)"
    names = re.compile(
        re.escape(layout.prefix) + re.escape(layout.separator).join([number] * len(layout.shape))
    )
    files = {}
    for base, _, entries in os.walk(folder):
        for entry in entries:
            file = Path(base, entry)
            match = names.fullmatch(file.relative_to(folder).as_posix())
            at = () if match is None else tuple(map(int, match.groups()))
            if at and all(
                i * c < n for i, c, n in zip(at, layout.chunks, layout.shape, strict=True)
            ):
                files[at] = file
    return files


def _missing(file: Path, at: tuple[int, ...], layout: _Layout, label: str) -> int:
    """How many chunks inside the array a shard lacks: its index has two words of ones for them."""
    assert layout.shard is not None
    index_first, checksum_bytes = layout.shard.index_first, layout.shard.checksum_bytes
    counts = [whole // part for whole, part in zip(layout.chunks, layout.shard.chunks, strict=True)]
    index_bytes = 16 * math.prod(counts)
    size = file.stat().st_size
    if size < index_bytes + checksum_bytes:
        raise EmbeddingsError(label, f"a shard of {size} bytes", f"an index of {index_bytes} bytes")
    with file.open("rb") as stream:
        stream.seek(0 if index_first else size - index_bytes - checksum_bytes)
        index = np.frombuffer(stream.read(index_bytes), "<u8").reshape(*counts, 2)
    # A shard at the edge has chunks beyond the array, which nobody writes.
    inside = [
        -(-min(whole, n - i * whole) // part)
        for i, n, whole, part in zip(
            at, layout.shape, layout.chunks, layout.shard.chunks, strict=True
        )
    ]
    index = index[tuple(slice(count) for count in inside)]
    return int(np.all(index == np.iinfo(np.uint64).max, axis=-1).sum())
