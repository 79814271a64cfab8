"""What the loop hands on: steps, rates, clipped gradients, the teacher, seeds, crops' areas."""

import itertools
import math

import pytest
import torch

from reference_train import config, methods, train
from reference_train.augment import MultiCrop
from reference_train.config import Augment, Data
from reference_train.embedding import encoder_of
from reference_train.logs import read_log
from reference_train.session import Session
from reference_train.train import main
from tests.train import runs


def main_that_tells(arguments, path):
    """Written for each process: the seed of its crops, and the steps that the method is given."""
    import os

    crop, build, told = MultiCrop.forward, methods.build, []

    def seeded(self, *given):
        told.append(torch.initial_seed())
        return crop(self, *given)

    def built(settings, learner):
        method = build(settings, learner)
        method.register_forward_pre_hook(lambda module, given: told.append(given[2]))
        return method

    MultiCrop.forward, methods.build = seeded, built
    main(arguments)
    torch.save(told, f"{path}-{os.environ.get('RANK', '0')}.pt")


def test_slices_are_new_in_every_micro_batch_and_crops_in_every_process(tmp_path):
    given = ["run.accumulate=2", "run.max_steps=3", "run.seed=5"]
    codes, printed = runs.run(
        main_that_tells,
        runs.command(tmp_path / "run", *given),
        tmp_path / "told",
        output=tmp_path / "output",
        processes=2,
    )
    assert codes == [0, 0], printed
    told = [torch.load(tmp_path / f"told-{rank}.pt", weights_only=True) for rank in range(2)]
    seeds = [set(each[::2]) for each in told]
    assert [len(s) for s in seeds] == [1, 1] and seeds[0] != seeds[1]
    assert [each[1::2] for each in told] == [list(range(6))] * 2


def initial(*overrides):
    """The weights that a run of `runs.command` starts from."""
    settings = config.load("digits", [*runs.TINY, "run.folder=unused", *overrides])
    torch.manual_seed(0)
    return train.new_learner(settings, 10).state_dict()


def test_the_optimiser_has_the_schedules_rates(tmp_path):
    codes, printed = runs.run(main, runs.command(tmp_path / "run"), output=tmp_path / "output")
    assert codes == [0], printed
    # warm-up of round(0.05 * 71) = 4 steps to 0.002, then a cosine to a thousandth of it
    for step, rate in ((12, 2e-6), (11, None)):
        rates = {
            g["name"]: g["lr"]
            for g in runs.state(tmp_path / "run", step)["optimizer"]["param_groups"]
        }
        if rate is None:
            rate = 2e-6 + (2e-3 - 2e-6) * (1 + math.cos(math.pi * 6 / 7)) / 2
        assert rates == pytest.approx({"decayed": rate, "plain": rate, "probe": 1e-3}, rel=1e-9)


@pytest.mark.parametrize("clip", [1e-3, None])
def test_clipping_bounds_what_the_method_moves_but_not_the_probe(tmp_path, clip):
    lars = ["optim.name=lars", "optim.lr=2", "optim.warmup_epochs=0", "run.max_steps=1"]
    given = [*lars, f"run.clip_norm={'null' if clip is None else clip}"]
    codes, printed = runs.run(main, runs.command(tmp_path / "run", *given), output=tmp_path / "o")
    assert codes == [0], printed
    start, end = initial(), runs.state(tmp_path / "run", 1)["learner"]
    bias = "projector.6.bias"  # a vector: plain gradient descent
    moved = (end[bias] - start[bias]).norm().item() / 2
    assert moved > 1e-3 if clip is None else 0 < moved <= 1e-3
    assert (end["probe.1.bias"] - start["probe.1.bias"]).norm() > 1e-5


def test_dinos_teacher_follows_and_its_last_layer_stays_in_a_run(tmp_path):
    dino = ["method.name=dino", "method.prototypes=16", "method.teacher_momentum=0.5"]
    arguments = runs.command(tmp_path / "run", *dino, "run.max_steps=2", "optim.warmup_epochs=0")
    codes, printed = runs.run(main, arguments, output=tmp_path / "output")
    assert codes == [0], printed
    start, after = initial(*dino), runs.state(tmp_path / "run", 1)
    keep = 1 - 0.5 * (math.cos(math.pi / 2) + 1) / 2
    name = "projector.0.weight"
    expected = keep * start[name] + (1 - keep) * after["learner"][name]
    torch.testing.assert_close(after["method"][f"teacher.{name}"], expected)
    assert not torch.allclose(start[name], after["learner"][name], atol=1e-6)
    last = runs.state(tmp_path / "run", 2)["learner"]
    assert torch.equal(last["projector.7.weight"], start["projector.7.weight"])


