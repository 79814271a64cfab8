"""Other people's models: what the features are, by family, and files of weights."""

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import save_file
from torch.nn import functional as F

from reference_train import weights
from reference_train.encoders import set_drop_path
from reference_train.errors import TrainError
from reference_train.model import backbone
from reference_train.settings import Model

SHAPE = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
PATCHES = 16
DINOV3 = {"num_register_tokens": 2, "pos_embed_rescale": None}  # no random scale in training
# Family: its model and settings, tokens before the patches, whether the patches are averaged.
FAMILIES = {
    "vit": (hf.ViTModel, hf.ViTConfig, {}, 1, False),
    "msn": (hf.ViTMSNModel, hf.ViTMSNConfig, {}, 1, False),
    "mae": (hf.ViTMAEModel, hf.ViTMAEConfig, {}, 1, False),
    "deit": (hf.DeiTModel, hf.DeiTConfig, {}, 2, False),
    "dinov2": (hf.Dinov2Model, hf.Dinov2Config, {}, 1, False),
    "registers": (hf.Dinov2WithRegistersModel, hf.Dinov2WithRegistersConfig, {}, 5, False),
    "dinov3": (hf.DINOv3ViTModel, hf.DINOv3ViTConfig, DINOV3, 3, False),
    "ijepa": (hf.IJepaModel, hf.IJepaConfig, {}, 0, True),
    "beit": (hf.BeitModel, hf.BeitConfig, {}, 1, True),
    "data2vec": (hf.Data2VecVisionModel, hf.Data2VecVisionConfig, {}, 1, True),
}


def saved(folder, family):
    kind, config, more, *_ = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(config(**SHAPE, **more)).eval()
    with torch.no_grad():  # norms and scales of 1 and biases of 0 hide mistakes
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder / family)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A small random model of every family, saved; and the same in memory."""
    folder = tmp_path_factory.mktemp("models")
    return folder, {family: saved(folder, family) for family in FAMILIES}


def loaded(models, family, size=16, **settings):
    name = f"hf:{models[0] / family}"
    return backbone(Model(init_from=name, **settings), size, 3).eval()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_features_by_family(models, family):
    """CLS after the last norm, or the mean of the patches, of Transformers' own states."""
    encoder, model = loaded(models, family), models[1][family]
    *_, prefix, mean = FAMILIES[family]
    images = torch.randn(2, 3, 16, 16)
    options = {}
    if family == "mae":  # all patches in their order: nothing is left to chance
        model.config.mask_ratio = 0.0
        options["noise"] = torch.linspace(0, 1, PATCHES).expand(2, -1)
    out = model(images, output_hidden_states=True, **options)
    last = out.last_hidden_state
    assert last.shape[1] == prefix + PATCHES
    expected = last[:, prefix:].mean(1) if mean else last[:, 0]
    if family == "beit":
        torch.testing.assert_close(encoder(images, layers=1), out.pooler_output)
    else:
        torch.testing.assert_close(encoder(images, layers=1), expected)
    grid = encoder.patches(images)
    torch.testing.assert_close(grid[0, :, 1, 2], last[0, prefix + 6])
    two, three = encoder(images), encoder(images, layers=3)
    assert two.shape == (2, 32) and three.shape == (2, 48) and encoder.n_features == 32
    torch.testing.assert_close(three[:, 16:], two)
    torch.testing.assert_close(two[:, 16:], encoder(images, layers=1))
    assert not torch.allclose(two[:, :16], two[:, 16:])
    assert torch.equal(encoder(images), two)  # MAE draws no patches
    # the same tokens in another order are another image, and other sizes are interpolated
    assert not torch.allclose(encoder(images.flip(-1)), two)
    assert encoder.patches(torch.randn(2, 3, 24, 24)).shape == (2, 16, 6, 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_trained_and_branches_can_be_left_out(models, family):
    encoder = loaded(models, family).train()
    images = torch.randn(4, 3, 16, 16)
    encoder(images).square().sum().backward()
    unused = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused
    torch.testing.assert_close(encoder(images), encoder.eval()(images))
    set_drop_path(encoder.train(), 0.5)
    assert not torch.allclose(encoder(images), encoder.eval()(images))


@pytest.mark.parametrize("family", ["vit", "ijepa", "dinov3"])
def test_layers_that_are_not_there(models, family):
    with pytest.raises(TrainError, match=r"model.layers=4: the model has features of 3 layer"):
        loaded(models, family, layers=4)


def test_pooled_models_have_one_layer_and_no_branches(tmp_path):
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])
    hf.ResNetModel(config).save_pretrained(tmp_path)
    name = f"hf:{tmp_path}"
    assert backbone(Model(init_from=name), 32, 3)(torch.randn(2, 3, 32, 32)).shape == (2, 12)
    with pytest.raises(TrainError, match=r"model.layers=2: .* 1 layer"):
        backbone(Model(init_from=name, layers=2), 32, 3)
    with pytest.raises(TrainError, match=r"layers=4: this model gives one vector"):
        backbone(Model(init_from=name), 32, 3)(torch.randn(2, 3, 32, 32), layers=4)
    with pytest.raises(TrainError, match=r"drop_path: expected 0 with hf:.* no branches"):
        backbone(Model(init_from=name, drop_path=0.1), 32, 3)


