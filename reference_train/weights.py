"""Files of weights: what their authors published, read as a model of Transformers.

The names of timm's ViTs are also those of DINO, iBOT, MoCo v3, MAE, I-JEPA, DINOv2, and of models
trained with timm (LeJEPA, VISReg); the names of torchvision's ResNets those of DINO, MoCo v3,
VICReg and Barlow Twins. Width, depth, patch and size are read from the shapes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reference_train import checkpoint
from reference_train.encoders import Pooled, ViT
from reference_train.errors import TrainError, one_line
from reference_train.settings import Model

Weights = dict[str, torch.Tensor]

# Where a file keeps the network that its authors evaluate: the first that is there.
INSIDE = ("teacher", "target_encoder", "state_dict", "model", "encoder", "backbone")
BRANCHES = ("base_encoder", "encoder_q", "teacher")  # of two networks side by side
FIRST = {"patch_embed.proj.weight": "ViT", "conv1.weight": "ResNet"}
HEAD_WIDTH = 64
# What follows the features in training, and tokens in place of masked patches.
HEADS = re.compile(
    r"(head|heads|fc|decoder\w*|mask\w*|predictor|projector|prototypes|last_layer)\b"
)

# timm's name of a tensor in a block, and Transformers' in ViT and I-JEPA, and in DINOv2.
BLOCK = {
    "norm1": ("layernorm_before", "norm1"),
    "norm2": ("layernorm_after", "norm2"),
    "attn.proj": ("attention.o_proj", "attention.o_proj"),
    "mlp.fc1": ("mlp.fc1", "mlp.fc1"),
    "mlp.fc2": ("mlp.fc2", "mlp.fc2"),
}
OUTSIDE = {
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "pos_embed": "embeddings.position_embeddings",
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "register_tokens": "embeddings.register_tokens",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")


def from_file(path: Path, settings: Model, channels: int) -> ViT | Pooled:
    """The encoder whose weights a file holds, or a run's folder of checkpoints."""
    state = read(path)
    if state.get("format") == checkpoint.FORMAT:
        return _of_run(state, path, settings, channels)
    tensors, left_out = network(state, path)
    build = _vit if "patch_embed.proj.weight" in tensors else _resnet
    encoder, about = build(tensors, settings, path)
    takes = next(p for p in encoder.parameters() if p.ndim == 4).shape[1]
    if takes != channels:
        raise TrainError(f"{path} takes {takes} channels; found data.channels={channels}")
    more = f"; left out: {', '.join(left_out)}" if left_out else ""
    print(f"{path}: {about}{more}", file=sys.stderr)  # noqa: T201
    return encoder


def read(path: Path) -> dict[str, Any]:
    """What is in a file, or in the newest checkpoint of a run; nothing is unpickled."""
    if path.is_dir():
        safe = path / "model.safetensors"
        found = [safe] if safe.exists() else sorted(path.glob(checkpoint.PATTERN), reverse=True)
        if not found:
            raise TrainError(f"{path}: no model.safetensors and no checkpoint of a run")
        path = found[0]
    if not path.is_file():
        raise TrainError(f"no file {path}; names begin with hf: or timm:")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the authors' arguments
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # readers may raise anything on a foreign file
        raise TrainError(f"{path}: expected tensors alone; found {one_line(error)[:200]}") from None
    if not isinstance(state, dict):
        raise TrainError(f"{path}: expected a dictionary of tensors; found {type(state).__name__}")
    return state


