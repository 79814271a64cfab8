r"""A run's backbone as a model of other libraries, with its processor and a model card.

    python -m reference_train.export runs/digits --to hf --out exported
    python -m reference_train.export runs/digits --to timm --out exported
    python -m reference_train.export --model dino_vitbase16.pth --to safetensors --out exported

`hf` is read by AutoModel.from_pretrained and AutoImageProcessor, `timm` by timm.create_model(
"local-dir:exported"), and both by this trainer (--model hf:exported, --model exported).
`safetensors` is the file of weights alone, under timm's names (torchvision's for a ResNet), with
the card. The projector stays in the run.
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

from reference_train import loading
from reference_train.encoders import Pooled, ViT
from reference_train.environment import provenance
from reference_train.errors import TrainError, one_line
from reference_train.logs import write_atomically
from reference_train.settings import Config
from reference_train.weights import BLOCK, OUTSIDE, QKV, Weights

FORMATS = ("hf", "timm", "safetensors")
FAMILIES = ("vit", "vit_mae", "vit_msn", "ijepa", "dinov2", "dinov2_with_registers")
PLACES = {theirs: own for own, theirs in OUTSIDE.items()}


def published(encoder: nn.Module) -> Weights:
    """The encoder's tensors under the names that timm's ViTs and torchvision's ResNets have."""
    state = {name: t.detach().float().cpu() for name, t in encoder.model.state_dict().items()}
    kind = getattr(getattr(encoder.model, "config", None), "model_type", None)
    if kind == "resnet":
        return {_resnet_name(name): t.contiguous() for name, t in state.items()}
    if kind not in FAMILIES:
        raise TrainError(f"no names of timm for the family {kind}: --to hf")
    renamed: Weights = {}
    scaled = "dinov2" in kind
    inner = {theirs[scaled]: own for own, theirs in BLOCK.items()}
    for name, tensor in state.items():
        found = re.match(r"(?:encoder\.layer|layers)\.(\d+)\.(.*)$", name)
        if found is None:
            if not name.endswith("mask_token"):
                renamed[PLACES.get(name, name)] = tensor
            continue
        block, (part, _, tail) = f"blocks.{found[1]}", found[2].rpartition(".")
        if part == QKV[0]:
            three = [state[name.replace(QKV[0], q)] for q in QKV]
            renamed[f"{block}.attn.qkv.{tail}"] = torch.cat(three)
        elif part.startswith("layer_scale"):
            renamed[f"{block}.ls{part[-1]}.gamma"] = tensor
        elif part not in QKV:
            renamed[f"{block}.{inner[part]}.{tail}"] = tensor
    if "register_tokens" in renamed:
        # timm would add positions to registers, too: its no_embed_class has those of patches alone
        positions = renamed["pos_embed"]
        renamed["cls_token"] = renamed["cls_token"] + positions[:, :1]
        renamed["pos_embed"] = positions[:, 1:]
        renamed["reg_token"] = renamed.pop("register_tokens")
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


def _resnet_name(name: str) -> str:
    for own, theirs in (
        (r"^embedder\.embedder\.convolution\.", "conv1."),
        (r"^embedder\.embedder\.normalization\.", "bn1."),
        (r"^encoder\.stages\.(\d)\.layers\.", lambda m: f"layer{int(m[1]) + 1}."),
        (r"\.layer\.(\d)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}."),
        (r"\.layer\.(\d)\.normalization\.", lambda m: f".bn{int(m[1]) + 1}."),
        (r"\.shortcut\.convolution\.", ".downsample.0."),
        (r"\.shortcut\.normalization\.", ".downsample.1."),
    ):
        name = re.sub(own, theirs, name)
    return name


def timm_config(encoder: ViT | Pooled, config: Config) -> dict[str, Any]:
    """``config.json`` of timm: an architecture, the arguments that differ, the images."""
    own, size = encoder.model.config, config.augment.global_size
    channels = config.data.channels
    pretrained = {
        "input_size": [channels, size, size],
        "mean": config.data.mean[:channels],
        "std": config.data.std[:channels],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "num_classes": 0,
    }
    if isinstance(encoder, Pooled):
        depths = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34"}
        name = "resnet50" if own.layer_type == "bottleneck" else depths.get(tuple(own.depths))
        if name is None or own.hidden_sizes[-1] not in (512, 2048) or _small_stem(encoder):
            raise TrainError("timm has no ResNet of this shape: --to safetensors")
        arguments: dict[str, Any] = {"in_chans": channels}
    else:
        name, scaled = "vit_base_patch16_224", own.model_type.startswith("dinov2")
        hidden = getattr(own, "intermediate_size", None) or own.hidden_size * own.mlp_ratio
        arguments = {
            "img_size": encoder.image_size,
            "patch_size": encoder.patch,
            "in_chans": channels,
            "embed_dim": own.hidden_size,
            "depth": own.num_hidden_layers,
            "num_heads": own.num_attention_heads,
            "mlp_ratio": hidden / own.hidden_size,
            "qkv_bias": own.qkv_bias,
            "init_values": 1.0 if scaled else None,
            "class_token": not encoder.mean,
            "global_pool": "avg" if encoder.mean else "token",
            "reg_tokens": getattr(own, "num_register_tokens", 0),
            "no_embed_class": hasattr(own, "num_register_tokens"),
            "fc_norm": False,
            "dynamic_img_size": True,
        }
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": encoder.n_features,
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }


def _small_stem(encoder: Pooled) -> bool:
    embedder = getattr(encoder.model, "embedder", None)
    return isinstance(getattr(embedder, "pooler", None), nn.Identity)


def processor(config: Config) -> dict[str, Any]:
    """``preprocessor_config.json``: what the evaluation does to an image."""
    size, channels = config.augment.global_size, config.data.channels
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.data.mean[:channels]),
        "image_std": list(config.data.std[:channels]),
    }


READ = {
    "hf": 'model = AutoModel.from_pretrained("FOLDER")\n'
    'processor = AutoImageProcessor.from_pretrained("FOLDER")',
    "timm": 'model = timm.create_model("local-dir:FOLDER", pretrained=True)',
    "safetensors": 'weights = safetensors.torch.load_file("FOLDER/model.safetensors")',
}


def card(encoder: ViT | Pooled, config: Config, to: str, source: str, *, trained: bool) -> str:
    """The model card: what was trained on what, how features are read, where it was made."""
    pooled = "its pooled output"
    if isinstance(encoder, ViT):
        pooled = "the mean of its patches" if encoder.mean else "its CLS token"
        pooled += " after the last LayerNorm"
    method = config.method.name if trained else "not by this trainer"
    data = f"{config.data.source} {config.data.path or ''}".strip() if trained else "see its source"
    rows = {
        "weights of": source,
        "method": method,
        "trained on": data,
        "image size": config.augment.global_size,
        "mean and deviation of the channels": f"{config.data.mean}, {config.data.std}",
        "parameters": sum(p.numel() for p in encoder.parameters()),
        **{name: value for name, value in provenance().items() if not isinstance(value, dict)},
    }
    library = {"hf": "transformers", "timm": "timm"}.get(to, "safetensors")
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"---\nlibrary_name: {library}\npipeline_tag: image-feature-extraction\n---\n\n"
        f"# {Path(source).name}\n\nA vision backbone. An image's feature is {pooled}.\n\n"
        f"```python\n{READ[to]}\n```\n\n| | |\n| --- | --- |\n{table}\n\n"
        "The licence and the limits of use are those of the images and of whoever trained it: "
        "add them here.\n"
    )


def export(
    encoder: ViT | Pooled,
    config: Config,
    to: str,
    folder: Path,
    source: str,
    *,
    trained: bool = True,
) -> list[str]:
    """Write the model; returns the names of the files. `trained`: by this trainer."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    if to == "hf":
        if not hasattr(encoder.model, "save_pretrained"):
            raise TrainError("not a model of Transformers: --to timm or safetensors")
        if isinstance(encoder, Pooled) and _small_stem(encoder):
            raise TrainError("Transformers has no ResNet with a 3x3 stem: --to safetensors")
        encoder.model.save_pretrained(folder)
        write_atomically(
            folder / "preprocessor_config.json", json.dumps(processor(config), indent=1)
        )
    else:
        timm_says = timm_config(encoder, config) if to == "timm" else None
        save_file(published(encoder), folder / "model.safetensors", metadata={"format": "pt"})
        if timm_says is not None:
            write_atomically(folder / "config.json", json.dumps(timm_says, indent=1))
    write_atomically(folder / "README.md", card(encoder, config, to, source, trained=trained))
    return sorted(path.name for path in folder.iterdir())


def main(arguments: list[str] | None = None) -> None:
    """The command line; the files' names are printed."""
    made = argparse.ArgumentParser(
        prog="python -m reference_train.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("run", nargs="?", type=Path, metavar="RUN")
    made.add_argument("--model", help="instead of RUN: hf:NAME, timm:NAME, a file or a run")
    made.add_argument("--to", required=True, choices=FORMATS)
    made.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    given = made.parse_args(arguments)
    try:
        config, learner, _ = loading.given(given.run, given.model)
        source = str(given.run or given.model)
        trained, encoder = given.run is not None, learner.backbone
        files = export(encoder, config, given.to, given.out, source, trained=trained)
    except (TrainError, OSError, ValueError) as error:
        print(f"reference_train.export: {one_line(error)}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    print("\n".join(str(given.out / name) for name in files))  # noqa: T201


if __name__ == "__main__":
    main()