def test_tokens_without_a_rule_are_refused(tmp_path):
    config = hf.SiglipVisionConfig(**SHAPE, vision_use_head=False)
    hf.SiglipVisionModel(config).save_pretrained(tmp_path)
    with pytest.raises(TrainError, match="tokens, and no rule which of them is the feature"):
        backbone(Model(init_from=f"hf:{tmp_path}"), 16, 3)


# --- files of weights: the published names, and a transcription of their authors' forward passes --

WIDTH, DEPTH, HEADS, PATCH, SIDE = 128, 2, 2, 4, 4


def published_vit(*, cls=True, scale=False, registers=0, positions=None):
    """Random tensors under the names of timm and DINO."""
    g = torch.Generator().manual_seed(1)

    def random(*shape):
        return 0.2 * torch.randn(*shape, generator=g)

    state = {
        "patch_embed.proj.weight": random(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": random(WIDTH),
        "pos_embed": random(1, positions or SIDE**2 + cls, WIDTH),
        "norm.weight": 1 + random(WIDTH),
        "norm.bias": random(WIDTH),
    }
    if cls:
        state["cls_token"] = random(1, 1, WIDTH)
    if registers:
        state["reg_token"] = random(1, registers, WIDTH)
    for i in range(DEPTH):
        for name, *shape in (
            ("attn.qkv", 3 * WIDTH, WIDTH), ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 2 * WIDTH, WIDTH), ("mlp.fc2", WIDTH, 2 * WIDTH),
        ):  # fmt: skip
            state[f"blocks.{i}.{name}.weight"] = random(*shape)
            state[f"blocks.{i}.{name}.bias"] = random(shape[0])
        for name in ("norm1", "norm2"):
            state[f"blocks.{i}.{name}.weight"] = 1 + random(WIDTH)
            state[f"blocks.{i}.{name}.bias"] = random(WIDTH)
        if scale:
            state |= {f"blocks.{i}.ls{k}.gamma": 1 + random(WIDTH) for k in (1, 2)}
    return state


