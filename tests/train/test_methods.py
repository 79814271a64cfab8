"""Methods, optimisers and normalisation against transcriptions and closed forms."""

import math
import sys
import types

import numpy as np
import pytest
import torch

import visreg_core as vc
from reference_train import baselines, config, methods, optim
from reference_train.augment import MultiCrop, Resize
from reference_train.config import METHODS, Augment, Data
from reference_train.errors import TrainError
from reference_train.model import Learner, Outputs, backbone, rounded
from reference_train.splits import open_splits
from reference_train.train import new_learner

SMALL = [
    "run.folder=unused",
    "model.width=16",
    "model.depth=2",
    "model.heads=2",
    "model.hidden=16",
    "model.dim=8",
    "method.n_slices=8",
    "method.n_neighbors=4",
    "method.prototypes=16",
    "method.queue=20",
]


def built(*overrides):
    settings = config.load("digits", [*SMALL, *overrides])
    torch.manual_seed(0)
    learner = new_learner(settings, open_splits(settings.data).n_classes)
    return settings, learner, methods.build(settings, learner)


def outputs_of(views, n_global=2):
    return Outputs(views, views[:n_global], None), [torch.empty(n_global)]


@pytest.mark.parametrize("name", METHODS)
def test_terms_start_with_the_loss_and_move_every_weight(name):
    settings, learner, method = built(f"method.name={name}")
    images = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8)
    crops = MultiCrop(settings.augment, settings.data)(images)
    terms = method(learner(crops), crops, 3)
    assert next(iter(terms)) == "loss"
    assert all(t.ndim == 0 and math.isfinite(t.item()) for t in terms.values())
    terms["loss"].backward()
    assert all(p.grad is not None for p in optim.trained(learner))


def test_visreg_is_the_joint_objective():
    _, _, method = built("method.lam=0.7", "method.shape=2", "run.seed=4")
    views = torch.randn(4, 12, 8, dtype=torch.float64)
    outputs, crops = outputs_of(views, n_global=3)
    terms = method(outputs, crops, 5)
    slices = vc.random_slices(8, 8, seed=4, step=5, xp=torch, dtype=torch.float64)
    expected = vc.visreg_loss(views, slices, (1.0, 2.0, 1.0))
    spread = ((views - views[:3].mean(0)) ** 2).mean()
    torch.testing.assert_close(terms["invariance"], spread)
    torch.testing.assert_close(terms["shape"], expected.shape)
    torch.testing.assert_close(terms["loss"], 0.3 * spread + 0.7 * expected.total)


def test_slices_change_with_the_step():
    _, _, method = built("method.name=swd")
    outputs, crops = outputs_of(torch.randn(2, 12, 8))
    values = [method(outputs, crops, s)["regularizer"].item() for s in (0, 1, 0)]
    assert values[0] == values[2] != values[1]


def test_vicreg_and_barlow_twins_have_the_configurations_weights():
    views = torch.randn(3, 12, 8, dtype=torch.float64)
    outputs, crops = outputs_of(views, n_global=3)
    _, _, vicreg = built("method.name=vicreg", "method.variance=3", "method.covariance=0.5")
    expected = vc.vicreg_loss(views, weights=(25, 3, 0.5))
    torch.testing.assert_close(vicreg(outputs, crops, 0)["loss"], expected.total)
    _, _, barlow = built("method.name=barlow_twins", "method.off_diagonal=0.1")
    expected = vc.barlow_twins_loss(views, off_diagonal_weight=0.1)
    torch.testing.assert_close(barlow(outputs, crops, 0)["loss"], expected.total)


