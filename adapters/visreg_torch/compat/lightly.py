"""The losses of lightly 1.6, with its arguments and results.

``gather_distributed=True`` is ``scope="global"``: the loss of the rows of all processes, the
invariance included, which lightly takes of each process's own (for equal shares that changes a
process's value and no gradient); Barlow Twins standardises by the statistics of all rows, where
lightly averages correlations of rows that each process standardised by itself. State dicts hold the
step of the directions and none of lightly's buffers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from visreg_core import joint_objective
from visreg_torch import functional, modules

__all__ = [
    "BarlowTwinsLoss",
    "LeJEPALoss",
    "SIGReg",
    "VICRegLoss",
    "VISRegLoss",
    "VISRegLossComponents",
]


def _scope(gather_distributed: bool) -> str:
    return "global" if gather_distributed else "local"


class VICRegLoss(nn.Module):
    """VICReg of two views (N, ..., D).

    Parameters
    ----------
    lambda_param, mu_param, nu_param : float
        Weights of invariance, variance and covariance.
    gather_distributed : bool
        Of the rows of all processes.
    eps : float
        Inside of the square root.

    Examples
    --------
    >>> import torch
    >>> VICRegLoss()(torch.randn(64, 8), torch.randn(64, 8)).shape
    torch.Size([])
    """

    def __init__(
        self,
        lambda_param: float = 25.0,
        mu_param: float = 25.0,
        nu_param: float = 1.0,
        gather_distributed: bool = False,
        eps: float = 0.0001,
    ) -> None:
        super().__init__()
        weights = (lambda_param, mu_param, nu_param)
        self.loss = modules.VICRegLoss(weights, eps=eps, scope=_scope(gather_distributed))

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss."""
        return self.loss(z_a.movedim(0, -2), z_b.movedim(0, -2)).total


