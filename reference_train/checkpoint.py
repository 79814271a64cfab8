"""Checkpoints: written whole or not at all, and a resumed run is the uninterrupted one, bit by bit.

A file is written under a temporary name, synced, renamed, and its folder synced, by a thread beside
the training. It holds weights, optimiser, the method's state, the step (which is also the position
of data, schedule and slices), the places of a stream's lanes, every process's random number
generators, the names of the classes and where it comes from. It is read with
``weights_only=True``.
"""

from __future__ import annotations

import math
import os
import random
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reference_train.errors import TrainError

FORMAT = "visreg-core reference_train 1"
PATTERN = "checkpoint-*.pt"
# Settings that may change between a run and its continuation: they do not touch its arithmetic.
FREE = {
    "run": """folder log_every checkpoint_every checkpoint_minutes keep evaluate_every cpu threads
        tensorboard wandb accumulate recompute""".split(),
    "data": ["path", "workers", "prefetch", "test_split", "batch_size"],
    "probe": ["k", "max_rows", "tree_rows", "batch_size"],
}


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps is."""
    return folder / f"checkpoint-{step:09d}.pt"


def save(folder: Path, state: dict[str, Any], keep: int) -> Path:
    """Write ``state`` as the checkpoint of ``state["step"]`` and keep the last `keep`.

    Raises
    ------
    TrainError
        Where it cannot be written (a full disk): the earlier checkpoints are untouched.
    """
    path = path_of(folder, state["step"])
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(folder)
    except (OSError, RuntimeError) as error:  # Torch's writer hides the cause in a RuntimeError
        temporary.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__ or error
        left = [p.name for p in _newest_first(folder)][:1] or ["none"]
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        raise TrainError(
            f"cannot write {path}: {reason}; the last checkpoint is {left[0]}"
        ) from None
    # a later one is damaged or another run's, or this step would not be done again
    done = [p for p in _newest_first(folder) if p.name <= path.name]
    for old in done[keep:]:
        old.unlink()
    return path


class Writer:
    """Writes checkpoints in a thread; one at a time, so an `add` may wait for the one before."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future[Path] | None = None

    def add(self, state: dict[str, Any]) -> None:
        """Copy a state, and begin to write it."""
        self.wait()
        copied = of_tensors(state, lambda x: x.detach().to("cpu", copy=True))
        self.pending = self.thread.submit(save, self.folder, copied, self.keep)

    def wait(self) -> None:
        """Until the last one is on the disk; raises what went wrong with it."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()


def of_tensors(tree: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """Dictionaries, lists and tuples with the function of each tensor in them, in order."""
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: of_tensors(value, function) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(of_tensors(value, function) for value in tree)
    return tree


def latest(
    folder: Path, config: dict[str, Any], world: int, say: Callable[[str], None]
) -> tuple[Path, dict[str, Any]] | None:
    """The newest usable checkpoint, or none; `say` is called with a line for each that is skipped.

    Raises
    ------
    TrainError
        Where the folder holds checkpoints of another configuration only.
    """
    for left_over in folder.glob("checkpoint-*.tmp"):
        left_over.unlink()
    difference = None
    for path in _newest_first(folder):
        try:
            state = read(path)
        except TrainError as error:
            say(f"{error}: skipped")
            continue
        found = different(state, config, world)
        if found is None:
            return path, state
        difference = difference or found
        say(f"{path} is of another run ({found}): skipped")
    if difference is not None:
        raise TrainError(f"{folder} holds another run ({difference}): give run.folder another name")
    return None


def read(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU; `TrainError` if it is damaged or something else."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # Torch itself checks no sums
        if damaged:
            raise TrainError(f"{path} is damaged ({damaged})")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except TrainError:
        raise
    except Exception as error:  # readers may raise anything on a foreign file
        reason = " ".join(str(error).split())[:100]
        raise TrainError(f"{path} is not a checkpoint of this trainer ({reason})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise TrainError(f"{path} is not a checkpoint of this trainer (expected format {FORMAT!r})")
    return state


def different(state: dict[str, Any], config: dict[str, Any], world: int) -> str | None:
    """The first setting in which a checkpoint's run differs from this one.

    Processes, data.batch_size and run.accumulate may change while their product does not.
    """
    for group, settings in config.items():
        for key, value in settings.items():
            stored = state["config"].get(group, {}).get(key)
            if stored != value and key not in FREE.get(group, []):
                return f"{group}.{key}={stored}, not {value}"
    before, now = batch_shape(state["config"], state["world"]), batch_shape(config, world)
    if math.prod(before) != math.prod(now):
        return f"{said(before)} images a step, not {said(now)}"
    return None


def batch_shape(config: dict[str, Any], world: int) -> tuple[int, int, int]:
    """Processes, images of a micro-batch, micro-batches of a step."""
    return world, config["data"]["batch_size"], config["run"]["accumulate"]


def said(shape: tuple[int, int, int]) -> str:
    """``2 processes x 32 x 1``."""
    world, size, micro = shape
    return f"{world} process{'es' * (world > 1)} x {size} x {micro}"


def random_state() -> dict[str, Any]:
    """Of Python's, NumPy's and Torch's generators, as what ``weights_only`` can load."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  libraries' own draws
    key = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {"key": key, "pos": int(numpy_state["state"]["pos"])}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    numpy_state = dict(state["numpy"])
    key = numpy_state["state"]["key"].numpy().astype(np.uint32)
    numpy_state["state"] = {"key": key, "pos": numpy_state["state"]["pos"]}
    np.random.set_state(numpy_state)  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(PATTERN), reverse=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
