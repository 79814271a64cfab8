"""Baselines that predict one view from another: SimSiam, BYOL, MoCo and NNCLR.

Sources: Chen & He 2021; Grill et al. 2020; He et al. 2020, Chen et al. 2020 (MoCo v2); Dwibedi et
al. 2021. Small and plain: losses are means over all ordered pairs of views, of a global crop as the
target; the projector's BatchNorm is over all processes, in place of MoCo's shuffling; the teacher's
momentum rises to 1 by a cosine, MoCo's too; learning rates are the run's, for the predictor, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from reference_train.baselines import Objective, Terms, WithTeacher
from reference_train.collectives import all_stack, world_size
from reference_train.config import Config
from reference_train.model import Learner, Outputs, projector

PREDICTED = ("simsiam", "byol", "nnclr")


class Predictor(nn.Module):
    """At the projector's end: embeddings z (..., D) and their predictions p, as (..., 2 D)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        shape = dataclasses.replace(config.model, projector_layers=2)
        self.layers = projector(shape, config.model.dim, batch_norm=nn.BatchNorm1d)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """z and p side by side."""
        return torch.cat([z, self.layers(z)], dim=-1)


def parts(embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """z and p (V, N, D) of `Predictor`, of length 1."""
    z, p = embeddings.chunk(2, dim=-1)
    return F.normalize(z, dim=-1), F.normalize(p, dim=-1)


def over_pairs(
    targets: torch.Tensor,
    views: torch.Tensor,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Mean of ``loss(targets[g], views[v])`` over all g and v that are not the same view."""
    losses = [
        loss(target, view)
        for g, target in enumerate(targets)
        for v, view in enumerate(views)
        if v != g
    ]
    return torch.stack(losses).mean()


def minus_cosine(target: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """Of rows of length 1, their mean."""
    return -(target * view).sum(-1).mean()


class SimSiam(Objective):
    """-cos(p_v, z_g), without a gradient through z."""

    def forward(self, outputs: Outputs, crops: list[torch.Tensor], step: int) -> Terms:
        """Terms of a step."""
        z, p = parts(outputs.embeddings)
        targets = z[: len(outputs.features)].detach()
        return {"loss": over_pairs(targets, p, minus_cosine)}


class BYOL(WithTeacher):
    """2 - 2 cos(p_v, z'_g), z' of an EMA teacher: the squared distance of unit vectors."""

    def forward(self, outputs: Outputs, crops: list[torch.Tensor], step: int) -> Terms:
        """Terms of a step."""
        _, p = parts(outputs.embeddings)
        targets, _ = parts(self.taught(crops, p.dtype))
        return {"loss": 2 + 2 * over_pairs(targets, p, minus_cosine)}


class Queue(nn.Module):
    """The last embeddings of length 1 (K, D), newest first; random ones at the start."""

    rows: torch.Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(config.run.seed)
        rows = torch.randn(config.method.queue, config.model.dim, generator=generator)
        self.register_buffer("rows", F.normalize(rows, dim=-1))

    @torch.no_grad()
    def add(self, views: torch.Tensor) -> None:
        """Those of all processes (V, N, D); the oldest leave."""
        if world_size() > 1:
            views = all_stack(views.contiguous()).flatten(0, 1)
        new = views.flatten(0, -2).to(self.rows)[: len(self.rows)]
        # another tensor: the backward pass still needs this one
        self.rows = torch.cat([new, self.rows[: len(self.rows) - len(new)]])


class MoCo(WithTeacher):
    """InfoNCE of finding the teacher's other view of the image among those of earlier batches."""

    def __init__(self, config: Config, learner: Learner) -> None:
        super().__init__(config, learner)
        self.temperature, self.queue = config.method.temperature, Queue(config)

    def forward(self, outputs: Outputs, crops: list[torch.Tensor], step: int) -> Terms:
        """Terms of a step."""
        views = F.normalize(outputs.embeddings, dim=-1)
        targets = F.normalize(self.taught(crops, views.dtype), dim=-1)
        negatives = self.queue.rows.to(views.dtype)

        def info_nce(target: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
            same = (target * view).sum(-1, keepdim=True)
            logits = torch.cat([same, view @ negatives.T], dim=1) / self.temperature
            return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))

        loss = over_pairs(targets, views, info_nce)
        self.queue.add(targets)
        return {"loss": loss}


class NNCLR(Objective):
    """InfoNCE of finding the other view's prediction for the nearest embedding of earlier batches.

    The candidates are the predictions of this process's batch.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.temperature, self.queue = config.method.temperature, Queue(config)

    def forward(self, outputs: Outputs, crops: list[torch.Tensor], step: int) -> Terms:
        """Terms of a step."""
        z, p = parts(outputs.embeddings)
        targets = z[: len(outputs.features)].detach()
        support = self.queue.rows.to(z.dtype)
        nearest = support[(targets @ support.T).argmax(-1)]

        def info_nce(target: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
            own = torch.arange(len(view), device=view.device)
            return F.cross_entropy(target @ view.T / self.temperature, own)

        loss = over_pairs(nearest, p, info_nce)
        self.queue.add(targets[:1])
        return {"loss": loss}
