r"""Evaluate what a run learned.

    python -m reference_train.evaluate probe runs/digits
    python -m reference_train.evaluate knn runs/digits --k 5 20
    python -m reference_train.evaluate hierarchy runs/digits --class-tree tree.csv
    python -m reference_train.evaluate fewshot runs/digits --shots 1 5 10
    python -m reference_train.evaluate finetune runs/digits --epochs 20
    python -m reference_train.evaluate export runs/digits --split test
    python -m reference_train.evaluate pca runs/digits --against runs/vicreg

RUN is a run's folder: its newest checkpoint is read, on the images it was trained and tested on.
Other images: key=value after RUN, as in training: data.source=folder data.path=/data/pets
data.classes=null. At most probe.max_rows images of each split are read, 10000 by default: give
more for numbers to be published. The classes of a tree are their numbers. --untrained evaluates
the same encoder before its training.

Other people's checkpoints need no run; results go to runs/models/NAME:

    python -m reference_train.evaluate knn --model hf:facebook/dinov2-base \
        data.source=folder data.path=/data/pets
    python -m reference_train.evaluate probe --model mae_pretrain_vit_base.pth data.source=...
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from reference_train import checkpoint
from reference_train.config import Config, check, from_dict, known_keys
from reference_train.encoders import checked_layers
from reference_train.environment import write_result
from reference_train.errors import TrainError, did_you_mean, one_line
from reference_train.finetune import finetune
from reference_train.foreign import normalisation
from reference_train.measure import Measured, embed, rows_of
from reference_train.model import Learner
from reference_train.pictures import compare_patches
from reference_train.probe import GRID, few_shot, linear_probe
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
    from reference_train.train import new_learner

    paths = sorted(folder.glob(checkpoint.PATTERN), reverse=True)
    if not paths:
        raise TrainError(f"{folder}: no checkpoint")
    for path in paths:
        try:
            state = checkpoint.read(path)
            break
        except TrainError as error:
            print(f"{error}: skipped", file=sys.stderr)  # noqa: T201
    else:
        raise TrainError(f"{folder}: no checkpoint can be read")
    trained = from_dict(state["config"])
    config = changed(trained, settings, fixed=("model", "method", "optim"))
    torch.manual_seed(trained.run.seed)
    # the number of classes is that of the probe's last bias: the training images need not exist
    learner = new_learner(trained, len(state["learner"].get("probe.1.bias", [])))
    if not untrained:
        learner.load_state_dict(state["learner"])
    return loaded(config, learner, cpu=cpu)


def load_model(name: str, settings: list[str], *, cpu: bool) -> Loaded:
    """Other people's weights: ``hf:NAME``, ``timm:NAME``, a file or a run, on images by `settings`.

    The model's own mean and standard deviation of the channels are taken where it states them, and
    images are resized to `augment.global_size` at once.
    """
    given = {setting.partition("=")[0] for setting in settings}
    if "data.source" not in given:
        raise TrainError("--model: the images are not known: data.source=... data.path=...")
    start = Config()
    start.run.folder = name
    # nothing is trained: the smallest projector, and no online probe
    start.model.init_from, start.model.projector_layers, start.model.dim = name, 1, 1
    start.probe.online = False
    config = changed(start, settings, fixed=("method", "optim"))
    if "data.size" not in given:
        config.data.size = config.augment.global_size
    found = normalisation(name)
    if found and not given & {"data.mean", "data.std"} and len(found[0]) == config.data.channels:
        config.data.mean, config.data.std = found
    return loaded(config, Learner(config, 0), cpu=cpu)


def changed(config: Config, settings: list[str], *, fixed: tuple[str, ...]) -> Config:
    """The configuration with ``key=value`` settings, none of them of a `fixed` group."""
    from omegaconf import OmegaConf

    for setting in settings:
        key, equals, _ = setting.partition("=")
        if not equals:
            raise TrainError(f"expected key=value; found {setting!r}")
        if key not in known_keys():
            raise TrainError(f"unknown key {key!r}{did_you_mean(key, known_keys())}")
        if key.split(".")[0] in fixed:
            raise TrainError(f"{key} is fixed by the run: data, augment, probe and run may change")
    merged = OmegaConf.merge(OmegaConf.structured(config), OmegaConf.from_dotlist(settings))
    made = OmegaConf.to_object(merged)
    check(made)
    return made


def loaded(config: Config, learner: Learner, *, cpu: bool) -> Loaded:
    """With the images that the configuration names, on the device."""
    splits = open_splits(config.data, config.run.seed)
    for note in splits.notes:
        print(note, file=sys.stderr)  # noqa: T201
    if splits.test is None:
        raise TrainError("the evaluation needs labelled images of both splits: data.source, ...")
    device = torch.device("cpu" if cpu or not torch.cuda.is_available() else "cuda")
    return Loaded(config, learner.to(device).float().eval(), splits, device)


class Features(NamedTuple):
    """CLS tokens of the last layers side by side, on both splits, with labels."""

    bank: np.ndarray
    bank_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def features(run: Loaded, layers: int | None) -> Features:
    """Of the last `layers` layers; by default four, as the papers', or all there are."""
    measured = Measured(run.config, run.splits, run.device)
    layers = checked_layers(layers, 4, run.learner.backbone.depth, "--layers")
    bank, test = measured.features(lambda images: run.learner.backbone(images, layers=layers))
    return Features(bank, measured.bank_labels, test, measured.test_labels)