def transcribed_vit(w, images):
    """Tokens of the last layer, as the authors' code computes them."""
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    n, p, _ = x.shape
    positions = w["pos_embed"]
    if "cls_token" in w:
        first = w["cls_token"].expand(n, -1, -1)
        if positions.shape[1] == p:  # timm's no_embed_class
            x = torch.cat([first, x + positions], 1)
        else:
            x = torch.cat([first, x], 1) + positions
        if "reg_token" in w:
            x = torch.cat([x[:, :1], w["reg_token"].expand(n, -1, -1), x[:, 1:]], 1)
    else:
        x = x + positions

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    for i in range(DEPTH):
        b = f"blocks.{i}"
        qkv = linear(norm(x, f"{b}.norm1"), f"{b}.attn.qkv")
        q, k, v = qkv.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        a = torch.softmax(q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5, dim=-1) @ v
        x = x + w.get(f"{b}.ls1.gamma", 1) * linear(a.transpose(1, 2).flatten(2), f"{b}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"{b}.norm2"), f"{b}.mlp.fc1"))
        x = x + w.get(f"{b}.ls2.gamma", 1) * linear(hidden, f"{b}.mlp.fc2")
    return norm(x, "norm")


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ({}, 1),  # DINO, iBOT, MoCo v3, MAE
        ({"cls": False}, 0),  # I-JEPA
        ({"scale": True}, 1),  # DINOv2
        ({"scale": True, "registers": 4}, 5),  # DINOv2 with registers
        ({"scale": True, "registers": 4, "positions": SIDE**2}, 5),  # the same of timm
    ],
)
@torch.no_grad()
def test_vits_as_they_are_published(tmp_path, options, prefix):
    state = published_vit(**options)
    save_file(state, tmp_path / "w.safetensors")
    encoder = backbone(Model(init_from=str(tmp_path / "w.safetensors")), 16, 3).eval()
    images = torch.randn(2, 3, 16, 16)
    tokens = transcribed_vit(state, images)
    expected = tokens[:, 0] if prefix else tokens.mean(1)
    torch.testing.assert_close(encoder(images, layers=1), expected, rtol=1e-4, atol=1e-4)
    grid = tokens[:, prefix:].transpose(1, 2).unflatten(2, (SIDE, SIDE))
    torch.testing.assert_close(encoder.patches(images), grid, rtol=1e-4, atol=1e-4)


