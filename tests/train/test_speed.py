"""Settings of speed and memory change no value; averages of weights; losses of one's own."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from reference_train import config, data, evaluate, optim, speed
from reference_train.config import Data
from reference_train.errors import TrainError
from reference_train.model import Learner
from reference_train.own_loss import own_loss
from reference_train.sources import ImageArrays
from reference_train.train import main
from tests.train import runs

GIVEN = [*runs.TINY, "run.folder=unused"]


def learner_of(*given, hasten=True):
    settings = config.load("digits", [*GIVEN, *given])
    torch.manual_seed(0)
    learner = Learner(settings, 10)
    if hasten:
        speed.hasten(learner, settings.run)
    return learner, settings


def gradients(learner, images=None, saved=None):
    """Of a sum of squares; `saved` is called with each tensor kept for the backward pass."""
    torch.manual_seed(1)
    crops = torch.randn(2, 6, 1, 8, 8) if images is None else images
    with torch.autograd.graph.saved_tensors_hooks(saved or (lambda x: x), lambda x: x):
        out = learner([crops])
    out.embeddings.square().sum().backward()
    found = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    return out.embeddings.detach(), found


def assert_close(a, b, **tolerance):
    torch.testing.assert_close(a[0], b[0], **tolerance)
    assert list(a[1]) == list(b[1])
    for name in a[1]:
        torch.testing.assert_close(a[1][name], b[1][name], **tolerance, msg=name)


def test_recomputing_keeps_less_and_gives_the_same_bits():
    """Also where branches are left out at random: they are the same ones again."""
    drop = "model.drop_path=0.5"
    sizes = {}

    def keeping(name):
        sizes[name] = 0

        def keep(x):
            sizes[name] += x.numel()
            return x

        return keep

    plain = gradients(learner_of(drop)[0], saved=keeping("plain"))
    again = gradients(learner_of(drop, "run.recompute=true")[0], saved=keeping("again"))
    assert_close(plain, again, rtol=0, atol=0)
    assert sizes["again"] < 0.5 * sizes["plain"]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # by Dynamo
def test_each_block_is_compiled(monkeypatch):
    """By a backend that traces; the weights keep their names."""
    compiled = []
    compile_ = torch.nn.Module.compile

    def noted(self, **options):
        compiled.append((self, options))
        compile_(self, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", noted)
    plain, _ = learner_of()
    made, _ = learner_of("run.compile=aot_eager")
    assert [module for module, _ in compiled] == list(made.backbone.blocks)
    assert {options["backend"] for _, options in compiled} == {"aot_eager"}
    assert list(made.state_dict()) == list(plain.state_dict())
    assert_close(gradients(plain), gradients(made), rtol=1e-4, atol=1e-5)


def test_a_backend_that_is_not_there_is_one_line():
    with pytest.raises(TrainError, match=r"run\.compile: expected one of .*; found 'induktor'"):
        learner_of("run.compile=induktor")


def test_channels_last_is_a_layout():
    resnet = ["model.backbone=resnet18", "model.small_stem=true", "run.channels_last=true"]
    made, _ = learner_of(*resnet)
    plain, _ = learner_of(*resnet, hasten=False)
    weight = made.backbone.model.embedder.embedder.convolution.weight
    layers = [p for p in made.parameters() if p.ndim == 4 and p.shape[1] > 1]
    assert weight.shape[2] == 3 and layers
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in layers)
    made, plain = made.double(), plain.double()
    torch.manual_seed(2)
    images = torch.randn(2, 6, 1, 8, 8, dtype=torch.float64)
    assert_close(gradients(plain, images), gradients(made, images), rtol=1e-7, atol=1e-8)


def test_tf32_is_asked_for_and_given_back():
    before = torch.get_float32_matmul_precision()
    try:
        learner_of("run.tf32=true")
        assert torch.get_float32_matmul_precision() == "high"
        learner_of()
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_one_kernel_of_adamw_makes_the_same_steps():
    weights, images = [], torch.randn(2, 6, 1, 8, 8)
    for fused in ("false", "true"):
        learner, settings = learner_of(f"optim.fused={fused}", "optim.lr=0.01")
        optimizer = optim.optimizer(learner.double(), settings.optim, settings.probe)
        assert optimizer.defaults["fused"] is (True if fused == "true" else None)
        for _ in range(3):
            gradients(learner, images.double())
            optimizer.step()
            optimizer.zero_grad()
        weights.append(learner.state_dict())
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], msg=name)


def test_prefetching_is_the_loaders():
    source = ImageArrays(np.zeros((8, 1, 4, 4), np.uint8), np.arange(8))
    settings = Data(batch_size=4, workers=1, prefetch=5)
    loader = data.batches(source, settings, seed=0, rank=0, world=1, start=0).loader
    assert isinstance(loader, DataLoader)
    assert (loader.num_workers, loader.prefetch_factor) == (1, 5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["optim.fused=true", "optim.name=lars"], "optim.fused: has no effect without optim.name"),
        (["data.prefetch=4"], "data.prefetch: has no effect without data.workers"),
        (["+method.options.a=1"], "method.options: has no effect without your own loss"),
        (["run.recompute=true", "model.backbone=resnet18"], "run.recompute: has no effect without"),
    ],
)
def test_settings_without_effect_are_refused(given, said):
    with pytest.raises(TrainError, match=said):
        config.load("digits", [*GIVEN, *given])


# --- the average of the weights -------------------------------------------------------------------


def test_the_average_of_the_weights_is_what_is_evaluated(tmp_path):
    """Against the recurrence over the checkpoints of every step; over a resume."""
    given = ["optim.ema=0.8", "run.keep=20", "run.max_steps=5"]
    command = runs.command(tmp_path / "run", *given)
    codes, printed = runs.run(main, command, output=tmp_path / "o")
    assert codes == [0], printed
    states = [runs.state(tmp_path / "run", step) for step in range(1, 6)]
    expected = {k: v.double() for k, v in states[0]["learner"].items()}
    for state in states[1:]:
        for name, weight in state["learner"].items():
            if weight.is_floating_point() and "running" not in name:
                expected[name] = 0.8 * expected[name] + 0.2 * weight.double()
            else:  # statistics and counts are the last ones
                expected[name] = weight.double()
    found = speed.averaged(states[-1]["average"])
    assert list(found) == list(expected)
    for name, weight in found.items():
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)
    for step in (4, 5):
        (tmp_path / "run" / f"checkpoint-{step:09d}.pt").unlink()
    codes, printed = runs.run(main, command, output=tmp_path / "again")
    assert codes == [0] and "resuming from" in printed
    runs.assert_same(runs.state(tmp_path / "run", 5), states[-1])
    run = evaluate.load_run(tmp_path / "run", ["data.test_split=val"], untrained=False, cpu=True)
    for name, weight in run.learner.state_dict().items():
        torch.testing.assert_close(weight, found[name].to(weight.dtype), rtol=0, atol=0)


def test_counting_the_averages_waits_for_no_device():
    learner, _ = learner_of()
    average = speed.average(learner, 0.9)
    assert average.n_averaged.device.type == "cpu"
    assert speed.average(learner, None) is None


# --- recipes and losses of one's own --------------------------------------------------------------

LOSS = """
from typing import NamedTuple

