"""The lazy (N, D) array that every reader returns, and its errors of one line."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from visreg_core import _xp, checks
from visreg_core.embeddings._sampling import draw
from visreg_core.optional import require

# A wider row means a corrupt header. A chunk that has to be unpacked as a whole may be this large,
# or as much larger than its file as deflate can make it (1032 : 1).
ROW_BYTES = 1 << 28
CHUNK_BYTES = 1 << 28
EXPANSION = 1100

# Values of one block of rows: 64 MiB once they are float64.
BLOCK_VALUES = 1 << 23

Pieces = Callable[[int], Iterable[np.ndarray]]


class EmbeddingsError(ValueError):
    """A file does not hold embeddings: file, what was found, what was expected, in one line."""

    def __init__(self, file: str, found: str, expected: str) -> None:
        found, expected = one_line(found), one_line(expected)
        super().__init__(f"{one_line(file)}: found {found}; expected {expected}")


class EmbeddingsWarning(UserWarning):
    """What was left out of a file, or assumed of it, in one line."""


def one_line(text: object, limit: int = 400) -> str:
    """`text` with line breaks and control characters escaped, cut to `limit` characters."""
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)
    )
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"


def listing(names: Iterable[str], limit: int = 12) -> str:
    """The first names, and how many more there are."""
    every = list(names)
    shown = ", ".join(one_line(n, 60) for n in every[:limit])
    return shown if len(every) <= limit else f"{shown} and {len(every) - limit} more"


# Errors of a parser's own, whose messages mean nothing to a user.
_STUMBLED = (ArithmeticError, AssertionError, AttributeError, LookupError, SyntaxError, TypeError)


@contextmanager
def parsing(file: str, expected: str) -> Iterator[None]:
    """Turn whatever a parser raises on hostile bytes into one EmbeddingsError.

    A parser of a foreign format may raise any exception and warn about anything, so everything is
    caught here; the original stays chained for debugging.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (EmbeddingsError, ImportError):
        raise
    except Exception as error:
        said = str(error).strip().split("\n")[0]
        found = f"{type(error).__name__}: {said}" if said else type(error).__name__
        if isinstance(error, _STUMBLED):
            found = f"a malformed description ({found})"
        raise EmbeddingsError(file, one_line(found, 200), expected) from error


