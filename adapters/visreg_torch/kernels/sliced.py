"""Whole sliced losses by kernels: VISReg, its shape term, the distance to a Gaussian, and SIGReg.

The forward pass also computes the gradient with respect to the (standardised) rows and saves it;
the backward pass is one launch, which multiplies it by the cotangents. Launches of a step, for
views of up to 2048 rows:

1. moments, and rows as 16-bit parts (`moments`; without standardisation `operands`)
2. slices as 16-bit parts (`operands`)
3. the projection, by the vendor's library (`products`)
4. rows: ranks or characteristic functions, and their gradient (`sorted_rows`, …)
5. the backprojection, likewise
6. values and total (`ends`)
7. backward (`ends`)

Chunks of views and slices bound the memory (`sliced_engine`).

Products by the dtype of the embeddings and `projection_dtype`, with P = 2 N D K operations each,
and the gradient's error near the optimum:

========================  ===========  =======  ======================
embeddings                projection   back     error
========================  ===========  =======  ======================
16-bit, copied            3 P          1 P      0.3 % (2 P without σ)
16-bit, not copied        2 P          1 P      0.3-0.7 %
float32                   3 P          3 P      as float32 (ranks)
any, 16 bits requested    1 P          1 P      1-10 %
========================  ===========  =======  ======================

Nothing synchronises with the device, and no allocation depends on values. Constants (quantiles,
knots) are copied from the host when a size is first seen, which must be before a CUDA graph is
captured: its warm-up does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from visreg_torch.kernels import _launch, dispatch
from visreg_torch.kernels.sliced_engine import plan_of, sliced
from visreg_torch.kernels.sliced_rows import CharacteristicRows, DistanceRows

EPS = 1e-6


class VISRegKernelSaved(NamedTuple):
    """What `visreg_forward` and `shape_forward` save.

    gradient : (groups, padded, pitch), float32 or bfloat16: Σ_k (p − q)_nk w_k of row n of view b
    at [b // together, (b % together) · N + n, :D], with together = B / groups.
    moments : (3, B, D) float32: the mean in two parts, and σ.
    scalars : (5,) float32: weights of scale, shape and centre, ε, and the number of kept rows.
    """

    gradient: torch.Tensor
    moments: torch.Tensor
    scalars: torch.Tensor


class SlicedSaved(NamedTuple):
    """What the other forward passes save.

    gradient : (groups, padded, pitch), as in `VISRegKernelSaved`, of the rows' own gradients.
    scalars : (1,) float32: what the mean over rows is divided by.
    """

    gradient: torch.Tensor
    scalars: torch.Tensor


def takes(z: torch.Tensor, **options: Any) -> bool:
    """Whether these functions compute a loss of z with options."""
    return (
        dispatch.available(z.device, z.dtype)
        and z.ndim >= 2
        and z.shape[-2] >= 2
        and z.numel() > 0
        and options.get("projection_dtype") != torch.float64
        and options.get("detach_scale", True)
        and options.get("reduction", "mean") == "mean"
    )


def _flat(z: torch.Tensor, slices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """z as (B, N, D), and slices as (1, D, K) where they are shared, else (B, D, K)."""
    flat = z.detach()
    flat = flat.reshape(-1, *flat.shape[-2:]) if flat.ndim != 3 else flat
    w = slices.detach()
    if w.ndim == 2:
        return flat, w[None]
    w = w.expand(*z.shape[:-2], -1, -1)
    return flat, w.reshape(-1, *w.shape[-2:])


def _kept(row_mask: torch.Tensor | None, n: int) -> tuple[Any, Any]:
    """The mask as bytes, and the number of kept rows: a float, or a tensor (NaN below two)."""
    if row_mask is None:
        return None, float(n)
    count = torch.sum(row_mask, dtype=torch.float32)
    return _launch.mask_bytes(row_mask, n), torch.where(count >= 2, count, torch.nan)


def visreg_forward(
    z: torch.Tensor,
    slices: torch.Tensor,
    weights: tuple[Any, Any, Any] = (1, 1, 1),
    *,
    eps: float = EPS,
    row_mask: torch.Tensor | None = None,
    projection_dtype: torch.dtype | None = None,
    need_grad: bool = True,
) -> tuple[tuple[torch.Tensor, ...], VISRegKernelSaved | None]:
    """`visreg_core.visreg_loss` with σ held constant in the shape term.

    z : (..., N, D); float32, bfloat16 or float16
    slices : (D, K) or (..., D, K); unit columns
    weights : three numbers, or 0-d tensors; of scale, shape and centre
    eps : added to σ
    row_mask : boolean (N,); rows to keep
    projection_dtype : 16-bit: products of one 16-bit part; float32: as exact as float32; by default
        as in the module's table
    need_grad : whether a backward pass may follow
    Returns (total, scale, shape, center), 0-d float32; and `VISRegKernelSaved`, or None.
    """
    flat, w = _flat(z, slices)
    n = flat.shape[1]
    keep, count = _kept(row_mask, n)
    plan = plan_of(flat, w, True, projection_dtype)
    rows = DistanceRows(n, z.device, keep, count, plan.back == 3)
    values, gradient, moments = sliced(flat, w, rows, plan, eps, need_grad)
    ends = dispatch.load("ends", "terms")
    out, scalars = ends(values, moments, weights, eps, count)
    saved = VISRegKernelSaved(gradient, moments, scalars) if need_grad else None
    return out, saved


def visreg_backward(
    z: torch.Tensor,
    slices: torch.Tensor,
    saved: VISRegKernelSaved,
    cotangents: tuple[torch.Tensor | None, ...],
    *,
    row_mask: torch.Tensor | None = None,
    donated: bool = False,
) -> torch.Tensor:
    """Gradient of VISReg's four fields with respect to z.

    z, slices, row_mask : as passed to `visreg_forward`
    saved : VISRegKernelSaved; what `visreg_forward` saved
    cotangents : four 0-d tensors, or None; of total, scale, shape and center
    donated : whether the memory of ``saved.gradient`` may become the result's
    Returns a tensor of z's shape and dtype.
    """
    return _combined(z, slices, saved, saved.moments, tuple(cotangents), 2.0, row_mask, donated)


def _combined(
    z: torch.Tensor,
    slices: torch.Tensor,
    saved: VISRegKernelSaved | SlicedSaved,
    moments: torch.Tensor | None,
    cotangents: tuple[torch.Tensor | None, ...],
    factor: float,
    row_mask: torch.Tensor | None,
    donated: bool,
) -> torch.Tensor:
    flat, w = _flat(z, slices)
    batch, n, _ = flat.shape
    g = saved.gradient
    found = dispatch.load("ends", "combined")(
        g,
        flat,
        _launch.mask_bytes(row_mask, n),
        moments,
        saved.scalars,
        cotangents,
        together=batch // g.shape[0],
        per_row=factor / (batch * w.shape[2]),
        out=_own(g, flat) if donated else None,
    )
    return found.reshape(z.shape)


def _own(g: torch.Tensor, z: torch.Tensor) -> torch.Tensor | None:
    """The gradient's own memory in z's shape, where it is of z's dtype and has no padding."""
    fits = g.dtype == z.dtype and g.numel() == z.numel()
    return g.view(z.shape) if fits else None


def shape_forward(
    z: torch.Tensor,
    slices: torch.Tensor,
    *,
    eps: float = EPS,
    row_mask: torch.Tensor | None = None,
    projection_dtype: torch.dtype | None = None,
    need_grad: bool = True,
) -> tuple[tuple[torch.Tensor], VISRegKernelSaved | None]:
    """`visreg_core.shape_loss` with σ held constant, and its mean; as `visreg_forward`.

    Returns (shape,), and `VISRegKernelSaved` or None.
    """
    terms, saved = visreg_forward(
        z,
        slices,
        (0, 1, 0),
        eps=eps,
        row_mask=row_mask,
        projection_dtype=projection_dtype,
        need_grad=need_grad,
    )
    return (terms[2],), saved


def shape_backward(
    z: torch.Tensor,
    slices: torch.Tensor,
    saved: VISRegKernelSaved,
    cotangents: tuple[torch.Tensor | None],
    *,
    row_mask: torch.Tensor | None = None,
    donated: bool = False,
) -> torch.Tensor:
    """Gradient of the shape term; as `visreg_backward`, with one cotangent."""
    on_shape = (None, None, cotangents[0], None)
    return visreg_backward(z, slices, saved, on_shape, row_mask=row_mask, donated=donated)


def gaussian_sliced_wasserstein_forward(
    z: torch.Tensor,
    slices: torch.Tensor,
    *,
    row_mask: torch.Tensor | None = None,
    projection_dtype: torch.dtype | None = None,
    need_grad: bool = True,
) -> tuple[tuple[torch.Tensor], SlicedSaved | None]:
    """`visreg_core.gaussian_sliced_wasserstein`, its mean over rows; as `visreg_forward`.

    Returns (value,), and `SlicedSaved` or None.
    """
    flat, w = _flat(z, slices)
    keep, count = _kept(row_mask, flat.shape[1])
    plan = plan_of(flat, w, False, projection_dtype)
    rows = DistanceRows(flat.shape[1], z.device, keep, count, plan.back == 3)
    return _ended(sliced(flat, w, rows, plan, None, need_grad), count)


def sigreg_forward(
    z: torch.Tensor,
    slices: torch.Tensor,
    t_max: float = 3.0,
    n_knots: int = 17,
    *,
    scale_by_n: bool = True,
    row_mask: torch.Tensor | None = None,
    projection_dtype: torch.dtype | None = None,
    need_grad: bool = True,
) -> tuple[tuple[torch.Tensor], SlicedSaved | None]:
    """`visreg_core.sigreg_loss`; as `visreg_forward`.

    Returns (value,), and `SlicedSaved` or None.
    """
    flat, w = _flat(z, slices)
    keep, count = _kept(row_mask, flat.shape[1])
    plan = plan_of(flat, w, False, projection_dtype)
    rows = CharacteristicRows(flat.shape[1], z.device, keep, t_max, n_knots)
    made = sliced(flat, w, rows, plan, None, need_grad)
    return _ended(made, 1.0 if scale_by_n else count)


def _ended(
    made: tuple[torch.Tensor, Any, Any], divisor: Any
) -> tuple[tuple[torch.Tensor], SlicedSaved | None]:
    values, gradient, _ = made
    out, kept = dispatch.load("ends", "mean")(values, divisor)
    return (out,), None if gradient is None else SlicedSaved(gradient, kept)


def _backward_of(factor: float) -> Callable[..., torch.Tensor]:
    """The backward pass of a loss whose saved gradient is `factor` times too small."""

    def backward(
        z: torch.Tensor,
        slices: torch.Tensor,
        saved: SlicedSaved,
        cotangents: tuple[torch.Tensor | None],
        *,
        row_mask: torch.Tensor | None = None,
        donated: bool = False,
    ) -> torch.Tensor:
        of_total = (cotangents[0], None, None, None)
        return _combined(z, slices, saved, None, of_total, factor, row_mask, donated)

    return backward


gaussian_sliced_wasserstein_backward = _backward_of(2.0)
sigreg_backward = _backward_of(1.0)
"""As `visreg_backward`, with one cotangent."""
