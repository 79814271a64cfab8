"""Whole losses of pairs by kernels: forward and backward of VICReg, SAG-VICReg and Barlow Twins.

Launches of a step of VICReg (Barlow Twins likewise):

1. statistics of both views' columns (`pair_columns`)
2. scales
3. rows as 16-bit parts
4. the first product, by the vendor's library: N × N where N < D, else D × D
5. its squares, and its parts (`pair_products`)
6. the second product, likewise
7. where N < D: both anew, without the diagonal, if taking it off would cancel (`pair_direct`)
8. terms and total (`vicreg_ends`, `barlow_ends`)
9. backward

float32 embeddings are split into hi and lo bfloat16 numbers: five products on tensor cores in place
of two in float32, to 2⁻¹⁷. 16-bit embeddings take one of each. Two views without leading axes or a
row mask; other calls are left to the core. Nothing synchronises with the device, and no allocation
depends on values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from visreg_torch.kernels import _launch, dispatch
from visreg_torch.kernels.products import product

CONVENTIONS = ("vicreg", "solo-learn", "paper")


class VICRegKernelSaved(NamedTuple):
    """What `vicreg_forward` and `sag_vicreg_forward` save, in float32 unless stated.

    product : (parts · 2, N, D), both padded to multiples of 8: what the covariance's gradient is
    made of, in 3 or 1 parts of both views.
    stats : (8, D), as of `pair_columns.columns`. scale : (2,). scalars : (3,), the weights.
    direct : (2,) int32, whether the views' products are without the diagonal; None if N >= D, where
    they are.
    order : (N,) and starts : (N + 1,) int32, `vicreg_ends.inverse_pairs`, None without pairs.
    """

    product: torch.Tensor
    stats: torch.Tensor
    scale: torch.Tensor
    scalars: torch.Tensor
    direct: torch.Tensor | None
    order: torch.Tensor | None
    starts: torch.Tensor | None


class BarlowTwinsKernelSaved(NamedTuple):
    """What `barlow_twins_forward` saves, in float32.

    product : (parts · 2, N, D), both padded to multiples of 8; parts first where N < D, else views
    first. stats : (8, D). along : (2, D), Σ_n product · x̂. direct : as of `VICRegKernelSaved`.
    scalars : (1,), the weight.
    """

    product: torch.Tensor
    stats: torch.Tensor
    along: torch.Tensor
    direct: torch.Tensor | None
    scalars: torch.Tensor


def takes(a: torch.Tensor, b: torch.Tensor | None, **options: Any) -> bool:
    """Whether these functions compute a loss of a and b (or of the views in a) with options."""
    views = a.shape[0] == 2 and a.ndim == 3 if b is None else a.ndim == 2 and a.dtype == b.dtype
    return (
        bool(views)
        and dispatch.available(a.device, a.dtype)
        and a.shape[-2] >= 2
        and a.shape[-1] >= 1
        and options.get("row_mask") is None
        and options.get("convention", "vicreg") in CONVENTIONS
    )


def _views(a: torch.Tensor, b: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Two matrices with contiguous rows."""
    x, y = (a[0], a[1]) if b is None else (a, b)
    return tuple(z if z.stride(1) == 1 else z.contiguous() for z in (x.detach(), y.detach()))  # type: ignore[return-value]


