"""Kernels that replace the core's functions of rows: `KERNELS` goes into an `Execution`.

Each has the signature of the core's function of its name, and calls it where no kernel can run (see
`visreg_torch.kernels.dispatch`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from visreg_core.losses.epps_pulley import multiples as core_multiples
from visreg_core.losses.gaussian_sliced_wasserstein import gaussian_term as core_gaussian_term
from visreg_torch.kernels.dispatch import choose, load

_BLOCK_BYTES = 1 << 26


def gaussian_term(
    xp: Any,
    p: torch.Tensor,
    q: torch.Tensor,
    row_mask: torch.Tensor | None,
    need_grad: bool,
    slope: float = 2.0,
) -> tuple[torch.Tensor, ...]:
    """The core's function of this name, by a kernel."""
    kernel = choose("gaussian", p.device, p.dtype, p.shape[-1]).kernel
    if kernel is None:
        return core_gaussian_term(xp, p, q, row_mask, need_grad, slope)
    return load(kernel, kernel)(p, q, row_mask, need_grad, slope)


def multiples(xp: Any, angle: torch.Tensor, m: int, *, sharded: bool) -> Any:
    """The core's function of this name, by a kernel."""
    kernel = choose("epps_pulley", angle.device, angle.dtype, angle.shape[-1]).kernel
    if kernel is None:
        return core_multiples(xp, angle, m, sharded=sharded)
    return KernelMultiples(angle, m)


class KernelMultiples:
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


def divide(x: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
    """The core's function of this name, in x's own memory."""
    return x.div_(divisor)


def combine(
    rows: Any,
    g: torch.Tensor | None,
    a: torch.Tensor | None,
    f: torch.Tensor,
    r: torch.Tensor,
    donated: bool,
) -> torch.Tensor:
    """g a + (z − first) f + r, in blocks of rows, and in g's own memory where it is `donated`."""
    if g is None or a is None:
        out: torch.Tensor = rows.shifted()
        out *= f
        out += r
        return out if rows.keep is None else out.masked_fill_(~rows.keep, 0)
    out = g.mul_(a) if donated else g * a
    size = rows.z.shape[-2]
    block = max(1, _BLOCK_BYTES * size // (out.itemsize * max(1, out.numel())))
    for start in range(0, size, block):
        n = slice(start, start + block)
        part = rows.z[..., n, :].to(out.dtype) - rows.first
        part *= f
        part += r
        if rows.keep is not None:
            part.masked_fill_(~rows.keep[n, :], 0)
        out[..., n, :] += part
    return out


KERNELS: Mapping[str, Callable[..., Any]] = {
    "combine": combine,
    "divide": divide,
    "gaussian_term": gaussian_term,
    "multiples": multiples,
}
