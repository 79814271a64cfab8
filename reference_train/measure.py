"""How good features are: linear probe, kNN, RankMe, and the trees of two views of an image.

The measures are those of `visreg_core.metrics`. LCA similarity compares the dendrograms of two
augmented views of the same images: how far a tree depends on what the augmentation changed. It is
computed separately for images of the training classes and of unseen classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from reference_train.augment import MultiCrop, Resize
from reference_train.config import Config
from reference_train.errors import LocalError
from reference_train.sources import Source, Unreadable
from reference_train.splits import Splits
from visreg_core.metrics import (
    hierarchical_knn_accuracy,
    hierarchical_linear_accuracy,
    lca_similarity,
    rankme,
)

Encoder = Callable[[torch.Tensor], torch.Tensor]  # normalised images -> (N, F)


def pixels(images: torch.Tensor) -> torch.Tensor:
    """The baseline encoder: raw pixels."""
    return images.flatten(1)


def rows_of(source: Sized, most: int, seed: int = 0) -> np.ndarray:
    """At most so many of a source's indices, in order; a random choice by the seed."""
    n = len(source)
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).permutation(n)[:most])


@torch.no_grad()
def embed(
    encoder: Encoder,
    source: Source,
    rows: np.ndarray,
    transform: nn.Module,
    *,
    batch_size: int,
    device: torch.device,
    skip: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, F) of a source's images, and the rows that they are of.

    `transform` is `Resize` or one crop. With `skip` an image that cannot be read is left out, and
    without it stops the run.
    """
    parts, kept = [], []
    for begin in range(0, len(rows), batch_size):
        images = []
        for row in rows[begin : begin + batch_size]:
            sample = source[int(row)]
            if not isinstance(sample, Unreadable):
                images.append(sample.image)
                kept.append(row)
            elif not skip:
                raise LocalError(f"cannot read {sample.name}: {sample.reason}")
        if images:
            parts.append(encoder(transform(torch.stack(images).to(device))).float().cpu())
    if not parts:
        raise LocalError("the evaluation has no image that can be read")
    return torch.cat(parts).numpy(), np.array(kept)


class OneCrop(nn.Module):
    """A random global crop."""

    def __init__(self, crops: MultiCrop) -> None:
        super().__init__()
        self.pipeline, self.normalize = crops.pipelines[0], crops.normalize

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Of uint8 images (N, C, size, size)."""
        return self.normalize(self.pipeline(images.to(torch.float32) / 255))


class Measured:
    """A run's splits, and the measures of an encoder on them."""

    def __init__(self, config: Config, splits: Splits, device: torch.device) -> None:
        self.config, self.splits, self.device = config, splits, device
        self.resize = Resize(config.augment, config.data).to(device)
        self.crop = OneCrop(MultiCrop(config.augment, config.data)).to(device)
        self.bank_rows = rows_of(splits.bank, config.probe.max_rows)
        self.test_rows = rows_of(splits.test, config.probe.max_rows)

    @property
    def bank_labels(self) -> np.ndarray:
        """Of the training images that were read."""
        return self.splits.bank.labels[self.bank_rows]

    @property
    def test_labels(self) -> np.ndarray:
        """Of the test images that were read."""
        return self.splits.test.labels[self.test_rows]

    def _embed(
        self, encoder: Encoder, source: Source, rows: np.ndarray, transform: nn.Module
    ) -> tuple[np.ndarray, np.ndarray]:
        size, skip = self.config.probe.batch_size, self.config.data.unreadable == "skip"
        return embed(
            encoder, source, rows, transform, batch_size=size, device=self.device, skip=skip
        )

    def features(self, encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
        """Of the labelled training images and of the test images; unreadable ones drop out."""
        bank, self.bank_rows = self._embed(encoder, self.splits.bank, self.bank_rows, self.resize)
        test, self.test_rows = self._embed(encoder, self.splits.test, self.test_rows, self.resize)
        return bank, test

    def knn(self, encoder: Encoder) -> float:
        """Accuracy of the nearest neighbours, on all classes."""
        bank, test = self.features(encoder)
        return self._knn(bank, test)

    def _knn(self, bank: np.ndarray, test: np.ndarray) -> float:
        k = min(self.config.probe.k, len(bank))
        return hierarchical_knn_accuracy(
            bank, self.bank_labels, test=test, test_labels=self.test_labels, k=k
        )[0]

    def all(self, encoder: Encoder) -> tuple[dict[str, float], np.ndarray]:
        """Every measure by name, and the test images' features."""
        bank, test = self.features(encoder)
        measures = {
            "linear probe": hierarchical_linear_accuracy(
                bank, self.bank_labels, test=test, test_labels=self.test_labels
            )[0],
            "kNN": self._knn(bank, test),
            "RankMe": rankme(test),
        }
        seen = self._seen()
        measures["LCA trained classes"] = self._tree_similarity(encoder, self.test_rows[seen])
        measures["LCA unseen classes"] = self._tree_similarity(encoder, self.test_rows[~seen])
        return measures, test

    def _seen(self) -> np.ndarray:
        classes = self.config.data.classes
        if classes is None:
            return np.ones(len(self.test_rows), dtype=bool)
        return np.isin(self.test_labels, classes)

    def _tree_similarity(self, encoder: Encoder, rows: np.ndarray) -> float:
        """Spearman's correlation of LCA heights between two views; the same views every time."""
        rows = rows[rows_of(rows, self.config.probe.tree_rows)]
        if len(rows) < 3:
            return float("nan")
        views = []
        with torch.random.fork_rng(devices=[]):
            for seed in (1, 2):
                torch.manual_seed(seed)
                views.append(self._embed(encoder, self.splits.test, rows, self.crop)[0])
        return lca_similarity(*views).spearman


def table(results: dict[str, dict[str, float]]) -> str:
    """Rows of encoders, columns of measures."""
    from rich.console import Console
    from rich.table import Table

    columns = list(next(iter(results.values())))
    made = Table("", *columns)
    for name, measures in results.items():
        made.add_row(name, *(_cell(column, measures[column]) for column in columns))
    console = Console(width=max(100, 16 * (len(columns) + 1)))
    with console.capture() as capture:
        console.print(made)
    return capture.get()


def _cell(column: str, value: float) -> str:
    if np.isnan(value):
        return "–"
    if column in ("linear probe", "kNN"):
        return f"{value:.1%}"
    return f"{value:.1f}" if column == "RankMe" else f"{value:.3f}"


def save_embeddings(folder: Path, features: dict[str, np.ndarray], measured: Measured) -> None:
    """``embeddings/NAME.npy`` for ``visreg report`` and ``compare``, and labels and ids."""
    folder.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {**features, "labels": measured.test_labels, "ids": measured.test_rows}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
