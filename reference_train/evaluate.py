r"""Evaluate what a run learned.

    python -m reference_train.evaluate table runs/digits
    python -m reference_train.evaluate probe runs/digits
    python -m reference_train.evaluate multilabel runs/xray --labels train.npy test.npy
    python -m reference_train.evaluate knn runs/digits --k 5 20
    python -m reference_train.evaluate hierarchy runs/digits --class-tree tree.csv
    python -m reference_train.evaluate fewshot runs/digits --shots 1 5 10
    python -m reference_train.evaluate finetune runs/digits --epochs 20
    python -m reference_train.evaluate export runs/digits --split test
    python -m reference_train.evaluate pca runs/digits --against runs/vicreg

RUN is a run's folder: its newest checkpoint is read, on the images it was trained and tested on.
Other images: key=value after RUN, as in training: data.source=folder data.path=/data/pets
data.classes=null. At most probe.max_rows images of each split are read, 10000 by default: give
more for numbers to be published. The features are those of the training, or of probe.layers=4 last
layers, say. The classes of a tree are their numbers. --untrained evaluates the same encoder before
its training. Under torchrun all processes take part.

Other people's checkpoints need no run; results go to runs/models/NAME:

    python -m reference_train.evaluate knn --model hf:facebook/dinov2-base \
        data.source=folder data.path=/data/pets
    python -m reference_train.evaluate probe --model mae_pretrain_vit_base.pth data.source=...
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState

from reference_train import loading
from reference_train.config import Config
from reference_train.crops_probe import probe_of_crops
from reference_train.embedding import rank_of
from reference_train.encoders import checked_layers
from reference_train.environment import write_result
from reference_train.errors import TrainError, one_line
from reference_train.finetune import Protocol, finetune
from reference_train.measure import Features, Measured, closing_table, rows_of, table
from reference_train.model import Learner
from reference_train.pictures import compare_patches
from reference_train.probe import GRID, by_class_size, few_shot, multilabel_probe
from reference_train.splits import Splits, open_splits
from visreg_core.metrics import (
    hierarchical_knn_accuracy,
    hierarchical_labels,
    hierarchical_linear_accuracy,
)


class Loaded(NamedTuple):
    """A run's encoder and the images to evaluate it on."""

    config: Config
    learner: Learner
    splits: Splits
    device: torch.device


def load_run(folder: Path, settings: list[str], *, untrained: bool, cpu: bool) -> Loaded:
    """The newest readable checkpoint of a run, and its splits or those that `settings` name."""
    config, learner, _ = loading.given(folder, None, settings, untrained=untrained)
    return loaded(config, learner, cpu=cpu)


def loaded(config: Config, learner: Learner, *, cpu: bool) -> Loaded:
    """With the images that the configuration names, on the device."""
    splits = open_splits(config.data, config.run.seed)
    for note in splits.notes:
        print(note, file=sys.stderr)  # noqa: T201
    if splits.test is None:
        raise TrainError("the evaluation needs labelled images of both splits: data.source, ...")
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    device = PartialState(cpu=cpu or not torch.cuda.is_available()).device
    dtype = torch.float64 if config.run.precision == "float64" else torch.float32
    return Loaded(config, learner.to(device, dtype).eval(), splits, device)


class Evaluated(NamedTuple):
    """Measures of a loaded encoder, its features, and what they are of."""

    measured: Measured
    features: Features
    about: dict[str, str]


def features(run: Loaded, layers: int | None = None) -> Evaluated:
    """Of the last `layers` layers; by default those of the table at a run's end."""
    measured = Measured(run.config, run.splits, run.device)
    layers = layers_in(run, layers) or measured.layers_of(run.learner)
    found = measured.features(measured.encoder(run.learner, layers))
    return Evaluated(measured, found, {"features": measured.protocol(layers)["features"]})


def layers_in(run: Loaded, layers: int | None) -> int | None:
    """What --layers asks for, if the model has as many."""
    if layers is None:
        return None
    return checked_layers(layers, 1, run.learner.backbone.depth, "--layers")


def table_of(run: Loaded, given: argparse.Namespace) -> dict[str, Any]:
    """The table at a run's end, to the digit."""
    from reference_train.train import new_learner

    learners = {"model" if given.model else "trained": run.learner}
    if not given.model:
        torch.manual_seed(run.config.run.seed)
        untrained = new_learner(run.config, run.splits.n_classes)
        learners["untrained"] = untrained.to(next(run.learner.parameters())).eval()
    results, _, said = closing_table(Measured(run.config, run.splits, run.device), learners)
    if rank_of() == 0:
        print(table(results), *said, sep="\n", file=sys.stderr)  # noqa: T201
    return results


