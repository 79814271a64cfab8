"""The papers' baselines, small and plain: SimCLR and DINO.

Sources: Chen et al. 2020 (NT-Xent over all pairs of views); Caron et al. 2021 (multi-crop,
centring, EMA teacher, a last layer that is frozen at first; the teacher sees only global crops,
and its temperature is constant).
"""

from __future__ import annotations

import copy
import math

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from reference_train.collectives import all_stack, all_sum, world_size
from reference_train.config import Config
from reference_train.model import Learner, Outputs

Terms = dict[str, torch.Tensor]


class Objective(nn.Module):
    """A method: ``forward(outputs, crops, step)`` gives named terms, the first of them the loss."""

    def before_step(self, learner: Learner, epoch: float) -> None:
        """Called after the backward pass, `epoch` epochs after the start."""

    def after_step(self, learner: Learner, progress: float) -> None:
        """Called after the optimiser's step; `progress` runs from 0 to 1 over the training."""


class SimCLR(Objective):
    """NT-Xent, averaged over pairs of views; negatives of this process or of all."""

    def __init__(self, temperature: float, scope: str) -> None:
        super().__init__()
        self.temperature, self.scope = temperature, scope

    def forward(self, outputs: Outputs, crops: list[torch.Tensor], step: int) -> Terms:
        """Terms of a step."""
        views = F.normalize(outputs.embeddings, dim=-1)
        everyone, first = views, 0
        if self.scope == "global" and world_size() > 1:
            everyone = all_stack(views).transpose(0, 1).flatten(1, 2)
            first = dist.get_rank() * views.shape[1]
        losses = [
            nt_xent(views[i], everyone[i], everyone[j], first, self.temperature)
            for i in range(len(views))
            for j in range(len(views))
            if i != j
        ]
        return {"loss": torch.stack(losses).mean()}


def nt_xent(
    rows: torch.Tensor, same: torch.Tensor, other: torch.Tensor, first: int, temperature: float
) -> torch.Tensor:
    """Cross-entropy of finding row i's other view, at ``first + i``, among 2M - 1 candidates."""
    own = torch.arange(first, first + len(rows), device=rows.device)
    with_same = (rows @ same.T / temperature).scatter(1, own[:, None], -torch.inf)
    return F.cross_entropy(torch.cat([rows @ other.T / temperature, with_same], dim=1), own)


class Prototypes(nn.Module):
    """DINO's last layer: cosines with unit-norm prototypes."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Cosines (..., count)."""
        return F.normalize(x, dim=-1) @ F.normalize(self.weight, dim=-1).T


class WithTeacher(Objective):
    """A method with an EMA of the learner."""

    def __init__(self, config: Config, learner: Learner) -> None:
        super().__init__()
        self.momentum = config.method.teacher_momentum
        self.teacher = copy.deepcopy(learner)
        self.teacher.probe = None
        self.teacher.requires_grad_(False)
        self.half = config.run.precision == "bfloat16"

    @torch.no_grad()
    def taught(self, crops: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """What the teacher makes of the global crops (G, N, D)."""
        device = crops[0].device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.half):
            return self.teacher(crops[:1]).embeddings.to(dtype)

    @torch.no_grad()
    def after_step(self, learner: Learner, progress: float) -> None:
        """Move the teacher towards the student; the momentum rises to 1 by a cosine."""
        keep = 1 - (1 - self.momentum) * (math.cos(math.pi * progress) + 1) / 2
        moved = dict(learner.named_parameters())
        for name, parameter in self.teacher.named_parameters():
            parameter.lerp_(moved[name], 1 - keep)


class DINO(WithTeacher):
    """Cross-entropy of all crops with an EMA teacher's distributions of the global crops."""

    def __init__(self, config: Config, learner: Learner) -> None:
        super().__init__(config, learner)
        m = config.method
        self.student_temperature, self.teacher_temperature = m.temperature, m.teacher_temperature
        self.center_momentum, self.freeze_epochs = m.center_momentum, m.freeze_epochs
        self.register_buffer("center", torch.zeros(m.prototypes))

    def forward(self, outputs: Outputs, crops: list[torch.Tensor], step: int) -> Terms:
        """Terms of a step."""
        logits = self.taught(crops, outputs.embeddings.dtype)
        with torch.no_grad():
            target = torch.softmax((logits - self.center) / self.teacher_temperature, dim=-1)
            mean = all_sum(logits.mean(dim=(0, 1))) / world_size()
            self.center.lerp_(mean.to(self.center.dtype), 1 - self.center_momentum)
        student = torch.log_softmax(outputs.embeddings / self.student_temperature, dim=-1)
        losses = [
            -(teacher * student[v]).sum(-1).mean()
            for g, teacher in enumerate(target)
            for v in range(len(student))
            if v != g
        ]
        entropy = torch.special.entr(target).sum(-1).mean()
        return {"loss": torch.stack(losses).mean(), "teacher_entropy": entropy}

    def before_step(self, learner: Learner, epoch: float) -> None:
        """Without a gradient the prototypes neither move nor decay."""
        if epoch < self.freeze_epochs:
            learner.projector[-1].weight.grad = None
