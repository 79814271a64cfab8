"""Other people's models: Transformers' (``hf:NAME``), timm's (``timm:NAME``), files of weights.

A name is one of the hub or a folder. Which tokens are the features is a rule of the family: the
CLS token, or the mean of the patches where there is none (I-JEPA) or where the model was trained
so (BEiT, data2vec). MAE leaves no patch out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reference_train.encoders import Pooled, TimmViT, ViT, checked_layers
from reference_train.errors import TrainError, one_line
from reference_train.settings import Model

# Transformers' families of plain ViTs, and the tokens before their patches.
PREFIX = {
    "vit": 1,
    "vit_mae": 1,
    "vit_msn": 1,
    "deit": 2,  # CLS, distillation
    "dinov2": 1,
    "dinov2_with_registers": 1,
    "dinov3_vit": 1,
    "ijepa": 0,
    "beit": 1,
    "data2vec-vision": 1,
}


def pretrained(name: str, settings: Model, image_size: int, channels: int) -> ViT | Pooled:
    """The encoder of ``hf:NAME``, ``timm:NAME``, a file of weights or a run, with its weights."""
    if name.startswith("hf:"):
        return from_transformers(name, settings, image_size, channels, weights=True)
    if name.startswith("timm:"):
        return from_timm(name, settings, image_size, channels, weights=True)
    from reference_train.weights import from_file

    return from_file(Path(name), settings, channels)


def from_transformers(
    name: str, settings: Model, image_size: int, channels: int, *, weights: bool
) -> ViT | Pooled:
    """Any AutoModel."""
    from transformers import AutoConfig, AutoModel

    path = name.removeprefix("hf:")
    try:
        config = AutoConfig.from_pretrained(path)
        if weights:
            model = AutoModel.from_pretrained(path, dtype=torch.float32)
        else:
            model = AutoModel.from_config(config)
    except (OSError, ValueError) as error:
        raise TrainError(f"{name}: {str(error).splitlines()[0]}") from None
    takes = getattr(config, "num_channels", channels)
    if takes != channels:
        raise TrainError(f"{name} takes {takes} channels; found data.channels={channels}")
    if config.model_type in PREFIX:
        return vit(model, settings)
    return pooled(name, model, settings, image_size, channels)


def vit(model: nn.Module, settings: Model) -> ViT:
    """A model of one of the families, by the family's rule."""
    config = model.config
    prefix = PREFIX[config.model_type] + getattr(config, "num_register_tokens", 0)
    mean = prefix == 0 or getattr(config, "use_mean_pooling", False)
    norm = "norm" if config.model_type == "dinov3_vit" else "layernorm"
    of_mean = None
    pooler = getattr(model, "pooler", None)
    if mean and isinstance(getattr(pooler, "layernorm", None), nn.LayerNorm):
        of_mean = "pooler.layernorm"
    elif pooler is not None:
        model.pooler = None  # a layer after the CLS token, which takes no part
    layers = checked_layers(settings.layers, 2, config.num_hidden_layers, "model.layers")
    return ViT(model, layers, norm=norm, prefix=prefix, mean=mean, norm_of_mean=of_mean)


def from_timm(
    name: str, settings: Model, image_size: int, channels: int, *, weights: bool
) -> ViT | Pooled:
    """Any model of timm."""
    try:
        import timm
    except ImportError as error:
        raise TrainError(f"{name} needs timm: {error}") from None

    def create(options: dict[str, Any], *others: dict[str, Any]) -> nn.Module:
        """With the first options that the model takes."""
        try:
            return timm.create_model(
                name.removeprefix("timm:"),
                pretrained=weights,
                num_classes=0,
                in_chans=channels,
                **options,
            )
        except TypeError:
            if not others:
                raise
            return create(*others)

    # Transformers have a fixed size, and most interpolate on request; convolutions take any.
    size = {"img_size": image_size}
    try:
        model = create({**size, "dynamic_img_size": True}, size, {})
    except (OSError, RuntimeError, ValueError) as error:
        raise TrainError(f"{name}: {one_line(error)}") from None
    if hasattr(model, "forward_intermediates") and hasattr(model, "num_prefix_tokens"):
        layers = checked_layers(settings.layers, 2, len(model.blocks), "model.layers")
        return TimmViT(model, layers)
    return pooled(name, model, settings, image_size, channels)


def pooled(name: str, model: nn.Module, settings: Model, image_size: int, channels: int) -> Pooled:
    """The model, its features counted on an image of the crops' size."""
    checked_layers(settings.layers, 1, Pooled.depth, "model.layers")
    image = torch.zeros(1, channels, image_size, image_size)
    try:
        with torch.no_grad():
            n_features = Pooled(model.eval(), 0)(image).shape[-1]
    except (AssertionError, RuntimeError, ValueError) as error:
        cause = one_line(error)
        raise TrainError(f"{name} on crops of {image_size} pixels: {cause}") from None
    return Pooled(model.train(), n_features)


def normalisation(name: str, encoder: nn.Module) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of the channels that the model was trained with, where it says.

    From the image processor of ``hf:`` and the settings of ``timm:`` or of an export for timm; a
    file of weights alone has none.
    """
    if name.startswith("hf:"):
        from transformers import AutoImageProcessor

        try:
            processor = AutoImageProcessor.from_pretrained(name.removeprefix("hf:"))
        except (OSError, ValueError, ImportError):
            return None
        mean, std = (getattr(processor, f"image_{key}", None) for key in ("mean", "std"))
    else:
        stated = Path(name) / "config.json"
        says = getattr(encoder.model, "pretrained_cfg", None)
        if says is None and stated.is_file():
            says = json.loads(stated.read_text()).get("pretrained_cfg")
        mean, std = ((says or {}).get(key) for key in ("mean", "std"))
    return None if mean is None else (list(mean), list(std))
