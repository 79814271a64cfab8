"""Sliced losses with kernels from end to end: no array of the embeddings' size but the gradient.

The core's engine standardises the embeddings and projects the result; here the columns' moments
go into the projection, chunks of projections are overwritten by their gradients, and what is kept
is the gradient with respect to the standardised embeddings, in the embeddings' own dtype. The
backward pass turns it into the gradient of any combination of the terms, in place if it may.

`PASSES` has the two passes of each loss that is computed so, with the arguments of the core's own;
`takes` says for which calls. On tensors without numbers they find the shapes and dtypes of all that
they return. Equivalents: the declarations' own passes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import array_api_compat.torch as xp
import torch

from visreg_core import _checks, _xp
from visreg_core._typing import Scalar
from visreg_core.gaussian import masked_normal_quantiles, normal_quantiles
from visreg_core.losses import rows as _rows
from visreg_core.losses.declaration import Inputs
from visreg_core.losses.epps_pulley import Knots, knots_like, value_from_moments
from visreg_core.losses.execution import Execution
from visreg_core.losses.sliced import flat_batch, flat_slices
from visreg_core.losses.visreg import EPS, VISRegTerms, center_from_mean, scale_from_deviation
from visreg_torch.kernels.dispatch import available, choose, load, needed, product_precision

# Bytes of projections at work: all slices of a view of 50,000 samples in 16 bits.
_CHUNK_BYTES = 1 << 28

# rows(z (b, N, D), w (b or 1, D, k), first view) -> values (b, k), gradient (b, k, N) or None
RowsTerm = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, Any]]


def takes(
    loss: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    projection_dtype: torch.dtype | None = None,
    detach_scale: bool = True,
    reduction: str = "mean",
    **_: Any,
) -> bool:
    """Whether `run` computes a loss of this name and these options, on a device, in a dtype."""
    return (
        loss in PASSES
        and detach_scale
        and reduction == "mean"
        and available(device, dtype)
        and available(device, projection_dtype or torch.float32)
    )


def _check(
    z: torch.Tensor,
    slices: torch.Tensor,
    row_mask: torch.Tensor | None,
    chunk_size: int | None,
    projection_dtype: torch.dtype | None,
    **options: Any,
) -> None:
    """What the core's functions check, one by one, in their words."""
    namespace = _xp.namespace(z, slices, row_mask)
    _checks.embeddings("z", z)
    _checks.slices(slices, z)
    _checks.row_mask(row_mask, z)
    if chunk_size is not None:
        _checks.positive_int("chunk_size", chunk_size)
    if projection_dtype is not None:
        _checks.dtype("projection_dtype", projection_dtype, namespace)
    if "weights" in options:
        _checks.weights("weights", options["weights"], VISRegTerms._fields[1:])
    if "eps" in options:
        _checks.not_negative("eps", options["eps"])


class FusedSaved(NamedTuple):
    """What kernels save: gradient (B, N, D) of the embeddings' dtype, of the sum over slices of the
    term's value with respect to the standardised embeddings; of VISReg also the mean in two parts
    and σ, (B, 1, D); n : kept rows, () or None.
    """

    gradient: torch.Tensor | None
    n: torch.Tensor | None
    first: torch.Tensor | None = None
    rest: torch.Tensor | None = None
    sigma: torch.Tensor | None = None


