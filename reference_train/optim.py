"""AdamW and LARS with their parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from reference_train.config import Optim, Probe
from reference_train.model import Learner


def parameter_groups(learner: Learner, optim: Optim, probe: Probe) -> list[dict]:
    """Matrices decay; norms, biases and other vectors do not. The probe has its own rate."""
    named = [
        (name, p)
        for name, p in learner.named_parameters()
        if p.requires_grad and not name.startswith("probe.")
    ]
    # CLS tokens and position embeddings have leading axes of length 1, and are not matrices
    vector = {
        n: sum(side != 1 for side in p.shape) <= 1 or n.endswith("position_embeddings")
        for n, p in named
    }
    groups = [
        {"name": "decayed", "params": [p for n, p in named if not vector[n]]},
        {"name": "plain", "params": [p for n, p in named if vector[n]], "weight_decay": 0.0},
    ]
    if learner.probe is not None:
        parameters = list(learner.probe.parameters())
        groups.append({"name": "probe", "params": parameters, "weight_decay": 0.0})
    return groups


def optimizer(learner: Learner, optim: Optim, probe: Probe) -> torch.optim.Optimizer:
    """The optimiser that ``optim.name`` names."""
    groups = parameter_groups(learner, optim, probe)
    if optim.name == "adamw":
        betas = tuple(optim.betas)
        return torch.optim.AdamW(
            groups, optim.lr, betas, weight_decay=optim.weight_decay, fused=optim.fused or None
        )
    return LARS(groups, optim.lr, optim.weight_decay, optim.momentum, optim.trust)


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose matrices move by a share of their own norm (You et al. 2017).

    For "decayed" groups the gradient with its decay is scaled by trust * |w| / |g| first, as in
    the VICReg and Barlow Twins recipes; the other groups are plain SGD with momentum.
    """

    def __init__(
        self, groups: list[dict], lr: float, weight_decay: float, momentum: float, trust: float
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self) -> None:
        """One step; norms stay on the device."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                gradient = p.grad
                if group["name"] == "decayed":
                    gradient = gradient.add(p, alpha=group["weight_decay"])
                    own, other = p.norm(), gradient.norm()
                    ratio = group["trust"] * own / other
                    gradient = gradient * torch.where((own > 0) & (other > 0), ratio, 1.0)
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].mul_(group["momentum"]).add_(gradient)
                p.sub_(state["momentum"], alpha=group["lr"])


def learning_rate(step: int, steps: int, warmup: int, optim: Optim) -> float:
    """Of step ``0 ... steps - 1``: linear warm-up, then cosine to ``final`` or constant."""
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    if optim.decay == "constant":
        return optim.lr
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return optim.lr * (optim.final + (1 - optim.final) * (1 + math.cos(math.pi * progress)) / 2)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float, probe_lr: float) -> None:
    """Of every group; the probe's is constant."""
    for group in optimizer.param_groups:
        group["lr"] = probe_lr if group["name"] == "probe" else lr


def trained(learner: Learner) -> Iterable[nn.Parameter]:
    """Parameters whose gradients come from the method: all but the probe's."""
    named = learner.named_parameters()
    return (p for n, p in named if p.requires_grad and not n.startswith("probe."))
