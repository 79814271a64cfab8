"""How far a run is: a bar on a terminal, and a line at a time where there is none."""

from __future__ import annotations

import resource
import sys
import time
from datetime import timedelta

import torch
from accelerate import Accelerator
from tqdm import tqdm

SECONDS = 5  # between two lines; the first and the last are always there


def say(accelerator: Accelerator, *lines: str) -> None:
    """Lines from the main process, which do not break the progress bar."""
    if accelerator.is_main_process:
        for line in lines:
            tqdm.write(line, file=sys.stderr)


class Progress:
    """Of steps ``first ... steps``, each of so many `images`."""

    def __init__(self, accelerator: Accelerator, first: int, steps: int, images: int) -> None:
        self.accelerator, self.first, self.steps, self.images = accelerator, first, steps, images
        shown = accelerator.is_main_process
        self.lines = shown and not sys.stderr.isatty()
        self.bar = tqdm(total=steps, initial=first, unit="step", disable=not shown or None)
        self.begun = self.since = time.monotonic()
        self.last, self.told = first, -float("inf")

    def report(self, done: int, loss: float) -> None:
        """After `done` steps, whose last loss is known: the host has waited for them."""
        now = time.monotonic()
        step = (now - self.since) / max(1, done - self.last)
        left = (now - self.begun) / max(1, done - self.first) * (self.steps - done)
        rate = self.images / max(step, 1e-9)
        facts = {
            "loss": f"{loss:.4f}",
            "images/s": f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}",
            "memory": f"{memory(self.accelerator.device) / 1e9:.2f} GB",
        }
        self.bar.set_postfix(facts)
        if self.lines and (now - self.told >= SECONDS or done == self.steps):
            told = ", ".join(f"{name} {value}" for name, value in facts.items())
            time_left = timedelta(seconds=round(left))
            say(
                self.accelerator,
                f"step {done} of {self.steps}: {told}, {step:.3g} s a step, {time_left} left",
            )
            self.told = now
        self.since, self.last = now, done

    def tell(self, done: int, measures: dict[str, float]) -> None:
        """What an evaluation found."""
        told = ", ".join(f"{name} {value:.1%}" for name, value in measures.items())
        say(self.accelerator, f"step {done} of {self.steps}: {told}")


def memory(device: torch.device) -> int:
    """Most bytes that this process has held: of the GPU's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
