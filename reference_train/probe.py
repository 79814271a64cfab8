"""Classifiers on frozen features: the papers' grid of linear probes, and few labelled images.

The grid trains all its heads at once on the same batches, behind one BatchNorm without parameters
(VISReg, "Testing details": SGD with momentum 0.9, no weight decay, cosine annealing, batch 32,
learning rates scaled by batch / 256; the best one is reported). The paper does not state its 13
rates: DINOv2's are used.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from reference_train.errors import TrainError
from visreg_core.metrics import hierarchical_linear_accuracy

GRID = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 5e-1)


def linear_probe(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    epochs: int,
    rates: tuple[float, ...] = GRID,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | None = None,
) -> dict[float, float]:
    """Accuracy of a linear classifier for each base learning rate."""
    x, y = torch.from_numpy(bank).to(device), torch.from_numpy(bank_labels).to(device)
    classes, heads = int(bank_labels.max()) + 1, len(rates)
    generator = torch.Generator().manual_seed(seed)
    initial = torch.randn(x.shape[1], classes, generator=generator) * 0.01
    weight = initial.expand(heads, -1, -1).clone().to(x).requires_grad_()
    bias = torch.zeros(heads, 1, classes, device=x.device, requires_grad=True)
    norm = nn.BatchNorm1d(x.shape[1], affine=False, device=x.device)
    scaled = torch.tensor(rates, device=x.device).view(-1, 1, 1) * batch_size / 256
    momenta = [torch.zeros_like(p) for p in (weight, bias)]
    batches = max(1, len(x) // batch_size)
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for batch in range(batches):
            rows = order[batch * batch_size : (batch + 1) * batch_size]
            logits = norm(x[rows]) @ weight + bias  # (heads, batch, classes)
            targets = y[rows].expand(heads, -1)
            # a sum over heads: each has the gradient of its own mean
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten()) * heads
            gradients = torch.autograd.grad(loss, (weight, bias))
            done = (epoch * batches + batch) / (epochs * batches)
            rate = scaled * (1 + math.cos(math.pi * done)) / 2
            with torch.no_grad():
                for p, m, g in zip((weight, bias), momenta, gradients, strict=True):
                    m.mul_(0.9).add_(g)
                    p.sub_(rate * m)
    norm.eval()
    with torch.no_grad():
        logits = norm(torch.from_numpy(test).to(x)) @ weight + bias
        right = logits.argmax(-1) == torch.from_numpy(test_labels).to(x.device)
    return dict(zip(rates, right.double().mean(1).tolist(), strict=True))


class Spread(NamedTuple):
    """Mean and standard deviation over draws of the labelled images."""

    mean: float
    std: float


def few_shot(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    shots: int,
    draws: int,
    seed: int = 0,
) -> Spread:
    """Linear accuracy from `shots` labelled images of each class."""
    classes, counts = np.unique(bank_labels, return_counts=True)
    if counts.min() < shots:
        raise TrainError(f"{shots} shots: a class has {counts.min()} images")
    accuracies = []
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        rows = np.concatenate(
            [rng.permutation(np.flatnonzero(bank_labels == c))[:shots] for c in classes]
        )
        accuracies.append(
            hierarchical_linear_accuracy(
                bank[rows], bank_labels[rows], test=test, test_labels=test_labels
            )[0]
        )
    return Spread(float(np.mean(accuracies)), float(np.std(accuracies)))
