"""Random resized crops of images of any size, on their device: drawn, and resampled as Pillow does.

The box of a crop is drawn as in Szegedy et al. 2015: a share of the area and the logarithm of the
ratio are uniform. Resampling is bicubic (a = -1/2) with antialiasing: two products with matrices of
weights, over the rows and over the columns.
"""

from __future__ import annotations

import math

import torch
from torch import nn

TRIES = 10  # boxes drawn until one fits, as torchvision's


class RandomResizedCrop(nn.Module):
    """A crop of each image, of a random area and ratio, at `size` pixels."""

    def __init__(self, size: int, scale: list[float], ratio: list[float]) -> None:
        super().__init__()
        self.size, self.scale, self.ratio = size, scale, ratio

    def forward(self, images: torch.Tensor, sizes: torch.Tensor | None = None) -> torch.Tensor:
        """Of images (N, C, H, W) in 0 ... 1, whose heights and widths are `sizes` (N, 2)."""
        if sizes is None:
            sizes = torch.tensor(images.shape[-2:], device=images.device).expand(len(images), 2)
        boxes = random_boxes(sizes, self.scale, self.ratio)
        return resample(images, boxes, sizes, self.size).clamp(0, 1)


def random_boxes(sizes: torch.Tensor, scale: list[float], ratio: list[float]) -> torch.Tensor:
    """(top, left, height, width) of a box inside each image, (N, 4).

    Where ten draws do not fit, the largest box in the middle with a ratio in the range.
    """
    shape, device = (len(sizes), TRIES), sizes.device
    height, width = sizes.to(torch.float32)[:, None].unbind(-1)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    area = height * width * torch.empty(shape, device=device).uniform_(*scale)
    root = torch.empty(shape, device=device).uniform_(low, high).exp().sqrt()
    drawn = torch.stack([area.sqrt() / root, area.sqrt() * root], dim=-1)  # (N, tries, 2)
    fits = (drawn <= sizes[:, None]).all(-1)
    first = fits.to(torch.uint8).argmax(1)
    box = drawn[torch.arange(len(sizes), device=device), first]
    middle = torch.cat(
        [torch.minimum(height, width / ratio[0]), torch.minimum(width, height * ratio[1])], dim=1
    )
    found = fits.any(1, keepdim=True)
    box = torch.where(found, box, middle)
    place = torch.where(found, torch.rand(len(sizes), 2, device=device), 0.5)
    return torch.cat([place * (sizes - box), box], dim=1)


def resample(
    images: torch.Tensor, boxes: torch.Tensor, sizes: torch.Tensor, size: int
) -> torch.Tensor:
    """The boxes of images (N, C, H, W) at `size` pixels a side, (N, C, size, size).

    Only the first `sizes` (N, 2) rows and columns are read: what is beyond is no image.
    """
    rows = weights(boxes[:, 0], boxes[:, 2], sizes[:, 0], images.shape[-2], size)
    columns = weights(boxes[:, 1], boxes[:, 3], sizes[:, 1], images.shape[-1], size)
    return rows[:, None] @ (images @ columns[:, None].mT)


def weights(
    start: torch.Tensor, length: torch.Tensor, limit: torch.Tensor, n: int, size: int
) -> torch.Tensor:
    """Of n pixels in each of `size` that lie evenly on start ... start + length: (N, size, n)."""
    step = (length / size)[:, None, None]
    middles = start[:, None, None] + (torch.arange(size, device=start.device)[:, None] + 0.5) * step
    pixels = torch.arange(n, device=start.device)
    x = ((pixels + 0.5 - middles) / step.clamp(min=1)).abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    w = torch.where(x < 1, near, torch.where(x < 2, far, 0))
    w = torch.where(pixels < limit[:, None, None], w, 0)
    return w / w.sum(-1, keepdim=True)
