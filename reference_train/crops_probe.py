"""The linear probe on random crops, each epoch new ones: the papers' protocol for ImageNet.

VISReg, "ImageNet-1K linear probe": random resized crops (of 8 % of the area or more, as ImageNet's
are), 10 heads, 100 epochs, a batch of 256 over all processes, cosine annealing by steps. Every
process embeds its share of a batch, and trains its share of the heads on the whole batch, whose
statistics are those of SyncBatchNorm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from reference_train import data
from reference_train.augment import MultiCrop
from reference_train.collectives import all_stack, world_size
from reference_train.config import Augment
from reference_train.embedding import Encoder, rank_of
from reference_train.errors import TrainError
from reference_train.measure import Features, Measured
from reference_train.probe import Heads, Pair, Probed, own_rates, tested, trained

SCALE = [0.08, 1.0]  # share of the area in a crop


def probe_of_crops(
    measured: Measured,
    encoder: Encoder,
    f: Features,
    *,
    epochs: int,
    rates: tuple[float, ...],
    batch_size: int,
) -> Probed:
    """Trained on crops through the training's loader, tested on the features `f` of whole images.

    All of the training images are read, whatever `probe.max_rows` is.
    """
    world = world_size()
    if batch_size % world:
        raise TrainError(f"--batch: expected a multiple of {world} processes; found {batch_size}")
    settings = dataclasses.replace(measured.config.data, batch_size=batch_size // world)
    steps = epochs * data.batches_per_epoch(measured.splits.bank, settings, world)
    seed = measured.config.run.seed
    heads = Heads(
        own_rates(rates), f.test.shape[1], measured.splits.n_classes, steps=steps,
        batch_size=batch_size, generator=torch.Generator().manual_seed(seed),
        device=measured.device,
    )  # fmt: skip
    torch.manual_seed(seed * world + rank_of() + 1)
    batches = _batches(measured, encoder, settings, steps)
    return tested(trained(heads, batches), rates, f.test, f.test_labels)


def _batches(
    measured: Measured, encoder: Encoder, settings: data.Data, steps: int
) -> Iterator[Pair]:
    config, device = measured.config, measured.device
    plain = dict.fromkeys(("jitter", "grayscale", "blur", "solarize"), 0.0)
    size, flip = config.augment.global_size, config.augment.flip
    augment = Augment(n_global=1, global_size=size, global_scale=SCALE, flip=flip, **plain)
    crops_of = MultiCrop(augment, settings).to(device)
    stream = data.batches(
        measured.splits.bank, settings,
        seed=config.run.seed, rank=rank_of(), world=world_size(), start=0,
    )  # fmt: skip
    half = torch.autocast(device.type, torch.bfloat16, enabled=config.run.precision == "bfloat16")
    for _ in range(steps):
        batch = next(stream)
        with torch.no_grad(), half:
            (crops,) = crops_of(batch.images.to(device), batch.sizes)
            features = encoder(crops[0]).float()
        yield all_stack(features).flatten(0, 1), all_stack(batch.labels.to(device)).flatten()