def probe(run: Loaded, given: argparse.Namespace) -> dict[str, Any]:
    """Linear probe with the papers' grid of learning rates."""
    f = features(run, given.layers)
    accuracies = linear_probe(
        f.bank, f.bank_labels, f.test, f.test_labels, epochs=given.epochs, device=run.device
    )
    best = max(accuracies, key=accuracies.get)
    found = {
        "accuracy": accuracies[best],
        "learning rate": best,
        "by learning rate": {f"{rate:g}": value for rate, value in accuracies.items()},
    }
    if best in (min(accuracies), max(accuracies)):
        found["warning"] = f"the best rate, {best:g}, is an end of the grid: another may be better"
    return found


def knn(run: Loaded, given: argparse.Namespace) -> dict[str, Any]:
    """Nearest neighbours, for each k."""
    f = features(run, 1)
    return {
        f"k = {k}": hierarchical_knn_accuracy(
            f.bank, f.bank_labels, test=f.test, test_labels=f.test_labels, k=k
        )[0]
        for k in given.k
    }


def hierarchy(run: Loaded, given: argparse.Namespace) -> dict[str, Any]:
    """KNN and linear accuracy on each level of a tree of the classes, the coarsest first."""
    f = features(run, 1)
    bank, test = (
        hierarchical_labels([str(label) for label in labels], given.class_tree)
        for labels in (f.bank_labels, f.test_labels)
    )
    both = {"test": f.test, "test_labels": test}
    return {
        "kNN by level": hierarchical_knn_accuracy(f.bank, bank, k=given.k[0], **both),
        "linear by level": hierarchical_linear_accuracy(f.bank, bank, **both),
    }


def fewshot(run: Loaded, given: argparse.Namespace) -> dict[str, Any]:
    """Linear accuracy from a few labelled images a class: mean and spread over draws."""
    f = features(run, given.layers)
    return {
        f"{shots} shots": few_shot(
            f.bank, f.bank_labels, f.test, f.test_labels, shots=shots, draws=given.draws
        )._asdict()
        for shots in given.shots
    }


def fine_tune(run: Loaded, given: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of the whole network after training it on the labels."""
    accuracy = finetune(
        run.learner.backbone, run.config, run.splits, epochs=given.epochs, lr=given.lr,
        device=run.device,
    )  # fmt: skip
    return {"accuracy": accuracy, "epochs": given.epochs, "lr": given.lr}


def export(run: Loaded, given: argparse.Namespace) -> dict[str, Any]:
    """Embeddings, labels and ids of a split, as ``embeddings-SPLIT.safetensors``."""
    from safetensors.numpy import save_file

    from reference_train.augment import Resize

    source = run.splits.bank if given.split == "train" else run.splits.test
    layers = checked_layers(given.layers, 1, run.learner.backbone.depth, "--layers")
    rows = rows_of(source, len(source) if given.rows is None else given.rows)
    embeddings, rows = embed(
        lambda images: run.learner.backbone(images, layers=layers),
        source,
        rows,
        Resize(run.config.augment, run.config.data).to(run.device),
        batch_size=run.config.probe.batch_size,
        device=run.device,
        skip=run.config.data.unreadable == "skip",
    )
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
    "probe": probe,
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
        if name in ("probe", "fewshot"):
            command.add_argument(
                "--layers", type=positive, help="last layers (default 4, or all there are)"
            )
        if name in ("knn", "hierarchy"):
            command.add_argument("--k", type=positive, nargs="+", default=[20])
        if name == "probe":
            rates = ", ".join(f"{rate:g}" for rate in GRID)
            command.add_argument("--epochs", type=positive, default=10, help=f"rates: {rates}")
        if name == "hierarchy":
            command.add_argument("--class-tree", required=True, metavar="CSV")
        if name == "fewshot":
            command.add_argument("--shots", type=positive, nargs="+", default=[1, 5, 10])
            command.add_argument("--draws", type=positive, default=5)
        if name == "finetune":
            command.add_argument("--epochs", type=positive, default=20)
            command.add_argument("--lr", type=float, default=1e-3)
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
    if given.model is None and given.run is None:
        raise TrainError("expected RUN or --model; found neither")
    if given.model is None:
        given.run = Path(given.run)
        return load_run(given.run, given.settings, untrained=given.untrained, cpu=given.cpu)
    if given.untrained:
        raise TrainError("--untrained is of a run; found --model")
    settings = [*filter(None, [given.run]), *given.settings]
    given.run = Path("runs/models") / re.sub(r"[^\w.-]+", "-", given.model).strip("-")
    opened = load_model(given.model, settings, cpu=given.cpu)
    given.run.mkdir(parents=True, exist_ok=True)
    return opened


def main(arguments: list[str] | None = None) -> None:
    """The command line; the result is printed and written into the run's folder."""
    given = parser().parse_args(arguments)
    try:
        run = open_given(given)
        result = COMMANDS[given.command](run, given)
    except (TrainError, OSError, ValueError) as error:
        print(f"reference_train.evaluate: {one_line(error)}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    name = f"{given.command}{'-untrained' if given.untrained else ''}.json"
    write_result(given.run / name, result)
    print(json.dumps(result, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
