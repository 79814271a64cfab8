"""Fine-tuning: rates by layer, mixtures, and several processes as one."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reference_train import config, finetune, model
from reference_train.augment import MultiCrop
from reference_train.splits import open_splits
from tests.train import runs

PLAIN = finetune.Protocol(epochs=1, lr=1e-2, mixup=0, cutmix=0, drop_path=0)


def tiny(*overrides):
    wanted = [a for a in runs.TINY if not a.startswith("data.test_split")]
    settings = config.load("digits", [*wanted, "data.classes=null", *overrides])
    torch.manual_seed(0)
    return settings, model.backbone(settings.model, 8, 1)


@pytest.mark.parametrize("name", ["vit_ti_16", "dinov2_s_14"])
def test_the_rate_falls_from_the_head_to_the_embeddings(name):
    _, encoder = tiny(f"model.backbone={name}")
    network = nn.Sequential(encoder, nn.Linear(encoder.n_features, 10))
    groups = finetune.parameter_groups(network, 0.5)
    found = {id(p): group for group in groups for p in group["params"]}
    assert len(found) == sum(p.requires_grad for p in network.parameters())
    for key, p in network.named_parameters():
        if not p.requires_grad:
            continue
        block = re.search(r"layers?\.(\d)", key)
        share = 0.5 ** (2 - int(block[1])) if block else 0.125 if "embeddings" in key else 1
        assert found[id(p)]["share"] == share, key
        undecayed = key.endswith("bias") or re.search("norm|token|position|lambda", key)
        assert (found[id(p)].get("weight_decay") == 0) == bool(undecayed), key


def test_smoothed_targets_are_torchs():
    logits, labels = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    own = F.cross_entropy(logits, finetune.smoothed(labels, 4, 0.1))
    torch.testing.assert_close(own, F.cross_entropy(logits, labels, label_smoothing=0.1))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_targets_are_mixed_as_images_are(kind):
    """The share of an image in the mixture, by its pixels, is its share of the target."""
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        images = torch.stack([torch.zeros(1, 12, 16), torch.ones(1, 12, 16)])
        strength = {"mixup": (0.8, 0), "cutmix": (0, 1.0)}[kind]
        out, targets = finetune.mixed(images, torch.eye(2), *strength)
        share = out[0].mean()  # of the second image in the first
        torch.testing.assert_close(
            targets, torch.stack([1 - share, share, share, 1 - share]).view(2, 2)
        )
        torch.testing.assert_close(out[1].mean(), 1 - share)
        values = out[0].unique()
        if kind == "mixup":
            assert len(values) == 1
        else:  # a rectangle
            assert set(values.tolist()) <= {0, 1}
            rows, columns = out[0, 0].any(1).sum(), out[0, 0].any(0).sum()
            assert rows * columns == out[0].sum()
        seen.add(round(float(share), 3))
    assert len(seen) > 15
    untouched = finetune.mixed(images, torch.eye(2), 0, 0)
    assert torch.equal(untouched[0], images) and torch.equal(untouched[1], torch.eye(2))


def tune(settings, encoder, protocol):
    splits = open_splits(settings.data)
    return finetune.finetune(encoder, settings, splits, protocol, cpu=True)


def test_it_learns_and_leaves_the_given_backbone_alone():
    settings, encoder = tiny("optim.warmup_epochs=0")
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    tuned = tune(settings, encoder, PLAIN._replace(epochs=3))
    assert tuned.accuracy > 0.15  # of ten classes: three deviations above chance
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
    assert not torch.equal(
        before["model.layernorm.weight"], tuned.network[0].model.layernorm.weight
    )


def tune_a_share(folder, size):
    """What one of the processes does: the first writes the weights."""
    settings, encoder = tiny(f"data.batch_size={size}")
    MultiCrop.forward = lambda self, images: [self.normalize(images.float() / 255)[None]]
    tuned = tune(settings, encoder, PLAIN._replace(lr=1e-3))
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        torch.save([tuned.network.state_dict(), tuned.accuracy], folder / f"{size}.pt")


def test_two_processes_are_one_with_the_same_batch(tmp_path):
    for processes in (1, 2):
        codes, printed = runs.run(
            tune_a_share, tmp_path, 48 // processes, output=tmp_path / "out", processes=processes
        )
        assert codes == [0] * processes, printed
    (one, accuracy), (two, other) = (torch.load(tmp_path / f"{n}.pt") for n in (48, 24))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=2e-4)
    assert accuracy == pytest.approx(other, abs=0.02)
