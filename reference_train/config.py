"""The settings of a run, composed by Hydra from ``recipes/NAME.yaml`` and checked.

``python -m reference_train --help`` prints this page as a table. A recipe, or ``key=value`` on the
command line, may set what is listed here and nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import MISSING as UNSET
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reference_train.errors import TrainError, choice, did_you_mean
from reference_train.settings import (
    METHODS,
    TAUGHT,
    Augment,
    Config,
    Data,
    Method,
    Model,
    Optim,
    Probe,
    Run,
)

__all__ = [
    "METHODS",
    "Augment",
    "Config",
    "Data",
    "Method",
    "Model",
    "Optim",
    "Probe",
    "Run",
    "check",
    "documented",
    "from_dict",
    "known_keys",
    "load",
    "rows_of_a_process",
    "to_dict",
]

RECIPES = Path(__file__).parent / "recipes"


def documented(node: Any = Config, prefix: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """(key, type, default, help) of every setting."""
    for f in fields(node):
        inner = f.default_factory if f.default_factory is not UNSET else None
        if inner is not None and is_dataclass(inner):
            yield from documented(inner, f"{prefix}{f.name}.")
        else:
            default = f.default if inner is None else inner()
            yield f"{prefix}{f.name}", str(f.type), default, f.metadata["help"]


def known_keys() -> list[str]:
    """Dotted names of all settings."""
    return [key for key, *_ in documented()]


def load(
    name: str, overrides: list[str] | tuple[str, ...] = (), folder: Path | str = RECIPES
) -> Config:
    """The configuration of a recipe with ``key=value`` overrides.

    Raises
    ------
    TrainError
        One line: an unknown recipe or key with the nearest known one, a value of the wrong type,
        or a required setting that is missing.
    """
    if name.endswith(".yaml"):
        folder, name = Path(name).parent, Path(name).stem
    folder = Path(folder).resolve()
    recipes = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in recipes:
        raise TrainError(f"no recipe {name!r} in {folder}{did_you_mean(name, recipes)}")
    known = known_keys()
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals:
            raise TrainError(f"expected key=value; found {override!r}")
        if key not in known and not key.startswith("+method.options."):
            raise TrainError(f"unknown key {key!r}{_nearest_key(key, known)}")
    ConfigStore.instance().store(name="settings", node=Config)
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            # recipes of elsewhere may begin with these
            found = f"hydra.searchpath=['{RECIPES.as_uri()}']"
            config = OmegaConf.to_object(compose(name, [*overrides, found]))
    except (HydraException, OmegaConfBaseException) as error:
        raise TrainError(_one_line(error, name, known)) from None
    check(config)
    return config


def check(config: Config) -> None:
    """Raise on what the types cannot say: names, and settings that do not go together."""
    choices = {
        "run.precision": ["float32", "bfloat16", "float64"],
        "run.statistics": ["micro", "batch"],
        "data.source": ["digits", "folder", "hf", "webdataset", "synthetic"],
        "data.unreadable": ["stop", "skip"],
        "model.norm": ["batch", "layer", "none"],
        "model.activation": ["gelu", "relu"],
        "method.scope": ["local", "global"],
        "optim.name": ["adamw", "lars"],
        "optim.decay": ["cosine", "constant"],
    }
    for key, known in choices.items():
        group, name = key.split(".")
        choice(key, getattr(getattr(config, group), name), known)
    if ":" not in config.method.name:
        choice("method.name", config.method.name, list(METHODS))
    for group in fields(config):
        for f in fields(getattr(config, group.name)):
            value = getattr(getattr(config, group.name), f.name)
            _check_range(f"{group.name}.{f.name}", value, f.metadata)
    if config.data.long_tail is not None:
        choice("data.long_tail", config.data.long_tail, ["pareto", "exponential"])
    for key in ("global_scale", "local_scale", "ratio", "blur_sigma"):
        pair = getattr(config.augment, key)
        if len(pair) != 2 or pair[0] > pair[1]:
            raise TrainError(f"augment.{key}: expected [smallest, largest]; found {pair}")
    if len(config.optim.betas) != 2 or 1 in config.optim.betas:
        raise TrainError(f"optim.betas: expected two, less than 1; found {config.optim.betas}")
    for key in ("mean", "std"):
        if len(getattr(config.data, key)) < config.data.channels:
            raise TrainError(f"data.{key}: expected one for each of the channels")
    views = config.augment.n_global + config.augment.n_local
    if config.augment.n_global < 1 or views < 2:
        raise TrainError("augment: expected at least one global crop and two crops in all")
    if config.method.name == "sag_vicreg" and (config.augment.n_global, views) != (2, 2):
        raise TrainError("sag_vicreg pairs two views: augment.n_global=2 augment.n_local=0")
    least = config.method.n_neighbors if config.method.name == "sag_vicreg" else 2
    rows = rows_of_a_process(config)
    if config.method.scope == "local" and rows < least:
        raise TrainError(
            f"data.batch_size: expected at least {least}"
            f"{', method.n_neighbors' if least > 2 else ''}; found {rows}"
        )
    if config.run.statistics == "batch" and config.method.name in (*TAUGHT, "simsiam"):
        raise TrainError(
            f"{config.method.name} is a mean over samples: run.statistics=micro gives the same"
        )
    for key, amiss, where in (
        ("optim.fused", config.optim.fused and config.optim.name != "adamw", "optim.name=adamw"),
        ("data.prefetch", config.data.prefetch != 2 and not config.data.workers, "data.workers"),
        (
            "method.options",
            config.method.options and ":" not in config.method.name,
            "your own loss",
        ),
        (
            "run.recompute",
            config.run.recompute and not transformer(config),
            "a transformer's blocks",
        ),
    ):
        if amiss:
            raise TrainError(f"{key}: has no effect without {where}")
    if config.run.shard:
        for key, amiss in (
            ("method.name", config.method.name in TAUGHT),
            ("optim.name", config.optim.name != "adamw"),
            ("optim.ema", config.optim.ema is not None),
            ("run.evaluate_every", config.run.evaluate_every is not None),
        ):
            if amiss:
                raise TrainError(f"{key}: does not go together with run.shard")
    if config.data.whole is not None:
        if config.data.source in ("digits", "synthetic"):
            raise TrainError("data.whole: expected none with images that are in memory")
        if config.augment.rotate or config.augment.translate:
            raise TrainError("augment.rotate, translate: expected 0 with data.whole")
    if not config.run.folder:
        raise TrainError("run.folder: expected a name; found an empty one")
    if config.data.channels not in (1, 3):
        raise TrainError(f"data.channels: expected 1 or 3; found {config.data.channels}")
    if config.data.source not in ("digits", "synthetic") and config.data.path is None:
        raise TrainError(f"data.path has to be given for data.source={config.data.source}")


def transformer(config: Config) -> bool:
    """Whether the backbone is one by its name; others are found out when they are made."""
    return not config.model.backbone.startswith("resnet")


def rows_of_a_process(config: Config) -> int:
    """Images whose statistics a process takes at once."""
    together = config.run.accumulate if config.run.statistics == "batch" else 1
    return config.data.batch_size * together


def _check_range(key: str, value: Any, metadata: Any) -> None:
    """Of a number, or of each one in a list."""
    least, above, most = (metadata[name] for name in ("least", "above", "most"))
    for v in value if isinstance(value, list) else [value]:
        if not isinstance(v, int | float):
            continue
        if not math.isfinite(v):
            raise TrainError(f"{key}: expected a finite number; found {v}")
        if v < least or v <= above:
            expected = f"at least {least}" if v < least else f"more than {above}"
            raise TrainError(f"{key}: expected {expected}; found {v}")
        if v > most:
            raise TrainError(f"{key}: expected at most {most}; found {v}")


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain dictionaries, lists and scalars."""
    return asdict(config)


