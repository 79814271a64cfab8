"""What sliced losses compute on the rows of projections, and its constants on the device."""

from __future__ import annotations

import functools
from typing import Any

import torch

from visreg_core.gaussian import epps_pulley_knots, masked_normal_quantiles, normal_quantiles
from visreg_torch.kernels import _launch, dispatch


class DistanceRows:
    """Squared distance to Gaussian quantiles, of rows short or long."""

    def __init__(self, n: int, device: torch.device, keep: Any, count: Any, precise: bool) -> None:
        self.n, self.keep, self.rank = n, keep, None
        self.long = n > dispatch.MAX_SORTED
        self.exact = precise
        if keep is None:
            self.q, self.prefix = map(_launch.constant, _quantiles(n, device))
            return
        import array_api_compat.torch as xp

        q = masked_normal_quantiles(xp, n, count, dtype=torch.float32)
        if self.long:
            self.q, self.prefix = q, _prefix(q)
            self.rank = torch.cumsum(keep, 0, dtype=torch.int32) - 1
        else:
            self.q = dispatch.load("sorted_rows", "targets_by_column")(q, count)

    def __call__(self, p: torch.Tensor, **options: Any) -> tuple[torch.Tensor, Any]:
        """Values of the rows p, and gradients as the operand of the product back."""
        if self.long:
            counted = dispatch.load("counted_rows", "counted_rows")
            return counted(
                p, self.q, self.prefix, n=self.n, keep=self.keep, rank=self.rank, **options
            )
        ordered = dispatch.load("sorted_rows", "sorted_rows")
        return ordered(p, self.q, n=self.n, keep=self.keep, exact=self.exact, **options)


class CharacteristicRows:
    """Epps-Pulley statistic of rows."""

    def __init__(self, n: int, device: torch.device, keep: Any, t_max: float, n_knots: int) -> None:
        self.n, self.keep = n, keep
        knots, self.step = _knots(t_max, n_knots, device)
        self.knots = _launch.constant(knots)

    def __call__(
        self, p: torch.Tensor, *, offset: Any = None, **options: Any
    ) -> tuple[torch.Tensor, Any]:
        """Values of the rows p, and gradients as the operand of the product back."""
        rows = dispatch.load("characteristic_rows", "characteristic_rows")
        return rows(p, self.knots, self.step, n=self.n, keep=self.keep, **options)


@functools.lru_cache(maxsize=8)
def _quantiles(n: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Quantiles, as rows short or long want them, and prefix sums: copied to the device once."""
    import array_api_compat.torch as xp

    wide = normal_quantiles(n, xp=xp, dtype=torch.float64, device=device)
    if n > dispatch.MAX_SORTED:
        return wide.float(), _prefix(wide)
    return dispatch.load("sorted_rows", "targets_by_column")(wide), None


def _prefix(q: torch.Tensor) -> torch.Tensor:
    """Sums of the first 0 … N quantiles and of their squares, (2, N + 1) in float64."""
    wide = q.double()
    sums = torch.cumsum(torch.stack([wide, wide * wide]), dim=1)
    return torch.cat([sums.new_zeros(2, 1), sums], dim=1)


@functools.lru_cache(maxsize=8)
def _knots(t_max: float, n_knots: int, device: torch.device) -> tuple[torch.Tensor, float]:
    """Weights, targets and slopes (3, m) of knots 1 … m, and the knots' distance."""
    knots, weights, targets = (c[1:] for c in epps_pulley_knots(t_max, n_knots))
    slopes = [2 * w * t for w, t in zip(weights, knots, strict=True)]
    table = torch.tensor([weights, targets, slopes], dtype=torch.float32, device=device)
    return table, knots[0]
