"""The losses by name: ``build(config, learner)`` gives a module from embeddings to named terms.

The mathematics is visreg_core's, through the modules of visreg_torch. An objective's forward is
``(outputs, crops, step) -> terms``; the first term, "loss", is what is minimised, and the others
say what it is made of. Slices are drawn by the step, so that a resumed run draws what the
uninterrupted one would have drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

import visreg_torch as vt
from reference_train.baselines import DINO, Objective, Prototypes, SimCLR, Terms
from reference_train.collectives import world_size
from reference_train.config import Config, Method, rows_of_a_process
from reference_train.model import Learner, Outputs
from reference_train.own_loss import draws_slices, own_loss
from reference_train.siamese import BYOL, NNCLR, PREDICTED, MoCo, Predictor, SimSiam

SLICED = ("visreg", "sigreg", "swd")
WITH_TEACHER = {"dino": DINO, "byol": BYOL, "moco": MoCo}


class StatisticSize(NamedTuple):
    """From how much each statistic of the loss is estimated."""

    rows: int  # images
    slices: int | None  # of the sliced losses

    def __str__(self) -> str:
        """The line that a run prints at its start."""
        drawn = "" if self.slices is None else f" on {self.slices} slices"
        return f"a statistic of the loss sees {self.rows} images{drawn}"


def statistic_size(config: Config, world: int) -> StatisticSize:
    """Rows and slices of each statistic on `world` processes.

    In local scope each process draws different slices, and its statistics use only those.
    """
    m = config.method
    processes = world if m.scope == "global" else 1
    sliced = draws_slices(m.name) if ":" in m.name else m.name in SLICED
    slices = processes * m.n_slices if sliced else None
    return StatisticSize(processes * rows_of_a_process(config), slices)


def build(config: Config, learner: Learner) -> Objective:
    """The objective of ``method.name``; `learner` is what a teacher is a copy of."""
    m = config.method
    if m.name in WITH_TEACHER:
        return WITH_TEACHER[m.name](config, learner)
    if m.name == "simclr":
        return SimCLR(m.temperature, m.scope)
    if m.name == "simsiam":
        return SimSiam()
    if m.name == "nnclr":
        return NNCLR(config)
    if ":" in m.name:
        return Sketched(own_loss(m, config.run.seed), m.lam)
    if m.name in SLICED:
        n_slices = statistic_size(config, world_size()).slices
        return Sketched(sketch(m, n_slices, config.run.seed), m.lam)
    return OfViews(loss_of_views(m, config.run.seed))


def last_layer(config: Config) -> nn.Module | None:
    """What the projector ends with, where the method has a layer of its own."""
    if config.method.name == "dino":
        return Prototypes(config.model.dim, config.method.prototypes)
    return Predictor(config) if config.method.name in PREDICTED else None


def sketch(m: Method, n_slices: int, seed: int) -> nn.Module:
    """A regulariser on random slices: ``(embeddings, step)`` to a loss or its terms."""
    drawn = {"n_slices": n_slices, "seed": seed, "scope": m.scope}
    if m.name == "visreg":
        weights = (m.scale, m.shape, m.center)
        return vt.VISRegLoss(**drawn, weights=weights, detach_scale=m.detach_scale)
    return {"sigreg": vt.SIGRegLoss, "swd": vt.SlicedWassersteinLoss}[m.name](**drawn)


def loss_of_views(m: Method, seed: int) -> nn.Module:
    """A loss of views that holds its own invariance."""
    weights = (m.invariance, m.variance, m.covariance)
    if m.name == "sag_vicreg":
        walk = {"percentile": m.percentile, "n_steps": m.walk_steps, "seed": seed}
        return vt.SAGVICRegLoss(m.n_neighbors, weights=weights, scope=m.scope, **walk)
    if m.name == "vicreg":
        return vt.VICRegLoss(weights, scope=m.scope)
    return vt.BarlowTwinsLoss(m.off_diagonal, scope=m.scope)


class Sketched(Objective):
    """(1 - lam) invariance + lam regularizer, each crop regularised separately (LeJEPA, VISReg)."""

    def __init__(self, regularizer: nn.Module, lam: float) -> None:
        super().__init__()
        self.joint = vt.JointObjective(regularizer, lam)

    def forward(self, outputs: Outputs, crops: list[torch.Tensor], step: int) -> Terms:
        """Terms of a step."""
        self.joint.n_global = len(outputs.features)
        joint = self.joint(outputs.embeddings, step)
        terms = named(joint.terms, "regularizer")
        return {"loss": joint.total, "invariance": joint.invariance, **terms}


class OfViews(Objective):
    """VICReg, Barlow Twins, SAG-VICReg."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Outputs, crops: list[torch.Tensor], step: int) -> Terms:
        """Terms of a step."""
        views = outputs.embeddings
        if isinstance(self.loss, vt.SAGVICRegLoss):
            return named(self.loss(*views, step), "loss")
        return named(self.loss(views), "loss")


def named(terms: object, total: str) -> Terms:
    """A named tuple of terms, or a loss alone, as a dictionary with its total first."""
    if isinstance(terms, torch.Tensor):
        return {total: terms}
    return {total: terms.total} | {k: v for k, v in terms._asdict().items() if k != "total"}
