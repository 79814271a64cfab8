"""Threads of NumPy's path, BLAS included.

NumPy's loops release the interpreter lock, so that threads share the work. They share whole
chunks, matrix products included, with BLAS held to one thread for each: after a product of its own
threads BLAS busy-waits for the next one, and passing the lock at every small operation costs more
than the operation.
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

Item = TypeVar("Item")
Output = TypeVar("Output")

_MAX_THREADS = 8
_SMALL_BYTES = 1 << 17

_LIMIT: contextvars.ContextVar[int | None] = contextvars.ContextVar("_LIMIT", default=None)


def is_small(nbytes: int) -> bool:
    """Whether so little data is at work that calls cost more than what they compute."""
    return nbytes < _SMALL_BYTES


def spread(
    work: Callable[[Sequence[Item]], Output],
    items: Sequence[Item],
    nbytes: int,
    in_order: bool = False,
) -> list[Output]:
    """`work` on successive parts of `items`, one for each thread.

    One thread takes them all where their order matters (`in_order`) or there is little to do
    (`nbytes` of data).
    """
    threads = min(available_threads(), _MAX_THREADS, len(items))
    if in_order or threads == 1 or nbytes < _SMALL_BYTES:
        return [work(items)]
    from concurrent.futures import ThreadPoolExecutor  # slow to import

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


@contextlib.contextmanager
def blas_on_one_thread() -> Iterator[None]:
    """Context, or decorator, that leaves threads to `spread`: those of BLAS wait busily."""
    with _BLAS.limited(1):
        yield


class at_most_threads:
    """Context that holds NumPy's path, BLAS included, to this many threads.

    For callers that set the number elsewhere, as several processes on one machine do. BLAS
    multiplies small matrices on one thread anyway, and setting its limit takes longer than that: it
    is left alone where `nbytes`, the size of the arrays, is small.
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
    child forked meanwhile has the calling thread and no other.
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
                import scipy.linalg  # noqa: F401 - loads a BLAS of its own
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
        """In a child: release what threads that it does not have held."""
        me = threading.get_ident()
        self._callers = {me: self._callers[me]} if me in self._callers else {}
        self._restore()
        self._lock.release()


_BLAS = _BlasThreads()