class BarlowTwinsLoss(nn.Module):
    """Barlow Twins of two views (N, D), standardised as by a BatchNorm layer.

    Parameters
    ----------
    lambda_param : float
        Weight of the off-diagonal terms.
    gather_distributed : bool
        Of the rows of all processes.

    Examples
    --------
    >>> import torch
    >>> BarlowTwinsLoss()(torch.randn(64, 8), torch.randn(64, 8)).shape
    torch.Size([])
    """

    def __init__(self, lambda_param: float = 5e-3, gather_distributed: bool = False) -> None:
        super().__init__()
        scope = _scope(gather_distributed)
        self.loss = modules.BarlowTwinsLoss(lambda_param, eps=1e-5, scope=scope)

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss."""
        return self.loss(z_a, z_b).total


class SIGReg(nn.Module):
    """SIGReg of embeddings (..., N, D), times N.

    Parameters
    ----------
    knots : int
        Of the quadrature.
    t_max : float
        Its end.
    num_vectors : int
        Directions drawn for a forward pass.
    gather_distributed : bool
        Of the rows of all processes.
    seed : int
        Of the directions.

    Examples
    --------
    >>> import torch
    >>> SIGReg(num_vectors=64)(torch.randn(256, 8)).shape
    torch.Size([])
    """

    def __init__(
        self,
        *,
        knots: int = 17,
        t_max: float = 3.0,
        num_vectors: int = 1024,
        gather_distributed: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        scope = _scope(gather_distributed)
        self.loss = modules.SIGRegLoss(
            num_vectors, t_max=t_max, n_knots=knots, seed=seed, scope=scope
        )

    def forward(self, proj: Tensor) -> Tensor:
        """The loss."""
        return self.loss(proj)


class LeJEPALoss(nn.Module):
    """(1 − λ) invariance + λ SIGReg of global and local views (V, N, D).

    Parameters
    ----------
    lambda_param : float
        λ.
    gather_distributed : bool
        Of the rows of all processes.
    sigreg_knots, sigreg_t_max, sigreg_num_vectors
        Of `SIGReg`.
    seed : int
        Of the directions.

    Examples
    --------
    >>> import torch
    >>> views = torch.randn(6, 64, 8)
    >>> LeJEPALoss()(local_proj=views[2:], global_proj=views[:2]).shape
    torch.Size([])
    """

    def __init__(
        self,
        lambda_param: float = 0.05,
        gather_distributed: bool = False,
        sigreg_knots: int = 17,
        sigreg_t_max: float = 3.0,
        sigreg_num_vectors: int = 1024,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _unit_interval(lambda_param)
        self.lambda_param = lambda_param
        self.sigreg = SIGReg(
            knots=sigreg_knots,
            t_max=sigreg_t_max,
            num_vectors=sigreg_num_vectors,
            gather_distributed=gather_distributed,
            seed=seed,
        )

    def forward(self, *, local_proj: Tensor, global_proj: Tensor) -> Tensor:
        """The objective."""
        views, invariance = _invariance(local_proj, global_proj, self.sigreg.loss.scope)
        return joint_objective(invariance, self.sigreg(views), self.lambda_param)


class VISRegLossComponents(NamedTuple):
    """Terms of `VISRegLoss`; ``pred`` is the invariance."""

    total: Tensor
    pred: Tensor
    scale: Tensor
    shape: Tensor
    center: Tensor


class VISRegLoss(nn.Module):
    """(1 − λ) invariance + λ VISReg of global and local views (V, N, D).

    Parameters
    ----------
    lambda_param : float
        λ.
    num_slices : int
        Directions drawn for a forward pass; on several processes, without gathering, by each.
    lambda_scale, lambda_shape, lambda_center : float
        Weights of VISReg's terms.
    gather_distributed : bool
        Of the rows of all processes.
    eps : float
        Added to σ.
    seed : int
        Of the directions.

    Examples
    --------
    >>> import torch
    >>> views = torch.randn(6, 64, 8)
    >>> loss = VISRegLoss(num_slices=64)
    >>> loss.forward_components(local_proj=views[2:], global_proj=views[:2])._fields
    ('total', 'pred', 'scale', 'shape', 'center')
    """

    def __init__(
        self,
        lambda_param: float = 0.9,
        num_slices: int = 4096,
        lambda_scale: float = 1.0,
        lambda_shape: float = 1.0,
        lambda_center: float = 1.0,
        gather_distributed: bool = False,
        eps: float = 1e-4,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _unit_interval(lambda_param)
        self.lambda_param = lambda_param
        self.loss = modules.VISRegLoss(
            num_slices,
            weights=(lambda_scale, lambda_shape, lambda_center),
            eps=eps,
            seed=seed,
            scope=_scope(gather_distributed),
        )

    def forward(self, *, local_proj: Tensor, global_proj: Tensor) -> Tensor:
        """The objective."""
        return self.forward_components(local_proj=local_proj, global_proj=global_proj).total

    def forward_components(
        self, *, local_proj: Tensor, global_proj: Tensor
    ) -> VISRegLossComponents:
        """The objective and its terms."""
        views, invariance = _invariance(local_proj, global_proj, self.loss.scope)
        terms = self.loss(views)
        total = joint_objective(invariance, terms.total, self.lambda_param)
        return VISRegLossComponents(total, invariance, terms.scale, terms.shape, terms.center)


def _unit_interval(lambda_param: float) -> None:
    if not 0 <= lambda_param <= 1:
        raise ValueError(f"expected lambda_param in [0, 1]; found {lambda_param!r}")


def _invariance(local_proj: Tensor, global_proj: Tensor, scope: str) -> tuple[Tensor, Tensor]:
    """All views, global ones first, and their distance from the mean of the global ones."""
    for name, views in (("local_proj", local_proj), ("global_proj", global_proj)):
        if views.ndim != 3 or views.shape[1:] != global_proj.shape[1:]:
            raise ValueError(
                "expected local_proj and global_proj (V, N, D) with one N and D; found "
                f"{name} {tuple(views.shape)} beside global_proj {tuple(global_proj.shape)}"
            )
    views = torch.cat([global_proj, local_proj])
    return views, functional.invariance_loss(views, len(global_proj), scope=scope)
