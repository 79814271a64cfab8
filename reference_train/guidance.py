"""Guidance of generative models by patch features: REPA's projection loss, and its targets.

Yu et al. 2025, as VISReg's table of generation uses it: hidden tokens of a diffusion transformer,
projected by a small network, are drawn to the frozen encoder's patch features of the clean image,
on the grid of the latent's tokens.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from reference_train.encoders import ViT
from reference_train.errors import TrainError


@torch.no_grad()
def latent_features(encoder: nn.Module, images: torch.Tensor, grid: int) -> torch.Tensor:
    """Patch features (N, grid * grid, width) of normalised images, row by row.

    Where the encoder's own grid is another one, it is interpolated (bilinear, antialiased).
    """
    if not isinstance(encoder, ViT):
        raise TrainError("guidance needs a transformer's patch features")
    patches = encoder.patches(images)
    if patches.shape[-2:] != (grid, grid):
        patches = F.interpolate(patches, (grid, grid), mode="bilinear", antialias=True)
    return patches.flatten(2).transpose(1, 2)


def projection_loss(projected: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """REPA's loss: minus the mean cosine of projected tokens and features, both (N, T, width)."""
    if projected.shape != features.shape:
        raise TrainError(f"expected {tuple(features.shape)}; found {tuple(projected.shape)}")
    return -F.cosine_similarity(projected, features.detach(), dim=-1).mean()
