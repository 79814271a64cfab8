"""Losses of one set of embeddings on random slices: VISReg, SIGReg, sliced Wasserstein."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visreg_core import (
    VISRegTerms,
    checks,
)
from visreg_core.gaussian import epps_pulley_knots
from visreg_core.losses.visreg import EPS
from visreg_torch import functional
from visreg_torch.modules.base import Number, SlicedLoss, Step
from visreg_torch.modules.objective import joined


class VISRegObjective(NamedTuple):
    """Terms of ``VISRegLoss(lam=…)``; total = (1 − λ) invariance + λ regularizer."""

    total: Tensor
    invariance: Tensor
    regularizer: Tensor
    scale: Tensor
    shape: Tensor
    center: Tensor


class VISRegLoss(SlicedLoss):
    """VISReg's regulariser. `JointObjective` adds the invariance of views.

    Parameters
    ----------
    n_slices : int
        Directions drawn for a forward pass; on several processes in local scope, by each.
    weights : three numbers
        λ_scale, λ_shape, λ_center; 0 is the ablation without that term, and a negative one rewards
        what its term punishes.
    lam, n_global, detach_center : optional
        An older spelling of `JointObjective`: with `lam` the module returns the terms of the
        whole objective, a `VISRegObjective`.
    detach_scale : bool
        Hold σ constant in the gradient of the shape (the paper's stop-gradient).
    eps : float
        Added to σ.
    sampler : {"gaussian", "orthogonal"}
        Of `random_slices`.
    chunk_size, projection_dtype
        As in `visreg_core.shape_loss`.
    seed : int
        Of the slices.
    scope, group
        As in `visreg_torch.functional`.

    Raises
    ------
    ValueError, TypeError
        For options that are unknown or out of range, or that need `lam`.

    Examples
    --------
    >>> import torch
    >>> loss = VISRegLoss(n_slices=64)
    >>> z = torch.randn(2, 256, 8, requires_grad=True)
    >>> terms = loss(z)
    >>> terms.total.backward()
    >>> int(loss.step)
    1
    """

    def __init__(
        self,
        n_slices: int = 4096,
        *,
        weights: Sequence[Number] = (1, 1, 1),
        lam: Number | None = None,
        n_global: int | None = None,
        detach_center: bool = False,
        detach_scale: bool = True,
        eps: float = EPS,
        sampler: str = "gaussian",
        chunk_size: int | None = None,
        projection_dtype: torch.dtype | None = None,
        seed: int = 0,
        scope: str = "local",
        group: Any = None,
    ) -> None:
        super().__init__(n_slices, sampler, chunk_size, projection_dtype, seed, scope, group)
        checks.positive("eps", eps)
        if n_global is not None:
            checks.positive_int("n_global", n_global)
        if lam is not None:
            checks.number("lam", lam)
        elif n_global is not None or detach_center:
            raise ValueError("expected lam beside n_global and detach_center; found None")
        self.weights = checks.weights("weights", weights, VISRegTerms._fields[1:])
        self.lam = lam
        self.n_global = n_global
        self.detach_center = detach_center
        self.detach_scale = detach_scale
        self.eps = eps

    def forward(
        self, z: Tensor, step: Step = None, *, row_mask: Tensor | None = None
    ) -> VISRegTerms | VISRegObjective:
        """Terms for embeddings (..., N, D), with `lam` (..., V, N, D)."""
        terms = functional.visreg_loss(
            z,
            self.slices(z, step),
            self.weights,
            detach_scale=self.detach_scale,
            eps=self.eps,
            row_mask=row_mask,
            **self._common(),
        )
        if self.lam is None:
            return terms
        total, invariance = joined(self, z, terms.total, row_mask, self.scope, self.group)
        return VISRegObjective(total, invariance, *terms)


class SIGRegLoss(SlicedLoss):
    """SIGReg of embeddings (..., N, D), with LeJEPA's constants.

    Parameters
    ----------
    n_slices : int
        Directions drawn for a forward pass; on several processes in local scope, by each.
    t_max, n_knots, scale_by_n
        As in `visreg_core.sigreg_loss`.
    sampler, chunk_size, projection_dtype, seed, scope, group
        As in `VISRegLoss`.

    Raises
    ------
    ValueError, TypeError
        For options that are unknown or out of range.

    Examples
    --------
    >>> import torch
    >>> loss = SIGRegLoss(n_slices=64, seed=1)
    >>> loss(torch.randn(256, 8)).shape
    torch.Size([])
    """

    def __init__(
        self,
        n_slices: int = 1024,
        *,
        t_max: float = 3.0,
        n_knots: int = 17,
        scale_by_n: bool = True,
        sampler: str = "gaussian",
        chunk_size: int | None = None,
        projection_dtype: torch.dtype | None = None,
        seed: int = 0,
        scope: str = "local",
        group: Any = None,
    ) -> None:
        super().__init__(n_slices, sampler, chunk_size, projection_dtype, seed, scope, group)
        epps_pulley_knots(t_max, n_knots)  # which checks them
        self.t_max = t_max
        self.n_knots = n_knots
        self.scale_by_n = scale_by_n

    def forward(self, z: Tensor, step: Step = None, *, row_mask: Tensor | None = None) -> Tensor:
        """The loss."""
        return functional.sigreg_loss(
            z,
            self.slices(z, step),
            self.t_max,
            self.n_knots,
            scale_by_n=self.scale_by_n,
            row_mask=row_mask,
            **self._common(),
        )


class SlicedWassersteinLoss(SlicedLoss):
    """Squared sliced 2-Wasserstein distance of embeddings (..., N, D) to the standard Gaussian.

    Parameters
    ----------
    n_slices : int
        Directions drawn for a forward pass; on several processes in local scope, by each.
    reduction : {"mean", "sum"}
        Over the samples of a slice.
    sampler, chunk_size, projection_dtype, seed, scope, group
        As in `VISRegLoss`.

    Raises
    ------
    ValueError, TypeError
        For options that are unknown or out of range.

    Examples
    --------
    >>> import torch
    >>> loss = SlicedWassersteinLoss(n_slices=64, sampler="orthogonal")
    >>> bool(loss(torch.randn(512, 8)) < 0.1)
    True
    """

    def __init__(
        self,
        n_slices: int = 4096,
        *,
        reduction: str = "mean",
        sampler: str = "gaussian",
        chunk_size: int | None = None,
        projection_dtype: torch.dtype | None = None,
        seed: int = 0,
        scope: str = "local",
        group: Any = None,
    ) -> None:
        super().__init__(n_slices, sampler, chunk_size, projection_dtype, seed, scope, group)
        checks.choice("reduction", reduction, ("mean", "sum"))
        self.reduction = reduction

    def forward(self, z: Tensor, step: Step = None, *, row_mask: Tensor | None = None) -> Tensor:
        """The loss."""
        return functional.gaussian_sliced_wasserstein(
            z,
            self.slices(z, step),
            reduction=self.reduction,
            row_mask=row_mask,
            **self._common(),
        )
