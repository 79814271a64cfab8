"""Linear classifiers on frozen features: the papers' grid of learning rates, and few labels.

The grid trains all its heads at once on the same batches, behind one BatchNorm without parameters
(VISReg, "Testing details": SGD with momentum 0.9, no weight decay, cosine annealing, batch 32,
learning rates scaled by batch / 256; the best one is reported). The paper does not state its 13
rates: DINOv2's are used. On several processes each trains its share of the rates, on the whole
batches: BatchNorm's statistics are those of a batch over all processes, and no gradient is sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn
from tqdm import tqdm

from reference_train.collectives import world_size
from reference_train.embedding import rank_of
from reference_train.errors import TrainError
from visreg_core.metrics import hierarchical_linear_accuracy

GRID = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 5e-1)
BLOCK = 1024  # test images whose scores are held at once

Pair = tuple[torch.Tensor, torch.Tensor]  # features (N, F), and labels (N,) or (N, L) of 0 and 1


class Heads:
    """A linear classifier for each learning rate, trained on the same batches.

    Labels (N,) are classes: softmax and cross-entropy. Labels (N, L) of 0 and 1 are several an
    image: a logistic loss for each, of which the mean is taken.
    """

    def __init__(
        self,
        rates: tuple[float, ...],
        n_features: int,
        classes: int,
        *,
        steps: int,
        batch_size: int,
        generator: torch.Generator,
        device: torch.device | None,
    ) -> None:
        initial = torch.randn(n_features, classes, generator=generator) * 0.01
        heads = len(rates)
        self.weight = initial[:, None].repeat(1, heads, 1).to(device)  # (F, heads, classes)
        self.bias = torch.zeros(heads, classes, device=device)
        self.norm = nn.BatchNorm1d(n_features, affine=False, device=device)
        self.rates = torch.tensor(rates, device=device)[:, None] * batch_size / 256
        self.momenta = [torch.zeros_like(p) for p in (self.weight, self.bias)]
        self.done, self.steps = 0, steps

    @torch.no_grad()
    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """One step of SGD; the gradients are those of cross-entropy, in closed form."""
        x = self.norm(x)
        logits = self._logits(x)
        if y.ndim == 1:
            error = torch.softmax(logits, dim=-1)
            error[torch.arange(len(y), device=y.device), :, y] -= 1
        else:
            error = (torch.sigmoid(logits) - y[:, None]) / y.shape[1]
        error /= len(y)
        gradients = (x.T @ error.flatten(1)).view_as(self.weight), error.sum(0)
        rate = self.rates * (1 + math.cos(math.pi * self.done / self.steps)) / 2
        for p, m, g in zip((self.weight, self.bias), self.momenta, gradients, strict=True):
            p.sub_(rate * m.mul_(0.9).add_(g))
        self.done += 1

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight.flatten(1)).unflatten(1, self.bias.shape) + self.bias

    @torch.no_grad()
    def scores(self, x: np.ndarray) -> Iterator[torch.Tensor]:
        """Logits (N, heads, classes) by blocks of rows."""
        self.norm.eval()
        for begin in range(0, len(x), BLOCK):
            yield self._logits(self.norm(torch.from_numpy(x[begin : begin + BLOCK]).to(self.bias)))


class Probed(NamedTuple):
    """Accuracy for each base learning rate, and what the best one predicts for the test images."""

    accuracies: dict[float, float]
    predicted: np.ndarray

    @property
    def best(self) -> float:
        """The rate of the highest accuracy, the lowest such."""
        return max(self.accuracies, key=self.accuracies.get)

    @property
    def accuracy(self) -> float:
        """Of the best rate."""
        return self.accuracies[self.best]

    @property
    def warning(self) -> str | None:
        """Where the best rate lies at an end of the grid, and others are worse."""
        ends = min(self.accuracies), max(self.accuracies)
        if self.best not in ends or len(self.accuracies) == 1:
            return None
        return f"the best rate, {self.best:g}, is an end of the grid: another may be better"


def shuffled(
    bank: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    epochs: int,
    generator: torch.Generator,
    device: torch.device | None,
) -> Iterator[Pair]:
    """Batches of features that are in memory, in a new order each epoch."""
    x, y = torch.from_numpy(bank).to(device), torch.from_numpy(labels).to(device)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for batch in range(max(1, len(x) // batch_size)):
            rows = order[batch * batch_size : (batch + 1) * batch_size]
            yield x[rows], y[rows]


def own_rates(rates: tuple[float, ...]) -> tuple[float, ...]:
    """Those that this process trains."""
    return rates[rank_of() :: world_size()]


def trained(heads: Heads, batches: Iterable[Pair]) -> Heads:
    """The heads after all of the batches, with progress."""
    hidden = True if rank_of() else None
    for x, y in tqdm(batches, "linear probe", heads.steps, leave=False, disable=hidden):
        heads.step(x, y)
    return heads


def tested(
    heads: Heads, rates: tuple[float, ...], test: np.ndarray, test_labels: np.ndarray
) -> Probed:
    """Accuracies of all processes' heads, on every one of them."""
    blocks = [scores.argmax(-1).T.cpu() for scores in heads.scores(test)]
    predicted = torch.cat(blocks, dim=1).to(torch.int32).numpy()  # (heads, N)
    found = dict(zip(own_rates(rates), predicted, strict=True))
    if world_size() > 1:
        found = {rate: p for part in gather_object([found]) for rate, p in part.items()}
    accuracies = {rate: float((found[rate] == test_labels).mean()) for rate in rates}
    return Probed(accuracies, found[max(accuracies, key=accuracies.get)])


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
) -> Probed:
    """A linear classifier for each base learning rate, on features that are in memory."""
    heads = fitted(
        bank, bank_labels, int(bank_labels.max()) + 1,
        epochs=epochs, rates=rates, batch_size=batch_size, seed=seed, device=device,
    )  # fmt: skip
    return tested(heads, rates, test, test_labels)


