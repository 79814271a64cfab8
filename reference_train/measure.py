"""How good features are: linear probe, kNN, RankMe, and the trees of two views of an image.

One way for the table at a run's end, for the evaluations during it, and for `evaluate`. The
measures are those of `visreg_core.metrics`, but for the linear probe (probe.py). LCA similarity
compares the dendrograms of two augmented views of the same images: how far a tree depends on what
the augmentation changed. It is computed separately for images of the training classes and of unseen
classes.

Every process embeds and classifies its share of the images, and all of them have the results.
"""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from reference_train.augment import MultiCrop, Resize
from reference_train.collectives import all_sum, world_size
from reference_train.config import Config
from reference_train.embedding import Encoder, embed, encoder_of, evaluating, of_all, rank_of
from reference_train.encoders import checked_layers
from reference_train.probe import GRID, Probed, linear_probe
from reference_train.sources import Source
from reference_train.splits import Splits
from visreg_core.metrics import hierarchical_knn_accuracy, lca_similarity, rankme

PIXELS = 1024  # numbers in an image up to which the pixels are a baseline


def pixels(images: torch.Tensor) -> torch.Tensor:
    """The baseline encoder: raw pixels."""
    return images.flatten(1)


def rows_of(source: Sized, most: int, seed: int = 0) -> np.ndarray:
    """At most so many of a source's indices, in order; a random choice by the seed."""
    n = len(source)
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).permutation(n)[:most])