def test_sag_vicreg_walks_by_the_step():
    _, _, method = built("method.name=sag_vicreg")
    views = torch.randn(2, 12, 8, dtype=torch.float64)
    outputs, crops = outputs_of(views)
    affinity = vc.random_walk_affinity(*views, n_neighbors=4)
    pairs = vc.sample_random_walk(vc.transition_matrix(affinity), seed=0, step=7)
    weights = affinity[torch.arange(12), pairs.long()]
    expected = vc.sag_vicreg_loss(*views, pairs, weights)
    torch.testing.assert_close(method(outputs, crops, 7)["loss"], expected.total)


def test_a_loss_by_its_import_name_is_joined_with_the_invariance():
    views = torch.randn(3, 12, 8, dtype=torch.float64)
    outputs, crops = outputs_of(views, n_global=2)
    own = ["method.name=visreg_torch:sliced_statistic", "+method.options.statistic=watson"]
    _, _, method = built(*own, "method.lam=0.3", "run.seed=4")
    slices = vc.random_slices(8, 8, seed=4, step=5, xp=torch, dtype=torch.float64)
    expected = vc.sliced_statistic(views, slices, statistic="watson")
    terms = method(outputs, crops, 5)
    torch.testing.assert_close(terms["regularizer"], expected)
    torch.testing.assert_close(terms["loss"], 0.7 * terms["invariance"] + 0.3 * expected)


def test_a_class_by_its_import_name_takes_the_runs_settings(monkeypatch):
    class Loss(torch.nn.Module):
        def __init__(self, n_slices, power, seed=9):
            super().__init__()
            self.given = n_slices, power, seed

        def forward(self, z, step):
            return (z**2).sum() * step

    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(Loss=Loss))
    _, _, method = built("method.name=mine:Loss", "+method.options.power=3", "method.lam=1")
    assert method.joint.regularizer.given == (8, 3, 0)
    views = torch.randn(2, 12, 8)
    torch.testing.assert_close(method(*outputs_of(views), 2)["loss"], 2 * (views**2).sum())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.name=visreg_torch:nope"], "no attribute 'nope'"),
        (["method.name=no_such_package.losses:loss"], "No module named 'no_such_package'"),
        (["method.name=math:pi"], "expected a function or class; found 3.14"),
        (
            ["method.name=visreg_torch:gaussian_mmd", "+method.options.kernl=imq"],
            "visreg_torch:gaussian_mmd: .*'kernl'",
        ),
        (["+method.options.a=1"], "no effect without your own loss"),
    ],
)
def test_wrong_losses_of_ones_own_are_named(overrides, message):
    with pytest.raises(TrainError, match=message):
        built(*overrides)


def test_simclr_against_a_transcription():
    rng = np.random.default_rng(0)
    views = rng.standard_normal((3, 5, 4))
    unit = views / np.linalg.norm(views, axis=-1, keepdims=True)
    temperature, total, count = 0.3, 0.0, 0
    for i in range(3):
        for j in range(3):
            if i == j:
                continue
            for n in range(5):
                mine = unit[i, n]
                others = [unit[i, m] @ mine for m in range(5) if m != n]
                others += [unit[j, m] @ mine for m in range(5)]
                positive = math.exp(unit[j, n] @ mine / temperature)
                total -= math.log(positive / sum(math.exp(s / temperature) for s in others))
                count += 1
    outputs, crops = outputs_of(torch.from_numpy(views))
    loss = baselines.SimCLR(temperature, "local")(outputs, crops, 0)["loss"]
    assert loss.item() == pytest.approx(total / count, rel=1e-12)


def test_dino_against_a_transcription():
    settings, learner, method = built("method.name=dino")
    method.center.copy_(torch.linspace(-0.1, 0.1, 16))
    center = method.center.numpy().astype(float)
    images = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)
    crops = MultiCrop(settings.augment, settings.data)(images)
    with torch.no_grad():
        outputs = learner(crops)
        teacher = method.teacher(crops[:1]).embeddings.double().numpy()
        loss = method(outputs, crops, 0)["loss"].item()

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    target = softmax((teacher - center) / 0.04)
    log_student = np.log(softmax(outputs.embeddings.double().numpy() / 0.1))
    pairs = [(0, 1), (1, 0)]
    expected = np.mean([-(target[g] * log_student[v]).sum(-1).mean() for g, v in pairs])
    assert loss == pytest.approx(expected, rel=1e-5)
    moved = 0.9 * center + 0.1 * teacher.mean((0, 1))
    np.testing.assert_allclose(method.center.numpy(), moved, atol=1e-6)


