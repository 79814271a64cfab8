"""The loss functions of solo-learn 1.0, with its arguments and results.

solo-learn reduces Barlow Twins' correlation over processes outside of the gradient, of rows that
each process standardised by itself. ``scope="global"`` is the loss of all rows, with its gradient.
"""

from __future__ import annotations

from torch import Tensor

from visreg_torch import functional

__all__ = ["barlow_loss_func", "vicreg_loss_func"]


def vicreg_loss_func(
    z1: Tensor,
    z2: Tensor,
    sim_loss_weight: float = 25.0,
    var_loss_weight: float = 25.0,
    cov_loss_weight: float = 1.0,
    *,
    scope: str = "local",
) -> Tensor:
    """VICReg of two views, its variance term the sum of both.

    Parameters
    ----------
    z1, z2 : Tensor (N, D)
        Embeddings.
    sim_loss_weight, var_loss_weight, cov_loss_weight : float
        Weights of invariance, variance and covariance.
    scope : {"local", "global"}
        Of this process's rows, or of those of all.

    Returns
    -------
    Tensor
        The loss.

    Examples
    --------
    >>> import torch
    >>> vicreg_loss_func(torch.randn(64, 8), torch.randn(64, 8)).shape
    torch.Size([])
    """
    weights = (sim_loss_weight, var_loss_weight, cov_loss_weight)
    return functional.vicreg_loss(z1, z2, weights, convention="solo-learn", scope=scope).total


def barlow_loss_func(
    z1: Tensor, z2: Tensor, lamb: float = 5e-3, scale_loss: float = 0.025, *, scope: str = "global"
) -> Tensor:
    """Barlow Twins of two views, standardised as by a BatchNorm layer, times `scale_loss`.

    Parameters
    ----------
    z1, z2 : Tensor (N, D)
        Embeddings.
    lamb : float
        Weight of the off-diagonal terms.
    scale_loss : float
        Of the whole loss.
    scope : {"local", "global"}
        Of this process's rows, or of those of all.

    Returns
    -------
    Tensor
        The loss.

    Examples
    --------
    >>> import torch
    >>> barlow_loss_func(torch.randn(64, 8), torch.randn(64, 8)).shape
    torch.Size([])
    """
    return scale_loss * functional.barlow_twins_loss(z1, z2, lamb, eps=1e-5, scope=scope).total
