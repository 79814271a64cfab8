"""Backbone, projector and online probe: one module, one forward pass a step.

Backbones by name (weights from the configuration's initialisation; nothing is downloaded):

    vit_ti_16 vit_s_16 vit_s_8 vit_b_16 vit_l_16 vit_l_14   ViT
    dinov2_s_14 dinov2_b_14 dinov2_l_14                     the same with layer scale
    resnet18 resnet34 resnet50
    hf:NAME                                                 any AutoModel of Transformers
    timm:NAME                                               any model of timm, if that is installed
"""

from __future__ import annotations

import inspect
from typing import NamedTuple

import torch
from torch import nn

from reference_train.collectives import all_sum
from reference_train.config import Config, Model
from reference_train.errors import TrainError, did_you_mean, one_line

VIT_SIZES = {"ti": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
RESNETS = {
    "resnet18": ("basic", [2, 2, 2, 2], [64, 128, 256, 512]),
    "resnet34": ("basic", [3, 4, 6, 3], [64, 128, 256, 512]),
    "resnet50": ("bottleneck", [3, 4, 6, 3], [256, 512, 1024, 2048]),
}
NAMES = [f"vit_{s}" for s in ("ti_16", "s_16", "s_8", "b_16", "l_16", "l_14")]
NAMES += [f"dinov2_{s}_14" for s in "sbl"] + list(RESNETS)


class ViT(nn.Module):
    """CLS and patch tokens of a transformer from Transformers.

    A feature is the CLS token of a layer after the model's own last LayerNorm, as in DINOv2's
    evaluation; those of the last `layers` layers are concatenated.
    """

    def __init__(self, model: nn.Module, layers: int, image_size: int) -> None:
        super().__init__()
        self.model, self.layers, self.image_size = model, layers, image_size
        self.width = model.config.hidden_size
        self.n_features = layers * self.width
        self.depth = model.config.num_hidden_layers
        parameters = inspect.signature(model.forward).parameters
        self.asks_to_interpolate = "interpolate_pos_encoding" in parameters

    def tokens(self, images: torch.Tensor, layers: int) -> tuple[torch.Tensor, ...]:
        """Tokens (N, 1 + patches, width) of the last layers, the last one last."""
        options = {}
        if images.shape[-1] != self.image_size and self.asks_to_interpolate:
            options["interpolate_pos_encoding"] = True  # which others do by default
        states = self.model(images, output_hidden_states=True, **options).hidden_states
        return tuple(self.model.layernorm(state) for state in states[-layers:])

    def forward(self, images: torch.Tensor, layers: int | None = None) -> torch.Tensor:
        """Features (N, layers * width)."""
        tokens = self.tokens(images, layers or self.layers)
        return torch.cat([t[:, 0] for t in tokens], dim=-1)


class DropPath(nn.Module):
    """Stochastic depth: a residual branch of a sample is left out, the others enlarged for it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of branches (N, ...)."""
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty((len(x),) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * kept / (1 - self.rate)


class Pooled(nn.Module):
    """One pooled vector an image: ResNets and other models."""

    depth = 1

    def __init__(self, model: nn.Module, n_features: int) -> None:
        super().__init__()
        self.model, self.n_features = model, n_features

    def forward(self, images: torch.Tensor, layers: int | None = None) -> torch.Tensor:
        """Features (N, n_features); there is one layer."""
        out = self.model(images)
        if isinstance(out, torch.Tensor):  # timm's
            return out
        pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            last = out.last_hidden_state
            pooled = last[:, 0] if last.ndim == 3 else last.mean(dim=(-2, -1))
        return pooled.flatten(1)


def backbone(settings: Model, image_size: int, channels: int) -> ViT | Pooled:
    """The backbone that ``model.backbone`` names."""
    name = settings.backbone
    if name.startswith("hf:"):
        return _auto(name, settings, image_size, channels)
    if name.startswith("timm:"):
        return _timm(name, settings, image_size, channels)
    if name in RESNETS:
        return _resnet(name, settings, channels)
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
        model.embeddings.mask_token.requires_grad_(False)  # nothing is masked here
        layers, branches = model.encoder.layer, "drop_path"
    else:
        model = ViTModel(ViTConfig(**shape, intermediate_size=4 * width), add_pooling_layer=False)
        layers, branches = model.layers, "dropout"  # one module, on both branches of a layer
    for i, layer in enumerate(layers):
        rate = settings.drop_path * i / max(1, len(layers) - 1)
        setattr(layer, branches, DropPath(rate))
    if settings.layers > model.config.num_hidden_layers:
        raise TrainError(f"model.layers={settings.layers} of {model.config.num_hidden_layers}")
    return ViT(model, settings.layers, image_size)


def _resnet(name: str, settings: Model, channels: int) -> Pooled:
    from transformers import ResNetConfig, ResNetModel

    kind, depths, widths = RESNETS[name]
    model = ResNetModel(
        ResNetConfig(
            num_channels=channels,
            embedding_size=64,
            layer_type=kind,
            depths=depths,
            hidden_sizes=widths,
        )
    )
    if settings.small_stem:
        stem = model.embedder.embedder.convolution
        model.embedder.embedder.convolution = nn.Conv2d(
            stem.in_channels, stem.out_channels, kernel_size=3, padding=1, bias=False
        )
        model.embedder.pooler = nn.Identity()
    return Pooled(model, widths[-1])


def _auto(name: str, settings: Model, image_size: int, channels: int) -> ViT | Pooled:
    from transformers import AutoConfig, AutoModel

    path = name.removeprefix("hf:")
    try:
        config = AutoConfig.from_pretrained(path)
        if settings.pretrained:
            model = AutoModel.from_pretrained(path)
        else:
            model = AutoModel.from_config(config)
    except (OSError, ValueError) as error:
        raise TrainError(f"{name}: {str(error).splitlines()[0]}") from None
    takes = getattr(config, "num_channels", channels)
    if takes != channels:
        raise TrainError(f"{name} takes {takes} channels; found data.channels={channels}")
    if hasattr(model, "layernorm") and hasattr(getattr(model, "embeddings", None), "cls_token"):
        # unused: tokens of masked patches, and a pooler after the CLS token
        model.pooler = None
        if getattr(model.embeddings, "mask_token", None) is not None:
            model.embeddings.mask_token.requires_grad_(False)
        if settings.layers > config.num_hidden_layers:
            raise TrainError(f"model.layers={settings.layers} of {config.num_hidden_layers}")
        return ViT(model, settings.layers, config.image_size)
    return _pooled(name, model, image_size, channels)


def _timm(name: str, settings: Model, image_size: int, channels: int) -> Pooled:
    try:
        import timm
    except ImportError as error:
        raise TrainError(f"{name} needs timm: {error}") from None

    def create(options: dict, *others: dict) -> nn.Module:
        """With the first options that the model takes."""
        try:
            return timm.create_model(
                name.removeprefix("timm:"),
                pretrained=settings.pretrained,
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
    return _pooled(name, model, image_size, channels)


def _pooled(name: str, model: nn.Module, image_size: int, channels: int) -> Pooled:
    """The model, its features counted on an image of the crops' size."""
    image = torch.zeros(1, channels, image_size, image_size)
    try:
        with torch.no_grad():
            n_features = Pooled(model.eval(), 0)(image).shape[-1]
    except (AssertionError, RuntimeError, ValueError) as error:
        cause = one_line(error)
        raise TrainError(f"{name} on crops of {image_size} pixels: {cause}") from None
    return Pooled(model.train(), n_features)


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