def both(method, learner, crops):
    """Embeddings of the learner and of the teacher, each (V, N, D or 2 D), and the loss."""
    with torch.no_grad():
        outputs = learner(crops)
        teacher = getattr(method, "teacher", learner)(crops[:1]).embeddings
        loss = method(outputs, crops, 0)["loss"].item()
    return outputs.embeddings.double().numpy(), teacher.double().numpy(), loss


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", ["simsiam", "byol", "moco", "nnclr"])
def test_predicted_views_against_a_transcription(name):
    settings, learner, method = built(f"method.name={name}", "augment.n_global=3")
    if name in ("byol", "moco"):  # a teacher that is another network
        with torch.no_grad():
            for p in method.teacher.parameters():
                p.add_(0.1 * torch.randn_like(p))
    images = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)
    crops = MultiCrop(settings.augment, settings.data)(images)
    before = method.queue.rows.double().numpy().copy() if hasattr(method, "queue") else None
    student, teacher, loss = both(method, learner, crops)
    z, p = (student, student) if name == "moco" else np.split(student, 2, axis=-1)
    target = teacher if name == "moco" else np.split(teacher, 2, axis=-1)[0]
    total, count = 0.0, 0
    for g in range(3):
        for v in range(3):
            if v == g:
                continue
            for n in range(6):
                q, t = unit(p[v, n]), unit(target[g, n])
                if name == "simsiam":
                    total -= q @ t
                elif name == "byol":
                    total += np.sum((q - t) ** 2)
                elif name == "moco":
                    scores = np.exp(np.array([q @ t, *(q @ k for k in before)]) / 0.1)
                    total -= np.log(scores[0] / scores.sum())
                else:
                    near = max(before, key=lambda k: k @ unit(z[g, n]))
                    scores = np.exp([near @ unit(p[v, m]) / 0.1 for m in range(6)])
                    total -= np.log(scores[n] / scores.sum())
                count += 1
    assert loss == pytest.approx(total / count, rel=1e-4)
    if before is not None:
        new = unit(target if name == "moco" else z[:1]).reshape(-1, 8)
        kept = np.concatenate([new, before])[:20]
        np.testing.assert_allclose(method.queue.rows.numpy(), kept, atol=1e-5)


@pytest.mark.parametrize("name", ["simsiam", "byol", "moco", "nnclr"])
def test_no_gradient_goes_through_targets(name):
    """That of the loss is the one through the views alone: against central differences."""
    _, _, method = built(f"method.name={name}")
    method.double()
    torch.manual_seed(1)
    fixed, views = (torch.randn(2, 5, 8 if name == "moco" else 16).double() for _ in range(2))
    if hasattr(method, "teacher"):
        method.taught = lambda crops, dtype: fixed

    def loss(predicted, embedded):
        z, p = embedded.chunk(2, -1)[0], predicted.chunk(2, -1)[1]
        given = predicted if name == "moco" else torch.cat([z, p], -1)
        rows = method.queue.rows if hasattr(method, "queue") else None
        found = method(*outputs_of(given), 0)["loss"]
        if rows is not None:
            method.queue.rows = rows
        return found

    views.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(views, views), views)
    step = 1e-6 * torch.randn_like(views)
    with torch.no_grad():  # moved where views predict, not where they are targets
        difference = loss(views + step, views) - loss(views - step, views)
    assert difference.item() == pytest.approx(2 * (gradient * step).sum().item(), rel=1e-5)


