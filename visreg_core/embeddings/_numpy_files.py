"""`.npy` and `.npz`, by their published layout; both are mapped unless they are compressed."""

from __future__ import annotations

import ast
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from visreg_core.embeddings._source import (
    Embeddings,
    EmbeddingsError,
    bfloat16,
    check_chunk,
    check_shape,
    embeddings,
    map_array,
    no_name,
    one_line,
    pick,
)

_MAGIC = b"\x93NUMPY"
_HEADER_BYTES = 1 << 16
_LOCAL_HEADER_BYTES = 30  # of a zip member, before its name and extra field


class _Header(NamedTuple):
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    offset: int  # of the values, from the start of the header

    @property
    def value_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy(path: Path, name: str | None, label: str) -> Embeddings:
    """The array of an .npy file, mapped."""
    no_name(label, name, ".npy")
    with path.open("rb") as stream:
        header = _read_header(stream, label)
    return _mapped(path, header, 0, path.stat().st_size, label)


def read_npz(path: Path, name: str | None, label: str) -> Embeddings:
    """One member of an .npz archive: mapped if it is stored, streamed if it is deflated."""
    with zipfile.ZipFile(path) as archive:
        members = [
            (info.filename.removesuffix(".npy"), info)
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        ]
        member = dict(members)[pick(label, [key for key, _ in members], name)]
        if member.flag_bits & 1 or member.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise EmbeddingsError(
                label, "an encrypted or unusually compressed member", "a stored or deflated one"
            )
        with archive.open(member) as stream:
            header = _read_header(stream, label)
    if member.compress_type == zipfile.ZIP_STORED:
        start = _member_offset(path, member, label)
        return _mapped(path, header, start, member.file_size, label)
    if header.offset + header.value_bytes != member.file_size:
        raise _wrong_size(label, member.file_size, header)
    if header.fortran:
        # Columns are stored one after another: no block of rows is complete before the last column.
        check_chunk(label, header.value_bytes, member.compress_size)

    def pieces(rows: int) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            stream.read(header.offset)
            n, d = header.shape
            step = n if header.fortran else rows
            for start in range(0, n, step):
                count = min(step, n - start)
                data = stream.read(count * d * header.dtype.itemsize)
                values = np.frombuffer(data, header.dtype)
                yield values.reshape(d, count).T if header.fortran else values.reshape(count, d)

    return embeddings(label, header.shape, header.dtype, pieces)


def _mapped(path: Path, header: _Header, start: int, size: int, label: str) -> Embeddings:
    if header.offset + header.value_bytes != size:
        raise _wrong_size(label, size, header)
    array = map_array(
        path, header.dtype, header.shape, start + header.offset, fortran=header.fortran
    )
    return embeddings(label, header.shape, header.dtype, lambda rows: [array])


def _wrong_size(label: str, size: int, header: _Header) -> EmbeddingsError:
    return EmbeddingsError(
        label,
        f"{size} bytes",
        f"{header.offset + header.value_bytes} bytes for {header.dtype} of shape {header.shape}",
    )


def _member_offset(path: Path, member: zipfile.ZipInfo, label: str) -> int:
    """Where the bytes of a stored member begin: its local header has lengths of its own."""
    with path.open("rb") as stream:
        stream.seek(member.header_offset)
        local = stream.read(_LOCAL_HEADER_BYTES)
    name_bytes, extra_bytes = (int.from_bytes(local[i : i + 2], "little") for i in (26, 28))
    start = member.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    if start + member.file_size > path.stat().st_size:
        raise EmbeddingsError(label, "a truncated member", f"{member.file_size} bytes of it")
    return start


def _read_header(stream: IO[bytes], label: str) -> _Header:
    """The header of an .npy stream (NEP 1), of which nothing is trusted."""
    start = stream.read(len(_MAGIC) + 2)
    if start[: len(_MAGIC)] != _MAGIC or len(start) != len(_MAGIC) + 2:
        raise EmbeddingsError(label, f"first bytes {start[:6]!r}", f"{_MAGIC!r}")
    if start[-2] not in (1, 2, 3):
        raise EmbeddingsError(label, f".npy version {start[-2]}.{start[-1]}", "1.0, 2.0 or 3.0")
    length_bytes = 2 if start[-2] == 1 else 4
    length = int.from_bytes(stream.read(length_bytes), "little")
    if length > _HEADER_BYTES:
        raise EmbeddingsError(label, f"a header of {length} bytes", f"at most {_HEADER_BYTES}")
    text = stream.read(length)
    if len(text) != length:
        raise EmbeddingsError(label, f"{len(text)} bytes of header", f"{length} bytes")
    fields = _literal(text.decode("utf-8" if start[-2] == 3 else "latin-1").strip(), label)
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise EmbeddingsError(label, "a malformed header", "descr, fortran_order and shape")
    shape, fortran = fields["shape"], fields["fortran_order"]
    if (
        not isinstance(shape, tuple)
        or not all(type(n) is int and n >= 0 for n in shape)
        or not isinstance(fortran, bool)
    ):
        raise EmbeddingsError(label, "a malformed header", "a shape and an order")
    dtype = _dtype(fields["descr"], label)
    check_shape(label, shape)
    offset = len(start) + length_bytes + length
    return _Header(dtype, shape, fortran, offset)


def _literal(text: str, label: str) -> object:
    """The value that a header writes down; Python 2 wrote some integers with a suffix L."""
    for written in (text, re.sub(r"(?<=\d)L(?=\s*[,)])", "", text)):
        try:
            return ast.literal_eval(written)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            pass
    raise EmbeddingsError(
        label, f"the header {one_line(text, 60)!r}", "a dictionary of descr, fortran_order, shape"
    )


_KINDS = {"i": "int", "u": "uint", "c": "complex", "f": "float"}


def _dtype(descr: object, label: str) -> np.dtype:
    expected = "float16, bfloat16, float32 or float64"
    if not isinstance(descr, str):
        raise EmbeddingsError(label, "a structured dtype", expected)
    if re.fullmatch(r"[<>=|]?f[248]", descr):
        return np.dtype(descr)
    if re.fullmatch(r"[<|]V2", descr):  # what numpy.save writes for bfloat16
        return bfloat16(label)
    if "O" in descr:
        raise EmbeddingsError(label, "pickled Python objects, which are never read", expected)
    number = re.fullmatch(r"[<>=|]?([iucf])(\d{1,2})", descr)
    found = f"{_KINDS[number[1]]}{8 * int(number[2])}" if number else repr(descr)
    raise EmbeddingsError(label, f"dtype {found}", expected)