def probe(run: Loaded, given: argparse.Namespace) -> dict[str, Any]:
    """Linear probe with the papers' grid of learning rates, on features in memory or on crops."""
    if given.epochs is not None:
        run.config.probe.epochs = given.epochs
    measured, f, about = features(run, given.layers)
    options = {"rates": tuple(given.rates), "batch_size": given.batch}
    if given.crops:
        encoder = measured.encoder(run.learner, layers_in(run, given.layers))
        epochs = run.config.probe.epochs
        probed = probe_of_crops(measured, encoder, f, epochs=epochs, **options)
    else:
        probed = measured.probe(f, **options)
    found = {
        "accuracy": probed.accuracy,
        "learning rate": probed.best,
        "by learning rate": {f"{rate:g}": value for rate, value in probed.accuracies.items()},
    }
    sizes = by_class_size(probed.predicted, f.test_labels, run.splits.bank.labels)
    if len(sizes) > 1:
        found["by class size"] = sizes
    if probed.warning:
        found["warning"] = probed.warning
    trained_on = "random crops, all training images" if given.crops else "features in memory"
    return {
        **found, **about, "trained on": trained_on, "epochs": run.config.probe.epochs,
        "batch": given.batch,
    }  # fmt: skip


def multilabel(run: Loaded, given: argparse.Namespace) -> dict[str, Any]:
    """Mean AUROC of a linear probe on several labels an image, by --labels TRAIN.npy TEST.npy."""
    _, f, about = features(run, given.layers)
    sources = run.splits.bank, run.splits.test
    train, test = (_labels(p, len(s)) for p, s in zip(given.labels, sources, strict=True))
    if train.shape[1] != test.shape[1]:
        raise TrainError(f"--labels: {train.shape[1]} and {test.shape[1]} labels an image")
    found = multilabel_probe(
        f.bank, train[f.bank_rows], f.test, test[f.test_rows],
        epochs=run.config.probe.epochs, device=run.device,
    )  # fmt: skip
    best = max(found, key=found.get)
    by_rate = {f"{rate:g}": value for rate, value in found.items()}
    return {"AUROC": found[best], "learning rate": best, "by learning rate": by_rate, **about}


def _labels(path: Path, n: int) -> np.ndarray:
    labels = np.load(path, allow_pickle=False)
    if labels.ndim != 2 or len(labels) != n or not np.isin(labels, (0, 1)).all():
        raise TrainError(f"{path}: expected 0 and 1, ({n}, labels); found {labels.shape}")
    return labels


def knn(run: Loaded, given: argparse.Namespace) -> dict[str, Any]:
    """Nearest neighbours, for each k."""
    measured, f, about = features(run, given.layers)
    ks = given.k or [run.config.probe.k]
    return {**{f"k = {k}": measured.knn(f, k) for k in ks}, **about}


def hierarchy(run: Loaded, given: argparse.Namespace) -> dict[str, Any]:
    """KNN and linear accuracy on each level of a tree of the classes, the coarsest first."""
    _, f, about = features(run, given.layers)
    bank, test = (
        hierarchical_labels([str(label) for label in labels], given.class_tree)
        for labels in (f.bank_labels, f.test_labels)
    )
    k = (given.k or [run.config.probe.k])[0]
    both = {"test": f.test, "test_labels": test}
    return {
        "kNN by level": hierarchical_knn_accuracy(f.bank, bank, k=k, **both),
        "linear by level": hierarchical_linear_accuracy(f.bank, bank, **both),
        **about,
    }


def fewshot(run: Loaded, given: argparse.Namespace) -> dict[str, Any]:
    """Linear accuracy from a few labelled images a class: mean and spread over draws."""
    _, f, about = features(run, given.layers)
    spreads = {
        f"{shots} shots": few_shot(
            f.bank, f.bank_labels, f.test, f.test_labels, shots=shots, draws=given.draws
        )._asdict()
        for shots in given.shots
    }
    return {**spreads, **about}


