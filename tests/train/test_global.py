"""Two processes with global scope follow one process with the same global batch."""

import json

import pytest
import torch

from reference_train.augment import MultiCrop
from reference_train.train import main
from tests.train import runs

STEPS = 20
# What must not depend on how a batch is divided: no BatchNorm, and views that are functions of the
# image. float64, so that a difference is not rounding.
SAME = [
    "run.precision=float64",
    f"run.max_steps={STEPS}",
    f"run.checkpoint_every={STEPS}",
    f"run.log_every={STEPS}",
    "model.norm=layer",
    "optim.lr=0.002",
]


def main_with_fixed_views(arguments):
    """Three views of an image: itself, its mirror image and its transpose, stretched."""

    def fixed(self, images, sizes=None):
        x = images.double() / 255
        views = torch.stack([x, x.flip(-1) ** 2, x.mT.sqrt()])
        return [self.normalize(views)]

    MultiCrop.forward = fixed
    main(arguments)


def weights_after(folder, processes, *overrides):
    shares = [f"data.batch_size={24 // processes}", f"method.n_slices={8 // processes}"]
    arguments = runs.command(folder / "run", *SAME, *shares, *overrides)
    codes, printed = runs.run(
        main_with_fixed_views, arguments, output=folder / "output", processes=processes
    )
    assert codes == [0] * processes, printed
    return runs.state(folder / "run", STEPS)["learner"]


def distance(a, b):
    """Largest difference of two sets of weights."""
    return max((a[name] - b[name]).abs().max().item() for name in a)


FAST, SLOW = ("visreg", "vicreg", "simclr"), ("sigreg", "swd", "barlow_twins")


@pytest.mark.parametrize(
    "method", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_two_processes_follow_one(tmp_path, method):
    settings = [f"method.name={method}", "method.scope=global"]
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = weights_after(tmp_path / "one", 1, *settings)
    two = weights_after(tmp_path / "two", 2, *settings)
    if method == "barlow_twins":
        # the last bias is standardised away: its gradient is rounding, which AdamW enlarges
        del one["projector.6.bias"], two["projector.6.bias"]
    assert distance(one, two) < 1e-8


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    """Of a loss without statistics over the batch, with an optimiser that feels a factor."""
    settings = ["method.lam=0", "optim.name=lars", "optim.lr=0.5"]
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
    whole = weights_after(tmp_path / "whole", 1, *settings)
    halves = ["data.batch_size=12", "run.accumulate=2"]
    assert distance(whole, weights_after(tmp_path / "halves", 1, *settings, *halves)) < 1e-12
    lines = [
        (tmp_path / name / "run" / "metrics.jsonl").read_text() for name in ("whole", "halves")
    ]
    a, b = (json.loads(line) for line in lines)
    for term in ("loss", "invariance", "probe_loss", "probe_accuracy", "gradient"):
        assert b[term] == pytest.approx(a[term], rel=1e-6)


def test_statistics_of_the_batch_do_not_depend_on_its_micro_batches(tmp_path):
    found, terms = [], []
    for processes, micro_batches in ((1, 1), (1, 4), (2, 2)):
        folder = tmp_path / f"{processes}-{micro_batches}"
        folder.mkdir()
        given = [f"data.batch_size={24 // processes // micro_batches}"]
        given += [f"run.accumulate={micro_batches}", "run.statistics=batch", "method.scope=global"]
        found.append(weights_after(folder, processes, *given))
        terms.append(json.loads((folder / "run" / "metrics.jsonl").read_text()))
        del terms[-1]["epoch"]  # what is left over is a micro-batch or a batch
    for weights, logged in zip(found[1:], terms[1:], strict=True):
        assert distance(found[0], weights) < 1e-8
        assert logged == pytest.approx(terms[0], rel=1e-6)


def test_local_scope_is_another_loss(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = weights_after(tmp_path / "one", 1)
    two = weights_after(tmp_path / "two", 2)
    assert distance(one, two) > 1e-4
