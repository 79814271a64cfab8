"""WebDataset shards: a `.tar` file with one `.npy` vector for each item."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from visreg_core.embeddings._source import (
    Embeddings,
    EmbeddingsError,
    embeddings,
    listing,
    one_line,
    pick,
)


def read_tar(path: Path, name: str | None, label: str) -> Embeddings:
    """The vectors KEY.NAME of all keys in the archive's order, with the keys as ids."""
    members: dict[str, list[tuple[str, int, int]]] = {}
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            kind, key = _key(member.name)
            if member.isfile() and kind.endswith("npy"):
                members.setdefault(kind, []).append((key, member.offset_data, member.size))
    kind = pick(label, sorted(members), name)
    rows = members[kind]
    with path.open("rb") as stream:
        stream.seek(rows[0][1])
        header, dtype, dim = _header(stream.read(rows[0][2]), label)
    odd = [key for key, _, size in rows if size != rows[0][2]]
    if odd:
        raise EmbeddingsError(label, f"other sizes of {listing(odd, 3)}", "vectors of one length")

    def pieces(count: int) -> Iterator[np.ndarray]:
        with path.open("rb") as stream:
            for start in range(0, len(rows), count):
                some = rows[start : start + count]
                block = np.empty((len(some), dim), dtype)
                for row, (key, offset, size) in zip(block, some, strict=True):
                    stream.seek(offset)
                    data = stream.read(size)
                    if data[: len(header)] != header:
                        found = f"another shape or dtype in {one_line(key, 60)}"
                        raise EmbeddingsError(label, found, f"{dtype} of shape ({dim},)")
                    row[:] = np.frombuffer(data, dtype, offset=len(header))
                yield block

    opened = embeddings(label, (len(rows), dim), dtype, pieces)
    return replace(opened, ids=np.array([key for key, _, _ in rows]))


def _key(name: str) -> tuple[str, str]:
    """What follows the first dot of the file's name, and all that is before it."""
    path = PurePosixPath(name)
    stem, _, kind = path.name.partition(".")
    return kind, str(path.with_name(stem)) if stem else ""


def _header(data: bytes, label: str) -> tuple[bytes, np.dtype, int]:
    """Header, dtype and length of a vector's .npy file."""
    import io

    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else (
        np.lib.format.read_array_header_2_0
    )  # fmt: skip
    shape, _, dtype = read(stream)
    size = stream.tell()
    if len(shape) != 1 or len(data) - size != shape[0] * dtype.itemsize:
        raise EmbeddingsError(label, f"items of shape {shape}", "a vector for each item")
    return data[:size], dtype, int(shape[0])
