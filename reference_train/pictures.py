"""PCA pictures of patch features, with the components of two models matched.

VISReg, "PCA Feature Visualization": for each image the patch features of the last layer are
reduced to three components, which are colours after min-max scaling. Components come in any order
and sign, so the second model's are assigned to the first's by the Hungarian method on the absolute
correlation, and flipped where it is negative.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from reference_train.augment import Resize
from reference_train.encoders import ViT
from reference_train.errors import TrainError
from reference_train.sources import Unreadable


def principal_components(patches: np.ndarray, count: int = 3) -> np.ndarray:
    """Scores (n, count) of the rows of `patches` on their first principal directions."""
    centred = patches - patches.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    return u[:, :count] * s[:count]


def matched(reference: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`other`'s columns in `reference`'s order and sign, and the correlations that matched."""
    count = reference.shape[1]
    correlation = np.corrcoef(reference.T, other.T)[:count, count:]
    rows, columns = linear_sum_assignment(-np.abs(correlation))
    found = correlation[rows, columns]
    return other[:, columns] * np.where(found < 0, -1, 1), np.abs(found)


def colours(scores: np.ndarray) -> np.ndarray:
    """Each component from 0 to 1."""
    low, high = scores.min(axis=0), scores.max(axis=0)
    return (scores - low) / np.maximum(high - low, np.finfo(float).tiny)


@torch.no_grad()
def patch_features(learner: Any, images: torch.Tensor) -> np.ndarray:
    """Last-layer patch tokens (N, patches, width)."""
    if not isinstance(learner.backbone, ViT):
        raise TrainError("pictures of patches need a ViT")
    return learner.backbone.patches(images).flatten(2).transpose(1, 2).float().cpu().numpy()


def compare_patches(run: Any, other: Any, *, count: int, path: Path) -> list[float]:
    """Draw images and both models' components side by side; mean matched |correlation| of each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    samples = (run.splits.test[i] for i in range(len(run.splits.test)))
    readable = (sample.image for sample in samples if not isinstance(sample, Unreadable))
    raw = torch.stack(list(itertools.islice(readable, count)))
    maps, found = [], []
    features = [
        patch_features(r.learner.float(), Resize(r.config.augment, r.config.data)(raw).to(r.device))
        for r in (run, other)
    ]
    if features[0].shape[1] != features[1].shape[1]:
        raise TrainError(f"{features[0].shape[1]} and {features[1].shape[1]} patches an image")
    side = round(features[0].shape[1] ** 0.5)
    for own, others in zip(*features, strict=True):
        reference = principal_components(own)
        aligned, correlation = matched(reference, principal_components(others))
        found.append(correlation)
        maps.append([colours(s).reshape(side, side, 3) for s in (reference, aligned)])

    figure = Figure(figsize=(1.6 * len(raw), 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, len(raw), squeeze=False)
    for i, image in enumerate(raw):
        pixels = image.permute(1, 2, 0).numpy()
        axes[0, i].imshow(pixels.squeeze(), cmap="gray" if pixels.shape[-1] == 1 else None)
        for row in (0, 1):
            axes[row + 1, i].imshow(maps[i][row], interpolation="bilinear")
    for name, ax in zip(("image", "RUN", "--against"), axes[:, 0], strict=True):
        ax.set_ylabel(name)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=120)
    return np.mean(found, axis=0).tolist()
