"""The core's losses on torch tensors: the same names, arguments and results, a gradient of its own.

A forward pass is the core's pass that makes value and gradient together, chunk by chunk of slices,
so that neither projections nor sort orders nor anything of size (N, K) is saved for the backward
pass. Every field of a result is differentiable by itself. Arguments and errors are described in
`visreg_core`; 16-bit embeddings may be passed as they are, under autocast or not, and computations
are in float32 where the core says so. A weight may be a tensor without axes, which a compiled
function takes without compiling again when it changes.

Losses that have a meaning for a batch spread over processes take two arguments more:

scope : {"local", "global"}
    "local": the loss of this process's rows. "global": that of the rows of all processes of
    `group`, the same number on each.
group : torch.distributed.ProcessGroup, optional
    The processes that hold the batch; the default group if not given.

Constants (slices, masks, weights, pairs, affinities) have no gradient. There is no second
derivative: torch differentiates the core's own functions, step by step, as often as wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visreg_core import BarlowTwinsTerms, SAGVICRegTerms, VICRegTerms, VISRegTerms, joint_objective
from visreg_core.losses.visreg import EPS
from visreg_torch import _walks
from visreg_torch._autograd import evaluate
from visreg_torch._slices import draw
from visreg_torch.distributed import sharding_of

__all__ = [
    "barlow_twins_loss",
    "center_loss",
    "covariance_loss",
    "epps_pulley",
    "gaussian_sliced_wasserstein",
    "invariance_loss",
    "joint_objective",
    "max_sliced_wasserstein",
    "random_slices",
    "random_walk_affinity",
    "random_walk_pairs",
    "sag_vicreg_loss",
    "scale_loss",
    "shape_loss",
    "sigreg_loss",
    "sliced_wasserstein",
    "spectralnet_loss",
    "variance_loss",
    "vicreg_loss",
    "visreg_loss",
]

Number = float | Tensor


# --- VISReg ---------------------------------------------------------------------------------------


def visreg_loss(
    z: Tensor,
    slices: Tensor,
    weights: Sequence[Number] = (1, 1, 1),
    *,
    detach_scale: bool = True,
    eps: float = EPS,
    row_mask: Tensor | None = None,
    chunk_size: int | None = None,
    projection_dtype: torch.dtype | None = None,
    scope: str = "local",
    group: Any = None,
) -> VISRegTerms:
    """VISReg's regulariser and its terms, as `visreg_core.visreg_loss`.

    Examples
    --------
    >>> import torch
    >>> from visreg_torch import random_slices
    >>> z = torch.randn(2, 256, 8, requires_grad=True)  # views, samples, dimensions
    >>> terms = visreg_loss(z, random_slices(8, 64, seed=0, step=0))
    >>> (terms.scale + 0.5 * terms.shape).backward()
    >>> z.grad.shape
    torch.Size([2, 256, 8])
    """
    arguments = {
        "z": z,
        "slices": slices,
        "weights": weights,
        "detach_scale": detach_scale,
        "eps": eps,
        "row_mask": row_mask,
        "chunk_size": chunk_size,
        "projection_dtype": projection_dtype,
    }
    return evaluate("visreg_loss", arguments, ("z",), VISRegTerms, scope=scope, group=group)


def center_loss(
    z: Tensor,
    *,
    reduction: str = "mean",
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor:
    """Mean over dimensions of the squared batch mean, as `visreg_core.center_loss`.

    Examples
    --------
    >>> import torch
    >>> center_loss(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
    tensor(4.)
    """
    arguments = {"z": z, "reduction": reduction, "row_mask": row_mask}
    return evaluate("center_loss", arguments, ("z",), scope=scope, group=group)


def scale_loss(
    z: Tensor, *, row_mask: Tensor | None = None, scope: str = "local", group: Any = None
) -> Tensor:
    """Squared distance of the standard deviations from 1, as `visreg_core.scale_loss`.

    Examples
    --------
    >>> import torch
    >>> scale_loss(torch.tensor([[3.0], [-3.0]]))
    tensor(4.)
    """
    arguments = {"z": z, "row_mask": row_mask}
    return evaluate("scale_loss", arguments, ("z",), scope=scope, group=group)


def shape_loss(
    z: Tensor,
    slices: Tensor,
    *,
    detach_scale: bool = True,
    eps: float = EPS,
    reduction: str = "mean",
    row_mask: Tensor | None = None,
    chunk_size: int | None = None,
    projection_dtype: torch.dtype | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor:
    """Sliced distance of the standardised rows from the Gaussian, as `visreg_core.shape_loss`.

    Examples
    --------
    >>> import torch
    >>> from visreg_torch import random_slices
    >>> z = 5 * torch.randn(512, 8)
    >>> bool(shape_loss(z, random_slices(8, 64)) < 0.05)
    True
    """
    arguments = {
        "z": z,
        "slices": slices,
        "detach_scale": detach_scale,
        "eps": eps,
        "reduction": reduction,
        "row_mask": row_mask,
        "chunk_size": chunk_size,
        "projection_dtype": projection_dtype,
    }
    return evaluate("shape_loss", arguments, ("z",), scope=scope, group=group)


def invariance_loss(
    z: Tensor,
    n_global: int | None = None,
    *,
    detach_center: bool = False,
    reduction: str = "mean",
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor:
    """Squared distance of views (V, N, D) from their centre, as `visreg_core.invariance_loss`.

    Examples
    --------
    >>> import torch
    >>> invariance_loss(torch.tensor([[[1.0]], [[3.0]]]))
    tensor(1.)
    """
    arguments = {
        "z": z,
        "n_global": n_global,
        "detach_center": detach_center,
        "reduction": reduction,
        "row_mask": row_mask,
    }
    return evaluate("invariance_loss", arguments, ("z",), scope=scope, group=group)


# --- sliced distances and SIGReg ------------------------------------------------------------------


def gaussian_sliced_wasserstein(
    z: Tensor,
    slices: Tensor,
    *,
    reduction: str = "mean",
    row_mask: Tensor | None = None,
    chunk_size: int | None = None,
    projection_dtype: torch.dtype | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor:
    """Sliced distance to the Gaussian, as `visreg_core.gaussian_sliced_wasserstein`.

    Examples
    --------
    >>> import torch
    >>> from visreg_torch import random_slices
    >>> z = torch.randn(512, 8)
    >>> bool(gaussian_sliced_wasserstein(z, random_slices(8, 64)) < 0.1)
    True
    """
    arguments = {
        "z": z,
        "slices": slices,
        "reduction": reduction,
        "row_mask": row_mask,
        "chunk_size": chunk_size,
        "projection_dtype": projection_dtype,
    }
    return evaluate("gaussian_sliced_wasserstein", arguments, ("z",), scope=scope, group=group)


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    slices: Tensor,
    p: float = 2,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    power: bool = False,
    chunk_size: int | None = None,
    projection_dtype: torch.dtype | None = None,
) -> Tensor:
    """Sliced distance of two samples, as `visreg_core.sliced_wasserstein`.

    Examples
    --------
    >>> import torch
    >>> x = torch.zeros(5, 2)
    >>> sliced_wasserstein(x, x + torch.tensor([3.0, 0.0]), torch.eye(2), power=True)
    tensor(4.5000)
    """
    arguments = {
        "x": x,
        "y": y,
        "slices": slices,
        "p": p,
        "x_weights": x_weights,
        "y_weights": y_weights,
        "power": power,
        "chunk_size": chunk_size,
        "projection_dtype": projection_dtype,
    }
    return evaluate("sliced_wasserstein", arguments, ("x", "y"))


def max_sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    slices: Tensor,
    p: float = 2,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    power: bool = False,
    chunk_size: int | None = None,
    projection_dtype: torch.dtype | None = None,
) -> Tensor:
    """Largest distance of two samples over slices, as `visreg_core.max_sliced_wasserstein`.

    Examples
    --------
    >>> import torch
    >>> x = torch.zeros(5, 2)
    >>> max_sliced_wasserstein(x, x + torch.tensor([3.0, 0.0]), torch.eye(2))
    tensor(3.)
    """
    arguments = {
        "x": x,
        "y": y,
        "slices": slices,
        "p": p,
        "x_weights": x_weights,
        "y_weights": y_weights,
        "power": power,
        "chunk_size": chunk_size,
        "projection_dtype": projection_dtype,
    }
    return evaluate("max_sliced_wasserstein", arguments, ("x", "y"))


def epps_pulley(
    x: Tensor,
    t_max: float = 3.0,
    n_knots: int = 17,
    *,
    axis: int = -1,
    row_mask: Tensor | None = None,
) -> Tensor:
    """Epps-Pulley statistic of samples (..., N), as `visreg_core.epps_pulley`.

    Examples
    --------
    >>> import torch
    >>> epps_pulley(torch.randn(3, 500)).shape
    torch.Size([3])
    """
    arguments = {
        "x": x,
        "t_max": t_max,
        "n_knots": n_knots,
        "axis": axis,
        "row_mask": row_mask,
    }
    return evaluate("epps_pulley", arguments, ("x",))


def sigreg_loss(
    z: Tensor,
    slices: Tensor,
    t_max: float = 3.0,
    n_knots: int = 17,
    *,
    scale_by_n: bool = True,
    row_mask: Tensor | None = None,
    chunk_size: int | None = None,
    projection_dtype: torch.dtype | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor:
    """SIGReg, the mean of `epps_pulley` over slices, as `visreg_core.sigreg_loss`.

    Examples
    --------
    >>> import torch
    >>> from visreg_torch import random_slices
    >>> z, slices = torch.randn(256, 16), random_slices(16, 64)
    >>> bool(sigreg_loss(z, slices) < sigreg_loss(0.1 * z, slices))
    True
    """
    arguments = {
        "z": z,
        "slices": slices,
        "t_max": t_max,
        "n_knots": n_knots,
        "scale_by_n": scale_by_n,
        "row_mask": row_mask,
        "chunk_size": chunk_size,
        "projection_dtype": projection_dtype,
    }
    return evaluate("sigreg_loss", arguments, ("z",), scope=scope, group=group)


# --- two views ------------------------------------------------------------------------------------


def variance_loss(
    z: Tensor,
    gamma: float = 1.0,
    eps: float = 1e-4,
    *,
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor:
    """VICReg's variance term, as `visreg_core.variance_loss`.

    Examples
    --------
    >>> import torch
    >>> variance_loss(torch.tensor([[1.0], [-1.0]]))
    tensor(0.)
    """
    arguments = {"z": z, "gamma": gamma, "eps": eps, "row_mask": row_mask}
    return evaluate("variance_loss", arguments, ("z",), scope=scope, group=group)


def covariance_loss(
    z: Tensor, *, row_mask: Tensor | None = None, scope: str = "local", group: Any = None
) -> Tensor:
    """VICReg's covariance term, as `visreg_core.covariance_loss`.

    Examples
    --------
    >>> import torch
    >>> covariance_loss(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    tensor(4.)
    """
    arguments = {"z": z, "row_mask": row_mask}
    return evaluate("covariance_loss", arguments, ("z",), scope=scope, group=group)


def vicreg_loss(
    a: Tensor,
    b: Tensor | None = None,
    weights: Sequence[Number] = (25, 25, 1),
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
    convention: str = "vicreg",
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> VICRegTerms:
    """VICReg of two views, or of the pairs of several, as `visreg_core.vicreg_loss`.

    Examples
    --------
    >>> import torch
    >>> a = torch.randn(32, 8)
    >>> vicreg_loss(a, a).invariance
    tensor(0.)
    """
    arguments = {
        "a": a,
        "b": b,
        "weights": weights,
        "gamma": gamma,
        "eps": eps,
        "convention": convention,
        "row_mask": row_mask,
    }
    views = ("a",) if b is None else ("a", "b")
    return evaluate("vicreg_loss", arguments, views, VICRegTerms, scope=scope, group=group)


def barlow_twins_loss(
    a: Tensor,
    b: Tensor | None = None,
    off_diagonal_weight: Number = 0.0051,
    *,
    eps: float = 0.0,
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> BarlowTwinsTerms:
    """Barlow Twins of two views, or of pairs of several, as `visreg_core.barlow_twins_loss`.

    Examples
    --------
    >>> import torch
    >>> a = torch.randn(64, 4)
    >>> bool(barlow_twins_loss(a, a).on_diagonal < 1e-10)
    True
    """
    arguments = {
        "a": a,
        "b": b,
        "off_diagonal_weight": off_diagonal_weight,
        "eps": eps,
        "row_mask": row_mask,
    }
    views = ("a",) if b is None else ("a", "b")
    return evaluate(
        "barlow_twins_loss", arguments, views, BarlowTwinsTerms, scope=scope, group=group
    )


def sag_vicreg_loss(
    a: Tensor,
    b: Tensor,
    pairs: Tensor,
    pair_weights: Tensor,
    weights: Sequence[Number] = (25, 25, 1),
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> SAGVICRegTerms:
    """VICReg on pairs drawn by a random walk, as `visreg_core.sag_vicreg_loss`.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.randn(2, 16, 4)
    >>> terms = sag_vicreg_loss(a, b, torch.arange(16), torch.ones(16))
    >>> bool(terms.total == vicreg_loss(a, b).total)
    True
    """
    arguments = {
        "a": a,
        "b": b,
        "pairs": pairs,
        "pair_weights": pair_weights,
        "weights": weights,
        "gamma": gamma,
        "eps": eps,
        "row_mask": row_mask,
    }
    return evaluate(
        "sag_vicreg_loss", arguments, ("a", "b"), SAGVICRegTerms, scope=scope, group=group
    )


def random_walk_affinity(
    a: Tensor,
    b: Tensor,
    n_neighbors: int = 10,
    percentile: float = 20,
    *,
    scale: str = "local",
    symmetrize: bool = False,
) -> Tensor:
    """Affinity (N, N) of the rows of two views, as `visreg_core.random_walk_affinity`.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.randn(2, 16, 4)
    >>> random_walk_affinity(a, b, n_neighbors=3).shape
    torch.Size([16, 16])
    """
    return _walks.affinity(
        a,
        b,
        n_neighbors=n_neighbors,
        percentile=percentile,
        scale=scale,
        symmetrize=symmetrize,
    )


def random_walk_pairs(
    a: Tensor,
    b: Tensor,
    n_neighbors: int = 10,
    percentile: float = 20,
    *,
    scale: str = "local",
    symmetrize: bool = False,
    n_steps: int = 1,
    seed: int | Tensor = 0,
    step: int | Tensor = 0,
    scope: str = "local",
    group: Any = None,
) -> tuple[Tensor, Tensor]:
    """Pairs (N,) of the rows of two views and their weights, as `visreg_core.random_walk_pairs`.

    In global scope b's rows are counted through all processes, and each gets the pairs of its own
    rows of a.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.randn(2, 16, 4)
    >>> pairs, pair_weights = random_walk_pairs(a, b, n_neighbors=3, step=7)
    >>> sag_vicreg_loss(a, b, pairs, pair_weights)._fields
    ('total', 'invariance', 'variance', 'covariance')
    """
    return _walks.pairs(
        a,
        b,
        sharding=sharding_of(scope, group),
        n_neighbors=n_neighbors,
        percentile=percentile,
        scale=scale,
        symmetrize=symmetrize,
        n_steps=n_steps,
        seed=seed,
        step=step,
    )


def spectralnet_loss(y: Tensor, affinity: Tensor, *, row_mask: Tensor | None = None) -> Tensor:
    """SpectralNet's quadratic form of the Laplacian, as `visreg_core.spectralnet_loss`.

    Examples
    --------
    >>> import torch
    >>> spectralnet_loss(torch.tensor([[0.0], [2.0]]), torch.ones(2, 2))
    tensor(2.)
    """
    arguments = {"y": y, "affinity": affinity, "row_mask": row_mask}
    return evaluate("spectralnet_loss", arguments, ("y",))


# --- directions -----------------------------------------------------------------------------------


def random_slices(
    dim: int,
    n_slices: int,
    *,
    seed: int | Tensor = 0,
    step: int | Tensor = 0,
    start: int = 0,
    sampler: str = "gaussian",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Unit directions (dim, n_slices) by a counter-based stream, as `visreg_core.random_slices`.

    Examples
    --------
    >>> random_slices(8, 5, seed=1, step=3).shape
    torch.Size([8, 5])
    """
    return draw(
        dim,
        n_slices,
        seed=seed,
        step=step,
        start=start,
        sampler=sampler,
        dtype=dtype,
        device=device,
    )
