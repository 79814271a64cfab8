"""From an encoded image to pixels: one way, from whichever source it comes."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

LITTLE_LESS = 0.75


class Decoder(NamedTuple):
    """From an encoded image to uint8 pixels (C, height, width).

    A square of `size` pixels, the middle of the image resized on its shorter side; or, with
    `whole`, all of it, its longer side at most that many pixels. Large JPEG files are decoded at
    1/2, 1/4 or 1/8 of their size, if that is not less than what is asked for.

    The image is rotated upright by its EXIF orientation. Of 16 bits the upper eight are used; 32
    bits and floating numbers are a ValueError, because no file says which value is white.
    Transparency is left away, as torchvision's loader leaves it.
    """

    size: int
    channels: int
    whole: int | None = None

    def __call__(self, file: Path | io.BytesIO) -> torch.Tensor:
        """The pixels of a file."""
        with Image.open(file) as image:
            image.draft(None, (self._least(image.size),) * 2)
            image = self._colours(upright(image))
            image = self._square(image) if self.whole is None else self._limited(image)
            pixels = np.array(image, dtype=np.uint8)  # a copy, which Torch may own
        return torch.from_numpy(pixels).view(*pixels.shape[:2], self.channels).permute(2, 0, 1)

    def _least(self, shape: tuple[int, int]) -> int:
        """Pixels that a smaller decoding has to have on the shorter side."""
        if self.whole is None:
            return self.size
        for part in (2, 4, 8):  # as it is decoded, if that is not much less than may be
            if self.whole * LITTLE_LESS <= max(shape) / part <= self.whole:
                return min(shape) // part
        return math.ceil(self.whole * min(shape) / max(shape))

    def _colours(self, image: Image.Image) -> Image.Image:
        if image.mode in ("I", "F"):
            kind = "32-bit integers" if image.mode == "I" else "floating numbers"
            raise ValueError(f"expected pixels of 8 or 16 bits; found {kind} (mode {image.mode})")
        if image.mode.startswith("I;16"):  # whose conversion would clip at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # the same colours; directly to RGB Pillow warns
        mode = "L" if self.channels == 1 else "RGB"
        return image if image.mode == mode else image.convert(mode)

    def _square(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        scale = self.size / min(width, height)
        if scale != 1:
            shape = max(self.size, round(width * scale)), max(self.size, round(height * scale))
            left, top = (shape[0] - self.size) // 2, (shape[1] - self.size) // 2
            across, down = width / shape[0], height / shape[1]
            right, bottom = left + self.size, top + self.size
            box = left * across, top * down, min(width, right * across), min(height, bottom * down)
            return image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        return image.crop((left, top, left + self.size, top + self.size))

    def _limited(self, image: Image.Image) -> Image.Image:
        scale = self.whole / max(image.size)
        if scale >= 1:
            return image
        shape = [max(1, round(side * scale)) for side in image.size]
        return image.resize(shape, Image.Resampling.BICUBIC)


def upright(image: Image.Image) -> Image.Image:
    """Rotated by the EXIF orientation; unchanged where that is missing or damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is damaged in EXIF
        try:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
            return ImageOps.exif_transpose(image) if turned else image
        except Exception:  # as the parser does on damaged EXIF; a damaged image fails later
            return image
