"""Multi-crop on the device, a different draw for each image and crop; the colours are Kornia's."""

from __future__ import annotations

import kornia.augmentation as K
import torch
from torch import nn

from reference_train.config import Augment, Data
from reference_train.crops import RandomResizedCrop


class View(nn.Module):
    """Crops of a kind: crop, flip, jitter, grey, blur, solarise, in the order of DINO."""

    def __init__(self, a: Augment, channels: int, size: int, scale: list[float]) -> None:
        super().__init__()
        shift = (a.translate, a.translate)
        moved = a.rotate or a.translate
        self.move = K.RandomAffine(a.rotate, translate=shift, p=1.0) if moved else None
        self.crop = RandomResizedCrop(size, scale, a.ratio)
        self.colours = nn.Sequential(*_colours(a, channels, size))

    def forward(
        self, images: torch.Tensor, sizes: torch.Tensor | None = None, count: int = 1
    ) -> torch.Tensor:
        """`count` crops of each of images (N, C, H, W) in 0 ... 1: (count N, C, size, size)."""
        moved = (images if self.move is None else self.move(images) for _ in range(count))
        return self.colours(torch.cat([self.crop(view, sizes) for view in moved]))


def _colours(a: Augment, channels: int, size: int) -> list[nn.Module]:
    steps: list[nn.Module] = []
    if a.flip:
        steps.append(K.RandomHorizontalFlip(p=a.flip))
    if a.jitter and channels == 3:
        strengths = a.brightness, a.contrast, a.saturation, a.hue
        steps.append(K.ColorJitter(*strengths, p=a.jitter))
    elif a.jitter:
        steps.append(K.RandomBrightness(_around_one(a.brightness), p=a.jitter))
        steps.append(K.RandomContrast(_around_one(a.contrast), p=a.jitter))
    if a.grayscale and channels == 3:
        steps.append(K.RandomGrayscale(p=a.grayscale))
    if a.blur:
        kernel = max(3, size // 10 | 1)  # odd, a tenth of the side, as SimCLR's
        steps.append(K.RandomGaussianBlur((kernel, kernel), tuple(a.blur_sigma), p=a.blur))
    if a.solarize:
        steps.append(K.RandomSolarize(thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=a.solarize))
    return steps


def _around_one(strength: float) -> tuple[float, float]:
    return max(0.0, 1 - strength), 1 + strength


class MultiCrop(nn.Module):
    """Crops of a batch of images: ``[(G, N, C, H, W), (L, N, C, h, w)]``, normalised."""

    def __init__(self, augment: Augment, data: Data) -> None:
        super().__init__()
        kinds = [
            (augment.n_global, augment.global_size, augment.global_scale),
            (augment.n_local, augment.local_size, augment.local_scale),
        ]
        self.counts = [count for count, *_ in kinds if count]
        self.pipelines = nn.ModuleList(
            View(augment, data.channels, size, scale) for count, size, scale in kinds if count
        )
        self.normalize = Normalize(data)

    @torch.no_grad()
    def forward(
        self, images: torch.Tensor, sizes: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Of uint8 images (N, C, H, W) on any device; `sizes` (N, 2) where they differ."""
        images = images.to(torch.float32) / 255
        crops = []
        for count, view in zip(self.counts, self.pipelines, strict=True):
            views = view(images, sizes, count)
            crops.append(self.normalize(views).unflatten(0, (count, -1)))
        return crops


class Normalize(nn.Module):
    """(x - mean) / std, channel by channel."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        for name in ("mean", "std"):
            values = getattr(data, name)[: data.channels]
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Of images (..., C, H, W) in 0 ... 1."""
        return (images - self.mean) / self.std


class Resize(nn.Module):
    """What the evaluation sees: the whole square at the global crop's size, normalised."""

    def __init__(self, augment: Augment, data: Data) -> None:
        super().__init__()
        self.size, self.normalize = augment.global_size, Normalize(data)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Of uint8 images (N, C, size, size)."""
        images = images.to(torch.float32) / 255
        if images.shape[-1] != self.size:
            shape = (self.size, self.size)
            images = nn.functional.interpolate(images, shape, mode="bicubic", antialias=True)
        return self.normalize(images)