def fitted(
    bank: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    epochs: int,
    rates: tuple[float, ...] = GRID,
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | None = None,
) -> Heads:
    """Heads of this process's rates after `epochs` of the features."""
    generator = torch.Generator().manual_seed(seed)
    heads = Heads(
        own_rates(rates), bank.shape[1], classes, steps=epochs * max(1, len(bank) // batch_size),
        batch_size=batch_size, generator=generator, device=device,
    )  # fmt: skip
    batches = shuffled(
        bank, labels, batch_size=batch_size, epochs=epochs, generator=generator, device=device
    )
    return trained(heads, batches)


def multilabel_probe(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    epochs: int,
    rates: tuple[float, ...] = GRID,
    device: torch.device | None = None,
) -> dict[float, float]:
    """AUROC for each base learning rate, labels (N, L) of 0 and 1.

    The mean of scikit-learn's over the labels that some test images have and some have not.
    """
    from sklearn.metrics import roc_auc_score

    varied = (test_labels.min(0) == 0) & (test_labels.max(0) == 1)
    if not varied.any():
        raise TrainError("expected a label that some test images have and some have not")
    labels = bank_labels.astype(np.float32)
    heads = fitted(bank, labels, labels.shape[1], epochs=epochs, rates=rates, device=device)
    scores = torch.cat(list(heads.scores(test))).cpu().numpy()  # (N, heads, L)
    own = own_rates(rates)
    found = {
        rate: float(roc_auc_score(test_labels[:, varied], scores[:, i][:, varied]))
        for i, rate in enumerate(own)
    }
    if world_size() > 1:
        found = {rate: v for part in gather_object([found]) for rate, v in part.items()}
    return {rate: found[rate] for rate in rates}


SHOTS = {"many-shot": (101, math.inf), "medium-shot": (20, 100), "few-shot": (0, 19)}


def by_class_size(
    predicted: np.ndarray, test_labels: np.ndarray, train_labels: np.ndarray
) -> dict[str, float]:
    """Accuracy on classes of more than 100, of 20 to 100 and of fewer than 20 training images.

    As on ImageNet-LT (Liu et al. 2019). Groups without a test image are left out.
    """
    classes = int(max(test_labels.max(), train_labels.max())) + 1
    sizes = np.bincount(train_labels, minlength=classes)[test_labels]
    groups = {name: (sizes >= low) & (sizes <= high) for name, (low, high) in SHOTS.items()}
    right = predicted == test_labels
    return {name: float(right[rows].mean()) for name, rows in groups.items() if rows.any()}


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
    """Accuracy of a logistic regression on `shots` labelled images of each class."""
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
