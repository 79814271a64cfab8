"""Fine-tuning: the whole backbone and a linear classifier, on the labels."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from reference_train import data
from reference_train.augment import MultiCrop, Resize
from reference_train.config import Config, Optim
from reference_train.measure import embed
from reference_train.optim import learning_rate
from reference_train.splits import Splits


def finetune(
    backbone: nn.Module,
    config: Config,
    splits: Splits,
    *,
    epochs: int,
    lr: float,
    device: torch.device,
) -> float:
    """Test accuracy after `epochs` of AdamW on single crops with the run's augmentation."""
    torch.manual_seed(config.run.seed)
    settings = copy.deepcopy(config)
    settings.augment.n_global, settings.augment.n_local = 1, 0
    crops_of = MultiCrop(settings.augment, settings.data).to(device)
    network = nn.Sequential(
        copy.deepcopy(backbone), nn.Linear(backbone.n_features, splits.n_classes, device=device)
    ).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=0.05)
    schedule = Optim(lr=lr, warmup_epochs=min(5, epochs / 10))
    per_epoch = data.batches_per_epoch(splits.bank, config.data, 1)
    steps, warmup = epochs * per_epoch, round(schedule.warmup_epochs * per_epoch)
    stream = data.batches(splits.bank, config.data, seed=config.run.seed, rank=0, world=1, start=0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, warmup, schedule)
        batch = next(stream)
        (crops,) = crops_of(batch.images.to(device))
        loss = F.cross_entropy(network(crops[0]), batch.labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return accuracy(network.eval(), config, splits, device)


def accuracy(network: nn.Module, config: Config, splits: Splits, device: torch.device) -> float:
    """Share of the test images that the network classifies correctly."""
    logits, rows = embed(
        network,
        splits.test,
        np.arange(len(splits.test)),
        Resize(config.augment, config.data).to(device),
        batch_size=config.probe.batch_size,
        device=device,
        skip=config.data.unreadable == "skip",
    )
    return float((logits.argmax(-1) == splits.test.labels[rows]).mean())
