"""Seconds of a training step and of the loss in it, for the papers' shapes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from reference_train import methods
from reference_train.config import Config
from reference_train.model import Learner

# backbone, pixels, global crops, K; images of a process on a GPU and, to be done today, on a CPU
SHAPES = (("vit_s_8", 128, 4, 4096), ("vit_b_16", 224, 4, 2048))
IMAGES = {"cuda": 32, "cpu": 4}
LOSSES = ("visreg", "sigreg", "swd")
COLUMNS = ["backbone", "loss", "batch of a process", "K", "step", "loss in it", "share"]
ABOUT = (
    "Forward and backward pass without data and optimiser, D = 256, best of three. bfloat16 with "
    "float32 losses on a GPU, float32 on a CPU. The aim is 2 % on a GPU at the papers' batch."
)


def rows() -> list[list[str]]:
    """One row a shape and loss."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made = []
    for backbone, size, views, k in SHAPES:
        config = Config()
        config.model.backbone, config.augment.global_size = backbone, size
        config.augment.n_global, config.method.n_slices = views, k
        learner = Learner(config, 0).to(device)
        crops = [torch.randn(views, IMAGES[device.type], 3, size, size, device=device)]
        for name in LOSSES:
            config.method.name = name
            whole, in_loss = step_times(learner, methods.build(config, learner).to(device), crops)
            batch = f"{views} x {IMAGES[device.type]} x {size} px"
            share = f"{100 * in_loss / whole:.2f} %"
            times = f"{whole:.3f} s", f"{in_loss * 1e3:.1f} ms"
            made.append([backbone, name, batch, str(k), *times, share])
            print(" | ".join(made[-1]), flush=True)  # noqa: T201
    return made


def step_times(
    learner: Learner, method: torch.nn.Module, crops: list[torch.Tensor]
) -> tuple[float, float]:
    """Seconds of a step's forward and backward pass, and of the loss's alone."""
    device = crops[0].device
    half = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    def forward() -> Any:
        with half:
            outputs = learner(crops)
        return outputs._replace(embeddings=outputs.embeddings.float())

    def step() -> None:
        method(forward(), crops, 0)["loss"].backward()

    outputs = forward()
    leaf = outputs.embeddings.detach().requires_grad_()

    def loss() -> None:
        method(outputs._replace(embeddings=leaf), crops, 0)["loss"].backward()

    return best_of(step, device), best_of(loss, device)


def best_of(work: Callable[[], None], device: torch.device, repeats: int = 3) -> float:
    """Least wall-clock seconds, after one call that is not counted."""
    times = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return min(times[1:])
