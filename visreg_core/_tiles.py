"""How much to work on at a time: chunks of slices to bound memory, tiles of rows for the cache."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from visreg_core import _xp
from visreg_core._typing import Array, Namespace

# Bytes of projections that a chunk may hold: on the host enough to feed one matrix product, on
# devices enough to fill them.
_CHUNK_BYTES = {"numpy": 1 << 23}
_CHUNK_BYTES_DEVICE = 1 << 26


def default_chunk(xp: Namespace, row_bytes: int) -> int:
    """How many slices to project at once when one takes `row_bytes` bytes."""
    budget = _CHUNK_BYTES.get(_xp.name(xp), _CHUNK_BYTES_DEVICE)
    return max(1, budget // max(row_bytes, 1))


# What a thread works on at a time should stay in its core's own cache.
_CACHE_BYTES = 1 << 20


def map_rows(
    xp: Namespace, body: Callable[..., tuple[Array, ...]], *arrays: Array, scratch: int
) -> tuple[Array, ...]:
    """`body(*arrays)` for a body that treats every index of the leading axis by itself.

    On NumPy the rows are worked on in tiles, spread over threads (NumPy's loops release the
    interpreter lock), so small that `scratch` arrays of their size fit the cache; elsewhere `body`
    sees everything at once.
    """
    if _xp.name(xp) != "numpy":
        return body(*arrays)
    rows = arrays[0].shape[0]
    row_bytes = max(a.nbytes for a in arrays) // rows
    tile = max(1, min(_CACHE_BYTES // (scratch * row_bytes), -(-rows // _threads())))
    if rows <= tile:
        return body(*arrays)

    def run(start: int) -> tuple[Array, ...]:
        return body(*(a[start : start + tile] for a in arrays))

    first = run(0)
    out = tuple(np.empty((rows, *x.shape[1:]), x.dtype) for x in first)

    def store(start: int, parts: tuple[Array, ...]) -> None:
        for whole, part in zip(out, parts, strict=True):
            whole[start : start + tile] = part

    store(0, first)
    starts = range(tile, rows, tile)
    if _threads() == 1:
        for start in starts:
            store(start, run(start))
    else:
        from concurrent.futures import ThreadPoolExecutor  # loads logging, which takes a while

        with ThreadPoolExecutor(_threads()) as pool:
            for _ in pool.map(lambda start: store(start, run(start)), starts):
                pass
    return out


def _threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