def fine_tune(run: Loaded, given: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of the whole network after training it on the labels, by DeiT's protocol."""
    protocol = Protocol(**{name: getattr(given, name) for name in Protocol._fields})
    on_cpu = run.device.type == "cpu"
    tuned = finetune(run.learner.float().backbone, run.config, run.splits, protocol, cpu=on_cpu)
    return {"accuracy": tuned.accuracy, **protocol._asdict()}


def export(run: Loaded, given: argparse.Namespace) -> dict[str, Any]:
    """Embeddings, labels and ids of a split, as ``embeddings-SPLIT.safetensors``."""
    from safetensors.numpy import save_file

    source = run.splits.bank if given.split == "train" else run.splits.test
    layers = checked_layers(given.layers, 1, run.learner.backbone.depth, "--layers")
    measured = Measured(run.config, run.splits, run.device)
    rows = rows_of(source, len(source) if given.rows is None else given.rows)
    embeddings, rows = measured.embed(measured.encoder(run.learner, layers), source, rows)
    if rank_of():
        return {}
    path = Path(given.run) / f"embeddings-{given.split}.safetensors"
    arrays = {"embeddings": embeddings, "labels": source.labels[rows], "ids": rows}
    save_file(arrays, path, metadata={"run": str(given.run), "split": given.split})
    return {"file": f"{path}::embeddings", "shape": embeddings.shape}


def pca(run: Loaded, given: argparse.Namespace) -> dict[str, Any]:
    """Pictures of the patch features' first three components, matched between two runs."""
    other = load_run(given.against, given.settings, untrained=False, cpu=given.cpu)
    path = Path(given.run) / "patches.png"
    correlations = compare_patches(run, other, count=given.images, path=path)
    return {"file": str(path), "matched |correlation|": correlations}


COMMANDS = {
    "table": table_of,
    "probe": probe,
    "multilabel": multilabel,
    "knn": knn,
    "hierarchy": hierarchy,
    "fewshot": fewshot,
    "finetune": fine_tune,
    "export": export,
    "pca": pca,
}


def positive(text: str) -> int:
    """A whole number of the command line, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1; found {number}")
    return number


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m reference_train.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, function in COMMANDS.items():
        text = function.__doc__.rstrip(".")
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("run", metavar="RUN", nargs="?")
        command.add_argument("--model", help="instead of RUN: hf:NAME, timm:NAME, a file or a run")
        command.add_argument("settings", nargs="*", metavar="key=value")
        command.add_argument("--untrained", action="store_true")
        command.add_argument("--cpu", action="store_true")
        if name in ("probe", "multilabel", "fewshot", "knn", "hierarchy"):
            command.add_argument("--layers", type=positive, help="last layers, for probe.layers")
        if name in ("knn", "hierarchy"):
            command.add_argument("--k", type=positive, nargs="+", help="neighbours, for probe.k")
        if name == "probe":
            rates = ", ".join(f"{rate:g}" for rate in GRID)
            command.add_argument(
                "--epochs", type=positive, help=f"for probe.epochs; rates: {rates}"
            )
        if name == "probe":
            command.add_argument("--rates", type=float, nargs="+", default=GRID)
            command.add_argument("--batch", type=positive, default=32)
            command.add_argument("--crops", action="store_true", help="new random crops each epoch")
        if name == "multilabel":
            command.add_argument("--labels", type=Path, nargs=2, required=True, metavar="NPY")
        if name == "hierarchy":
            command.add_argument("--class-tree", required=True, metavar="CSV")
        if name == "fewshot":
            command.add_argument("--shots", type=positive, nargs="+", default=[1, 5, 10])
            command.add_argument("--draws", type=positive, default=5)
        if name == "finetune":
            for setting, default in Protocol()._asdict().items():
                option, kind = f"--{setting.replace('_', '-')}", type(default)
                command.add_argument(option, type=kind, default=default, help=f"default {default}")
        if name == "export":
            command.add_argument("--split", choices=("train", "test"), default="test")
            command.add_argument("--rows", type=positive)
            command.add_argument("--layers", type=positive, default=1)
        if name == "pca":
            command.add_argument("--against", type=Path, required=True, metavar="RUN")
            command.add_argument("--images", type=positive, default=6)
    return made


def open_given(given: argparse.Namespace) -> Loaded:
    """What RUN or --model names; `given.run` becomes the folder that results are written into."""
    settings, folder = given.settings, given.run and Path(given.run)
    if given.model is not None:
        settings, folder = [*filter(None, [given.run]), *settings], None
        if not any(setting.startswith("data.source=") for setting in settings):
            raise TrainError("--model: the images are not known: data.source=... data.path=...")
    found = loading.given(folder, given.model, settings, untrained=given.untrained)
    config, learner, given.run = found
    if given.model is not None and config.probe.layers is None:
        config.probe.layers = min(4, learner.backbone.depth)  # the papers', or all there are
    return loaded(config, learner, cpu=given.cpu)


def main(arguments: list[str] | None = None) -> None:
    """The command line; the result is printed and written into the run's folder."""
    given = parser().parse_args(arguments)
    try:
        run = open_given(given)
        result = COMMANDS[given.command](run, given)
    except (TrainError, OSError, ValueError) as error:
        print(f"reference_train.evaluate: {one_line(error)}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    if rank_of():  # the first process tells
        return
    name = f"{given.command}{'-untrained' if given.untrained else ''}.json"
    given.run.mkdir(parents=True, exist_ok=True)
    write_result(given.run / name, result)
    print(json.dumps(result, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