def from_dict(settings: dict[str, Any]) -> Config:
    """The configuration that `to_dict` gave."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), settings))


def _nearest_key(key: str, known: list[str]) -> str:
    """A key of that name in another group, those of its group that its words describe, or one."""
    group, _, name = key.lstrip("+~").rpartition(".")
    words = name.replace("_", " ").lower()
    same_name = [k for k in known if k.rpartition(".")[2] == name]
    same_group = [k for k in known if k.rpartition(".")[0] == group]
    described = [k for k, _, _, text in documented() if k in same_group and words in text.lower()]
    if same_name or described:
        return f"; nearest: {', '.join(same_name or described)}"
    return did_you_mean(key, same_group or known)


def _one_line(error: BaseException, recipe: str, known: list[str]) -> str:
    """What Hydra and OmegaConf say in several lines, over several exceptions."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__
    text = "\n".join(texts)
    found = re.search(r"full_key: (\S+)", text)
    if found is None:
        return f"{recipe}: {' '.join(text.split())}"
    key = found[1]
    if re.search(r"Key '.*' not in '", text):
        return f"{recipe}: unknown key {key!r}{_nearest_key(key, known)}"
    if "missing mandatory value" in text:
        return f"{recipe}: {key} has to be given, as {key}=VALUE"
    line = next(t for t in text.splitlines() if not t.startswith("Error merging"))
    return f"{recipe}: {key}: {line.strip()}"
