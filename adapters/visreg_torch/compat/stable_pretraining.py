"""The losses of stable-pretraining 0.1.8, with its arguments and results.

Not reproduced: its `BarlowTwinsLoss` standardises by the unbiased deviation and divides the sum
over rows by N, so that the correlation of a column with itself is (N − 1)/N; here it is 1.
"""

from __future__ import annotations

from torch import Tensor, nn

from visreg_torch import functional, modules

__all__ = ["BarlowTwinsLoss", "EppsPulley", "SlicedEppsPulley", "VICRegLoss"]


class VICRegLoss(nn.Module):
    """VICReg of two views (N, D).

    Parameters
    ----------
    sim_coeff, std_coeff, cov_coeff : float
        Weights of invariance, variance and covariance.
    epsilon : float
        Inside of the square root.
    scope : {"local", "global"}
        Of this process's rows, or of those of all.

    Examples
    --------
    >>> import torch
    >>> VICRegLoss()(torch.randn(64, 8), torch.randn(64, 8)).shape
    torch.Size([])
    """

    def __init__(
        self,
        sim_coeff: float = 25,
        std_coeff: float = 25,
        cov_coeff: float = 1,
        epsilon: float = 1e-4,
        *,
        scope: str = "local",
    ) -> None:
        super().__init__()
        weights = (sim_coeff, std_coeff, cov_coeff)
        self.loss = modules.VICRegLoss(weights, eps=epsilon, scope=scope)

    def forward(self, z_i: Tensor, z_j: Tensor) -> Tensor:
        """The loss."""
        return self.loss(z_i, z_j).total


class BarlowTwinsLoss(nn.Module):
    """Barlow Twins of two views (N, D), of the rows of all processes.

    Parameters
    ----------
    lambd : float
        Weight of the off-diagonal terms.
    scope : {"local", "global"}
        Of this process's rows, or of those of all.

    Examples
    --------
    >>> import torch
    >>> BarlowTwinsLoss()(torch.randn(64, 8), torch.randn(64, 8)).shape
    torch.Size([])
    """

    def __init__(self, lambd: float = 5e-3, *, scope: str = "global") -> None:
        super().__init__()
        self.loss = modules.BarlowTwinsLoss(lambd, scope=scope)

    def forward(self, z_i: Tensor, z_j: Tensor) -> Tensor:
        """The loss."""
        return self.loss(z_i, z_j).total


class EppsPulley(nn.Module):
    """The statistic of each column of (..., N, K), times N.

    Parameters
    ----------
    t_max : float
        End of the quadrature.
    n_points : int
        Its knots.

    Examples
    --------
    >>> import torch
    >>> EppsPulley()(torch.randn(256, 5)).shape
    torch.Size([5])
    """

    def __init__(self, t_max: float = 3.0, n_points: int = 17) -> None:
        super().__init__()
        self.t_max, self.n_points = t_max, n_points

    def forward(self, x: Tensor) -> Tensor:
        """The statistics (..., K)."""
        return functional.epps_pulley(x, self.t_max, self.n_points, axis=-2)


class SlicedEppsPulley(nn.Module):
    """Mean over random directions of the statistic of the projections of (..., N, D).

    Parameters
    ----------
    num_slices : int
        Directions drawn for a forward pass.
    t_max, n_points
        Of `EppsPulley`.
    seed : int
        Of the directions.
    scope : {"local", "global"}
        Of this process's rows, or of those of all.

    Examples
    --------
    >>> import torch
    >>> SlicedEppsPulley(num_slices=64)(torch.randn(256, 8)).shape
    torch.Size([])
    """

    def __init__(
        self,
        num_slices: int = 1024,
        t_max: float = 3.0,
        n_points: int = 17,
        *,
        seed: int = 0,
        scope: str = "global",
    ) -> None:
        super().__init__()
        self.loss = modules.SIGRegLoss(
            num_slices, t_max=t_max, n_knots=n_points, seed=seed, scope=scope
        )

    def forward(self, x: Tensor) -> Tensor:
        """The loss."""
        return self.loss(x)