@dataclass(frozen=True)
class Embeddings:
    """N saved embeddings of D dimensions, read by blocks of rows.

    Made by `visreg_core.embeddings.load`. No values are in memory: `blocks` reads them each time,
    as views of the mapped file where the format allows it.

    Attributes
    ----------
    name : str
        The file, and the array in it, as they were given.
    shape : tuple of int
        ``(N, D)``.
    dtype : numpy.dtype
        float16, bfloat16, float32 or float64, in native byte order.
    notes : tuple of str
        What was left out of the file, a line each; `load` warns of it, too.
    ids : numpy.ndarray, optional
        Integers or strings that name the rows, one for each row of the file.
    """

    name: str
    shape: tuple[int, int]
    dtype: np.dtype
    pieces: Pieces
    selection: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    ids: np.ndarray | None = None

    def blocks(self, block_rows: int | None = None) -> Iterator[np.ndarray]:
        """Consecutive ``(block_rows, D)`` arrays; only the last may be shorter.

        By default a block has about eight million values. Do not write into them. Raises
        EmbeddingsError where the file turns out to be truncated or of another shape.
        """
        rows = self.default_block_rows if block_rows is None else block_rows
        blocks = _rebatch(self._checked(rows), rows)
        return blocks if self.selection is None else _rebatch(_select(blocks, self.selection), rows)

    @property
    def default_block_rows(self) -> int:
        """Rows of about eight million values, and at least one."""
        return max(1, BLOCK_VALUES // self.shape[1])

    def select(self, rows: np.ndarray) -> Embeddings:
        """The embeddings of these row numbers, which increase strictly."""
        if self.selection is not None:
            rows = self.selection[rows]
        return replace(self, shape=(len(rows), self.shape[1]), selection=rows)

    def ordered(self, rows: np.ndarray) -> Embeddings:
        """The embeddings of these row numbers, in this order.

        Selected where they increase. Else a file that is mapped is read where the rows are, and
        any other is held in memory.
        """
        ids = None if self.ids is None else self.names(rows)
        if np.all(np.diff(rows) > 0):
            return self.select(rows)
        held: list[np.ndarray] = []

        def pieces(count: int) -> Iterator[np.ndarray]:
            if not held:
                first = next(iter(self.pieces(count)))
                whole = self.selection is None and len(first) == self.shape[0]
                held.append(first if whole else self.to_numpy())
            for start in range(0, len(rows), count):
                yield held[0][rows[start : start + count]]

        shape = len(rows), self.shape[1]
        return replace(self, shape=shape, pieces=pieces, selection=None, ids=ids)

    def names(self, rows: np.ndarray) -> np.ndarray:
        """Ids of these rows, or their numbers in the file where it has no ids."""
        numbers = rows if self.selection is None else self.selection[rows]
        return numbers if self.ids is None else self.ids[numbers]

    def sample(self, count: int, *, seed: int = 0) -> Embeddings:
        """`count` rows drawn without replacement, in the file's order; all where there are fewer.

        The draw depends on (seed, N, count) alone, so that it is the same for two files of the same
        items. It uses words of the stream of `random_slices` that no direction uses.
        """
        checks.positive_int("count", count, minimum=2)
        return self if count >= self.shape[0] else self.select(draw(self.shape[0], count, seed))

    def to_numpy(self) -> np.ndarray:
        """All rows as one array in memory."""
        out = np.empty(self.shape, self.dtype)
        start = 0
        for block in self.blocks():
            out[start : start + len(block)] = block
            start += len(block)
        return out

    def _checked(self, rows: int) -> Iterator[np.ndarray]:
        """The reader's pieces, checked against the announced shape."""
        total, width = 0, self.shape[1]
        pieces = iter(self.pieces(rows))
        while True:
            with parsing(self.name, f"{width} readable values in each row"):
                piece = next(pieces, None)
            if piece is None:
                break
            if piece.ndim != 2 or piece.shape[1] != width:
                found = f"rows of shape {piece.shape[1:]} after row {total}"
                raise EmbeddingsError(self.name, found, f"{width} values in each row")
            total += len(piece)
            yield piece.astype(self.dtype, copy=False)
        announced = self.shape[0] if self.selection is None else None
        if announced is not None and total != announced:
            raise EmbeddingsError(self.name, f"{total} rows", f"{announced} rows as announced")


def _rebatch(pieces: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The same rows in arrays of exactly `rows` rows, as views where one piece holds them."""
    held: list[np.ndarray] = []
    count = 0
    for piece in pieces:
        start = 0
        while start < len(piece):
            part = piece[start : start + rows - count]
            held.append(part)
            start, count = start + len(part), count + len(part)
            if count == rows:
                yield held[0] if len(held) == 1 else np.concatenate(held)
                held, count = [], 0
    if held:
        yield held[0] if len(held) == 1 else np.concatenate(held)


def _select(blocks: Iterable[np.ndarray], selection: np.ndarray) -> Iterator[np.ndarray]:
    start = 0
    for block in blocks:
        first, last = np.searchsorted(selection, (start, start + len(block)))
        if last > first:
            yield block[selection[first:last] - start]
        start += len(block)


def embeddings(
    file: str,
    shape: Sequence[int],
    dtype: np.dtype,
    pieces: Pieces,
    notes: tuple[str, ...] = (),
) -> Embeddings:
    """An Embeddings of this announced shape and dtype, or an EmbeddingsError."""
    check_shape(file, shape)
    native = dtype.newbyteorder("=")
    check_dtype(file, _xp.dtype_name(native))
    if shape[1] * native.itemsize > ROW_BYTES:
        raise EmbeddingsError(file, f"shape {tuple(shape)}", f"rows of at most {ROW_BYTES} bytes")
    shape = int(shape[0]), int(shape[1])
    return Embeddings(file, shape, native, pieces, notes=tuple(map(one_line, notes)))


def check_shape(file: str, shape: Sequence[int]) -> None:
    """EmbeddingsError unless `shape` is (N, D) with N >= 2 and D >= 1."""
    if len(shape) != 2:
        raise EmbeddingsError(file, f"an array of shape {tuple(shape)}", "shape (N, D)")
    if shape[0] < 2 or shape[1] < 1:
        raise EmbeddingsError(file, f"shape {tuple(shape)}", "(N, D) with N >= 2 rows and D >= 1")


def check_dtype(file: str, found: str) -> None:
    """EmbeddingsError unless `found` names a floating dtype."""
    if found not in _xp.FLOATING:
        raise EmbeddingsError(file, f"dtype {found}", ", ".join(_xp.FLOATING))


def check_chunk(file: str, chunk_bytes: int, stored_bytes: int) -> None:
    """EmbeddingsError where a chunk would unpack to more than its file can plausibly hold."""
    if chunk_bytes > CHUNK_BYTES + EXPANSION * stored_bytes:
        raise EmbeddingsError(
            file,
            f"chunks of {chunk_bytes} bytes in a file of {stored_bytes} bytes",
            f"chunks of at most {CHUNK_BYTES} bytes + {EXPANSION} times the file",
        )


def pick(file: str, names: Sequence[str], name: str | None) -> str:
    """The array to read: the one requested, or the only one."""
    if name is not None and names.count(name) > 1:
        found = f"{names.count(name)} arrays named {one_line(name, 60)!r}"
        raise EmbeddingsError(file, found, "one array of that name")
    if name is not None:
        if name not in names:
            raise EmbeddingsError(
                file,
                f"arrays {listing(names)}" if names else "no array of embeddings",
                f"one named {one_line(name, 60)!r}",
            )
        return name
    if len(names) != 1:
        found = f"{len(names)} arrays ({listing(names)})" if names else "no array of embeddings"
        raise EmbeddingsError(file, found, "one array, or FILE::name to say which")
    return names[0]


def no_name(file: str, name: str | None, format_name: str) -> None:
    """EmbeddingsError where an array is named in a format that holds a single one."""
    if name is not None:
        raise EmbeddingsError(
            file, f"::{one_line(name, 60)}", f"no name: a {format_name} file holds one array"
        )


def bfloat16(file: str) -> np.dtype:
    """NumPy's dtype for bfloat16, which ml_dtypes registers."""
    module = require("ml_dtypes", extra="io", purpose=f"{one_line(file)}: reading bfloat16")
    return np.dtype(module.bfloat16)


def map_array(
    path: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int, *, fortran: bool = False
) -> np.ndarray:
    """Read-only array whose pages are those of the file; the caller has checked that it fits."""
    stored = shape[::-1] if fortran else shape
    mapped = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=stored)
    return mapped.view(np.ndarray).T if fortran else mapped.view(np.ndarray)
