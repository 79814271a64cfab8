"""Whole sliced losses by kernels: VISReg, its shape term, the distance to a Gaussian, and SIGReg.

Forward makes everything that depends on the embeddings, the gradient with respect to their
(standardised) rows included, and keeps that; backward is one launch, which multiplies it by the
cotangents. What is launched in a step, for views of up to 2048 rows:

1. moments, and rows as 16-bit parts (`moments`; without standardisation `operands`)
2. slices as 16-bit parts (`operands`)
3. the product forward, by the vendor (`products`)
4. rows: ranks or characteristic functions, and their gradient (`sorted_rows`, …)
5. the way back, by the vendor
6. values and total (`ends`)
7. backward (`ends`)

Large views of 16-bit numbers are not copied: 1/σ goes into the slices, one set a view, and the
mean's projection comes off where projections are read. Everything is bounded by chunks of views
and slices whose projections are below `CHUNK_BYTES`.

Products by the dtype of the embeddings and `projection_dtype`, with P = 2 N D K operations each,
and the gradient's error near the optimum:

========================  ===========  =======  ======================
embeddings                forward      back     error
========================  ===========  =======  ======================
16-bit, copied            3 P          1 P      0.3 % (2 P without σ)
16-bit, not copied        2 P          1 P      0.3-0.7 %
float32                   3 P          3 P      as float32 (ranks)
any, asked for 16 bits    1 P          1 P      1-10 %
========================  ===========  =======  ======================

Nothing waits for the device or allocates by what is in it. Constants (quantiles, knots) come from
the host when a size is first seen: that must be before a CUDA graph is captured, as its warm-up is.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from visreg_core.gaussian import epps_pulley_knots, masked_normal_quantiles, normal_quantiles
from visreg_torch.kernels import _launch, dispatch
from visreg_torch.kernels.products import product

# Bytes of float32 projections at work: all slices of a view of 50,000 rows of the heading case.
CHUNK_BYTES = 1 << 30
# Rows' 16-bit parts are stored up to so many bytes; larger 16-bit views are read as they are.
COPY_BYTES = 1 << 26
# 16-bit embeddings beyond so many numbers keep their gradient in 16 bits, smaller ones in float32.
WIDE_GRADIENT = 1 << 24
EPS = 1e-6
_16_BIT = (torch.bfloat16, torch.float16)


class VISRegSaved(NamedTuple):
    """What `visreg_forward` and `shape_forward` keep.

    gradient : (groups, padded, pitch), float32 or bfloat16: Σ_k (p − q)_nk w_k of row n of view b
    at [b // together, (b % together) · N + n, :D], with together = B / groups.
    moments : (3, B, D) float32: the mean's first part, what it lacks, and σ.
    scalars : (5,) float32: weights of scale, shape and centre, ε, and the number of kept rows.
    """

    gradient: torch.Tensor
    moments: torch.Tensor
    scalars: torch.Tensor


class SlicedSaved(NamedTuple):
    """What the other losses' forward keeps.

    gradient : (groups, padded, pitch), as in `VISRegSaved`, of the rows' own gradients.
    scalars : (1,) float32: what the mean over rows is divided by.
    """

    gradient: torch.Tensor
    scalars: torch.Tensor


class _Plan(NamedTuple):
    """How a call is cut: see `_plan`."""

    together: int  # views that share slices and lie behind each other
    padded: int  # their rows, a multiple of 8
    pitch: int  # dimensions, a multiple of 8
    parts: int  # 16-bit parts of the operands forward
    back: int  # and of those of the way back
    direct: bool  # whether z itself is an operand
    groups_at_once: int
    slices_at_once: int
    gradient: torch.dtype


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


def _up8(n: int) -> int:
    return -(-n // 8) * 8


def _plan(z: torch.Tensor, w: torch.Tensor, standard: bool, projection_dtype: Any) -> _Plan:
    """Sizes and ways of a call of z (B, N, D) on slices (1 or B, D, K)."""
    batch, n, d = z.shape
    k = w.shape[2]
    narrow = projection_dtype in _16_BIT
    exact = z.dtype in _16_BIT and not standard  # one 16-bit part holds z
    parts = 1 if narrow else 2 if exact else 3
    back = 1 if narrow or z.dtype in _16_BIT else 3
    pitch = _up8(d)
    direct = (
        z.dtype == (torch.bfloat16 if standard else z.dtype)
        and z.dtype in _16_BIT
        and projection_dtype != torch.float32
        and d % 8 == 0
        and z.stride(2) == 1
        and z.stride(1) % 8 == 0
        and z.stride(0) % 8 == 0
        and batch * n * pitch * parts * 2 > COPY_BYTES
    )
    if direct:
        parts = min(parts, 2)
    together = 1 if direct or w.shape[0] > 1 else batch
    if 4 * k * _up8(together * n) > CHUNK_BYTES:
        together = 1
    padded = _up8(together * n)
    at_once = max(1, CHUNK_BYTES // (4 * padded))
    wide = z.dtype == torch.float32 or batch * n * d <= WIDE_GRADIENT
    return _Plan(
        together,
        padded,
        pitch,
        parts,
        back,
        direct,
        max(1, at_once // k),
        min(k, at_once),
        torch.float32 if wide else torch.bfloat16,
    )


class _Rows:
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
        if self.long:
            counted = dispatch.load("counted_rows", "counted_rows")
            return counted(
                p, self.q, self.prefix, n=self.n, keep=self.keep, rank=self.rank, **options
            )
        ordered = dispatch.load("sorted_rows", "sorted_rows")
        return ordered(p, self.q, n=self.n, keep=self.keep, exact=self.exact, **options)


class _Characteristic:
    """Epps-Pulley statistic of rows."""

    def __init__(self, n: int, device: torch.device, keep: Any, t_max: float, n_knots: int) -> None:
        self.n, self.keep = n, keep
        knots, self.step = _knots(t_max, n_knots, device)
        self.knots = _launch.constant(knots)

    def __call__(
        self, p: torch.Tensor, *, offset: Any = None, **options: Any
    ) -> tuple[torch.Tensor, Any]:
        rows = dispatch.load("characteristic_rows", "characteristic_rows")
        return rows(p, self.knots, self.step, n=self.n, keep=self.keep, **options)


def _sliced(
    z: torch.Tensor,
    w: torch.Tensor,
    rows: Any,
    plan: _Plan,
    eps: Any,
    need_grad: bool,
) -> tuple[torch.Tensor, Any, Any]:
    """Values of all rows, the gradient (groups, padded, pitch) or None, and moments or None.

    z : (B, N, D), w : (1 or B, D, K); rows are standardised where `eps` is given.
    """
    from visreg_torch.kernels import moments as columns
    from visreg_torch.kernels import operands

    batch, n, _ = z.shape
    k, keep = w.shape[2], rows.keep
    groups = batch // plan.together
    whole = plan.groups_at_once >= groups and plan.slices_at_once >= k
    layout = {"together": plan.together, "padded": plan.padded}
    back = plan.back if need_grad else 0

    moments: Any = None
    operand: Any = None
    scale: Any = None
    if eps is not None:
        if whole and not plan.direct and n <= columns.SHORT:
            moments, operand = columns.short_columns(
                z, keep, eps, plan.pitch, parts=plan.parts, **layout
            )
        else:
            moments = columns.column_moments(z, keep)

    values = _launch.empty(groups * k * plan.together, torch.float32, z.device)
    gradient = None
    if need_grad:
        gradient = _launch.empty((groups, plan.padded, plan.pitch), plan.gradient, z.device)
    folded = plan.direct and eps is not None
    forward_of: dict[str, Any] = {"parts": 0 if folded else plan.parts, "back": back}
    if plan.direct and not folded:
        forward_of["dtype"] = z.dtype
        if z.dtype == torch.bfloat16:
            forward_of["scale"] = 1.0
    made: dict[Any, Any] = {}  # operands of slices, where they serve several groups
    done = 0
    for g in range(0, groups, plan.groups_at_once):
        of = slice(g, min(groups, g + plan.groups_at_once))
        size = of.stop - of.start
        views = z[g * plan.together : of.stop * plan.together]
        if not plan.direct and not (whole and operand is not None):
            if eps is None:
                operand, scale = operands.split_rows(
                    views, keep, plan.pitch, parts=plan.parts, **layout
                )
            else:
                operand = columns.standard_parts(
                    views, keep, moments, g, eps, plan.pitch, parts=plan.parts, **layout
                )
        for start in range(0, k, plan.slices_at_once):
            part = w if plan.slices_at_once >= k else w[:, :, start : start + plan.slices_at_once]
            if part.shape[0] > 1:
                part = part[of]
            key = start if w.shape[0] == 1 else None
            if key is None or key not in made:
                made.clear()
                made[key] = operands.slice_operands(part, plan.pitch, **forward_of)
            ahead, behind = made[key]
            offset, factor = None, 1.0
            if folded:
                both, offset = operands.folded_slices(part, moments, eps, g, size, parts=plan.parts)
                p = _direct(both, views, plan)
            elif plan.direct:
                factor = 1 / forward_of.get("scale", operands.SLICE_SCALE)
                d = plan.pitch
                pieces = [ahead[:, :, i * d : (i + 1) * d] for i in range(plan.parts)]
                p = _direct(pieces, views, plan)
            else:
                if eps is not None:
                    factor = columns.factor_of(n)
                p = product(ahead.expand(size, -1, -1), operand.mT, torch.float32)
            count = p.shape[0] * p.shape[1] * plan.together
            _, g_rows = rows(
                p,
                factor=factor,
                scale=scale,
                offset=offset,
                back=back,
                together=plan.together,
                values=values[done : done + count],
            )
            done += count
            del p
            if gradient is not None:
                out = gradient[of]
                product(
                    g_rows.mT, behind.expand(size, -1, -1), plan.gradient, out=out, add=start > 0
                )
    return values, gradient, moments


def _direct(both: Any, views: torch.Tensor, plan: _Plan) -> torch.Tensor:
    """Projections (G, K, padded) of views as they are, on slices in parts."""
    groups, n, _ = views.shape
    p = _launch.empty((groups, both[0].shape[1], n), torch.float32, views.device)
    for i in range(plan.parts):
        slices = both[i].expand(groups, -1, -1)
        product(slices, views.mT, torch.float32, out=p, add=i > 0)
    return p if n == plan.padded else torch.nn.functional.pad(p, (0, plan.padded - n))


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


# --- VISReg and its shape term --------------------------------------------------------------------


def visreg_forward(
    z: torch.Tensor,
    slices: torch.Tensor,
    weights: tuple[Any, Any, Any] = (1, 1, 1),
    *,
    eps: float = EPS,
    row_mask: torch.Tensor | None = None,
    projection_dtype: torch.dtype | None = None,
    need_grad: bool = True,
) -> tuple[tuple[torch.Tensor, ...], VISRegSaved | None]:
    """`visreg_core.visreg_loss` with σ held constant in the shape term.

    Parameters
    ----------
    z : tensor of shape (..., N, D)
        float32, bfloat16 or float16.
    slices : tensor of shape (D, K) or (..., D, K)
        Unit columns.
    weights : three numbers, or tensors of no axes
        Of scale, shape and centre.
    eps : float
        Added to σ.
    row_mask : boolean tensor of shape (N,), optional
        Rows to keep.
    projection_dtype : dtype, optional
        16-bit: everything in 16-bit parts once; float32: as exact as float32; else as the module's
        table says.
    need_grad : bool
        Whether to keep what the gradient needs.

    Returns
    -------
    tuple
        (total, scale, shape, center), float32 of no axes; and `VISRegSaved`, or None.
    """
    flat, w = _flat(z, slices)
    n = flat.shape[1]
    keep, count = _kept(row_mask, n)
    plan = _plan(flat, w, True, projection_dtype)
    rows = _Rows(n, z.device, keep, count, plan.back == 3)
    values, gradient, moments = _sliced(flat, w, rows, plan, eps, need_grad)
    ends = dispatch.load("ends", "terms")
    out, scalars = ends(values, moments, weights, eps, count)
    saved = VISRegSaved(gradient, moments, scalars) if need_grad else None
    return out, saved


def visreg_backward(
    z: torch.Tensor,
    slices: torch.Tensor,
    saved: VISRegSaved,
    cotangents: tuple[torch.Tensor | None, ...],
    *,
    row_mask: torch.Tensor | None = None,
    donated: bool = False,
) -> torch.Tensor:
    """Gradient of VISReg's four fields with respect to z.

    Parameters
    ----------
    z, slices, row_mask
        As passed to `visreg_forward`.
    saved : VISRegSaved
        What that kept.
    cotangents : four tensors of no axes, or None
        Of total, scale, shape and center.
    donated : bool
        Whether the memory of ``saved.gradient`` may become the result's.

    Returns
    -------
    tensor of z's shape and dtype
    """
    flat, w = _flat(z, slices)
    batch, n, _ = flat.shape
    g = saved.gradient
    out = _own(g, flat) if donated else None
    found = dispatch.load("ends", "combined")(
        g,
        flat,
        _launch.mask_bytes(row_mask, n),
        saved.moments,
        saved.scalars,
        tuple(cotangents),
        together=batch // g.shape[0],
        per_row=2 / (batch * w.shape[2]),
        out=out,
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
) -> tuple[tuple[torch.Tensor], VISRegSaved | None]:
    """`visreg_core.shape_loss` with σ held constant, and its mean; as `visreg_forward`.

    Returns
    -------
    tuple
        (shape,), and `VISRegSaved` or None.
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
    saved: VISRegSaved,
    cotangents: tuple[torch.Tensor | None],
    *,
    row_mask: torch.Tensor | None = None,
    donated: bool = False,
) -> torch.Tensor:
    """Gradient of the shape term; as `visreg_backward`, with one cotangent."""
    on_shape = (None, None, cotangents[0], None)
    return visreg_backward(z, slices, saved, on_shape, row_mask=row_mask, donated=donated)