def _visreg(
    execution: Execution,
    z: torch.Tensor,
    slices: torch.Tensor,
    weights: tuple[Scalar, Scalar, Scalar] = (1, 1, 1),
    *,
    detach_scale: bool = True,
    eps: float = EPS,
    row_mask: torch.Tensor | None = None,
    chunk_size: int | None = None,
    projection_dtype: torch.dtype | None = None,
) -> tuple[VISRegTerms, FusedSaved]:
    """`visreg_loss`, with σ held constant in the shape term."""
    _check(z, slices, row_mask, chunk_size, projection_dtype, weights=weights, eps=eps)
    flat, w = flat_batch(xp, z.detach()), flat_slices(xp, slices, z)
    moments = load("columns", "column_moments")(flat, row_mask)
    n = _rows.count(xp, flat, row_mask)
    sigma = _rows.safe_root(xp, moments.variance)
    mean = moments.first + moments.rest
    standard = (moments.first, moments.rest, 1 / (sigma + eps))
    total_shape, gradient = _sliced_gaussian(
        flat, w, standard, row_mask, n, chunk_size, projection_dtype, execution.need_gradient
    )
    scale, shape = scale_from_deviation(xp, sigma), total_shape / n
    center = center_from_mean(xp, mean)
    w_scale, w_shape, w_center = weights
    total = w_scale * scale + w_shape * shape + w_center * center
    masked_n = None if row_mask is None else n
    saved = FusedSaved(gradient, masked_n, moments.first, moments.rest, sigma)
    return VISRegTerms(total, scale, shape, center), saved


def _visreg_backward(
    execution: Execution,
    inputs: Inputs,
    saved: FusedSaved,
    on_total: Scalar,
    on_scale: Scalar,
    on_shape: Scalar,
    on_center: Scalar,
) -> torch.Tensor:
    # The columns of `visreg_core.losses.visreg._gradient`. The mean over rows of the shape
    # term's gradient is missing: projections of centred rows and quantiles both sum to 0.
    z, row_mask = inputs["z"], inputs["row_mask"]
    w_scale, w_shape, w_center = inputs["weights"]
    sigma, mean = saved.sigma, saved.first + saved.rest
    n = z.shape[-2] if saved.n is None else saved.n
    size, n_slices = mean.numel(), mean.shape[0] * inputs["slices"].shape[-1]
    per_deviation = _rows.safe_reciprocal(xp, sigma) / n
    on_g = (on_total * w_shape + on_shape) / (n_slices * n * (sigma + inputs["eps"]))
    on_shifted = (2 / size) * (on_total * w_scale + on_scale) * (sigma - 1) * per_deviation
    constant = (2 / size) * (on_total * w_center + on_center) * mean / n
    constant = constant - saved.rest * on_shifted
    g = saved.gradient if execution.donated else saved.gradient.clone()
    load("columns", "combine_")(
        g, flat_batch(xp, z), saved.first, on_g, on_shifted, constant, row_mask
    )
    return g.reshape(z.shape)


def _gaussian_sliced_wasserstein(
    execution: Execution,
    z: torch.Tensor,
    slices: torch.Tensor,
    *,
    reduction: str = "mean",
    row_mask: torch.Tensor | None = None,
    chunk_size: int | None = None,
    projection_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, FusedSaved]:
    """`gaussian_sliced_wasserstein`."""
    _check(z, slices, row_mask, chunk_size, projection_dtype)
    flat, w = flat_batch(xp, z.detach()), flat_slices(xp, slices, z)
    n = _rows.count(xp, flat, row_mask)
    value, gradient = _sliced_gaussian(
        flat, w, None, row_mask, n, chunk_size, projection_dtype, execution.need_gradient
    )
    return value / n, FusedSaved(gradient, None if row_mask is None else n)


def _sigreg(
    execution: Execution,
    z: torch.Tensor,
    slices: torch.Tensor,
    t_max: float = 3.0,
    n_knots: int = 17,
    *,
    scale_by_n: bool = True,
    row_mask: torch.Tensor | None = None,
    chunk_size: int | None = None,
    projection_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, FusedSaved]:
    """`sigreg_loss`."""
    _check(z, slices, row_mask, chunk_size, projection_dtype)
    flat, w = flat_batch(xp, z.detach()), flat_slices(xp, slices, z)
    n = _rows.count(xp, flat, row_mask)
    knots = _knots(t_max, n_knots, z.device)
    need = execution.need_gradient
    rows = functools.partial(_epps_pulley, n=n, knots=knots, row_mask=row_mask, need_grad=need)
    values, gradient = _sliced(flat, w, rows, chunk_size, projection_dtype, need)
    value = torch.mean(values)
    saved = FusedSaved(gradient, None if row_mask is None else n)
    return (value if scale_by_n else value / n), saved


