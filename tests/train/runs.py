"""Runs of the trainer in processes of their own, which a test may kill.

The processes are forked from a server that has imported everything, so that a run starts in a
fraction of a second.
"""

import multiprocessing
import os
import socket

import torch

from reference_train import checkpoint, train

EVALUATED = ["data.test_split=val", "probe.max_rows=40"]

# A step of milliseconds: one narrow block on 8 x 8 pixels.
TINY = [
    "run.threads=1",
    "run.cpu=true",
    "run.max_steps=12",
    "run.checkpoint_every=1",
    "run.evaluate_every=null",
    "data.test_split=null",  # no evaluation: most tests are about the loop
    "data.batch_size=16",
    "augment.n_local=0",
    "model.width=16",
    "model.depth=2",
    "model.heads=2",
    "model.hidden=16",
    "model.dim=8",
    "method.n_slices=8",
    "optim.warmup_epochs=0.05",
]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.train.preload"])


def command(folder, *overrides, name="digits"):
    """Arguments of ``python -m reference_train``."""
    return ["--config-name", name, *TINY, f"run.folder={folder}", *overrides]


def _work(target, arguments, environment, output, curves):
    """Standard output and errors go to a file: a traceback is for the test to see."""
    os.environ.update(environment)
    if not curves:
        train.draw_curves = lambda folder: None
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    target(*arguments)


def start(target, *arguments, output, processes=1, curves=False):
    """Start `target` on so many processes, as a launcher would.

    Drawing the curves of twelve steps takes longer than the steps.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        environment = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        if processes > 1:
            environment |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        work = (target, arguments, environment, str(output), curves)
        process = _context.Process(target=_work, args=work, daemon=True)
        process.start()
        started.append(process)
    return started


def kill(processes):
    """SIGKILL, all of them."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join(30)


def status(processes, timeout=900):
    """Exit statuses; the others are killed once one has failed, as a launcher does."""
    for process in processes:
        process.join(timeout)
        if process.exitcode != 0:
            kill(processes)
            break
    return [process.exitcode for process in processes]


def run(target, *arguments, output, **options):
    """Run to the end; returns the exit statuses and what was printed."""
    codes = status(start(target, *arguments, output=output, **options))
    return codes, output.read_text() if output.exists() else ""


def state(folder, step=12):
    """The state in a run's checkpoint, but for the name of its folder, and its date."""
    found = checkpoint.read(checkpoint.path_of(folder, step))
    del found["config"]["run"]["folder"], found["provenance"]["date"]
    return found


def assert_same(a, b, where="state"):
    """Bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    else:
        assert a == b, where
