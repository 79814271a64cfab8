"""Images to features: read by the training's loading processes, embedded on all its devices.

Batch b of the rows is the work of process b mod world. So no process waits for another longer than
for a batch, and the batches with their random crops do not depend on the number of processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from reference_train.collectives import world_size
from reference_train.errors import LocalError, one_line
from reference_train.sources import Source, Unreadable
from visreg_torch import gather_rows

Encoder = Callable[[torch.Tensor], torch.Tensor]  # normalised images -> (N, F)


class Read(NamedTuple):
    """The readable images of a batch, and the first one that is not."""

    number: int  # of the batch
    images: torch.Tensor | None  # uint8, (N, C, size, size); none where there is no readable one
    rows: list[int]
    unreadable: Unreadable | None


class _Batches(Dataset):
    def __init__(self, source: Source, numbered: list[tuple[int, np.ndarray]]) -> None:
        self.source, self.numbered = source, numbered

    def __len__(self) -> int:
        return len(self.numbered)

    def __getitem__(self, index: int) -> Read:
        number, rows = self.numbered[index]
        samples = [(int(row), self.source[int(row)]) for row in rows]
        amiss = next((s for _, s in samples if isinstance(s, Unreadable)), None)
        good = [(row, s.image) for row, s in samples if not isinstance(s, Unreadable)]
        images = torch.stack([image for _, image in good]) if good else None
        return Read(number, images, [row for row, _ in good], amiss)


def _as_it_is(batch: Read) -> Read:
    return batch


@torch.no_grad()
def embed(
    encoder: Encoder,
    source: Source,
    rows: np.ndarray,
    transform: nn.Module,
    *,
    batch_size: int,
    device: torch.device,
    skip: bool,
    workers: int = 0,
    half: bool = False,
    rank: int = 0,
    world: int = 1,
    seed: int | None = None,
    shown: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, F) of a process's share of a source's images, and the rows that they are of.

    Parameters
    ----------
    encoder
        Images of `transform` to features.
    source, rows
        Where the images come from, and which of them, ascending.
    transform
        `Resize` or one crop.
    batch_size
        Images in a forward pass.
    device
        Of the encoder.
    skip
        An image that cannot be read is left out, rather than a `LocalError`.
    workers
        Loading processes; 0 loads in this one.
    half
        The forward pass is under autocast to bfloat16.
    rank, world
        This process and how many there are: each embeds every world-th batch.
    seed
        Of the random numbers of `transform`, which are those of each batch.
    shown
        Name of a progress bar.
    """
    chunks = [rows[begin : begin + batch_size] for begin in range(0, len(rows), batch_size)]
    mine = list(enumerate(chunks))[rank::world]
    # a process without a share learns the features' width from one image
    numbered = mine or [(0, rows[:1])]
    loader = DataLoader(
        _Batches(source, numbered),
        batch_size=None,
        num_workers=min(workers, len(numbered)),
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # the loader must not draw from the one that augments
    )
    devices = [device] if device.type == "cuda" else []
    hidden = True if shown is None or rank else None  # none: hidden where there is no terminal
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=half)
    parts, kept = [], []
    with torch.random.fork_rng(devices, enabled=seed is not None):
        bar = tqdm(loader, desc=shown, unit="batch", leave=False, disable=hidden)
        for number, images, good, unreadable in bar:
            if unreadable is not None and not skip:
                reason = one_line(unreadable.reason)
                raise LocalError(f"cannot read {unreadable.name}: {reason}")
            if images is None:
                continue
            if seed is not None:
                torch.manual_seed(seed + 1009 * number)
            with autocast:
                parts.append(encoder(transform(images.to(device, non_blocking=True))))
            kept += good
    if not parts:
        raise LocalError("the evaluation has no image that can be read")
    features = torch.cat(parts).float().cpu()
    share = slice(len(features) if mine else 0)
    return features[share].numpy(), np.array(kept[share], dtype=np.int64)


def rank_of() -> int:
    """Number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def of_all(
    features: np.ndarray, rows: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """The features of all processes' shares, by ascending rows, on every one of them."""
    if world_size() == 1:
        return features, rows
    every = gather_rows(torch.from_numpy(features).to(device))[0].cpu().numpy()
    numbers = np.array(gather_object(rows.tolist()))
    order = np.argsort(numbers)
    return every[order], numbers[order]


@contextlib.contextmanager
def evaluating(module: nn.Module):
    """In evaluation mode, for the time of it."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def encoder_of(learner: nn.Module, layers: int) -> Encoder:
    """Images to the features of the last `layers` layers, in evaluation mode."""

    def features(images: torch.Tensor) -> torch.Tensor:
        with evaluating(learner):
            images = images.to(next(learner.parameters()).dtype)
            return learner.backbone(images, layers=layers)

    return features
