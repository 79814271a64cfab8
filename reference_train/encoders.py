"""Encoders: images to features, whatever the model's own form.

Every encoder has `depth` (layers whose features can be had), `n_features`, and
``forward(images, layers)``. Those of tokens also give the patch features of a layer.
"""

from __future__ import annotations

import inspect

import torch
from torch import nn

from reference_train.errors import TrainError


class ViT(nn.Module):
    """CLS and patch tokens of a transformer from Transformers.

    A feature is the CLS token of a layer after the model's own last LayerNorm, as in DINOv2's
    evaluation, or the mean of its patches where the model has no CLS token; those of the last
    `layers` layers are concatenated.

    Parameters
    ----------
    model
        With ``config`` and ``hidden_states``.
    layers
        How many of the last ones are the features.
    norm
        Name of the LayerNorm after the last layer.
    prefix
        Tokens before the patches: CLS, registers, ...
    mean
        Whether a feature is the mean of the patches rather than the first token.
    norm_of_mean
        Name of a LayerNorm of that mean, in place of `norm`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: int,
        *,
        norm: str = "layernorm",
        prefix: int = 1,
        mean: bool = False,
        norm_of_mean: str | None = None,
    ) -> None:
        super().__init__()
        config = model.config
        self.model, self.layers, self.prefix, self.mean = model, layers, prefix, mean
        self.norm, self.norm_of_mean = norm, norm_of_mean
        self.width, self.depth = config.hidden_size, config.num_hidden_layers
        self.image_size, self.patch = config.image_size, config.patch_size
        self.n_features = layers * self.width
        parameters = inspect.signature(model.forward).parameters
        self.asks_to_interpolate = "interpolate_pos_encoding" in parameters
        self.masks = "noise" in parameters  # MAE: it leaves patches out, unless told otherwise
        if self.masks:
            config.mask_ratio = 0.0
        if getattr(model.embeddings, "mask_token", None) is not None:  # no patch is replaced here
            model.embeddings.mask_token.requires_grad_(False)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks, the first one first."""
        lists = (m for m in self.model.modules() if isinstance(m, nn.ModuleList))
        return next(m for m in lists if len(m) == self.depth)

    def tokens(self, images: torch.Tensor, layers: int) -> tuple[torch.Tensor, ...]:
        """Tokens (N, prefix + patches, width) of the last layers, the last one last."""
        options = {}
        if images.shape[-1] != self.image_size and self.asks_to_interpolate:
            options["interpolate_pos_encoding"] = True  # which others do by default
        if self.masks:  # nothing is left out, in the order of the patches
            patches = (images.shape[-2] // self.patch) * (images.shape[-1] // self.patch)
            order = torch.arange(patches, dtype=torch.float32, device=images.device)
            options["noise"] = order.expand(len(images), -1)
        states = self.model(images, output_hidden_states=True, **options).hidden_states
        norm = self.model.get_submodule(self.norm)
        return tuple(norm(state) for state in states[-layers:])

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """One vector (N, width) of the tokens of a layer."""
        if not self.mean:
            return tokens[:, 0]
        pooled = tokens[:, self.prefix :].mean(dim=1)
        if self.norm_of_mean is None:
            return pooled
        return self.model.get_submodule(self.norm_of_mean)(pooled)

    def patches(self, images: torch.Tensor) -> torch.Tensor:
        """Patch features (N, width, rows, columns) of the last layer."""
        rows = images.shape[-2] // self.patch
        patches = self.tokens(images, 1)[-1][:, self.prefix :]
        return patches.transpose(1, 2).unflatten(2, (rows, -1))

    def forward(self, images: torch.Tensor, layers: int | None = None) -> torch.Tensor:
        """Features (N, layers * width)."""
        return torch.cat([self.pool(t) for t in self.tokens(images, layers or self.layers)], dim=-1)


class TimmViT(ViT):
    """The same of a transformer from timm, whose own head pools the tokens of a layer."""

    def __init__(self, model: nn.Module, layers: int) -> None:
        nn.Module.__init__(self)
        self.model, self.layers, self.prefix = model, layers, model.num_prefix_tokens
        self.width, self.depth = model.embed_dim, len(model.blocks)
        self.patch = model.patch_embed.patch_size[0]
        self.n_features = layers * self.width

    @property
    def blocks(self) -> nn.Module:
        """The transformer's blocks, the first one first."""
        return self.model.blocks

    def tokens(self, images: torch.Tensor, layers: int) -> tuple[torch.Tensor, ...]:
        """Tokens (N, prefix + patches, width) of the last layers, the last one last."""
        options = {"norm": True, "output_fmt": "NLC", "intermediates_only": True}
        found = self.model.forward_intermediates(
            images, indices=layers, return_prefix_tokens=bool(self.prefix), **options
        )
        if not self.prefix:
            return tuple(found)
        return tuple(torch.cat([prefix, patches], dim=1) for patches, prefix in found)

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """One vector (N, width) of the tokens of a layer."""
        return self.model.forward_head(tokens, pre_logits=True)


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


def set_drop_path(encoder: ViT, rate: float) -> None:
    """Leave out the last block's branches with this probability; linear in depth."""
    for i, block in enumerate(encoder.blocks):
        own = DropPath(rate * i / max(1, encoder.depth - 1))
        # one module on both branches of a block, under one of these names; timm's has two
        names = [n for n in ("drop_path", "drop_path1", "drop_path2") if hasattr(block, n)]
        for name in names or ["dropout"]:
            setattr(block, name, own)


class Pooled(nn.Module):
    """One pooled vector an image: ResNets and other models."""

    depth = 1

    def __init__(self, model: nn.Module, n_features: int) -> None:
        super().__init__()
        self.model, self.n_features = model, n_features

    def forward(self, images: torch.Tensor, layers: int | None = None) -> torch.Tensor:
        """Features (N, n_features); there is one layer."""
        if (layers or 1) > 1:
            raise TrainError(f"layers={layers}: this model gives one vector an image")
        out = self.model(images)
        if isinstance(out, torch.Tensor):  # timm's
            return out
        pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            pooled = out.last_hidden_state
            if pooled.ndim == 3:
                raise ValueError("tokens, and no rule which of them is the feature")
            pooled = pooled.mean(dim=(-2, -1))
        return pooled.flatten(1)


def checked_layers(layers: int | None, default: int, depth: int, setting: str) -> int:
    """How many last layers are read: what was asked for, or the default or all there are."""
    if layers is None:
        return min(default, depth)
    if layers > depth:
        raise TrainError(f"{setting}={layers}: the model has features of {depth} layer(s)")
    return layers
