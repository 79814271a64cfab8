"""Backbone, projector and online probe: one module, one forward pass a step.

Backbones by name (weights from the configuration's initialisation; nothing is downloaded):

    vit_ti_16 vit_s_16 vit_s_8 vit_b_16 vit_l_16 vit_l_14   ViT
    dinov2_s_14 dinov2_b_14 dinov2_l_14                     the same with layer scale
    resnet18 resnet34 resnet50
    hf:NAME                                                 any AutoModel of Transformers
    timm:NAME                                               any model of timm, if that is installed

``model.init_from`` takes the model and its weights from elsewhere instead: foreign.py, weights.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from reference_train import foreign
from reference_train.collectives import all_sum
from reference_train.encoders import Pooled, ViT, checked_layers, set_drop_path
from reference_train.errors import TrainError, did_you_mean
from reference_train.settings import Config, Model

VIT_SIZES = {"ti": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
RESNETS = {
    "resnet18": ("basic", [2, 2, 2, 2], [64, 128, 256, 512]),
    "resnet34": ("basic", [3, 4, 6, 3], [64, 128, 256, 512]),
    "resnet50": ("bottleneck", [3, 4, 6, 3], [256, 512, 1024, 2048]),
}
NAMES = [f"vit_{s}" for s in ("ti_16", "s_16", "s_8", "b_16", "l_16", "l_14")]
NAMES += [f"dinov2_{s}_14" for s in "sbl"] + list(RESNETS)


def backbone(settings: Model, image_size: int, channels: int) -> ViT | Pooled:
    """The backbone that ``model.backbone`` names, or ``model.init_from`` with its weights."""
    name = settings.init_from or settings.backbone
    if settings.init_from is None:
        encoder = _backbone(settings, image_size, channels)
    else:
        encoder = foreign.pretrained(name, settings, image_size, channels)
    if isinstance(encoder, ViT):
        set_drop_path(encoder, settings.drop_path)
    elif settings.drop_path:
        raise TrainError(
            f"model.drop_path: expected 0 with {name}, which has no branches to leave out; "
            f"found {settings.drop_path}"
        )
    return encoder


def _backbone(settings: Model, image_size: int, channels: int) -> ViT | Pooled:
    name, weights = settings.backbone, settings.pretrained
    if name.startswith("hf:"):
        return foreign.from_transformers(name, settings, image_size, channels, weights=weights)
    if name.startswith("timm:"):
        return foreign.from_timm(name, settings, image_size, channels, weights=weights)
    if name in RESNETS:
        checked_layers(settings.layers, 1, Pooled.depth, "model.layers")
        return resnet(*RESNETS[name], channels=channels, small_stem=settings.small_stem)
    if name not in NAMES:
        raise TrainError(f"model.backbone: no {name!r}{did_you_mean(name, NAMES)}")
    from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

    family, size, patch = name.split("_")
    width, depth, heads = VIT_SIZES[size]
    width = settings.width or width
    heads = settings.heads or heads
    patch = settings.patch or int(patch)
    if image_size % patch or width % heads:
        raise TrainError(
            f"{name}: patches of {patch} do not tile {image_size} pixels, "
            f"or {heads} heads do not divide the width {width}"
        )
    shape = {
        "hidden_size": width,
        "num_hidden_layers": settings.depth or depth,
        "num_attention_heads": heads,
        "image_size": image_size,
        "patch_size": patch,
        "num_channels": channels,
    }
    if family == "dinov2":
        model = Dinov2Model(Dinov2Config(**shape, mlp_ratio=4))
    else:
        model = ViTModel(ViTConfig(**shape, intermediate_size=4 * width), add_pooling_layer=False)
    return foreign.vit(model, settings)


def resnet(
    kind: str, depths: list[int], widths: list[int], *, channels: int, small_stem: bool
) -> Pooled:
    """A ResNet of so many "basic" or "bottleneck" blocks a stage."""
    from transformers import ResNetConfig, ResNetModel

    model = ResNetModel(
        ResNetConfig(
            num_channels=channels,
            embedding_size=64,
            layer_type=kind,
            depths=depths,
            hidden_sizes=widths,
        )
    )
    if small_stem:
        stem = model.embedder.embedder.convolution
        model.embedder.embedder.convolution = nn.Conv2d(
            stem.in_channels, stem.out_channels, kernel_size=3, padding=1, bias=False
        )
        model.embedder.pooler = nn.Identity()
    return Pooled(model, widths[-1])


def projector(settings: Model, n_features: int, *, batch_norm: type[nn.Module]) -> nn.Sequential:
    """Linear, norm, activation, ..., linear: VISReg's 2048-2048-D by default."""
    norm = {"batch": batch_norm, "layer": nn.LayerNorm, "none": lambda width: nn.Identity()}
    activation = {"gelu": nn.GELU, "relu": nn.ReLU}[settings.activation]
    modules: list[nn.Module] = []
    width = n_features
    for _ in range(settings.projector_layers - 1):
        modules += [nn.Linear(width, settings.hidden), norm[settings.norm](settings.hidden)]
        modules += [activation()]
        width = settings.hidden
    return nn.Sequential(*modules, nn.Linear(width, settings.dim))


