"""A backbone leaves for other libraries and comes back with the same features."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from reference_train import export, loading
from reference_train.config import load
from reference_train.model import Learner
from tests.train import runs
from tests.train.test_foreign import models, transcribed_vit  # noqa: F401


def learner_of(*overrides):
    """A random one, its BatchNorms' statistics and its norms random, too."""
    config = load("digits", [*runs.TINY, *overrides])
    torch.manual_seed(0)
    learner = Learner(config, 0)
    with torch.no_grad():
        for module in learner.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(1, 2)
        for p in learner.backbone.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return config, learner.backbone.eval()


KINDS = {
    "vit": ["model.backbone=vit_ti_16"],
    "dinov2": ["model.backbone=dinov2_s_14"],
    "resnet": ["model.backbone=resnet18"],
}


@pytest.mark.parametrize("to", export.FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_export_read_back_has_the_same_features(kind, to, tmp_path):
    config, encoder = learner_of(*KINDS[kind])
    files = export.export(encoder, config, to, tmp_path / "out", "runs/own")
    expected = {"hf": {"config.json", "preprocessor_config.json"}, "timm": {"config.json"}}
    assert set(files) == {"README.md", "model.safetensors", *expected.get(to, ())}
    name = f"hf:{tmp_path / 'out'}" if to == "hf" else str(tmp_path / "out")
    given = ["data.channels=1", "augment.global_size=8"]
    if to == "safetensors" and kind != "resnet":
        given.append("model.heads=2")
    back, learner = loading.of_model(name, given)
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(
        learner.backbone.eval()(images), encoder(images), rtol=1e-4, atol=1e-4
    )
    if to != "safetensors":
        assert (back.data.mean, back.data.std) == (config.data.mean, config.data.std)


def test_names_are_those_of_the_authors():
    """Against a transcription of timm's forward pass that knows nothing of Transformers."""
    _, encoder = learner_of("model.width=128")
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        tokens = transcribed_vit(export.published(encoder), images)
        torch.testing.assert_close(tokens[:, 0], encoder(images, layers=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["msn", "mae", "dinov2", "registers", "ijepa"])
@torch.no_grad()
def test_families_that_timm_has_names_for(models, family, tmp_path):  # noqa: F811
    config, learner = loading.of_model(f"hf:{models[0] / family}", ["augment.global_size=16"])
    export.export(learner.backbone.eval(), config, "timm", tmp_path, "x", trained=False)
    _, back = loading.of_model(str(tmp_path), ["augment.global_size=16"])
    images = torch.randn(2, 3, 16, 16)
    expected = learner.backbone(images)
    torch.testing.assert_close(back.backbone.eval()(images), expected, rtol=1e-3, atol=1e-4)


def test_families_without_names_of_timm(models, tmp_path):  # noqa: F811
    config, learner = loading.of_model(f"hf:{models[0] / 'beit'}", ["augment.global_size=16"])
    with pytest.raises(export.TrainError, match="no names of timm for the family beit: --to hf"):
        export.export(learner.backbone, config, "safetensors", tmp_path, "x")


def test_the_card_says_what_it_is(tmp_path):
    config, encoder = learner_of()
    export.export(encoder, config, "timm", tmp_path, "runs/own")
    text = (tmp_path / "README.md").read_text()
    for said in (
        "library_name: timm",
        "| method | visreg |",
        "| trained on | digits |",
        "CLS token",
    ):
        assert said in text
    stated = json.loads((tmp_path / "config.json").read_text())
    assert stated["pretrained_cfg"]["mean"] == config.data.mean
    assert stated["model_args"]["num_heads"] == 2
    assert load_file(tmp_path / "model.safetensors")["pos_embed"].shape == (1, 5, 16)


def test_the_command(tmp_path, capsys):
    from transformers import ViTConfig, ViTModel

    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "patch_size": 4}
    ViTModel(ViTConfig(**shape, intermediate_size=32, image_size=8)).save_pretrained(tmp_path / "v")
    given = ["--model", f"hf:{tmp_path / 'v'}", "--out", str(tmp_path / "out")]
    export.main([*given, "--to", "safetensors"])
    assert str(tmp_path / "out" / "model.safetensors") in capsys.readouterr().out
    assert "not by this trainer" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(SystemExit):
        export.main(["nowhere", "--to", "hf", "--out", str(tmp_path / "x")])
    assert "nowhere: no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["hf", "timm"])
def test_a_stem_that_they_do_not_have(to, tmp_path):
    config, encoder = learner_of("model.backbone=resnet18", "model.small_stem=true")
    with pytest.raises(export.TrainError, match="--to safetensors"):
        export.export(encoder, config, to, tmp_path, "runs/own")