def network(state: dict[str, Any], path: Path) -> tuple[Weights, list[str]]:
    """The evaluated network's tensors under plain names, and what was left out."""
    while not any(isinstance(value, torch.Tensor) for value in state.values()):
        inner = next((k for k in INSIDE if isinstance(state.get(k), dict)), None)
        if inner is None:
            raise TrainError(
                f"{path}: expected one of {', '.join(INSIDE)}; found {list(state)[:8]}"
            )
        state = state[inner]
    names = [name for name, value in state.items() if isinstance(value, torch.Tensor)]
    prefixes = [n.removesuffix(first) for first in FIRST for n in names if _ends(n, first)]
    if not prefixes:
        raise TrainError(f"{path}: expected a ViT or a ResNet; found tensors {names[:4]}")
    prefix = min(prefixes, key=lambda p: (not any(b in p for b in BRANCHES), len(p)))
    own = {n.removeprefix(prefix): state[n] for n in names if n.startswith(prefix)}
    heads = {n for n in own if HEADS.match(n)}
    left = {n.split(".")[0] for n in heads}
    left |= {n for n in names if not n.startswith(prefix)} and {f"what is not in {prefix!r}"}
    return {n: t for n, t in own.items() if n not in heads}, sorted(left)


def _ends(name: str, first: str) -> bool:
    return name == first or name.endswith("." + first)


def _vit(tensors: Weights, settings: Model, path: Path) -> tuple[ViT, str]:
    from transformers import (
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        IJepaConfig,
        IJepaModel,
        ViTConfig,
        ViTModel,
    )

    from reference_train.foreign import vit

    if any(n.startswith("fc_norm") for n in tensors) or "pos_embed" not in tensors:
        raise TrainError(f"{path}: expected pos_embed and no fc_norm, a ViT's; found otherwise")
    width, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
    depth = 1 + max(int(n.split(".")[1]) for n in tensors if n.startswith("blocks."))
    heads = settings.heads or _stated_heads(path) or width // HEAD_WIDTH
    if not heads or width % heads:
        raise TrainError(f"{path}: a width of {width} does not tell the heads: model.heads=...")
    hidden = len(tensors.get("blocks.0.mlp.fc1.weight", ()))
    has_cls = "cls_token" in tensors
    registers = next((tensors[n] for n in ("reg_token", "register_tokens") if n in tensors), None)
    scaled = "blocks.0.ls1.gamma" in tensors or registers is not None
    positions = tensors["pos_embed"].reshape(1, -1, width)
    side = round((positions.shape[1] - has_cls) ** 0.5)
    if has_cls and round(positions.shape[1] ** 0.5) ** 2 == positions.shape[1]:
        # timm's models without a position of the CLS token
        side = round(positions.shape[1] ** 0.5)
        positions = torch.cat([torch.zeros(1, 1, width), positions], dim=1)
    if side**2 + has_cls != positions.shape[1]:
        raise TrainError(f"{path}: pos_embed of {positions.shape[1]} tokens is of no square")
    shape = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "image_size": side * patch,
        "patch_size": patch,
        "num_channels": channels,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "layer_norm_eps": 1e-6,
    }
    if scaled and has_cls:
        count = 0 if registers is None else registers.numel() // width
        config = Dinov2WithRegistersConfig(
            **shape, mlp_ratio=hidden // width, num_register_tokens=count
        )
        model = Dinov2WithRegistersModel(config)
    elif has_cls:
        model = ViTModel(ViTConfig(**shape, intermediate_size=hidden), add_pooling_layer=False)
    else:
        model = IJepaModel(IJepaConfig(**shape, intermediate_size=hidden), add_pooling_layer=False)
    place = "encoder.layer" if scaled else "layers"
    state = {}
    for name, tensor in tensors.items():
        state |= (
            _block(name, tensor, scaled, place)
            if name.startswith("blocks.")
            else {OUTSIDE.get(name, name): tensor}
        )
    state["embeddings.position_embeddings"] = positions
    if has_cls:
        state["embeddings.cls_token"] = tensors["cls_token"].reshape(1, 1, width)
    if scaled:
        state["embeddings.mask_token"] = torch.zeros(1, width)
        empty = torch.zeros(1, 0, width)
        found = empty if registers is None else registers.reshape(1, -1, width)
        state["embeddings.register_tokens"] = found
    if scaled and "blocks.0.ls1.gamma" not in tensors:
        for i in range(depth):
            for k in (1, 2):
                state[f"encoder.layer.{i}.layer_scale{k}.lambda1"] = torch.ones(width)
    _load(model, state, path)
    about = f"ViT of width {width}, depth {depth}, {heads} heads"
    if not settings.heads and not _stated_heads(path):
        about += f" (width / {HEAD_WIDTH}; another number: model.heads=)"
    return vit(model, settings), f"{about}, patches of {patch}, {side * patch} pixels"