def inside(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


OF_MAE = {"mask_token": torch.ones(1), "decoder_norm.bias": torch.ones(1)}
WRAPPED = {
    "dino": lambda s: {"student": other(s), "teacher": inside(s, "module.backbone.")},
    "mae": lambda s: {
        "model": {**s, "mask_token": torch.ones(1), "decoder_norm.bias": torch.ones(1)}
    },
    "moco": lambda s: {
        "epoch": 300,
        "state_dict": inside(other(s), "module.momentum_encoder.")
        | inside(s, "module.base_encoder.")
        | {"module.base_encoder.head.0.weight": torch.ones(1)},
    },
    "i-jepa": lambda s: {"encoder": other(s), "target_encoder": inside(s, "module.")},
}


def other(state):
    return {name: tensor + 1 for name, tensor in state.items()}


@pytest.mark.parametrize("authors", WRAPPED)
@torch.no_grad()
def test_the_evaluated_network_of_a_published_file(tmp_path, authors, capsys):
    """Of two the teacher, the target, the base encoder; heads and decoders are left out."""
    state = published_vit()
    torch.save(WRAPPED[authors](state), tmp_path / "w.pth")
    encoder = backbone(Model(init_from=str(tmp_path / "w.pth")), 16, 3).eval()
    images = torch.randn(2, 3, 16, 16)
    expected = transcribed_vit(state, images)[:, 0]
    torch.testing.assert_close(encoder(images, layers=1), expected, rtol=1e-4, atol=1e-4)
    said = capsys.readouterr().err
    assert "ViT of width 128, depth 2, 2 heads (width / 64" in said
    assert ("left out" in said) == (authors in ("mae", "moco"))


def published_resnet(blocks, bottleneck):
    g = torch.Generator().manual_seed(2)
    widths, state = (8, 12, 16, 20), {}

    def convolution(name, norm, out, into, size):
        state[f"{name}.weight"] = (
            torch.randn(out, into, size, size, generator=g) / (into * size**2) ** 0.5
        )
        state[f"{norm}.weight"] = 1 + 0.2 * torch.randn(out, generator=g)
        state[f"{norm}.bias"] = 0.2 * torch.randn(out, generator=g)
        state[f"{norm}.running_mean"] = 0.2 * torch.randn(out, generator=g)
        state[f"{norm}.running_var"] = 1 + torch.rand(out, generator=g)

    convolution("conv1", "bn1", 64, 3, 7)
    into = 64
    for i, out in enumerate(widths):
        for j in range(blocks):
            name = f"layer{i + 1}.{j}"
            inner = out // 4 if bottleneck else out
            sizes = [(inner, into, 1), (inner, inner, 3), (out, inner, 1)]
            for k, shape in enumerate(sizes if bottleneck else [(out, into, 3), (out, out, 3)]):
                convolution(f"{name}.conv{k + 1}", f"{name}.bn{k + 1}", *shape)
            if j == 0 and (i or into != out):
                convolution(f"{name}.downsample.0", f"{name}.downsample.1", out, into, 1)
            into = out
    return state


def transcribed_resnet(w, x, blocks, bottleneck):
    """As torchvision's code computes it: a stage's stride is that of its first 3x3 convolution."""

    def step(x, name, norm, stride, padding):
        x = F.conv2d(x, w[f"{name}.weight"], stride=stride, padding=padding)
        statistics = w[f"{norm}.running_mean"], w[f"{norm}.running_var"]
        return F.batch_norm(x, *statistics, w[f"{norm}.weight"], w[f"{norm}.bias"])

    x = F.max_pool2d(F.relu(step(x, "conv1", "bn1", 2, 3)), 3, 2, 1)
    for i in range(4):
        for j in range(blocks):
            b, stride = f"layer{i + 1}.{j}", 2 if i and not j else 1
            if bottleneck:
                y = F.relu(step(x, f"{b}.conv1", f"{b}.bn1", 1, 0))
                y = F.relu(step(y, f"{b}.conv2", f"{b}.bn2", stride, 1))
                y = step(y, f"{b}.conv3", f"{b}.bn3", 1, 0)
            else:
                y = F.relu(step(x, f"{b}.conv1", f"{b}.bn1", stride, 1))
                y = step(y, f"{b}.conv2", f"{b}.bn2", 1, 1)
            if f"{b}.downsample.0.weight" in w:
                x = step(x, f"{b}.downsample.0", f"{b}.downsample.1", stride, 0)
            x = F.relu(x + y)
    return x.mean((-2, -1))


@pytest.mark.parametrize("bottleneck", [False, True])
@torch.no_grad()
def test_resnets_as_they_are_published(tmp_path, bottleneck):
    state = published_resnet(2, bottleneck)
    torch.save({"model": inside(state, "module.backbone.")}, tmp_path / "r.pth")
    encoder = backbone(Model(init_from=str(tmp_path / "r.pth")), 32, 3).eval()
    images = torch.randn(2, 3, 64, 64)
    expected = transcribed_resnet(state, images, 2, bottleneck)
    torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model": {"x": torch.ones(2)}}, "expected a ViT or a ResNet; found tensors"),
        ({"epoch": 3}, r"expected one of teacher, .*; found \['epoch'\]"),
        ({**published_vit(), "blocks.0.attn.q_norm.weight": torch.ones(2)}, "unknown .*q_norm"),
        ({k: v for k, v in published_vit().items() if "fc2" not in k}, r"expected also \['layers"),
        ({"model": np.random.default_rng}, "expected tensors alone; found"),
    ],
)
def test_files_that_are_refused(tmp_path, content, said):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(TrainError, match=said):
        weights.from_file(tmp_path / "w.pth", Model(), 3)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(TrainError, match=r"no file dino_vits16; names begin with hf: or timm:"):
        backbone(Model(init_from="dino_vits16"), 16, 3)
    with pytest.raises(TrainError, match=r"no model.safetensors and no checkpoint"):
        backbone(Model(init_from=str(tmp_path)), 16, 3)


def test_parts_that_are_no_head_are_not_left_out_silently(tmp_path):
    save_file({**published_vit(), "norm_pre.weight": torch.ones(WIDTH)}, tmp_path / "w.safetensors")
    with pytest.raises(TrainError, match=r"found unknown \['norm_pre.weight'\]"):
        backbone(Model(init_from=str(tmp_path / "w.safetensors")), 16, 3)
