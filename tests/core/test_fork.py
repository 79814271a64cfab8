"""Threads of a child that is forked while other threads hold BLAS to one."""

import os
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from visreg_core import threads

pytestmark = [
    pytest.mark.backends("numpy"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is of POSIX"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]
TIMEOUT = 60


def blas_threads():
    """Of all but those on OpenMP, such as Faiss's, whose number is each thread's own."""
    np.ones((2, 2)) @ np.ones((2, 2))
    found = [i for i in threadpool_info() if i["user_api"] == "blas"]
    return {i["num_threads"] for i in found if i.get("threading_layer") != "openmp"}


def in_child(function):
    """What a forked child returns, True or False; fails where it hangs."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:  # nothing of the test's may run in it
        try:
            os.write(writing, b"1" if function() else b"0")
        finally:
            os._exit(0)
    os.close(writing)
    said = []
    reader = threading.Thread(target=lambda: said.append(os.read(reading, 1)), daemon=True)
    reader.start()
    reader.join(TIMEOUT)
    hangs = reader.is_alive()
    if hangs:
        os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert not hangs, "the child hangs"
    return said[0] == b"1"


def elsewhere(context):
    """Enter a context in another thread; returns the event that lets it leave."""
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with context:
            entered.set()
            leave.wait(TIMEOUT)

    threading.Thread(target=hold).start()
    assert entered.wait(TIMEOUT)
    return leave


def test_a_limit_of_another_thread_is_not_the_child_s(backend):
    blas = threads._BLAS
    before = blas_threads()
    leave = elsewhere(blas.limited(1))
    try:
        assert blas_threads() == {1}
        assert in_child(lambda: blas_threads() == before)
        with blas.limited(1):  # held by the thread that forks, too: it goes on in the child
            assert in_child(lambda: blas_threads() == {1} and blas._callers != {})
    finally:
        leave.set()


def test_a_child_does_not_wait_for_a_lock_of_another_thread(backend):
    """The lock is taken again and again: a fork at any time finds it free in the child."""
    blas, done = threads._BLAS, threading.Event()

    def busy():
        while not done.is_set():
            with blas.limited(1):
                pass

    others = [threading.Thread(target=busy) for _ in range(2)]
    for thread in others:
        thread.start()

    def use():
        with blas.limited(1):
            return True

    try:
        assert all(in_child(use) for _ in range(10))
    finally:
        done.set()
        for thread in others:
            thread.join()