def _gradients(
    a: torch.Tensor, b: torch.Tensor | None
) -> tuple[torch.Tensor | tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Gradients in the form in which the views were passed, and one of each view, to be filled."""
    given = tuple(_launch.empty(z.shape, z.dtype, z.device) for z in (a, b) if z is not None)
    return (given[0], (given[0][0], given[0][1])) if b is None else (given, given)


def _per_term(convention: str, d: int) -> dict[str, float]:
    """What invariance and the views' summed variances are multiplied by."""
    return {
        "per_invariance": float(d) if convention == "paper" else 1.0,
        "per_variance": 1.0 if convention in ("solo-learn", "paper") else 0.5,
    }


def _squares(
    u: torch.Tensor, *, gram: bool, split: bool, need_grad: bool, **options: Any
) -> tuple[Any, torch.Tensor]:
    """Of both views' symmetric products: the second product, or None, and sums of squares.

    u : (4 or 1, 2, N, D), as `pair_columns.parts` makes it.
    """
    left, right, rest = (x.flatten(0, 1) for x in ((u[:2], u[1:3], u[1:]) if split else (u, u, u)))
    if gram:
        p = product(left, right.mT, torch.float32)
    else:
        p = product(left.mT, right, torch.float32)
    made = dispatch.load("pair_products", "symmetric")
    m, sums = made(p, split=split, diagonal=gram, need_grad=need_grad, **options)
    if m is None:
        return None, sums
    m = m.flatten(0, 1)
    return product(m, rest, torch.float32) if gram else product(rest, m, torch.float32), sums


# --- VICReg and SAG-VICReg ------------------------------------------------------------------------


def vicreg_forward(
    a: torch.Tensor,
    b: torch.Tensor | None = None,
    weights: tuple[Any, Any, Any] = (25, 25, 1),
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
    convention: str = "vicreg",
    need_grad: bool = True,
) -> tuple[tuple[torch.Tensor, ...], VICRegKernelSaved | None]:
    """`visreg_core.vicreg_loss` of two views.

    a, b : (N, D); float32, bfloat16 or float16; or `a` alone of shape (2, N, D)
    weights : three numbers, or 0-d tensors; of invariance, variance and covariance
    gamma, eps : as in `visreg_core.variance_loss`
    convention : {"vicreg", "solo-learn", "paper"}
    need_grad : whether a backward pass may follow
    Returns (total, invariance, variance, covariance), 0-d float32; and `VICRegKernelSaved`, or
    None.
    """
    return _vicreg(a, b, None, None, weights, gamma, eps, convention, need_grad)


def sag_vicreg_forward(
    a: torch.Tensor,
    b: torch.Tensor,
    pairs: torch.Tensor,
    pair_weights: torch.Tensor,
    weights: tuple[Any, Any, Any] = (25, 25, 1),
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
    need_grad: bool = True,
) -> tuple[tuple[torch.Tensor, ...], VICRegKernelSaved | None]:
    """`visreg_core.sag_vicreg_loss`; as `vicreg_forward`, with pairs and their weights (N,)."""
    return _vicreg(a, b, pairs, pair_weights, weights, gamma, eps, "vicreg", need_grad)


def _vicreg(
    a: torch.Tensor,
    b: torch.Tensor | None,
    pairs: torch.Tensor | None,
    pair_weights: torch.Tensor | None,
    weights: tuple[Any, Any, Any],
    gamma: float,
    eps: float,
    convention: str,
    need_grad: bool,
) -> tuple[tuple[torch.Tensor, ...], VICRegKernelSaved | None]:
    from visreg_torch.kernels import pair_columns, pair_direct, vicreg_ends

    x, y = _views(a, b)
    n, d = x.shape
    gram, split = n < d, x.dtype == torch.float32
    if pairs is not None and pair_weights is not None:
        pairs, pair_weights = pairs.contiguous(), pair_weights.detach().contiguous()
    stats = pair_columns.columns(x, y, pairs, pair_weights)
    scale = pair_columns.scales(stats, n)
    u = pair_columns.parts(x, y, stats, scale, split=split)
    q, sums = _squares(u, gram=gram, split=split, need_grad=need_grad)
    del u
    more, direct = pair_direct.direct(x, y, stats, scale, sums, q) if gram else (None, None)
    out, scalars = vicreg_ends.vicreg_terms(
        stats,
        scale,
        sums,
        more,
        direct,
        weights,
        n,
        gamma=gamma,
        eps=eps,
        **_per_term(convention, d),
    )
    if q is None:
        return out, None
    order, starts = (None, None) if pairs is None else vicreg_ends.inverse_pairs(pairs)
    return out, VICRegKernelSaved(q, stats, scale, scalars, direct, order, starts)


def vicreg_backward(
    a: torch.Tensor,
    b: torch.Tensor | None,
    saved: VICRegKernelSaved,
    cotangents: tuple[torch.Tensor | None, ...],
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
    convention: str = "vicreg",
    donated: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Gradient of VICReg's four fields with respect to a and b.

    a, b, gamma, eps, convention : as passed to `vicreg_forward`
    saved : VICRegKernelSaved; what `vicreg_forward` saved
    cotangents : four 0-d tensors, or None; of total, invariance, variance and covariance
    donated : has no effect: no saved tensor has the shape of the result
    Returns two (N, D), or one of shape (2, N, D) where `a` holds both views.
    """
    return _vicreg_back(a, b, None, None, saved, cotangents, gamma, eps, convention)


def sag_vicreg_backward(
    a: torch.Tensor,
    b: torch.Tensor,
    pairs: torch.Tensor,
    pair_weights: torch.Tensor,
    saved: VICRegKernelSaved,
    cotangents: tuple[torch.Tensor | None, ...],
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
    donated: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Gradient of SAG-VICReg's four fields; as `vicreg_backward`."""
    return _vicreg_back(a, b, pairs, pair_weights, saved, cotangents, gamma, eps, "vicreg")


def _vicreg_back(
    a: torch.Tensor,
    b: torch.Tensor | None,
    pairs: torch.Tensor | None,
    pair_weights: torch.Tensor | None,
    saved: VICRegKernelSaved,
    cotangents: tuple[torch.Tensor | None, ...],
    gamma: float,
    eps: float,
    convention: str,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    x, y = _views(a, b)
    pairing: tuple[torch.Tensor | None, ...] = (None,) * 4
    if pairs is not None and pair_weights is not None:
        pairing = (
            pairs.contiguous(),
            pair_weights.detach().contiguous(),
            saved.order,
            saved.starts,
        )
    found, out = _gradients(a, b)
    dispatch.load("vicreg_ends", "vicreg_gradient")(
        out,
        x,
        y,
        saved.product,
        saved.stats,
        saved.scale,
        saved.direct,
        saved.scalars,
        pairing,
        tuple(cotangents),
        gamma=gamma,
        eps=eps,
        **_per_term(convention, x.shape[1]),
    )
    return found


# --- Barlow Twins ---------------------------------------------------------------------------------


def barlow_twins_forward(
    a: torch.Tensor,
    b: torch.Tensor | None = None,
    off_diagonal_weight: Any = 0.0051,
    *,
    eps: float = 0.0,
    need_grad: bool = True,
) -> tuple[tuple[torch.Tensor, ...], BarlowTwinsKernelSaved | None]:
    """`visreg_core.barlow_twins_loss` of two views.

    a, b : (N, D); float32, bfloat16 or float16; or `a` alone of shape (2, N, D)
    off_diagonal_weight : number, or 0-d tensor
    eps : added to the biased variance under the root
    need_grad : whether a backward pass may follow
    Returns (total, on_diagonal, off_diagonal), 0-d float32; and `BarlowTwinsKernelSaved`, or None.
    """
    from visreg_torch.kernels import barlow_ends, pair_columns, pair_direct, pair_products

    x, y = _views(a, b)
    n, d = x.shape
    gram, split = n < d, x.dtype == torch.float32
    stats = pair_columns.columns(x, y)
    u = pair_columns.parts(x, y, stats, None, split=split, crossed=not gram, eps=eps)
    if gram:
        q, sums = _squares(
            u, gram=True, split=split, need_grad=need_grad, swapped=True, divisor=float(n)
        )
        more, direct = pair_direct.direct(x, y, stats, None, sums, q, eps=eps, divisor=float(n))
        sums = sums[:2]
        per_sum = 0.5 / n / n  # each view's sums are of both views' products
    else:
        p = product(u[:, 0].mT, u[:, 1], torch.float32)
        m, sums = pair_products.correlation(p, split=split, divisor=float(n), need_grad=need_grad)
        per_sum, q, more, direct = 1.0, None, None, None
        if m is not None:
            parts = u.shape[0]
            q = _launch.empty((2, parts, *u.shape[2:]), torch.float32, u.device)
            product(u[:, 1], m[:parts].mT, torch.float32, out=q[0])
            product(u[:, 0], m[-parts:], torch.float32, out=q[1])
            q = q.flatten(0, 1)
    del u
    out, scalars = barlow_ends.barlow_terms(
        stats, sums, more, direct, off_diagonal_weight, n, eps=eps, per_sum=per_sum
    )
    if q is None:
        return out, None
    of_along = barlow_ends.along(x, y, q, stats, eps, views_first=not gram)
    return out, BarlowTwinsKernelSaved(q, stats, of_along, direct, scalars)


def barlow_twins_backward(
    a: torch.Tensor,
    b: torch.Tensor | None,
    saved: BarlowTwinsKernelSaved,
    cotangents: tuple[torch.Tensor | None, ...],
    *,
    eps: float = 0.0,
    donated: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Gradient of Barlow Twins' three fields; as `vicreg_backward`."""
    x, y = _views(a, b)
    found, out = _gradients(a, b)
    dispatch.load("barlow_ends", "barlow_gradient")(
        out,
        x,
        y,
        saved.product,
        saved.stats,
        saved.along,
        saved.direct,
        saved.scalars,
        tuple(cotangents),
        eps=eps,
    )
    return found