def test_dinos_last_layer_is_fixed_for_an_epoch():
    settings, learner, method = built("method.name=dino", "method.freeze_epochs=2")
    optimizer = optim.optimizer(learner, settings.optim, settings.probe)
    prototypes, other = learner.projector[-1].weight, learner.projector[0].weight
    for epoch, moves in ((0, False), (1.9, False), (2, True)):
        before = [p.detach().clone() for p in (prototypes, other)]
        for p in learner.parameters():
            p.grad = torch.ones_like(p)
        method.before_step(learner, epoch)
        optimizer.step()
        assert torch.equal(prototypes, before[0]) is not moves
        assert not torch.equal(other, before[1])


def test_dinos_teacher_follows_by_the_momentum():
    _, learner, method = built("method.name=dino")
    name = "backbone.model.layernorm.weight"
    before = method.teacher.get_parameter(name).clone()
    with torch.no_grad():
        learner.get_parameter(name).add_(1.0)
    method.after_step(learner, progress=0.5)
    keep = 1 - (1 - 0.996) / 2  # half of the way of the cosine
    moved = keep * before + (1 - keep) * (before + 1)
    torch.testing.assert_close(method.teacher.get_parameter(name), moved)
    method.after_step(learner, progress=1.0)
    torch.testing.assert_close(method.teacher.get_parameter(name), moved)


# --- optimisers -----------------------------------------------------------------------------------


def test_lars_against_its_formula():
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    b = torch.nn.Parameter(torch.randn(4, dtype=torch.float64))
    groups = [
        {"name": "decayed", "params": [w]},
        {"name": "plain", "params": [b], "weight_decay": 0.0},
    ]
    optimizer = optim.LARS(groups, lr=0.5, weight_decay=0.01, momentum=0.9, trust=0.02)
    weight, bias, momentum = w.detach().numpy().copy(), b.detach().numpy().copy(), [0.0, 0.0]
    for step in range(3):
        gradients = [np.full((4, 3), 1.0 + step), np.arange(4.0)]
        w.grad, b.grad = (torch.from_numpy(g) for g in gradients)
        optimizer.step()
        g = gradients[0] + 0.01 * weight
        g *= 0.02 * np.linalg.norm(weight) / np.linalg.norm(g)
        momentum = [0.9 * momentum[0] + g, 0.9 * momentum[1] + gradients[1]]
        weight, bias = weight - 0.5 * momentum[0], bias - 0.5 * momentum[1]
    np.testing.assert_allclose(w.detach().numpy(), weight, rtol=1e-12)
    np.testing.assert_allclose(b.detach().numpy(), bias, rtol=1e-12)


def test_lars_leaves_zero_weights_and_gradients_finite():
    w = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = optim.LARS([{"name": "decayed", "params": [w]}], 1.0, 0.0, 0.9, 1e-3)
    w.grad = torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(w, torch.zeros(2, 2))


def test_only_matrices_decay():
    _, learner, _ = built()
    groups = {g["name"]: g for g in optim.parameter_groups(learner, config.Optim(), config.Probe())}
    names = {id(p): n for n, p in learner.named_parameters()}
    decayed = {names[id(p)] for p in groups["decayed"]["params"]}
    plain = {names[id(p)] for p in groups["plain"]["params"]}
    assert len(decayed) + len(plain) + 2 == len(names)
    assert all(n.endswith("weight") and "norm" not in n for n in decayed)
    assert any("cls_token" in n for n in plain) and any("position" in n for n in plain)
    assert all(g["weight_decay"] == 0 for n, g in groups.items() if n != "decayed")


# --- model and crops ------------------------------------------------------------------------------


