r"""Linear segmentation of frozen patch features, as the papers do on ADE20K.

    python -m reference_train.segment runs/digits --images /data/ade20k
    python -m reference_train.segment --model hf:facebook/dinov2-base \
        --images /data/ade20k --size 518

The folder has images/SPLIT/NAME.jpg and annotations/SPLIT/NAME.png, for SPLIT training and
validation, as ADE20K has: a mask's pixels are class numbers. --ignore is the number that is neither
trained nor counted, by default ADE20K's 0; others are counted without it.

VISReg, "Testing details": a 1x1 convolution behind SyncBatchNorm on the last layer's patch
features, AdamW with rate 2e-3, polynomial decay with power 0.9, batches of 16 over all processes,
40 epochs, 512 pixels (518 for patches of 14), mean intersection over union (mIoU) on validation.
Whole images are stretched to squares, and mirrored at random in training; predictions are
compared at the mask's own size.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from reference_train import loading
from reference_train.augment import Normalize
from reference_train.collectives import all_sum
from reference_train.data import Order
from reference_train.encoders import ViT
from reference_train.environment import write_result
from reference_train.errors import TrainError, one_line
from reference_train.images import upright
from reference_train.model import synchronised
from reference_train.settings import Data

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
IGNORED = -1
BATCH, LR, POWER = 16, 2e-3, 0.9


class Masks:
    """Pairs of an image and a mask of the same name: ``images/SPLIT`` and ``annotations/SPLIT``."""

    def __init__(self, root: Path, split: str, size: int, channels: int, ignore: int) -> None:
        folder, masks = root / "images" / split, root / "annotations" / split
        found = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES)
        self.pairs = [(p, masks / f"{p.stem}.png") for p in found]
        missing = [mask for _, mask in self.pairs if not mask.exists()]
        if not found or missing:
            lacks = f"no {missing[0]}" if missing else f"no image in {folder}"
            raise TrainError(f"expected images and masks of the same names; found {lacks}")
        self.size, self.channels, self.ignore = size, channels, ignore
        self.classes: int | None = None  # where given, others are refused

    def __len__(self) -> int:
        return len(self.pairs)

    def mask(self, index: int) -> torch.Tensor:
        """Classes (H, W) of an image at its own size; IGNORED where nothing is counted.

        Numbers above the ignored one move down by one, so that the classes are 0, 1, ...
        """
        with Image.open(self.pairs[index][1]) as image:
            if image.mode not in ("L", "P", "I", "I;16"):
                raise TrainError(f"{self.pairs[index][1]}: expected a mask of one channel")
            numbers = torch.from_numpy(np.array(image).astype(np.int64))
        moved = torch.where(numbers > self.ignore, numbers - 1, numbers)
        if self.classes is not None and int(moved.max()) >= self.classes:
            found = f"{self.pairs[index][1]} has class {int(numbers.max())}"
            raise TrainError(f"expected {self.classes} classes beside --ignore; found {found}")
        return torch.where(numbers == self.ignore, IGNORED, moved)

    def image(self, index: int) -> torch.Tensor:
        """uint8, (C, size, size): the whole image, stretched to a square."""
        with Image.open(self.pairs[index][0]) as opened:
            image = upright(opened).convert("L" if self.channels == 1 else "RGB")
        square = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(square)).reshape(self.size, self.size, -1).permute(2, 0, 1)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """For training: both at `size`."""
        mask = self.mask(index)[None, None].float()
        return self.image(index), F.interpolate(mask, (self.size, self.size))[0, 0].long()


def segment(
    encoder: nn.Module,
    data: Data,
    training: Masks,
    validation: Masks,
    *,
    classes: int | None = None,
    epochs: int = 40,
    seed: int = 0,
    cpu: bool = False,
) -> dict[str, object]:
    """Train the linear head on all processes; mIoU and the IoU of each class on the validation."""
    if not isinstance(encoder, ViT):
        raise TrainError("segmentation needs a transformer's patch features")
    if classes is None:
        masks = (m.mask(i) for m in (training, validation) for i in range(len(m)))
        classes = 1 + max(int(mask.max()) for mask in masks)
    training.classes = validation.classes = classes
    accelerator = Accelerator(cpu=cpu)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    torch.manual_seed(seed)
    head = nn.Sequential(nn.BatchNorm2d(encoder.width), nn.Conv2d(encoder.width, classes, 1))
    head = head.to(device)
    if world > 1:
        synchronised(head, device)
    encoder, normalize = encoder.to(device).eval(), Normalize(data).to(device)
    size = min(BATCH // world, len(training) // world)
    if not size:
        raise TrainError(f"{len(training)} images or batches of {BATCH} for {world} processes")
    order = Order(len(training), size, seed=seed, rank=rank, world=world, start=0)
    loader = DataLoader(training, batch_sampler=order, num_workers=data.workers)
    optimizer = torch.optim.AdamW(head.parameters(), LR)
    steps = epochs * order.batches
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, POWER)
    model = accelerator.prepare(head).train()
    for _, (images, masks) in zip(range(steps), loader, strict=False):
        if torch.rand(()) < 0.5:
            images, masks = images.flip(-1), masks.flip(-1)
        with torch.no_grad():
            patches = encoder.patches(normalize(images.to(device) / 255))
        logits = F.interpolate(model(patches), masks.shape[-2:], mode="bilinear")
        loss = F.cross_entropy(logits, masks.to(device), ignore_index=IGNORED)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
    counts = torch.zeros(classes, classes, dtype=torch.float64, device=device)
    head.eval()
    with torch.no_grad():
        for i in range(rank, len(validation), world):
            mask = validation.mask(i).to(device)
            patches = encoder.patches(normalize(validation.image(i).to(device)[None] / 255))
            logits = F.interpolate(head(patches), mask.shape, mode="bilinear")
            counts += confusion(logits.argmax(1)[0], mask, classes)
    iou = intersection_over_union(all_sum(counts))
    present = ~iou.isnan()
    return {
        "mIoU": float(iou[present].mean()),
        "IoU by class": {str(c): float(iou[c]) for c in range(classes) if present[c]},
        "pixel accuracy": float(all_sum(counts).diag().sum() / all_sum(counts).sum()),
    }


def confusion(predicted: torch.Tensor, mask: torch.Tensor, classes: int) -> torch.Tensor:
    """Pixels (classes, classes) by their true and their predicted class."""
    kept = mask != IGNORED
    pairs = mask[kept] * classes + predicted[kept]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def intersection_over_union(counts: torch.Tensor) -> torch.Tensor:
    """Of each class; NaN where it is neither there nor predicted."""
    both = counts.diag()
    return both / (counts.sum(0) + counts.sum(1) - both)


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m reference_train.segment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("run", nargs="?", type=Path, metavar="RUN")
    made.add_argument("--model", help="instead of RUN: hf:NAME, timm:NAME, a file or a run")
    made.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    made.add_argument("--size", type=int, default=512, help="side of the squares (default 512)")
    made.add_argument("--ignore", type=int, default=0, help="class number left out (default 0)")
    made.add_argument("--classes", type=int, help="how many; by default the masks are read for it")
    made.add_argument("--epochs", type=int, default=40)
    made.add_argument("--workers", type=int, default=0)
    made.add_argument("--cpu", action="store_true")
    return made


def main(arguments: list[str] | None = None) -> None:
    """The command line; the result is printed and written into the run's folder."""
    given = parser().parse_args(arguments)
    try:
        config, learner, folder = loading.given(given.run, given.model)
        config.data.workers = given.workers
        splits = [
            Masks(given.images, split, given.size, config.data.channels, given.ignore)
            for split in ("training", "validation")
        ]
        result = segment(
            learner.backbone, config.data, *splits, classes=given.classes, epochs=given.epochs,
            cpu=given.cpu,
        )  # fmt: skip
    except (TrainError, OSError, ValueError, RuntimeError) as error:
        print(f"reference_train.segment: {one_line(error)}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    if os.environ.get("RANK", "0") == "0":  # of several processes the first one reports
        folder.mkdir(parents=True, exist_ok=True)
        write_result(folder / "segment.json", result)
        print(json.dumps(result, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
