"""From an encoded image to pixels: one way, from whichever source it comes."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps


def decoded(file: Path | io.BytesIO, size: int, channels: int) -> torch.Tensor:
    """The pixels of an encoded image, as `square` cuts them."""
    with Image.open(file) as image:
        return square(image, size, channels)


def square(image: Image.Image, size: int, channels: int) -> torch.Tensor:
    """Resized to `size` on the shorter side, the middle square cut: uint8, (C, size, size).

    Rotated upright by the EXIF orientation. Of 16 bits the upper eight are used; 32 bits and
    floating numbers are a ValueError, because no file says which value is white.
    """
    image = upright(image)
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating numbers"
        raise ValueError(f"expected pixels of 8 or 16 bits; found {kind} (mode {image.mode})")
    if image.mode.startswith("I;16"):  # whose conversion would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    width, height = image.size
    scale = size / min(width, height)
    if scale != 1:
        shape = max(size, round(width * scale)), max(size, round(height * scale))
        image = image.resize(shape, Image.Resampling.BICUBIC)
        width, height = image.size
    left, top = (width - size) // 2, (height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    pixels = np.array(image, dtype=np.uint8)  # a copy, which Torch may own
    return torch.from_numpy(pixels).reshape(size, size, channels).permute(2, 0, 1).contiguous()


def upright(image: Image.Image) -> Image.Image:
    """Rotated by the EXIF orientation; unchanged where that is missing or damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is damaged in EXIF
        try:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
            return ImageOps.exif_transpose(image) if turned else image
        except Exception:  # as the parser does on damaged EXIF; a damaged image fails later
            return image
