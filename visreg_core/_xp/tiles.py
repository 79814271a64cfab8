"""How much to work on at a time: chunks of slices for memory, tiles for the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from visreg_core import _xp, threads
from visreg_core.typing import Array, Namespace

# Bytes of projections that a chunk may hold: on the host what one thread works on at a time (of JAX
# no faster, but with less memory than larger ones), on devices enough to fill them.
_CHUNK_BYTES_HOST = 1 << 22
_CHUNK_BYTES_DEVICE = 1 << 26
# Bytes of all arrays that a tile of rows works with: about two cores' caches. Half of that would
# fit better, but makes operations so short that threads mostly wait for each other.
_TILE_BYTES = 1 << 23


def default_chunk(xp: Namespace, row_bytes: int) -> int:
    """How many slices to project at once when one takes `row_bytes` bytes."""
    budget = _CHUNK_BYTES_HOST if _xp.is_on_host(xp) else _CHUNK_BYTES_DEVICE
    return max(1, budget // max(row_bytes, 1))


def in_tiles(
    xp: Namespace, body: Callable[..., tuple[Array, ...]], *arrays: Array, scratch: int
) -> tuple[Array, ...]:
    """`body(*arrays)` for a body that treats the indices of the leading axis independently.

    On NumPy the rows are worked on in tiles for which `scratch` arrays fit the cache; elsewhere
    `body` sees everything at once.
    """
    rows = arrays[0].shape[0]
    if not _xp.works_in_tiles(xp):
        return body(*arrays)
    row_bytes = max(a.nbytes for a in arrays) // rows
    tile = max(1, _TILE_BYTES // (scratch * row_bytes))
    if rows <= tile:
        return body(*arrays)
    out: tuple[Array, ...] = ()
    for start in range(0, rows, tile):
        parts = body(*(a[start : start + tile] for a in arrays))
        if not out:
            out = tuple(np.empty((rows, *x.shape[1:]), x.dtype) for x in parts)
        for whole, part in zip(out, parts, strict=True):
            whole[start : start + tile] = part
    return out


def map_rows(
    xp: Namespace, body: Callable[..., tuple[Array, ...]], *arrays: Array, scratch: int
) -> tuple[Array, ...]:
    """`in_tiles`, on NumPy with the rows spread over threads."""
    if not _xp.works_in_tiles(xp):
        return body(*arrays)

    def work(rows: Sequence[int]) -> tuple[Array, ...]:
        mine = (a[rows[0] : rows[-1] + 1] for a in arrays)
        return in_tiles(xp, body, *mine, scratch=scratch)

    parts = threads.spread(work, range(arrays[0].shape[0]), max(a.nbytes for a in arrays))
    return tuple(p[0] if len(p) == 1 else np.concatenate(p) for p in zip(*parts, strict=True))
