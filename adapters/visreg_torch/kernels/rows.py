"""Kernels in place of the core's functions of rows: `KERNELS` is what an `Execution` takes.

    PLAIN._replace(kernels=KERNELS)

Each has the signature of the function that it stands in for, and hands over to it where no kernel
can run (see `visreg_torch.kernels.dispatch`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from visreg_core.losses.epps_pulley import multiples as core_multiples
from visreg_core.losses.gaussian_sliced_wasserstein import gaussian_term as core_gaussian_term
from visreg_torch.kernels.dispatch import choose, load


def gaussian_term(
    xp: Any,
    p: torch.Tensor,
    q: torch.Tensor,
    row_mask: torch.Tensor | None,
    need_grad: bool,
    slope: float = 2.0,
) -> tuple[torch.Tensor, ...]:
    """In place of the core's function of this name."""
    kernel = choose("gaussian", p.device, p.dtype, p.shape[-1]).kernel
    if kernel is None:
        return core_gaussian_term(xp, p, q, row_mask, need_grad, slope)
    return load(kernel, kernel)(p, q, row_mask, need_grad, slope)


def multiples(xp: Any, angle: torch.Tensor, m: int) -> Any:
    """In place of the core's function of this name."""
    kernel = choose("epps_pulley", angle.device, angle.dtype, angle.shape[-1]).kernel
    if kernel is None:
        return core_multiples(xp, angle, m)
    return Multiples(angle, m)


class Multiples:
    """Cosines and sines of jθ, j = 1 … m, for the angles θ (R, N); none of them is stored."""

    def __init__(self, angle: torch.Tensor, m: int) -> None:
        self.angle, self.m = angle, m

    def sums(self, keep: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Σ_n cos jθ_n and Σ_n sin jθ_n over the kept samples (1, N), each (R, m)."""
        row_mask = None if keep is None else keep[0]
        return load("epps_pulley_rows", "epps_pulley_sums")(self.angle, self.m, row_mask)

    def polynomial(self, of_cos: torch.Tensor, of_sin: torch.Tensor) -> torch.Tensor:
        """Σ_j of_cos_j cos jθ_n + of_sin_j sin jθ_n for coefficients (R, m): (R, N)."""
        return load("epps_pulley_rows", "epps_pulley_polynomial")(self.angle, of_cos, of_sin)


KERNELS: Mapping[str, Callable[..., Any]] = {
    "gaussian_term": gaussian_term,
    "multiples": multiples,
}
