"""From `file` or `file::name` to Embeddings, by the file's suffix."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path

from visreg_core.embeddings import _csv, _numpy_files, _stores, _tables, _tensors, _zarr
from visreg_core.embeddings._source import (
    Embeddings,
    EmbeddingsError,
    EmbeddingsWarning,
    one_line,
    parsing,
)

_READERS: dict[str, Callable[[Path, str | None, str], Embeddings]] = {
    ".npy": _numpy_files.read_npy,
    ".npz": _numpy_files.read_npz,
    ".safetensors": _tensors.read_safetensors,
    ".pt": _tensors.read_torch,
    ".pth": _tensors.read_torch,
    ".parquet": _tables.read_parquet,
    ".pq": _tables.read_parquet,
    ".arrow": _tables.read_arrow,
    ".feather": _tables.read_arrow,
    ".h5": _stores.read_hdf5,
    ".hdf5": _stores.read_hdf5,
    ".zarr": _zarr.read_zarr,
    ".csv": _csv.read_csv,
}

FORMATS: tuple[str, ...] = tuple(_READERS)
"""Suffixes of the files that `load` reads."""


def load(spec: str | os.PathLike[str]) -> Embeddings:
    """Open saved embeddings without reading their values.

    Parameters
    ----------
    spec : str or path
        A file of one of `FORMATS` (by its suffix) that holds one floating array ``(N, D)``, or
        ``file::name`` for one array of several: a member of an ``.npz``, a tensor of a
        ``.safetensors`` or ``.pt`` file, a dataset ``group/name`` of an ``.h5`` or ``.zarr`` store,
        a column of lists of a ``.parquet`` or ``.arrow`` table. A table without a column of lists
        may have one floating column for each dimension. A ``.csv`` file has one row for each line,
        with or without a line of column names (pandas' ``0,1,2,…`` is one), and is read as float64.
        The index of a table is not a dimension and is left out: columns that pandas' metadata in
        Parquet and Arrow call one; and, in any table, columns without a name or named ``index``,
        ``Unnamed: 0`` or ``__index_level_0__``; in a ``.csv`` file only where they come first, as
        do the columns before pandas' ``0,1,2,…``, R's row names, and integers that count the rows.

    Returns
    -------
    Embeddings
        With ``name``, ``shape`` and ``dtype``, whose ``blocks()`` yields blocks of rows. The
        values of ``.npy``, ``.safetensors``, ``.pt``, uncompressed ``.npz`` and ``.arrow`` files
        are mapped, not copied.

    Raises
    ------
    EmbeddingsError
        A ValueError of one line: file, what was found, what was expected. The file is missing,
        truncated, of another shape or dtype, or has fewer than two rows. What only reading the
        values reveals (a truncated compressed stream) is raised while blocks are read.
    MissingExtraError
        An ImportError that names the extra which brings the format's library.

    Warns
    -----
    EmbeddingsWarning
        One line: the file and what was left out of it; also in `Embeddings.notes`.

    Notes
    -----
    Nothing is unpickled: object arrays are refused, and ``.pt`` files may hold tensors in
    containers only. bfloat16 comes as ml_dtypes' NumPy dtype; ``numpy.save`` writes it as two-byte
    void, which is read back as bfloat16. A ``.zarr`` array must have all its chunks,
    and its shards all theirs: one that was never written would read as zeros. In a ``.csv`` file a
    column of varying integers among columns of fractions is refused: it is an id or a label.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from visreg_core.embeddings import load
    >>> path = os.path.join(tempfile.mkdtemp(), "z.npy")
    >>> np.save(path, np.ones((5, 3), np.float32))
    >>> z = load(path)
    >>> z.shape, z.dtype
    ((5, 3), dtype('float32'))
    >>> [block.shape for block in z.blocks(block_rows=2)]
    [(2, 3), (2, 3), (1, 3)]
    """
    label = os.fspath(spec)
    file, name = label, None
    if "::" in label and not os.path.exists(label):
        file, name = label.split("::", 1)
    path = Path(file)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise EmbeddingsError(label, f"suffix {suffix!r}", f"one of {', '.join(FORMATS)}")
    with parsing(label, "a readable file"):
        if not path.exists():
            raise EmbeddingsError(label, "no such file", "an existing one")
        mode = path.stat().st_mode
    if suffix == ".zarr":
        if not stat.S_ISDIR(mode):
            raise EmbeddingsError(label, "a file", "the directory of a Zarr store")
    elif not stat.S_ISREG(mode):
        # Opening a named pipe would block, and reading a device would not end.
        raise EmbeddingsError(label, "no regular file", f"a {suffix} file")
    with parsing(label, f"a whole and well-formed {suffix} file"):
        opened = _READERS[suffix](path, name, label)
    for note in opened.notes:
        warnings.warn(one_line(f"{label}: {note}"), EmbeddingsWarning, stacklevel=2)
    return opened
