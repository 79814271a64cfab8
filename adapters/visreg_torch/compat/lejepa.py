"""LeJEPA's sliced test with its names: ``SlicingUnivariateTest(EppsPulley())``.

Only the Epps-Pulley test, with the numbers of quadrature points and of directions. On several
processes it is the statistic of the whole batch, also for uneven shares.
"""

from __future__ import annotations

from torch import Tensor, nn

from visreg_torch import modules
from visreg_torch.compat.stable_pretraining import EppsPulley

__all__ = ["EppsPulley", "SlicingUnivariateTest"]


class SlicingUnivariateTest(nn.Module):
    """Mean over random directions of the statistic of the projections of (..., N, D), times N.

    Parameters
    ----------
    univariate_test : EppsPulley
        This module's.
    num_slices : int
        Directions drawn for a forward pass.
    seed : int
        Of the directions.
    scope : {"local", "global"}
        Of this process's rows, or of those of all.

    Raises
    ------
    TypeError
        For another test.

    Examples
    --------
    >>> import torch
    >>> loss = SlicingUnivariateTest(EppsPulley(n_points=17), num_slices=64)
    >>> loss(torch.randn(256, 8)).shape
    torch.Size([])
    """

    def __init__(
        self,
        univariate_test: nn.Module,
        num_slices: int,
        *,
        seed: int = 0,
        scope: str = "global",
    ) -> None:
        super().__init__()
        if not isinstance(univariate_test, EppsPulley):
            found = type(univariate_test).__name__
            raise TypeError(
                f"expected univariate_test to be this module's EppsPulley; found {found}"
            )
        self.loss = modules.SIGRegLoss(
            num_slices,
            t_max=univariate_test.t_max,
            n_knots=univariate_test.n_points,
            seed=seed,
            scope=scope,
        )

    def forward(self, x: Tensor) -> Tensor:
        """The loss."""
        return self.loss(x)