def test_features_are_the_cls_tokens_of_the_last_layers():
    _, learner, _ = built()
    images = torch.randn(3, 1, 8, 8)
    states = learner.backbone.model(images, output_hidden_states=True).hidden_states
    norm = learner.backbone.model.layernorm
    expected = torch.cat([norm(states[-2])[:, 0], norm(states[-1])[:, 0]], dim=-1)
    torch.testing.assert_close(learner.backbone(images), expected)
    last = learner.backbone.model(images).last_hidden_state[:, 0]
    torch.testing.assert_close(learner.backbone(images, layers=1), last)


def test_the_probe_leaves_the_backbone_alone():
    _, learner, _ = built()
    learner([torch.randn(2, 6, 1, 8, 8)]).logits.sum().backward()
    assert all(p.grad is None for p in learner.backbone.parameters())
    assert all(p.grad is not None for p in learner.probe.parameters())


def test_a_local_crop_has_its_own_size():
    settings = Augment(n_global=1, n_local=3, global_size=16, local_size=8)
    images = torch.randint(0, 256, (5, 3, 20, 20), dtype=torch.uint8)
    sizes = [tuple(c.shape) for c in MultiCrop(settings, Data())(images)]
    assert sizes == [(1, 5, 3, 16, 16), (3, 5, 3, 8, 8)]


def test_crops_differ_by_image_and_by_crop():
    images = torch.randint(0, 256, (1, 3, 20, 20), dtype=torch.uint8).expand(2, -1, -1, -1)
    (crops,) = MultiCrop(Augment(global_size=16), Data())(images)
    flat = crops.flatten(0, 1)
    assert all(not torch.equal(flat[i], flat[j]) for i in range(4) for j in range(i))


def test_without_augmentation_a_crop_is_the_image():
    plain = Augment(
        global_size=16, global_scale=[1.0, 1.0], ratio=[1.0, 1.0], flip=0.0, jitter=0.0,
        grayscale=0.0, blur=0.0, solarize=0.0,
    )  # fmt: skip
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    (crops,) = MultiCrop(plain, Data())(images)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (Data().mean, Data().std))
    expected = (images / 255 - mean) / std
    torch.testing.assert_close(Resize(plain, Data())(images), expected)
    for crop in crops:
        torch.testing.assert_close(crop, expected, atol=1e-4, rtol=0)


def test_unknown_backbones_and_patches_that_do_not_tile(monkeypatch):
    from reference_train.errors import TrainError

    with pytest.raises(TrainError, match="nearest: vit_b_16"):
        backbone(config.Model(backbone="vit_b16"), 224, 3)
    with pytest.raises(TrainError, match="patches of 14 do not tile 225"):
        backbone(config.Model(backbone="vit_l_14"), 225, 3)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(TrainError, match="timm:resnet18 needs timm"):
        backbone(config.Model(backbone="timm:resnet18"), 224, 3)


def test_any_automodel_from_a_folder(tmp_path):
    from transformers import ResNetConfig, ViTConfig, ViTModel

    made = ViTModel(
        ViTConfig(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
            image_size=8, patch_size=4,
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    made.save_pretrained(tmp_path / "vit")
    settings = config.Model(backbone=f"hf:{tmp_path / 'vit'}", pretrained=True)
    loaded = backbone(settings, 8, 3)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(loaded(images, layers=1), made(images).last_hidden_state[:, 0])
    ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1]).save_pretrained(
        tmp_path / "res"
    )
    fresh = backbone(config.Model(backbone=f"hf:{tmp_path / 'res'}"), 32, 3)
    assert isinstance(fresh, torch.nn.Module) and fresh.n_features == 12


def test_automodels_that_are_pooled(tmp_path):
    from transformers import ConvNextConfig, SwinConfig

    SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4
    ).save_pretrained(tmp_path / "swin")
    ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1]).save_pretrained(
        tmp_path / "convnext"
    )
    for name in ("swin", "convnext"):
        settings = config.Model(backbone=f"hf:{tmp_path / name}")
        made = backbone(settings, 32, 3)
        features = made(torch.randn(2, 3, 32, 32))
        assert features.shape == (2, 16) == (2, made.n_features)
        features.square().sum().backward()
        assert all(p.grad is not None for p in made.parameters())
        with pytest.raises(TrainError, match=r"takes 3 channels; found data.channels=1$"):
            backbone(settings, 32, 1)
    with pytest.raises(TrainError, match=r"swin on crops of 8 pixels: .*size of tensor.*"):
        backbone(config.Model(backbone=f"hf:{tmp_path / 'swin'}"), 8, 3)


