"""A dry run of every recipe: shapes, views, schedule and parameter count of the paper's run.

The full-size model runs on Torch's meta device, which computes shapes and no numbers; a step with
numbers is taken at the recipe's settings with a narrow model and small images.
"""

import math

import pytest
import torch

from reference_train import config, encoders, methods, model, optim
from reference_train.augment import MultiCrop
from reference_train.baselines import Prototypes
from tests.train.test_config import RECIPES

# backbone's parameters in millions, (global, local) crops, D, images on all processes of the paper
PAPER = {
    "digits": (0.2, (2, 0), 64, 64),
    "visreg_vit_b16_imagenet1k": (86, (4, 6), 256, 512),
    "visreg_vit_l14_imagenet1k": (304, (4, 6), 384, 512),
    "visreg_vit_l14_imagenet22k": (304, (2, 8), 384, 1024),
    "visreg_vit_b16_ablation": (86, (2, 6), 256, 512),
    "visreg_vit_s8_imagenette": (21.6, (4, 0), 256, 256),
    "sigreg_vit_s8_imagenette": (21.6, (4, 0), 256, 256),
    "swd_vit_s8_imagenette": (21.6, (4, 0), 256, 256),
    "visreg_vit_s8_imagenet_lt": (21.6, (4, 0), 256, 256),
    "vicreg_vit_s8_imagenet_lt": (21.6, (4, 0), 256, 256),
    "dino_vit_s8_imagenet_lt": (21.6, (4, 0), 256, 256),
    "visreg_vit_s8_galaxy10": (21.6, (4, 0), 256, 256),
    "sag_vicreg_resnet34_cifar100": (21.3, (2, 0), 1024, 256),
    "sag_vicreg_resnet50_imagenet100": (23.5, (2, 0), 8192, 256),
    "sag_vicreg_resnet50_caltech256": (23.5, (2, 0), 8192, 256),
    "sag_vicreg_vit_b16_cifar100": (86, (2, 0), 3072, 256),
}
SLICES = {  # a process
    "digits": 256,
    "visreg_vit_b16_imagenet1k": 2048,
    **dict.fromkeys(
        (
            "visreg_vit_l14_imagenet1k",
            "visreg_vit_l14_imagenet22k",
            "visreg_vit_b16_ablation",
            "visreg_vit_s8_imagenette",
            "sigreg_vit_s8_imagenette",
            "swd_vit_s8_imagenette",
            "visreg_vit_s8_imagenet_lt",
            "visreg_vit_s8_galaxy10",
        ),
        4096,
    ),
}
PROCESSES = {"imagenet1k": 32, "ablation": 32, "imagenet22k": 16}
GIVEN = ["run.folder=unused", "data.path=unused", "data.file_list=unused"]


def learner_of(settings, n_classes):
    head = None
    if settings.method.name == "dino":
        head = Prototypes(settings.model.dim, settings.method.prototypes)
    return model.Learner(settings, n_classes, head)


