"""Written by ``make stubs`` from the losses' declarations."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visreg_core import BarlowTwinsTerms, SAGVICRegTerms, VICRegTerms, VISRegTerms
from visreg_core import joint_objective as joint_objective
from visreg_torch._differentiable import differentiable as differentiable
from visreg_torch._slices import random_slices as random_slices
from visreg_torch._walks import random_walk_affinity as random_walk_affinity
from visreg_torch._walks import random_walk_pairs as random_walk_pairs

__all__: list[str]

def barlow_twins_loss(
    a: Tensor,
    b: Tensor | None = None,
    off_diagonal_weight: float | Tensor = 0.0051,
    *,
    eps: float = 0.0,
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> BarlowTwinsTerms: ...
def center_loss(
    z: Tensor,
    *,
    reduction: str = "mean",
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor: ...
def covariance_loss(
    z: Tensor,
    *,
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor: ...
def epps_pulley(
    x: Tensor,
    t_max: float = 3.0,
    n_knots: int = 17,
    *,
    axis: int = -1,
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor: ...
def gaussian_ksd(
    z: Tensor,
    *,
    kernel: str = "gaussian",
    bandwidth: float | None = None,
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor: ...
def gaussian_mmd(
    z: Tensor,
    *,
    kernel: str = "gaussian",
    bandwidth: float | None = None,
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor: ...
def gaussian_sliced_energy_distance(
    z: Tensor,
    slices: Tensor,
    *,
    row_mask: Tensor | None = None,
    chunk_size: int | None = None,
    projection_dtype: torch.dtype | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor: ...
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
) -> Tensor: ...
def invariance_loss(
    z: Tensor,
    n_global: int | None = None,
    *,
    detach_center: bool = False,
    reduction: str = "mean",
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor: ...
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
) -> Tensor: ...
def sag_vicreg_loss(
    a: Tensor,
    b: Tensor,
    pairs: Tensor,
    pair_weights: Tensor,
    weights: Sequence[float | Tensor] = (25, 25, 1),
    *,
    gamma: float = 1.0,
    eps: float = 0.0001,
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> SAGVICRegTerms: ...
def scale_loss(
    z: Tensor,
    *,
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor: ...
def shape_loss(
    z: Tensor,
    slices: Tensor,
    *,
    detach_scale: bool = True,
    eps: float = 1e-06,
    reduction: str = "mean",
    row_mask: Tensor | None = None,
    chunk_size: int | None = None,
    projection_dtype: torch.dtype | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor: ...
def sigreg_limit(
    z: Tensor,
    *,
    scale_by_n: bool = True,
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor: ...
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
) -> Tensor: ...
def sliced_statistic(
    z: Tensor,
    slices: Tensor,
    *,
    statistic: str = "anderson_darling",
    row_mask: Tensor | None = None,
    chunk_size: int | None = None,
    projection_dtype: torch.dtype | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor: ...
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
) -> Tensor: ...
def spectralnet_loss(
    y: Tensor,
    affinity: Tensor,
    *,
    row_mask: Tensor | None = None,
) -> Tensor: ...
def spherical_mmd(
    z: Tensor,
    t: float = 2.0,
    *,
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor: ...
def swav_loss(
    a: Tensor,
    b: Tensor | None = None,
    *,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    n_iterations: int = 3,
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor: ...
def variance_loss(
    z: Tensor,
    gamma: float = 1.0,
    eps: float = 0.0001,
    *,
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor: ...
def vicreg_loss(
    a: Tensor,
    b: Tensor | None = None,
    weights: Sequence[float | Tensor] = (25, 25, 1),
    *,
    gamma: float = 1.0,
    eps: float = 0.0001,
    convention: str = "vicreg",
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> VICRegTerms: ...
def visreg_loss(
    z: Tensor,
    slices: Tensor,
    weights: Sequence[float | Tensor] = (1, 1, 1),
    *,
    detach_scale: bool = True,
    eps: float = 1e-06,
    row_mask: Tensor | None = None,
    chunk_size: int | None = None,
    projection_dtype: torch.dtype | None = None,
    scope: str = "local",
    group: Any = None,
) -> VISRegTerms: ...
def weak_sigreg_loss(
    z: Tensor,
    slices: Tensor,
    *,
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor: ...
def wmse_loss(
    a: Tensor,
    b: Tensor | None = None,
    *,
    eps: float = 0.001,
    row_mask: Tensor | None = None,
    scope: str = "local",
    group: Any = None,
) -> Tensor: ...