def test_a_model_of_timm_gets_the_options_that_it_takes(monkeypatch):
    """Stand-ins for a convolution, a transformer of one size, and one of any."""

    class Model(torch.nn.Module):
        def __init__(self, num_classes, in_chans):
            super().__init__()
            assert num_classes == 0
            self.weight = torch.nn.Parameter(torch.ones(5, in_chans))

        def forward(self, images):
            return images.mean((-2, -1)) @ self.weight.T

    class Sized(Model):
        def __init__(self, img_size, **options):
            super().__init__(**options)
            self.size = img_size

        def forward(self, images):
            assert images.shape[-1] == self.size, "another size"
            return super().forward(images)

    class AnySize(Sized):
        def __init__(self, dynamic_img_size=False, **options):
            super().__init__(**options)
            self.dynamic = dynamic_img_size

        def forward(self, images):
            return (Model if self.dynamic else Sized).forward(self, images)

    models = {"model": Model, "sized": Sized, "any_size": AnySize}

    def create_model(name, pretrained, **options):
        if name not in models:
            raise RuntimeError(f"Unknown model ({name})")
        return models[name](**options)

    stand_in = types.SimpleNamespace(create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    for name in models:
        made = backbone(config.Model(backbone=f"timm:{name}"), 8, 2)
        assert made.training and made.n_features == 5
        assert made(torch.ones(3, 2, 8, 8)).shape == (3, 5)
        if name != "sized":
            assert made(torch.ones(3, 2, 4, 4)).shape == (3, 5)
    with pytest.raises(TrainError, match=r"^timm:resnet: Unknown model \(resnet\)$"):
        backbone(config.Model(backbone="timm:resnet"), 8, 2)


def test_models_of_timm():
    pytest.importorskip("timm", reason="timm, which is optional, is not installed")
    for name in ("resnet18", "vit_tiny_patch16_224"):
        made = backbone(config.Model(backbone=f"timm:{name}"), 32, 1)
        features = made(torch.randn(2, 1, 32, 32))
        assert features.shape == (2, made.n_features) == made(torch.randn(2, 1, 16, 16)).shape
        features.square().sum().backward()
        assert all(p.grad is not None for p in made.parameters())


def test_every_weight_of_an_automodel_is_trained(tmp_path):
    """What takes no part is left out: poolers, tokens of masked patches."""
    from transformers import DeiTConfig, Dinov2Config, ViTConfig

    shape = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
        "patch_size": 4, "num_channels": 1,
    }  # fmt: skip
    for kind in (ViTConfig, DeiTConfig, Dinov2Config):
        kind(**shape).save_pretrained(tmp_path / kind.__name__)
        _, learner, _ = built(f"model.backbone=hf:{tmp_path / kind.__name__}")
        crops = [torch.randn(2, 6, 1, 8, 8), torch.randn(1, 6, 1, 4, 4)]
        learner(crops).embeddings.square().sum().backward()
        assert all(p.grad is not None for p in optim.trained(learner)), kind


@pytest.mark.parametrize(
    ("count", "said"), [(864, "864"), (29_120, "29 k"), (999_600, "1.0 M"), (85_798_656, "85.8 M")]
)
def test_counts_of_parameters_are_rounded(count, said):
    assert rounded(count) == said


def test_the_same_seed_makes_the_same_learner():
    a, b = (built()[1] for _ in range(2))
    assert isinstance(a, Learner)
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y)