import torch

class Terms(NamedTuple):
    total: torch.Tensor
    spread: torch.Tensor

class Uniform(torch.nn.Module):
    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = weight

    def forward(self, embeddings, step):
        invariance = (embeddings - embeddings.mean(0)).square().mean()
        spread = embeddings.flatten(0, 1).std(0).sub(1).square().mean()
        return Terms(invariance + self.weight * spread, spread)

def norms(embeddings, power):
    return embeddings.norm(dim=-1).pow(power).mean()
"""


def test_a_recipe_and_a_loss_from_elsewhere(tmp_path):
    """A recipe file that begins with one of these, and a file with a class of a loss."""
    (tmp_path / "mine.py").write_text(LOSS)
    (tmp_path / "own.yaml").write_text(
        "defaults: [digits, _self_]\n"
        f"method: {{name: '{tmp_path}/mine.py:Uniform', options: {{weight: 3.0}}}}\n"
    )
    command = ["--config-name", str(tmp_path / "own.yaml"), *runs.TINY]
    command += [f"run.folder={tmp_path / 'run'}", "run.max_steps=2"]
    codes, printed = runs.run(main, command, output=tmp_path / "o")
    assert codes == [0], printed
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert {"loss", "spread"} <= set(header.split(","))
    assert runs.state(tmp_path / "run", 2)["config"]["method"]["options"] == {"weight": 3.0}


def test_own_losses_are_functions_or_classes_with_options(tmp_path, monkeypatch):
    (tmp_path / "losses_of_mine.py").write_text(LOSS)
    monkeypatch.syspath_prepend(tmp_path)
    embeddings = torch.arange(12.0).view(2, 3, 2)
    m = config.Method(name="losses_of_mine:norms", options={"power": 2})
    assert own_loss(m, 0)(embeddings, 0) == embeddings.square().sum(-1).mean()
    for name, said in (
        ("losses_of_mine:nothing", "has no attribute 'nothing'"),
        ("not_there_at_all:x", "No module named 'not_there_at_all'"),
        (f"{tmp_path}/none.py:x", "No such file"),
    ):
        with pytest.raises(TrainError, match=said):
            own_loss(config.Method(name=name), 0)
    with pytest.raises(TrainError, match="unexpected keyword argument 'wait'"):
        own_loss(config.Method(name="losses_of_mine:Uniform", options={"wait": 1}), 0)
