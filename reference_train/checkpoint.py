"""Checkpoints: written whole or not at all, and a resumed run is the uninterrupted one, bit by bit.

A file is written under a temporary name, synced, renamed, and its folder synced. It holds weights,
optimiser, the method's state, the step (which is also the position of data, schedule and slices)
and every process's random number generators. It is read with ``weights_only=True``.
"""

from __future__ import annotations

import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reference_train.errors import TrainError

FORMAT = "visreg-core reference_train 1"
PATTERN = "checkpoint-*.pt"
# Settings that may change between a run and its continuation: they do not touch its arithmetic.
FREE = {
    "run": """folder log_every checkpoint_every keep evaluate_every cpu threads
        tensorboard wandb""".split(),
    "data": ["path", "workers", "test_split"],
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


def latest(
    folder: Path, config: dict[str, Any], world: int, say: Callable[[str], None]
) -> Path | None:
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
            return path
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
    """The first setting in which a checkpoint's run differs from this one."""
    for group, settings in config.items():
        for key, value in settings.items():
            stored = state["config"].get(group, {}).get(key)
            if stored != value and key not in FREE.get(group, []):
                return f"{group}.{key}={stored}, not {value}"
    if state["world"] != world:
        return f"{state['world']} processes, not {world}"
    return None


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
