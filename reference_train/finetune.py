"""Fine-tuning: the whole backbone and a linear classifier, on the labels.

The protocol of DeiT, which DINO's and VISReg's tables follow: AdamW, linear warm-up and cosine,
mixup or CutMix, label smoothing, stochastic depth; and BEiT's and MAE's rates that fall from the
last block to the first. Crops have the run's own augmentation, in place of RandAugment.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn import functional as F

from reference_train import data
from reference_train.augment import MultiCrop, Resize
from reference_train.collectives import all_sum
from reference_train.encoders import ViT, set_drop_path
from reference_train.measure import embed
from reference_train.model import synchronised
from reference_train.optim import learning_rate
from reference_train.settings import Config, Optim
from reference_train.splits import Splits


class Tuned(NamedTuple):
    """The network (encoder, classifier), and its accuracy on the test images."""

    network: nn.Sequential
    accuracy: float


class Protocol(NamedTuple):
    """Settings of a fine-tuning; the defaults are DeiT's, and MAE's decay over the layers."""

    epochs: int = 100
    lr: float = 5e-4  # of the last layer
    layer_decay: float = 0.75  # of the rate, from a block to the one before it; ViTs
    mixup: float = 0.8  # parameter of the Beta distribution; 0 leaves it out
    cutmix: float = 1.0
    smoothing: float = 0.1
    drop_path: float = 0.1  # ViTs
    weight_decay: float = 0.05
    warmup_epochs: float = 5


def finetune(
    backbone: nn.Module, config: Config, splits: Splits, protocol: Protocol, *, cpu: bool
) -> Tuned:
    """A copy of the backbone after fine-tuning, on all the processes that were started."""
    half = config.run.precision == "bfloat16"
    accelerator = Accelerator(cpu=cpu, mixed_precision="bf16" if half else "no")
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    torch.manual_seed(config.run.seed)
    settings = copy.deepcopy(config)
    settings.augment.n_global, settings.augment.n_local = 1, 0
    crops_of = MultiCrop(settings.augment, settings.data).to(device)
    encoder, n = copy.deepcopy(backbone), splits.n_classes
    if isinstance(encoder, ViT):
        set_drop_path(encoder, protocol.drop_path)
    network = nn.Sequential(encoder, nn.Linear(encoder.n_features, n)).to(device)
    nn.init.trunc_normal_(network[1].weight, std=2e-5)
    if world > 1:
        synchronised(network, device)
    optimizer = torch.optim.AdamW(
        parameter_groups(network, protocol.layer_decay), weight_decay=protocol.weight_decay
    )
    schedule = Optim(lr=protocol.lr, final=1e-6 / protocol.lr)
    per_epoch = data.batches_per_epoch(splits.bank, config.data, world)
    steps = protocol.epochs * per_epoch
    warmup = round(min(protocol.warmup_epochs, protocol.epochs / 4) * per_epoch)
    stream = data.batches(
        splits.bank, config.data, seed=config.run.seed, rank=rank, world=world, start=0
    )
    model = accelerator.prepare(network).train()
    set_seed(config.run.seed * world + rank + 1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, warmup, schedule) * group["share"]
        batch = next(stream)
        (crops,) = crops_of(batch.images.to(device))
        targets = smoothed(batch.labels.to(device), n, protocol.smoothing)
        images, targets = mixed(crops[0], targets, protocol.mixup, protocol.cutmix)
        loss = F.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
    found = accuracy(network.eval(), config, splits, rank=rank, world=world, device=device)
    return Tuned(network, found)


def parameter_groups(network: nn.Sequential, decay: float) -> list[dict]:
    """By layer and by weight decay; "share" is a layer's share of the learning rate.

    The head and what follows the last block have 1, block i of L has ``decay ** (L - i)`` with
    i = 0 ... L - 1, the embeddings ``decay ** (L + 1)``. Models without blocks have one rate.
    """
    encoder = network[0]
    layer = {}
    if isinstance(encoder, ViT):
        blocks = list(encoder.blocks)
        for name, p in encoder.model.named_parameters():
            if "embed" in name or "token" in name:  # patches, positions, CLS, registers
                layer[id(p)] = len(blocks) + 1
        for i, block in enumerate(blocks):
            layer |= dict.fromkeys(map(id, block.parameters()), len(blocks) - i)
    groups: dict[tuple[int, bool], dict] = {}
    for name, p in network.named_parameters():
        if not p.requires_grad:
            continue
        plain = p.squeeze().ndim <= 1 or name.endswith(("position_embeddings", "pos_embed"))
        depth = layer.get(id(p), 0)
        new = {"params": [], "share": decay**depth} | ({"weight_decay": 0.0} if plain else {})
        groups.setdefault((depth, plain), new)["params"].append(p)
    return list(groups.values())


def smoothed(labels: torch.Tensor, classes: int, smoothing: float) -> torch.Tensor:
    """Targets (N, classes): 1 - smoothing for the label, and smoothing spread over all."""
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes


def mixed(
    images: torch.Tensor, targets: torch.Tensor, mixup: float, cutmix: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup or CutMix of a batch with itself in reverse, one of them at random; the targets too.

    Sources: Zhang et al. 2018, ``lam x + (1 - lam) x'`` with lam of Beta(mixup, mixup); Yun et al.
    2019, a rectangle of a share 1 - lam of the area from the other image.
    """
    chosen = [(kind, a) for kind, a in (("mixup", mixup), ("cutmix", cutmix)) if a > 0]
    if not chosen:
        return images, targets
    kind, a = chosen[int(torch.randint(len(chosen), ()))]
    lam = float(torch.distributions.Beta(a, a).sample())
    other = images.flip(0)
    if kind == "mixup":
        images = lam * images + (1 - lam) * other
    else:
        height, width = images.shape[-2:]
        side = math.sqrt(1 - lam)
        y, x = (int(torch.randint(size, ())) for size in (height, width))
        top, bottom = (_inside(y + s * side * height / 2, height) for s in (-1, 1))
        left, right = (_inside(x + s * side * width / 2, width) for s in (-1, 1))
        images = images.clone()
        images[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        lam = 1 - (bottom - top) * (right - left) / (height * width)
    return images, lam * targets + (1 - lam) * targets.flip(0)


def _inside(place: float, size: int) -> int:
    return min(max(round(place), 0), size)


def accuracy(
    network: nn.Module,
    config: Config,
    splits: Splits,
    *,
    rank: int,
    world: int,
    device: torch.device,
) -> float:
    """Share of the test images that the network classifies correctly; each process does a part."""
    logits, rows = embed(
        network,
        splits.test,
        np.arange(rank, len(splits.test), world),
        Resize(config.augment, config.data).to(device),
        batch_size=config.probe.batch_size,
        device=device,
        skip=config.data.unreadable == "skip",
    )
    right = (logits.argmax(-1) == splits.test.labels[rows]).sum()
    counts = all_sum(torch.tensor([float(right), float(len(rows))], device=device))
    return float(counts[0] / counts[1])