def test_every_recipe_is_here():
    assert sorted(PAPER) == RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_shapes_and_parameters(name):
    settings = config.load(name, GIVEN)
    millions, (n_global, n_local), dim, images = PAPER[name]
    a, n = settings.augment, 2
    with torch.device("meta"):
        learner = learner_of(settings, 10)
        crops = [torch.empty(n_global, n, settings.data.channels, a.global_size, a.global_size)]
        if n_local:
            crops.append(torch.empty(n_local, n, 3, a.local_size, a.local_size))
        outputs = learner(crops)
    count = sum(p.numel() for p in learner.backbone.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.02 if millions > 1 else 0.3)
    width = settings.method.prototypes if settings.method.name == "dino" else dim
    assert outputs.embeddings.shape == (n_global + n_local, n, width)
    assert outputs.features.shape[:2] == outputs.logits.shape[:2] == (n_global, n)
    processes = PROCESSES.get(name.split("_")[-1], 1)
    sample = methods.statistic_size(settings, processes)
    assert sample.rows == images
    assert sample.slices == (processes * SLICES[name] if name in SLICES else None)


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_with_numbers(name):
    """Crops by the recipe's augmentation, its loss and its optimiser, on a small model."""
    small = ["model.width=24", "model.depth=2", "model.heads=2"]
    if "resnet" in name:
        small = ["model.small_stem=true", "model.backbone=resnet18"]
    small += ["model.hidden=16", "model.dim=8", "method.n_slices=8", "method.n_neighbors=3"]
    small += ["method.prototypes=16"]
    settings = config.load(name, GIVEN + small)
    patch = {"vit_l_14": 14, "vit_b_16": 16, "vit_s_8": 8}.get(settings.model.backbone, 8)
    a = settings.augment
    if name != "digits":
        a.global_size, a.local_size, settings.data.size = 2 * patch, patch, 2 * patch
    torch.manual_seed(0)
    learner = learner_of(settings, 10)
    method = methods.build(settings, learner)
    optimizer = optim.optimizer(learner, settings.optim, settings.probe)
    size = settings.data.size
    images = torch.randint(0, 256, (6, settings.data.channels, size, size), dtype=torch.uint8)
    crops = MultiCrop(a, settings.data)(images)
    assert [tuple(c.shape[:2]) for c in crops] == [(v, 6) for v in (a.n_global, a.n_local) if v]
    before = [p.clone() for p in optim.trained(learner)]
    terms = method(learner(crops), crops, 0)
    terms["loss"].backward()
    optimizer.step()
    assert all(math.isfinite(t.item()) for t in terms.values())
    after = list(optim.trained(learner))
    assert all(p.grad is not None for p in after)
    assert any(not torch.equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_schedule(name):
    """Up to lr over the warm-up; then down to lr / 1000, or constant on Imagenette's recipes."""
    settings = config.load(name, GIVEN).optim
    per_epoch, epochs = 100, 50
    steps, warmup = per_epoch * epochs, round(settings.warmup_epochs * per_epoch)
    rates = [optim.learning_rate(s, steps, warmup, settings) for s in range(steps)]
    assert max(rates) == pytest.approx(settings.lr)
    if warmup:
        assert rates[0] == pytest.approx(settings.lr / warmup)
        assert rates[warmup - 1] == pytest.approx(settings.lr)
    last = settings.lr if settings.decay == "constant" else settings.lr / 1000
    assert rates[-1] == pytest.approx(last)
    assert all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    if settings.decay == "cosine":  # half of the way down at half of the way
        middle = rates[warmup + (steps - warmup) // 2]
        assert middle == pytest.approx(settings.lr * (1 + 1e-3) / 2, rel=2e-3)


def test_a_statistic_sees_what_the_scope_says():
    settings = config.load("digits", ["method.scope=local", "run.accumulate=2"])
    assert methods.statistic_size(settings, 4) == (64, 256)
    settings.method.scope = "global"
    assert methods.statistic_size(settings, 4) == (256, 1024)
    settings.run.statistics = "batch"
    assert methods.statistic_size(settings, 4) == (512, 1024)
    settings.method.name = "vicreg"
    assert methods.statistic_size(settings, 4) == (512, None)


@pytest.mark.parametrize("backbone", ["vit_ti_16", "dinov2_s_14"])
def test_stochastic_depth(backbone):
    """Branches drop in training alone, and their mean over draws is that of evaluation."""
    overrides = [f"model.backbone={backbone}", "model.drop_path=0.5", "model.layers=1"]
    settings = config.load("digits", overrides)
    torch.manual_seed(0)
    encoder = model.backbone(settings.model, 8, 1)
    images = torch.randn(1, 1, 8, 8).expand(2000, -1, -1, -1)
    with torch.no_grad():
        evaluated, trained = encoder.eval()(images), encoder.train()(images)
        assert torch.allclose(evaluated, evaluated[:1].expand_as(evaluated), atol=1e-5)
    distinct = torch.unique(trained.round(decimals=4), dim=0)
    assert 2 < len(distinct) <= 2**4  # two branches of two blocks that drop; the first never does


def test_branches_are_enlarged_by_how_rarely_they_are_kept():
    torch.manual_seed(0)
    branch = encoders.DropPath(0.25)
    out = branch(torch.ones(40_000, 3, 2))
    assert torch.unique(out).tolist() == pytest.approx([0, 4 / 3])
    assert (out == out[:, :1, :1]).all()
    assert out.mean().item() == pytest.approx(1, abs=0.02)
