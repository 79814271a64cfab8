"""A step's gradients from its micro-batches: of each one's loss, or of the loss of all together."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

import visreg_torch as vt
from reference_train.augment import MultiCrop
from reference_train.baselines import Objective, Terms
from reference_train.data import Batch
from reference_train.ledger import batch_statistics, of_step
from reference_train.model import Outputs


@dataclass
class Gradients:
    """Backpropagates steps: micro-batches in, terms of the loss and statistics of the crops out."""

    accelerator: Accelerator
    model: nn.Module  # as prepared for data-parallel training
    method: Objective
    crops_of: MultiCrop
    dtype: torch.dtype
    channels_last: bool = False

    def of_means(self, batches: list[Batch], step: int) -> tuple[Terms, Terms]:
        """Of the mean of the micro-batches' losses, each with its own statistics and slices."""
        parts = []
        for micro, batch in enumerate(batches):
            crops = self.crops(batch)
            last = micro + 1 == len(batches)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                outputs = self.model(crops)
                labels = self._on_device(batch.labels)
                terms = self._terms(outputs, crops, labels, step * len(batches) + micro)
                (objective(terms) / len(batches)).backward()
            parts.append((terms, batch_statistics(crops, outputs.embeddings)))
        terms, statistics = (of_step(values) for values in zip(*parts, strict=True))
        return terms, statistics

    def of_batch(self, batches: list[Batch], step: int) -> tuple[Terms, Terms]:
        """Of the loss of all micro-batches together; crops and embeddings are made twice."""
        labels = self._on_device(torch.cat([batch.labels for batch in batches]))
        statistics = []

        def embed(batch: Batch) -> Outputs:
            crops = self.crops(batch)
            outputs = self.model(crops)
            if torch.is_grad_enabled():  # once
                statistics.append(batch_statistics(crops, outputs.embeddings))
            return outputs

        def loss(outputs: Outputs) -> tuple[torch.Tensor, Terms]:
            terms = self._terms(outputs, [], labels, step)
            return objective(terms), terms

        _, terms = vt.large_batch(self.model, loss, batches, embed=embed)
        return terms, of_step(tuple(statistics))

    def crops(self, batch: Batch) -> list[torch.Tensor]:
        """Of a batch, on the device."""
        sizes = None if batch.sizes is None else self._on_device(batch.sizes)
        crops = self.crops_of(self._on_device(batch.images), sizes)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return [
            crop.flatten(0, 1).to(self.dtype, memory_format=layout).unflatten(0, crop.shape[:2])
            for crop in crops
        ]

    def _on_device(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.accelerator.device, non_blocking=True)

    def _terms(
        self, outputs: Outputs, crops: list[torch.Tensor], labels: torch.Tensor, step: int
    ) -> Terms:
        return self.method(outputs, crops, step) | probe_terms(outputs.logits, labels)


def objective(terms: Terms) -> torch.Tensor:
    """What is minimised."""
    return terms["loss"] + terms.get("probe_loss", 0.0)


def probe_terms(logits: torch.Tensor | None, labels: torch.Tensor) -> Terms:
    """Loss and accuracy of the online probe; its gradient stops at the features."""
    if logits is None:
        return {}
    labels = labels.expand(logits.shape[:2])
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    accuracy = (logits.argmax(-1) == labels).to(loss.dtype).mean()
    return {"probe_loss": loss, "probe_accuracy": accuracy}
