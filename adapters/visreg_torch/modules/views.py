"""Losses of two or more views: VICReg, Barlow Twins, SAG-VICReg."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from visreg_core import (
    BarlowTwinsTerms,
    SAGVICRegTerms,
    VICRegTerms,
    checks,
)
from visreg_core.losses.random_walk import SCALES, check_percentile
from visreg_core.losses.vicreg import CONVENTIONS
from visreg_torch import functional
from visreg_torch.modules.base import DrawingLoss, LossModule, Number, Step


class VICRegLoss(LossModule):
    """VICReg of two views a, b (..., N, D), or of the pairs of views (V, N, D).

    Parameters
    ----------
    weights : three numbers
        Of invariance, variance and covariance.
    gamma, eps, convention
        As in `visreg_core.vicreg_loss`.
    scope, group
        As in `visreg_torch.functional`.

    Raises
    ------
    ValueError, TypeError
        For options that are unknown or out of range.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.randn(2, 64, 8)
    >>> loss = VICRegLoss()
    >>> bool(loss(a, b).total == loss(torch.stack([a, b])).total)
    True
    """

    def __init__(
        self,
        weights: Sequence[Number] = (25, 25, 1),
        *,
        gamma: float = 1.0,
        eps: float = 1e-4,
        convention: str = "vicreg",
        scope: str = "local",
        group: Any = None,
    ) -> None:
        super().__init__(scope, group)
        checks.number("gamma", gamma)
        checks.not_negative("eps", eps)
        checks.choice("convention", convention, CONVENTIONS)
        self.weights = checks.weights("weights", weights, VICRegTerms._fields[1:])
        self.gamma = gamma
        self.eps = eps
        self.convention = convention

    def forward(
        self, a: Tensor, b: Tensor | None = None, *, row_mask: Tensor | None = None
    ) -> VICRegTerms:
        """Terms of the loss."""
        return functional.vicreg_loss(
            a,
            b,
            self.weights,
            gamma=self.gamma,
            eps=self.eps,
            convention=self.convention,
            row_mask=row_mask,
            scope=self.scope,
            group=self.group,
        )


class BarlowTwinsLoss(LossModule):
    """Barlow Twins of two views a, b (..., N, D), or of the pairs of views (V, N, D).

    Parameters
    ----------
    off_diagonal_weight : number
        λ.
    eps : float
        As in `visreg_core.barlow_twins_loss`; 1e-5 gives the value of a BatchNorm layer.
    scope, group
        As in `visreg_torch.functional`.

    Raises
    ------
    ValueError, TypeError
        For options that are unknown or out of range.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.randn(2, 64, 8)
    >>> terms = BarlowTwinsLoss(5e-3)(a, b)
    >>> terms._fields
    ('total', 'on_diagonal', 'off_diagonal')
    """

    def __init__(
        self,
        off_diagonal_weight: Number = 0.0051,
        *,
        eps: float = 0.0,
        scope: str = "local",
        group: Any = None,
    ) -> None:
        super().__init__(scope, group)
        checks.number("off_diagonal_weight", off_diagonal_weight)
        checks.not_negative("eps", eps)
        self.off_diagonal_weight = off_diagonal_weight
        self.eps = eps

    def forward(
        self, a: Tensor, b: Tensor | None = None, *, row_mask: Tensor | None = None
    ) -> BarlowTwinsTerms:
        """Terms of the loss."""
        return functional.barlow_twins_loss(
            a,
            b,
            self.off_diagonal_weight,
            eps=self.eps,
            row_mask=row_mask,
            scope=self.scope,
            group=self.group,
        )


class SAGVICRegLoss(DrawingLoss):
    """SAG-VICReg of two views a, b (N, D): VICReg on pairs that a random walk draws.

    The affinity of the rows, the walk and the weights of its pairs are made in the forward pass
    and have no gradient.

    Parameters
    ----------
    n_neighbors, percentile, scale, symmetrize
        Of `visreg_core.random_walk_affinity`.
    n_steps : int
        Steps of the walk.
    weights : three numbers
        Of invariance, variance and covariance.
    gamma, eps
        As in `visreg_core.vicreg_loss`.
    seed : int
        Of the walk.
    scope, group
        As in `visreg_torch.functional`.

    Raises
    ------
    ValueError, TypeError
        For options that are unknown or out of range.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.randn(2, 64, 8)
    >>> terms = SAGVICRegLoss(n_neighbors=5)(a, b)
    >>> terms._fields
    ('total', 'invariance', 'variance', 'covariance')
    """

    def __init__(
        self,
        n_neighbors: int = 10,
        *,
        percentile: float = 20,
        scale: str = "local",
        symmetrize: bool = False,
        n_steps: int = 1,
        weights: Sequence[Number] = (25, 25, 1),
        gamma: float = 1.0,
        eps: float = 1e-4,
        seed: int = 0,
        scope: str = "local",
        group: Any = None,
    ) -> None:
        super().__init__(seed, scope, group)
        checks.positive_int("n_neighbors", n_neighbors)
        checks.positive_int("n_steps", n_steps)
        checks.choice("scale", scale, SCALES)
        check_percentile(percentile)
        checks.number("gamma", gamma)
        checks.not_negative("eps", eps)
        self.n_neighbors = n_neighbors
        self.percentile = percentile
        self.scale = scale
        self.symmetrize = symmetrize
        self.n_steps = n_steps
        self.weights = checks.weights("weights", weights, SAGVICRegTerms._fields[1:])
        self.gamma = gamma
        self.eps = eps

    def forward(self, a: Tensor, b: Tensor, step: Step = None) -> SAGVICRegTerms:
        """Terms of the loss."""
        pairs, pair_weights = self.pairs(a, b, step)
        return functional.sag_vicreg_loss(
            a,
            b,
            pairs,
            pair_weights,
            self.weights,
            gamma=self.gamma,
            eps=self.eps,
            scope=self.scope,
            group=self.group,
        )

    def pairs(self, a: Tensor, b: Tensor, step: Step = None) -> tuple[Tensor, Tensor]:
        """For each row of a the index of its paired row of b, and the pair's affinity.

        In global scope indices are those of the rows of all processes, in order of rank.
        """

        def draw(now: int | Tensor) -> tuple[Tensor, Tensor]:
            return functional.random_walk_pairs(
                a,
                b,
                self.n_neighbors,
                self.percentile,
                scale=self.scale,
                symmetrize=self.symmetrize,
                n_steps=self.n_steps,
                seed=self.seed,
                step=now,
                scope=self.scope,
                group=self.group,
            )

        return self._drawn(draw, step)
