"""What a run keeps of itself: saving its state, and going on from it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed

from reference_train import checkpoint, shard
from reference_train.config import Config, to_dict
from reference_train.data import Place
from reference_train.environment import provenance
from reference_train.errors import TrainError
from reference_train.progress import say


class Position(NamedTuple):
    """Where a run goes on; `lanes` and `places` are of streams."""

    step: int = 0
    lanes: int | None = None
    places: dict[int, Place] | None = None


class Session:
    """A run's parts, by which it is saved and resumed."""

    def __init__(
        self,
        accelerator: Accelerator,
        config: Config,
        classes: list[str] | None,
        parts: dict[str, torch.nn.Module | torch.optim.Optimizer],
    ) -> None:
        self.accelerator, self.config, self.classes = accelerator, config, classes
        self.folder, self.parts = Path(config.run.folder), parts
        self.writer = checkpoint.Writer(self.folder, config.run.keep)
        self.saved = time.monotonic()

    def due(self, done: int, steps: int) -> bool:
        """Whether a checkpoint is due by its steps."""
        every = self.config.run.checkpoint_every
        return done == steps or (every is not None and done % every == 0)

    def overdue(self) -> bool:
        """Whether one is due by the main process's clock; all processes have to ask."""
        minutes = self.config.run.checkpoint_minutes
        if minutes is None:
            return False
        late = [time.monotonic() - self.saved >= 60 * minutes]
        broadcast_object_list(late)
        return late[0]

    def save(self, step: int, lanes: int | None, places: dict[int, Place]) -> None:
        """A checkpoint by the main process, with the random numbers and the places of all."""
        self.saved = time.monotonic()
        told = gather_object([(checkpoint.random_state(), places)])
        states = {name: shard.whole(part.state_dict()) for name, part in self.parts.items()}
        if self.accelerator.is_main_process:
            farthest: dict[int, Place] = {}
            for _, of_process in told:  # each knows how far its own lanes are
                for lane, place in of_process.items():
                    farthest[lane] = max(place, farthest.get(lane, place))
            state = {
                "config": to_dict(self.config),
                "world": self.accelerator.num_processes,
                "step": step,
                **states,
                "generators": [generators for generators, _ in told],
                "lanes": lanes,
                "places": farthest,
                "classes": self.classes,
                "provenance": provenance(),
            }
            self.writer.add(state)

    def resume(self) -> Position:
        """Load the newest usable checkpoint, which the main process reads for all."""
        found: list[Any] = [None, None]
        path = state = None
        if self.accelerator.is_main_process:
            try:
                path, state = self._latest() or (None, None)
                found[0] = None if state is None else str(path)
            except TrainError as error:
                found[1] = str(error)
        broadcast_object_list(found)
        path, problem = found
        if problem is not None:
            raise TrainError(problem)
        if path is None:
            return Position()
        state = shared(state, self.accelerator)
        for name, part in self.parts.items():
            shard.load(part, state[name])
        say(self.accelerator, f"resuming from {path}")
        self._random_numbers(state)
        return Position(state["step"], state.get("lanes"), state.get("places"))

    def _latest(self) -> tuple[Path, dict[str, Any]] | None:
        world = self.accelerator.num_processes
        return checkpoint.latest(
            self.folder, to_dict(self.config), world, lambda t: say(self.accelerator, t)
        )

    def _random_numbers(self, state: dict[str, Any]) -> None:
        """Those of the checkpoint; new ones on another number of processes."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        now = checkpoint.batch_shape(to_dict(self.config), world)
        before = checkpoint.batch_shape(state["config"], state["world"])
        if now != before:
            say(
                self.accelerator,
                f"on {checkpoint.said(now)} images a step, before {checkpoint.said(before)}: the "
                "same images in the same order, but not bit-identical to one run: crops, slices "
                "and the order of sums differ",
            )
        if world == state["world"]:
            checkpoint.set_random_state(state["generators"][rank])
        else:
            words = np.random.SeedSequence([self.config.run.seed, world, rank, state["step"]])
            set_seed(int(words.generate_state(1)[0]))


def shared(state: dict[str, Any] | None, accelerator: Accelerator) -> dict[str, Any]:
    """The main process's state, on the CPU of every process; one tensor at a time."""
    if accelerator.num_processes == 1:
        return state
    shape = [checkpoint.of_tensors(state, lambda x: x.to("meta"))]
    broadcast_object_list(shape)
    tensors: list[torch.Tensor] = []
    checkpoint.of_tensors(state, tensors.append)
    mine = iter(tensors)

    def sent(like: torch.Tensor) -> torch.Tensor:
        if accelerator.is_main_process:
            tensor = next(mine).to(accelerator.device).contiguous()
        else:
            tensor = torch.empty(like.shape, dtype=like.dtype, device=accelerator.device)
        dist.broadcast(tensor, 0)
        return tensor.cpu()

    return checkpoint.of_tensors(shape[0], sent)