def test_features_are_those_of_the_evaluation_mode():
    learner = torch.nn.Module()
    learner.backbone = torch.nn.Module()
    learner.backbone.norm = torch.nn.BatchNorm1d(3)
    learner.backbone.forward = lambda images, layers: learner.backbone.norm(images)
    images = torch.randn(8, 3) + 5
    found = encoder_of(learner, 1)(images)
    assert torch.allclose(found, images, atol=1e-3)  # statistics 0 and 1
    assert learner.backbone.norm.training


def test_evaluations_are_due_every_so_many_epochs_and_at_the_end():
    assert [done for done in range(1, 41) if train.due(1.5, done, 40, 10.0)] == [15, 30, 40]
    assert not train.due(None, 40, 40, 10.0)


# --- crops ----------------------------------------------------------------------------------------

PLAIN = {"flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "solarize": 0.0}


def test_crops_have_the_areas_of_their_scales():
    """On a picture whose colours are its coordinates a crop tells what it covers."""
    ramp = torch.linspace(0, 255, 64)
    picture = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64)])
    settings = Augment(
        n_global=2, n_local=3, global_size=16, local_size=8, global_scale=[0.4, 0.9],
        local_scale=[0.05, 0.3], ratio=[0.8, 1.25], **PLAIN,
    )  # fmt: skip
    data = Data(mean=[0.0] * 3, std=[1.0] * 3)
    torch.manual_seed(0)
    crops = MultiCrop(settings, data)(picture.to(torch.uint8).expand(100, -1, -1, -1))
    for views, (low, high) in zip(
        crops, (settings.global_scale, settings.local_scale), strict=True
    ):
        x, y = views[:, :, 0].flatten(0, 1), views[:, :, 1].flatten(0, 1)
        # from the middle of the first pixel to that of the last, of 64 whose middles span 0 ... 1
        side = x.shape[-1]
        whole = 63 / 64 * side / (side - 1)
        width = (x.amax((1, 2)) - x.amin((1, 2))) * whole
        height = (y.amax((1, 2)) - y.amin((1, 2))) * whole
        area = width * height
        assert low * 0.9 < area.min() < low * 1.3 and high * 0.85 < area.max() < high * 1.02
        ratio = width / height
        assert 0.7 < ratio.min() < 0.9 and 1.1 < ratio.max() < 1.4


def test_solarising_inverts_what_is_brighter_than_one_half():
    settings = Augment(global_size=8, global_scale=[1.0, 1.0], ratio=[1.0, 1.0], **PLAIN)
    settings.solarize = 1.0
    picture = torch.full((4, 3, 8, 8), 100, dtype=torch.uint8)
    picture[..., 4:] = 204
    (crops,) = MultiCrop(settings, Data(mean=[0.0] * 3, std=[1.0] * 3))(picture)
    for crop, channel in itertools.product(crops.flatten(0, 1), range(3)):
        torch.testing.assert_close(crop[channel, :, :2], torch.full((8, 2), 100 / 255))
        torch.testing.assert_close(crop[channel, :, 6:], torch.full((8, 2), 51 / 255))


def main_that_dies_saving(arguments):
    """Killed as soon as the second checkpoint is there."""
    import os

    save, steps = Session.save, []

    def dying(self, step, *places):
        save(self, step, *places)
        self.writer.wait()
        steps.append(step)
        if len(steps) == 2:
            os._exit(9)

    Session.save = dying
    main(arguments)


def test_an_evaluation_due_with_a_checkpoint_is_not_lost(tmp_path):
    """The checkpoint comes last: what a kill before it cuts off is done again."""
    given = [*runs.EVALUATED, "run.checkpoint_every=4", "run.evaluate_every=0.05"]
    command = runs.command(tmp_path / "run", *given)
    codes, _ = runs.run(main_that_dies_saving, command, output=tmp_path / "first")
    assert codes == [9]
    codes, printed = runs.run(main, command, output=tmp_path / "second")
    assert codes == [0] and "resuming from" in printed
    rows = read_log(tmp_path / "run" / "evaluations.jsonl")
    whole = runs.command(tmp_path / "whole", *given)
    assert runs.run(main, whole, output=tmp_path / "third")[0] == [0]
    assert rows == read_log(tmp_path / "whole" / "evaluations.jsonl")
    assert 8 in [row["step"] for row in rows]


def test_a_warm_up_longer_than_the_run_is_told(tmp_path):
    given = ["run.max_steps=2", "optim.warmup_epochs=1"]
    _, printed = runs.run(main, runs.command(tmp_path / "run", *given), output=tmp_path / "output")
    assert "steps outlasts the run's 2" in printed
