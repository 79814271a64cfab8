"""Real processes for the tests: a group of them runs a function, and what each returns comes back.

One server imports torch once and forks every process, so that a group costs no imports. The
processes find each other through a file: no port can be taken.
"""

import contextlib
import multiprocessing
import os
import tempfile
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = [
    "pytest",
    "tests.cases",
    "tests.torch_adapter.processes",
    "visreg_torch.explanation",
    "visreg_torch.functional",
]
_ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}


class Died(Exception):
    """A process ended without a result."""


def run(size, work, *arguments, timeout=300.0, deadline=900.0):
    """``work(rank, *arguments)`` in `size` processes of a Gloo group: their results by rank.

    A result is what `torch.save` takes without pickling code: tensors, numbers, strings, lists and
    dictionaries. A process that raised or died gives its exception. `timeout` is the group's, in
    seconds; after `deadline` all are killed and the test fails. Both are for hangs: a busy machine
    may take many times as long as a quiet one.
    """
    with tempfile.TemporaryDirectory() as folder, _environment(_ONE_THREAD):
        _CONTEXT.set_forkserver_preload(_PRELOADED)
        processes = [
            _CONTEXT.Process(target=_process, args=(rank, size, folder, timeout, work, arguments))
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        end = time.monotonic() + deadline
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        late = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()
            process.join()
        if late:
            raise TimeoutError(f"ranks {late} of {size} still ran after {deadline:.0f} s")
        return [_result(Path(folder) / str(rank), rank) for rank in range(size)]


def successful(results):
    """Results of which none is an exception."""
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def _result(path, rank):
    if not path.exists():
        return Died(f"rank {rank} left no result")
    kind, result = torch.load(path, weights_only=True)
    return result if kind == "result" else RuntimeError(f"rank {rank} raised:\n{result}")


def _process(rank, size, folder, timeout, work, arguments):
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
        )
        outcome = ("result", work(rank, *arguments))
    except BaseException:
        outcome = ("error", traceback.format_exc())
    torch.save(outcome, f"{folder}/{rank}.part")
    os.replace(f"{folder}/{rank}.part", f"{folder}/{rank}")  # whole or not at all
    if outcome[0] == "result":  # others may still wait for what this one has to send
        with contextlib.suppress(RuntimeError):
            dist.barrier()
    # Without the interpreter's shutdown, which would wait for processes that are gone.
    os._exit(0)


@contextlib.contextmanager
def _environment(values):
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
