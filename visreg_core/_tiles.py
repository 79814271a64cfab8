"""How much to work on at a time: chunks of slices for memory, tiles for the cache, and threads.

NumPy's loops release the interpreter lock, so that threads share the work. They share whole
chunks, matrix products included, with BLAS held to one thread for each: after a product of its own
threads BLAS keeps a core busy waiting for the next one, and handing the lock over at every small
operation costs more than the operation.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from visreg_core import _xp
from visreg_core._typing import Array, Namespace

Item = TypeVar("Item")
Result = TypeVar("Result")

# Bytes of projections that a chunk may hold: on the host what one thread works on at a time (of JAX
# no faster, but with less memory than larger ones), on devices enough to fill them.
_CHUNK_BYTES_HOST = 1 << 22
_CHUNK_BYTES_DEVICE = 1 << 26
# Bytes of all arrays that a tile of rows works with: about two cores' caches. Half of that would
# fit better, but makes operations so short that threads mostly wait for each other.
_TILE_BYTES = 1 << 23
_MAX_THREADS = 8
_SMALL_BYTES = 1 << 17

_LIMIT: contextvars.ContextVar[int | None] = contextvars.ContextVar("_LIMIT", default=None)


def is_small(nbytes: int) -> bool:
    """Whether so little data is at work that calls cost more than what they compute."""
    return nbytes < _SMALL_BYTES


def default_chunk(xp: Namespace, row_bytes: int) -> int:
    """How many slices to project at once when one takes `row_bytes` bytes."""
    budget = _CHUNK_BYTES_HOST if _xp.is_on_host(xp) else _CHUNK_BYTES_DEVICE
    return max(1, budget // max(row_bytes, 1))


def in_tiles(
    xp: Namespace, body: Callable[..., tuple[Array, ...]], *arrays: Array, scratch: int
) -> tuple[Array, ...]:
    """`body(*arrays)` for a body that treats every index of the leading axis by itself.

    On NumPy the rows are worked on in tiles for which `scratch` arrays fit the cache; elsewhere
    `body` sees everything at once.
    """
    rows = arrays[0].shape[0]
    if _xp.name(xp) != "numpy":
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
    if _xp.name(xp) != "numpy":
        return body(*arrays)

    def work(rows: Sequence[int]) -> tuple[Array, ...]:
        mine = (a[rows[0] : rows[-1] + 1] for a in arrays)
        return in_tiles(xp, body, *mine, scratch=scratch)

    parts = spread(work, range(arrays[0].shape[0]), max(a.nbytes for a in arrays))
    return tuple(p[0] if len(p) == 1 else np.concatenate(p) for p in zip(*parts, strict=True))


def spread(
    work: Callable[[Sequence[Item]], Result],
    items: Sequence[Item],
    nbytes: int,
    in_order: bool = False,
) -> list[Result]:
    """`work` on successive parts of `items`, one for each thread.

    One thread takes them all where their order matters (`in_order`) or there is little to do
    (`nbytes` of data).
    """
    threads = min(available_threads(), _MAX_THREADS, len(items))
    if in_order or threads == 1 or nbytes < _SMALL_BYTES:
        return [work(items)]
    from concurrent.futures import ThreadPoolExecutor  # loads logging, which takes a while

    ends = [len(items) * t // threads for t in range(threads + 1)]
    parts = [items[a:b] for a, b in itertools.pairwise(ends)]
    with _BLAS.limited(max(1, available_threads() // threads)), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, parts))


def available_threads() -> int:
    """Cores that this process may use, or fewer inside `at_most_threads`."""
    limit = _LIMIT.get()
    return _cores() if limit is None else min(limit, _cores())


@functools.cache
def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class at_most_threads:
    """Context that holds NumPy's path, BLAS included, to this many threads.

    For callers whose users set the number elsewhere, as several processes on one machine do. BLAS
    multiplies small matrices on one thread anyway, and telling it so takes longer: arrays of up to
    `nbytes` bytes may say that it need not be told.
    """

    def __init__(self, limit: int, nbytes: int | None = None) -> None:
        self.limit = limit
        small = nbytes is not None and nbytes < _SMALL_BYTES
        self.blas = None if small or limit >= _cores() else _BLAS.limited(limit)

    def __enter__(self) -> None:
        self.token = _LIMIT.set(self.limit)
        if self.blas is not None:
            self.blas.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self.blas is not None:
            self.blas.__exit__(*error)
        _LIMIT.reset(self.token)


class _BlasThreads:
    """Holds BLAS to a number of threads while any caller asks for it.

    The number belongs to the process, so the first caller sets it and the last one restores it. A
    child that is forked meanwhile has the caller that forked it and no other.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callers: dict[int, int] = {}  # thread -> contexts that it is in
        self._controller: Any = None
        self._limit: Any = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._lock.acquire,
                after_in_parent=self._lock.release,
                after_in_child=self._forked,
            )

    @contextlib.contextmanager
    def limited(self, threads: int) -> Iterator[None]:
        me = threading.get_ident()
        with self._lock:
            if self._controller is None:
                import threadpoolctl  # scans the loaded libraries: once, when first needed

                self._controller = threadpoolctl.ThreadpoolController()
            if not self._callers:
                self._limit = self._controller.limit(limits=threads, user_api="blas")
                self._limit.__enter__()
            self._callers[me] = self._callers.get(me, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._callers[me] -= 1
                if self._callers[me] == 0:
                    del self._callers[me]
                    self._restore()

    def _restore(self) -> None:
        """Give BLAS its threads back once nobody holds it."""
        if not self._callers and self._limit is not None:
            self._limit.__exit__(None, None, None)
            self._limit = None

    def _forked(self) -> None:
        """In a child: what threads held that it does not have is let go."""
        me = threading.get_ident()
        self._callers = {me: self._callers[me]} if me in self._callers else {}
        self._restore()
        self._lock.release()


_BLAS = _BlasThreads()
