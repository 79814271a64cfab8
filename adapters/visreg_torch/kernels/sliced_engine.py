"""The engine of sliced losses by kernels: project, evaluate rows, backproject, chunk by chunk.

`plan_of` decides how a call is divided, `sliced` runs it. Large views of 16-bit numbers are not
copied: slices are divided by σ, a set for each view, and the projection of the mean is subtracted
where projections are read. Chunks of views and slices keep projections below `CHUNK_BYTES`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from visreg_torch.kernels import _launch
from visreg_torch.kernels.products import product

# Bytes of float32 projections at work: all slices of a view of 50,000 rows of the heading case.
CHUNK_BYTES = 1 << 30


# Rows' 16-bit parts are stored up to so many bytes; larger 16-bit views are read as they are.
COPY_BYTES = 1 << 26


# 16-bit embeddings beyond so many numbers keep their gradient in 16 bits, smaller ones in float32.
WIDE_GRADIENT = 1 << 24


_16_BIT = (torch.bfloat16, torch.float16)


class Plan(NamedTuple):
    """How a call is divided: see `plan_of`."""

    together: int  # views that share slices and are stored one after another
    padded: int  # their rows, a multiple of 8
    pitch: int  # dimensions, a multiple of 8
    parts: int  # 16-bit parts of the operands forward
    back: int  # and of those of the backprojection
    direct: bool  # whether z itself is an operand
    groups_at_once: int
    slices_at_once: int
    gradient: torch.dtype


def _up8(n: int) -> int:
    return -(-n // 8) * 8


def plan_of(z: torch.Tensor, w: torch.Tensor, standard: bool, projection_dtype: Any) -> Plan:
    """Sizes and choices for z (B, N, D) on slices (1 or B, D, K)."""
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
    return Plan(
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


def sliced(
    z: torch.Tensor,
    w: torch.Tensor,
    rows: Any,
    plan: Plan,
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


def _direct(both: Any, views: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Projections (G, K, padded) of views as they are, on slices in parts."""
    groups, n, _ = views.shape
    p = _launch.empty((groups, both[0].shape[1], n), torch.float32, views.device)
    for i in range(plan.parts):
        slices = both[i].expand(groups, -1, -1)
        product(slices, views.mT, torch.float32, out=p, add=i > 0)
    return p if n == plan.padded else torch.nn.functional.pad(p, (0, plan.padded - n))
