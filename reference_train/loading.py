"""An encoder to evaluate or to export: of a run, or other people's."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from reference_train import checkpoint
from reference_train.config import check, from_dict, known_keys
from reference_train.errors import TrainError, did_you_mean
from reference_train.foreign import normalisation
from reference_train.model import Learner
from reference_train.settings import Config
from reference_train.speed import averaged


def device(cpu: bool) -> torch.device:
    """The GPU of this process, or the CPU where there is none or it is asked for."""
    own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return torch.device("cpu" if cpu or not torch.cuda.is_available() else own)


def of_run(folder: Path, *, untrained: bool = False) -> tuple[Config, Learner]:
    """The settings and the model of a run's newest readable checkpoint."""
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
    torch.manual_seed(trained.run.seed)
    # the number of classes is that of the probe's last bias: the training images need not exist
    learner = new_learner(trained, len(state["learner"].get("probe.1.bias", [])))
    if not untrained:
        average = state.get("average")
        learner.load_state_dict(state["learner"] if average is None else averaged(average))
    return trained, learner


def of_model(name: str, settings: Sequence[str]) -> tuple[Config, Learner]:
    """Other people's weights: ``hf:NAME``, ``timm:NAME``, a file of weights or a run.

    The model's own mean and standard deviation of the channels are taken where it states them, and
    images are resized to `augment.global_size` at once.
    """
    given = {setting.partition("=")[0] for setting in settings}
    start = Config()
    start.run.folder = name
    # nothing is trained: the smallest projector, and no online probe
    start.model.init_from, start.model.projector_layers, start.model.dim = name, 1, 1
    start.probe.online = False
    config = changed(start, settings, fixed=("method", "optim"))
    if "data.size" not in given:
        config.data.size = config.augment.global_size
    learner = Learner(config, 0)
    found = normalisation(name, learner.backbone)
    if found and not given & {"data.mean", "data.std"} and len(found[0]) == config.data.channels:
        config.data.mean, config.data.std = found
    return config, learner


def given(
    run: Path | None,
    model: str | None,
    settings: Sequence[str] = (),
    *,
    untrained: bool = False,
) -> tuple[Config, Learner, Path]:
    """What a command line names, and the folder that its results belong to."""
    if (run is None) == (model is None):
        raise TrainError("expected either RUN or --model; found both or neither")
    if model is None:
        trained, learner = of_run(run, untrained=untrained)
        return changed(trained, settings, fixed=("model", "method", "optim")), learner, run
    if untrained:
        raise TrainError("--untrained is of a run; found --model")
    folder = Path("runs/models") / re.sub(r"[^\w.-]+", "-", model).strip("-")
    return *of_model(model, settings), folder


def changed(config: Config, settings: Sequence[str], *, fixed: tuple[str, ...]) -> Config:
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
    merged = OmegaConf.merge(OmegaConf.structured(config), OmegaConf.from_dotlist(list(settings)))
    made = OmegaConf.to_object(merged)
    check(made)
    return made