def _stated_heads(path: Path) -> int | None:
    """From a folder's ``config.json`` of timm."""
    stated = path / "config.json"
    if not stated.is_file():
        return None
    return json.loads(stated.read_text()).get("model_args", {}).get("num_heads")


def _block(name: str, tensor: torch.Tensor, scaled: bool, place: str) -> Weights:
    """A block's tensor under its names in Transformers; an unknown one keeps its own."""
    _, number, inner = name.split(".", 2)
    part, _, kind = inner.rpartition(".")
    prefix = f"{place}.{number}"
    if part == "attn.qkv":
        thirds = tensor.chunk(3)
        return {f"{prefix}.{q}.{kind}": t for q, t in zip(QKV, thirds, strict=True)}
    if part in ("ls1", "ls2"):
        return {f"{prefix}.layer_scale{part[-1]}.lambda1": tensor}
    if part not in BLOCK:
        return {name: tensor}
    return {f"{prefix}.{BLOCK[part][scaled]}.{kind}": tensor}


def _resnet(tensors: Weights, settings: Model, path: Path) -> tuple[Pooled, str]:
    from reference_train.model import resnet

    depths = [
        1 + max((int(n.split(".")[1]) for n in tensors if n.startswith(f"layer{i}.")), default=-1)
        for i in range(1, 5)
    ]
    kind = "bottleneck" if "layer1.0.conv3.weight" in tensors else "basic"
    last = "conv3" if kind == "bottleneck" else "conv2"
    try:
        widths = [tensors[f"layer{i}.0.{last}.weight"].shape[0] for i in range(1, 5)]
    except KeyError as error:
        raise TrainError(f"{path}: expected a ResNet of four stages; found no {error}") from None
    stem = tensors["conv1.weight"]
    small = stem.shape[-1] == 3
    encoder = resnet(kind, depths, widths, channels=stem.shape[1], small_stem=small)
    _load(encoder.model, {_resnet_name(name): t for name, t in tensors.items()}, path)
    return encoder, f"ResNet of {depths} {kind} blocks, {widths[-1]} features"


def _resnet_name(name: str) -> str:
    for own, theirs in (
        (r"^conv1\.", "embedder.embedder.convolution."),
        (r"^bn1\.", "embedder.embedder.normalization."),
        (r"^layer(\d)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers."),
        (r"\.conv(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.convolution."),
        (r"\.bn(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.normalization."),
        (r"\.downsample\.0\.", ".shortcut.convolution."),
        (r"\.downsample\.1\.", ".shortcut.normalization."),
    ):
        name = re.sub(own, theirs, name)
    return name


def _load(model: nn.Module, state: Weights, path: Path) -> None:
    """Every weight, and nothing else."""
    try:
        missing, unknown = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise TrainError(f"{path}: {one_line(error)[:300]}") from None
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unknown:
        raise TrainError(f"{path}: expected also {missing[:3]}; found unknown {unknown[:3]}")


def _of_run(state: dict[str, Any], path: Path, settings: Model, channels: int) -> ViT | Pooled:
    """The backbone of a checkpoint of this trainer."""
    from reference_train.config import from_dict
    from reference_train.model import backbone

    run = from_dict(state["config"])
    if run.data.channels != channels:
        raise TrainError(
            f"{path} takes {run.data.channels} channels; found data.channels={channels}"
        )
    run.model.layers = settings.layers or run.model.layers
    run.model.pretrained, run.model.init_from = False, None
    encoder = backbone(run.model, run.augment.global_size, channels)
    own = {
        name.removeprefix("backbone."): tensor
        for name, tensor in state["learner"].items()
        if name.startswith("backbone.")
    }
    _load(encoder, own, path)
    return encoder