def _scaled(
    execution: Execution, inputs: Inputs, saved: FusedSaved, cotangent: Scalar
) -> torch.Tensor:
    """The gradient of a mean over slices, and over rows unless ``scale_by_n``."""
    z = inputs["z"]
    divisor = saved.gradient.shape[0] * inputs["slices"].shape[-1]
    if not inputs.get("scale_by_n", False):
        divisor = divisor * (z.shape[-2] if saved.n is None else saved.n)
    factor = cotangent / divisor
    scaled = saved.gradient.mul_(factor) if execution.donated else saved.gradient * factor
    return scaled.reshape(z.shape)


# --- the engine -----------------------------------------------------------------------------------


def _sliced(
    flat: torch.Tensor,
    slices: torch.Tensor,
    rows: RowsTerm,
    chunk_size: int | None,
    projection_dtype: torch.dtype | None,
    need_grad: bool,
) -> tuple[torch.Tensor, Any]:
    """Values (B, K) of a term on every slice, and the gradient (B, N, D) of their sum.

    flat : (B, N, D), slices : (B or 1, D, K).
    A chunk holds all slices where one view's fit, so that the gradient is written once; else the
    chunks' gradients of a view are added up in float32. The sum is in z's dtype.
    """
    dtype = projection_dtype or torch.float32
    w = slices.to(dtype)
    batch, n, _ = flat.shape
    k = w.shape[-1]
    at_once = chunk_size or max(1, _CHUNK_BYTES // (n * dtype.itemsize))
    chunk, together = min(k, at_once), max(1, at_once // k)
    values = torch.empty((batch, k), dtype=torch.float32, device=flat.device)
    gradient: Any = None
    if need_grad:
        gradient = torch.empty(flat.shape, dtype=flat.dtype, device=flat.device)
    for b in range(0, batch, together):
        of = slice(b, b + together)
        out: Any = None if gradient is None else gradient[of]
        total = out
        if chunk < k and out is not None and out.dtype != torch.float32:
            total = torch.empty(out.shape, dtype=torch.float32, device=out.device)
        for start in range(0, k, chunk):
            part = w[of if w.shape[0] > 1 else slice(None), :, start : start + chunk]
            values[of, start : start + chunk], g = rows(flat[of], part, b)
            if total is not None:
                _carry_back(g, part, total, accumulate=start > 0)
        if total is not out:
            out.copy_(total)
    return values, gradient


def _carry_back(g: Any, w: torch.Tensor, out: torch.Tensor, *, accumulate: bool) -> None:
    if g.dtype == out.dtype:  # the vendor's product, which has one dtype for both
        torch.baddbmm(out, g.mT, w.mT.expand(len(g), -1, -1), beta=int(accumulate), out=out)
        return
    kernel = needed("carry_back", g.device, g.dtype, g.shape[-1])
    load("projected", kernel)(g, w, out, accumulate=accumulate, precision=product_precision())


def _sliced_gaussian(
    flat: torch.Tensor,
    slices: torch.Tensor,
    standard: tuple[torch.Tensor, ...] | None,
    row_mask: torch.Tensor | None,
    n: Scalar,
    chunk_size: int | None,
    projection_dtype: torch.dtype | None,
    need_grad: bool,
) -> tuple[torch.Tensor, Any]:
    """Mean over views and slices of Σ_n (sort(p)_n − q_n)², and the gradient of their sum.

    The sum's, whose size suits float16: who uses it divides by the number of slices along with
    everything else that it is multiplied by.
    """
    size = flat.shape[1]
    if row_mask is None:
        q = _quantiles(size, flat.device)
    else:
        q = masked_normal_quantiles(xp, size, n, dtype=torch.float32)

    def rows(z: torch.Tensor, w: torch.Tensor, b: int) -> tuple[torch.Tensor, Any]:
        own = None if standard is None else tuple(c[b : b + len(z)] for c in standard)
        p = _projections(z, w, own, row_mask)
        flat_p = p.flatten(0, 1)
        kernel = needed("gaussian", p.device, p.dtype, size)
        found = load(kernel, kernel)(flat_p, q, row_mask, need_grad, out=flat_p)
        return found[0].reshape(p.shape[:2]), p if need_grad else None

    values, gradient = _sliced(flat, slices, rows, chunk_size, projection_dtype, need_grad)
    return torch.mean(values), gradient


def _projections(
    z: torch.Tensor,
    w: torch.Tensor,
    standard: tuple[torch.Tensor, ...] | None,
    row_mask: torch.Tensor | None,
) -> torch.Tensor:
    """Projections (b, k, N) in w's dtype of z, standardised by (first, rest, scale) if given."""
    kernel = needed("projection", z.device, w.dtype, z.shape[1], k=w.shape[2])
    options = {"precision": product_precision()} if kernel == "project" else {}
    return load("projected", kernel)(z, w, *(standard or ()), row_mask=row_mask, **options)


def _epps_pulley(
    z: torch.Tensor,
    w: torch.Tensor,
    b: int,
    *,
    n: Scalar,
    knots: Knots,
    row_mask: torch.Tensor | None,
    need_grad: bool,
) -> tuple[torch.Tensor, Any]:
    """The statistic of a chunk's projections and its gradient: `term` of the core's Epps-Pulley."""
    m, step = knots.knots.shape[-1], knots.first
    kernel = choose("projected_epps_pulley", z.device, w.dtype, z.shape[1], d=z.shape[2]).kernel
    if kernel is None:
        p = _projections(z, w, None, row_mask)
        x = p.flatten(0, 1)
        sums = load("epps_pulley_rows", "epps_pulley_sums")(x, m, row_mask, step=step)
        cos_sums, sin_sums = (s.reshape(*p.shape[:2], m) for s in sums)
    else:
        cos_sums, sin_sums = load(kernel, "projected_epps_pulley_sums")(
            z, w, step, m, row_mask, precision=product_precision()
        )
    real, imaginary = cos_sums / n, sin_sums / n
    value = value_from_moments(xp, real, imaginary, n, knots)
    if not need_grad:
        return value, None
    slope = 2 * knots.weights * knots.knots
    coefficients = slope * imaginary, -slope * (real - knots.targets)
    if kernel is not None:
        return value, load(kernel, "projected_epps_pulley_polynomial")(
            z, w, step, *coefficients, row_mask, out_dtype=w.dtype, precision=product_precision()
        )
    of_cos, of_sin = (c.flatten(0, 1) for c in coefficients)
    load("epps_pulley_rows", "epps_pulley_polynomial")(x, of_cos, of_sin, step=step, out=x)
    return value, p if row_mask is None else p.masked_fill_(~row_mask, 0)


# --- constants, once -----------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _quantiles(n: int, device: torch.device) -> torch.Tensor:
    """Gaussian quantiles on the device: copying them there each time would wait for it."""
    return normal_quantiles(n, xp=xp, dtype=torch.float32, device=device)


@functools.lru_cache(maxsize=8)
def _knots(t_max: float, n_knots: int, device: torch.device) -> Knots:
    return knots_like(xp, torch.empty(0, device=device), t_max, n_knots)


class Passes(NamedTuple):
    """A forward pass, its backward pass, and what the first saves for the second."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    saved: type = FusedSaved


PASSES = {
    "visreg_loss": Passes(_visreg, _visreg_backward),
    "gaussian_sliced_wasserstein": Passes(_gaussian_sliced_wasserstein, _scaled),
    "sigreg_loss": Passes(_sigreg, _scaled),
}
"""The losses that kernels compute from end to end, in place of their declarations."""