class Outputs(NamedTuple):
    """What a step computes from its crops; V = all crops, G = global ones."""

    embeddings: torch.Tensor  # (V, N, D)
    features: torch.Tensor  # (G, N, F)
    logits: torch.Tensor | None  # (G, N, classes) of the online probe


class Learner(nn.Module):
    """Backbone and projector, and the online probe on detached features."""

    def __init__(self, config: Config, n_classes: int, head: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone(config.model, config.augment.global_size, config.data.channels)
        n_features = self.backbone.n_features
        self.projector = projector(config.model, n_features, batch_norm=nn.BatchNorm1d)
        if head is not None:
            self.projector.append(head)
        self.probe = None
        if config.probe.online and n_classes > 0:
            self.probe = nn.Sequential(
                nn.LayerNorm(n_features, elementwise_affine=False),
                nn.Linear(n_features, n_classes),
            )

    def forward(self, crops: list[torch.Tensor]) -> Outputs:
        """Of crops ``[(G, N, C, H, W), (L, N, C, h, w)]``; the local ones may be missing."""
        n = crops[0].shape[1]
        features = torch.cat([self.backbone(views.flatten(0, 1)) for views in crops])
        embeddings = self.projector(features).unflatten(0, (-1, n))
        of_global = features[: crops[0].shape[0] * n].unflatten(0, (-1, n))
        logits = None if self.probe is None else self.probe(of_global.detach())
        return Outputs(embeddings, of_global, logits)


class AllReducedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the batches of all processes, on CPUs, which SyncBatchNorm refuses.

    Mean and variance are those of the concatenated batch, and gradients flow through both.
    """

    def _check_input_dim(self, x: torch.Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"expected (N, C, ...); found {tuple(x.shape)}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised over all axes but the second."""
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        count = all_sum(torch.tensor(x.numel() / x.shape[1], dtype=x.dtype, device=x.device))
        mean = all_sum(x.sum(axes)) / count
        centred = x - mean.view(shape)
        variance = all_sum((centred * centred).sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        y = centred * (variance + self.eps).rsqrt().view(shape)
        return y * self.weight.view(shape) + self.bias.view(shape)


def synchronised(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with its BatchNorms over all processes: SyncBatchNorm where that exists."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            norm = AllReducedBatchNorm(child.num_features, eps=child.eps, momentum=child.momentum)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm.to(child.weight))
        else:
            synchronised(child, device)
    return module


def describe(learner: Learner) -> str:
    """Parameters of the backbone and the projector."""
    counts = [
        sum(p.numel() for p in part.parameters()) for part in (learner.backbone, learner.projector)
    ]
    return "backbone {}, projector {} parameters".format(*map(rounded, counts))


def rounded(count: int) -> str:
    """A count with three digits at most: 864, 29 k, 85.8 M."""
    if count < 1000:
        return str(count)
    return f"{count / 1e3:.0f} k" if count < 999_500 else f"{count / 1e6:.1f} M"
