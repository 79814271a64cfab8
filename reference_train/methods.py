"""The losses by name: ``build(config)`` gives a module from crops' embeddings to named terms.

The mathematics is visreg_core's. A module's forward is ``(outputs, crops, step) -> terms``; the
first term, "loss", is what is minimised, and the others say what it is made of.
"""

from __future__ import annotations

import torch
from torch import nn

import visreg_core as vc
from reference_train.baselines import DINO, Objective, SimCLR, Terms
from reference_train.config import Config
from reference_train.model import Learner, Outputs


def build(config: Config, learner: Learner, rank: int = 0) -> Objective:
    """The objective of ``method.name``; `learner` is what dino's teacher is a copy of."""
    name = config.method.name
    if name == "dino":
        return DINO(config, learner)
    if name == "simclr":
        return SimCLR(config.method.temperature, config.method.scope)
    if name in ("visreg", "sigreg", "swd"):
        return Sketched(regularizer(config, rank), config.method.lam)
    return OfViews(regularizer(config, rank))


def regularizer(config: Config, rank: int) -> nn.Module:
    """What the adapter's modules are: ``forward(views, step)`` gives a loss or named terms."""
    m, seed = config.method, config.run.seed
    first = rank * m.n_slices  # local scope: every process has slices of its own

    def slices(views: torch.Tensor, step: int) -> torch.Tensor:
        return vc.random_slices(
            views.shape[-1],
            m.n_slices,
            seed=seed,
            step=step,
            start=first,
            xp=torch,
            dtype=torch.float64 if views.dtype == torch.float64 else torch.float32,
            device=views.device,
        )

    def sag(views: torch.Tensor, step: int) -> vc.SAGVICRegTerms:
        a, b = views
        affinity = vc.random_walk_affinity(a, b, n_neighbors=m.n_neighbors)
        pairs = vc.sample_random_walk(vc.transition_matrix(affinity), seed=seed, step=step)
        weights = affinity.gather(1, pairs.long()[:, None])[:, 0]
        return vc.sag_vicreg_loss(a, b, pairs, weights, vicreg_weights)

    vicreg_weights = (m.invariance, m.variance, m.covariance)
    visreg_weights = (m.scale, m.shape, m.center)
    return Function(
        {
            "visreg": lambda z, step: vc.visreg_loss(
                z, slices(z, step), visreg_weights, detach_scale=m.detach_scale
            ),
            "sigreg": lambda z, step: vc.sigreg_loss(z, slices(z, step)),
            "swd": lambda z, step: vc.gaussian_sliced_wasserstein(z, slices(z, step)),
            "vicreg": lambda z, step: vc.vicreg_loss(z, weights=vicreg_weights),
            "barlow_twins": lambda z, step: vc.barlow_twins_loss(
                z, off_diagonal_weight=m.off_diagonal
            ),
            "sag_vicreg": sag,
        }[m.name]
    )


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, views: torch.Tensor, step: int) -> object:
        """Of embeddings (V, N, D)."""
        return self.function(views, step)


class Sketched(Objective):
    """(1 - lam) invariance + lam regularizer, each crop regularised by itself (LeJEPA, VISReg)."""

    def __init__(self, regularizer: nn.Module, lam: float) -> None:
        super().__init__()
        self.regularizer, self.lam = regularizer, lam

    def forward(self, outputs: Outputs, crops: list[torch.Tensor], step: int) -> Terms:
        """Terms of a step."""
        invariance = vc.invariance_loss(outputs.embeddings, n_global=len(crops[0]))
        terms = named(self.regularizer(outputs.embeddings, step), "regularizer")
        loss = vc.joint_objective(invariance, terms["regularizer"], self.lam)
        return {"loss": loss, "invariance": invariance, **terms}


class OfViews(Objective):
    """A loss that holds its own invariance: VICReg, Barlow Twins, SAG-VICReg."""

    def __init__(self, regularizer: nn.Module) -> None:
        super().__init__()
        self.regularizer = regularizer

    def forward(self, outputs: Outputs, crops: list[torch.Tensor], step: int) -> Terms:
        """Terms of a step."""
        return named(self.regularizer(outputs.embeddings, step), "loss")


def named(terms: object, total: str) -> Terms:
    """A named tuple of terms, or a loss alone, as a dictionary with its total first."""
    if isinstance(terms, torch.Tensor):
        return {total: terms}
    return {total: terms.total} | {k: v for k, v in terms._asdict().items() if k != "total"}