# --- losses without standardisation ---------------------------------------------------------------


def gaussian_sliced_wasserstein_forward(
    z: torch.Tensor,
    slices: torch.Tensor,
    *,
    row_mask: torch.Tensor | None = None,
    projection_dtype: torch.dtype | None = None,
    need_grad: bool = True,
) -> tuple[tuple[torch.Tensor], SlicedSaved | None]:
    """`visreg_core.gaussian_sliced_wasserstein`, its mean over rows; as `visreg_forward`.

    Returns
    -------
    tuple
        (value,), and `SlicedSaved` or None.
    """
    flat, w = _flat(z, slices)
    keep, count = _kept(row_mask, flat.shape[1])
    plan = _plan(flat, w, False, projection_dtype)
    rows = _Rows(flat.shape[1], z.device, keep, count, plan.back == 3)
    return _ended(_sliced(flat, w, rows, plan, None, need_grad), count)


def gaussian_sliced_wasserstein_backward(
    z: torch.Tensor,
    slices: torch.Tensor,
    saved: SlicedSaved,
    cotangents: tuple[torch.Tensor | None],
    *,
    row_mask: torch.Tensor | None = None,
    donated: bool = False,
) -> torch.Tensor:
    """Gradient of the distance; as `visreg_backward`, with one cotangent."""
    return _multiplied(z, slices, saved, cotangents, 2.0, row_mask, donated)


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

    Returns
    -------
    tuple
        (value,), and `SlicedSaved` or None.
    """
    flat, w = _flat(z, slices)
    keep, count = _kept(row_mask, flat.shape[1])
    plan = _plan(flat, w, False, projection_dtype)
    rows = _Characteristic(flat.shape[1], z.device, keep, t_max, n_knots)
    made = _sliced(flat, w, rows, plan, None, need_grad)
    return _ended(made, 1.0 if scale_by_n else count)


def sigreg_backward(
    z: torch.Tensor,
    slices: torch.Tensor,
    saved: SlicedSaved,
    cotangents: tuple[torch.Tensor | None],
    *,
    row_mask: torch.Tensor | None = None,
    donated: bool = False,
) -> torch.Tensor:
    """Gradient of SIGReg; as `visreg_backward`, with one cotangent."""
    return _multiplied(z, slices, saved, cotangents, 1.0, row_mask, donated)


def _ended(
    made: tuple[torch.Tensor, Any, Any], divisor: Any
) -> tuple[tuple[torch.Tensor], SlicedSaved | None]:
    values, gradient, _ = made
    out, kept = dispatch.load("ends", "mean")(values, divisor)
    return (out,), None if gradient is None else SlicedSaved(gradient, kept)


def _multiplied(
    z: torch.Tensor,
    slices: torch.Tensor,
    saved: SlicedSaved,
    cotangents: tuple[torch.Tensor | None],
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
        None,
        saved.scalars,
        (cotangents[0], None, None, None),
        together=batch // g.shape[0],
        per_row=factor / (batch * w.shape[2]),
        out=_own(g, flat) if donated else None,
    )
    return found.reshape(z.shape)


# --- constants, once ------------------------------------------------------------------------------


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