class OneCrop(nn.Module):
    """A random global crop."""

    def __init__(self, crops: MultiCrop) -> None:
        super().__init__()
        self.pipeline, self.normalize = crops.pipelines[0], crops.normalize

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Of uint8 images (N, C, size, size)."""
        return self.normalize(self.pipeline(images.to(torch.float32) / 255))


class Features(NamedTuple):
    """Of the labelled training images ("bank") and the test images that could be read."""

    bank: np.ndarray  # (n, F)
    bank_labels: np.ndarray
    test: np.ndarray  # (m, F)
    test_labels: np.ndarray
    bank_rows: np.ndarray  # places in the training split
    test_rows: np.ndarray  # places in the test split


class Measured:
    """A run's splits, and the measures of an encoder on them."""

    def __init__(self, config: Config, splits: Splits, device: torch.device) -> None:
        self.config, self.splits, self.device = config, splits, device
        self.resize = Resize(config.augment, config.data).to(device)
        self.crop = OneCrop(MultiCrop(config.augment, config.data)).to(device)
        self.bank_rows = rows_of(splits.bank, config.probe.max_rows)
        self.test_rows = rows_of(splits.test, config.probe.max_rows)

    def encoder(self, learner: nn.Module, layers: int | None = None) -> Encoder:
        """Images to the features that are measured: of `layers` layers, or of `layers_of`."""
        return encoder_of(learner, self.layers_of(learner) if layers is None else layers)

    def layers_of(self, learner: nn.Module) -> int:
        """Last layers whose features are measured: `probe.layers`, or those of the training."""
        backbone = learner.backbone
        own = getattr(backbone, "layers", 1)
        return checked_layers(self.config.probe.layers, own, backbone.depth, "probe.layers")

    def embed(
        self,
        encoder: Encoder,
        source: Source,
        rows: np.ndarray,
        transform: nn.Module | None = None,
        *,
        seed: int | None = None,
        shown: str = "embedding",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features of a source's rows by all processes, and the rows that could be read."""
        features, kept = embed(
            encoder, source, rows, transform or self.resize,
            batch_size=self.config.probe.batch_size, device=self.device,
            skip=self.config.data.unreadable == "skip", workers=self.config.data.workers,
            half=self.config.run.precision == "bfloat16", rank=rank_of(), world=world_size(),
            seed=seed, shown=shown,
        )  # fmt: skip
        return of_all(features, kept, self.device)

    def features(self, encoder: Encoder) -> Features:
        """Of both splits."""
        splits = self.splits
        bank, bank_rows = self.embed(encoder, splits.bank, self.bank_rows, shown="training images")
        test, test_rows = self.embed(encoder, splits.test, self.test_rows, shown="test images")
        labels = splits.bank.labels[bank_rows], splits.test.labels[test_rows]
        return Features(bank, labels[0], test, labels[1], bank_rows, test_rows)

    def knn(self, f: Features, k: int | None = None) -> float:
        """Accuracy of the nearest neighbours, on all classes; each process classifies a share."""
        k = min(k or self.config.probe.k, len(f.bank))
        share = slice(rank_of(), None, world_size())
        labels = f.test_labels[share]
        right = 0
        if len(labels):
            bank, test = (torch.from_numpy(x).to(self.device) for x in (f.bank, f.test[share]))
            (found,) = hierarchical_knn_accuracy(
                bank, f.bank_labels, test=test, test_labels=labels, k=k
            )
            right = round(found * len(labels))
        return self._total(right) / len(f.test_labels)

    def probe(self, f: Features, rates: tuple[float, ...] = GRID, batch_size: int = 32) -> Probed:
        """The grid of linear probes on features that are in memory."""
        return linear_probe(
            f.bank, f.bank_labels, f.test, f.test_labels, epochs=self.config.probe.epochs,
            rates=rates, batch_size=batch_size, device=self.device,
        )  # fmt: skip

    def online(self, learner: nn.Module) -> float:
        """Accuracy of the online probe on the test images of the classes that it is trained on."""

        def classify(images: torch.Tensor) -> torch.Tensor:
            with evaluating(learner):
                features = learner.backbone(images.to(next(learner.parameters()).dtype))
                return learner.probe(features).argmax(-1, keepdim=True)

        known = self.test_rows[self._seen(self.splits.test.labels[self.test_rows])]
        found, rows = self.embed(classify, self.splits.test, known)
        return float((found[:, 0] == self.splits.test.labels[rows]).mean())

    def all(self, encoder: Encoder) -> tuple[dict[str, float], Features, Probed]:
        """Every measure by name, and what they are of."""
        f = self.features(encoder)
        probed = self.probe(f)
        seen = self._seen(f.test_labels)
        measures = {
            "linear probe": probed.accuracy,
            "kNN": self.knn(f),
            "RankMe": rankme(f.test),
            "LCA trained classes": self._tree_similarity(encoder, f.test_rows[seen]),
            "LCA unseen classes": self._tree_similarity(encoder, f.test_rows[~seen]),
        }
        return measures, f, probed

    def _seen(self, labels: np.ndarray) -> np.ndarray:
        classes = self.config.data.classes
        return np.isin(labels, classes) if classes is not None else np.full(len(labels), True)

    def _tree_similarity(self, encoder: Encoder, rows: np.ndarray) -> float:
        """Spearman's correlation of LCA heights between two views; the same views every time."""
        rows = rows[rows_of(rows, self.config.probe.tree_rows)]
        if len(rows) < 3:
            return float("nan")
        views = (
            self.embed(encoder, self.splits.test, rows, self.crop, seed=seed)[0] for seed in (1, 2)
        )
        return lca_similarity(*views).spearman

    def _total(self, count: int) -> float:
        return float(all_sum(torch.tensor(float(count), dtype=torch.float64, device=self.device)))

    def protocol(self, layers: int) -> dict[str, Any]:
        """The settings that the numbers depend on."""
        probe = self.config.probe
        return {
            "features": f"of the last {layers} layer(s)",
            "training images": len(self.bank_rows),
            "test images": len(self.test_rows),
            "kNN neighbours": min(probe.k, len(self.bank_rows)),
            "linear probe": f"{len(GRID)} rates, {probe.epochs} epochs on features in memory",
        }


def closing_table(
    measured: Measured, learners: dict[str, nn.Module]
) -> tuple[dict[str, Any], dict[str, Features], list[str]]:
    """Measures of each learner and of the pixels, their features, and what has to be said of them.

    The result holds a row of numbers for each of them by name, and "protocol".
    """
    layers = {measured.layers_of(learner) for learner in learners.values()}
    encoders = {name: measured.encoder(learner) for name, learner in learners.items()}
    augment, channels = measured.config.augment, measured.config.data.channels
    numbers = channels * augment.global_size**2
    said = []
    if numbers <= PIXELS:
        encoders["pixels"] = pixels
    else:
        said.append(f"pixels: left out, images of {numbers} numbers (at most {PIXELS})")
    results, features = {}, {}
    for name, encode in encoders.items():
        results[name], features[name], probed = measured.all(encode)
        if probed.warning:
            said.append(f"linear probe of {name}: {probed.warning}")
    results["protocol"] = measured.protocol(max(layers))
    return results, features, [*(f"{k}: {v}" for k, v in results["protocol"].items()), *said]


def table(results: dict[str, Any]) -> str:
    """Rows of encoders, columns of measures."""
    from rich.console import Console
    from rich.table import Table

    rows = {name: measures for name, measures in results.items() if name != "protocol"}
    columns = list(next(iter(rows.values())))
    made = Table("", *columns)
    for name, measures in rows.items():
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


def save_embeddings(folder: Path, features: dict[str, Features]) -> None:
    """``embeddings/NAME.npy`` for ``visreg report`` and ``compare``, and labels and ids."""
    folder.mkdir(exist_ok=True)
    some = next(iter(features.values()))
    arrays = {name: f.test for name, f in features.items()}
    for name, array in {**arrays, "labels": some.test_labels, "ids": some.test_rows}.items():
        np.save(folder / f"{name}.npy", array)
