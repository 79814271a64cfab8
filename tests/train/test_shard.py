"""Weights in shards over two processes: the steps, and the checkpoints, of whole ones."""

import pytest
import torch

from reference_train import config, evaluate
from reference_train.errors import TrainError
from reference_train.train import main
from tests.train import runs

EXACT = ["run.precision=float64", "run.max_steps=4", "run.clip_norm=0.5", "method.scope=global"]


def finished(folder, *given):
    command = runs.command(folder / "run", *EXACT, *given)
    codes, printed = runs.run(main, command, output=folder / "output", processes=2)
    assert codes == [0, 0], printed
    return runs.state(folder / "run", 4)


@pytest.mark.parametrize(
    "given",
    [[], ["run.accumulate=2", "run.statistics=batch"], ["run.recompute=true", "run.accumulate=2"]],
    ids=["plain", "statistics of the batch", "recomputed"],
)
def test_shards_take_the_steps_of_whole_weights(tmp_path, given):
    """Weights, and both moments of AdamW, in float64; the checkpoint has whole tensors."""
    states = []
    for name in ("false", "true"):
        folder = tmp_path / name
        folder.mkdir()
        states.append(finished(folder, f"run.shard={name}", *given))
    plain, sharded = states
    assert list(plain["learner"]) == list(sharded["learner"])
    for name, weight in plain["learner"].items():
        found = sharded["learner"][name]
        assert type(found) is torch.Tensor
        torch.testing.assert_close(found, weight, rtol=1e-9, atol=1e-11, msg=name)
    for i, moments in plain["optimizer"]["state"].items():
        for name, moment in moments.items():
            found = sharded["optimizer"]["state"][i][name]
            torch.testing.assert_close(found, moment, rtol=1e-7, atol=1e-13, msg=name)


def test_a_run_in_shards_resumes_bit_for_bit_and_is_evaluated(tmp_path):
    whole = finished(tmp_path, "run.shard=true")
    (tmp_path / "run" / "checkpoint-000000004.pt").unlink()
    (tmp_path / "run" / "checkpoint-000000003.pt").unlink()
    runs.assert_same(finished(tmp_path, "run.shard=true"), whole)
    assert "resuming from" in (tmp_path / "output").read_text()
    run = evaluate.load_run(tmp_path / "run", ["data.test_split=val"], untrained=False, cpu=True)
    for name, weight in run.learner.state_dict().items():
        torch.testing.assert_close(weight, whole["learner"][name].to(weight.dtype), msg=name)


def test_each_process_has_a_part(tmp_path):
    codes, printed = runs.run(parts_of_two, tmp_path / "n", output=tmp_path / "o", processes=2)
    assert codes == [0, 0], printed
    held, numbers = zip(
        *(torch.load(tmp_path / f"n-{rank}.pt", weights_only=True) for rank in range(2)),
        strict=True,
    )
    assert numbers[0] == numbers[1] and sum(held) >= numbers[0]
    assert max(held) < 0.6 * numbers[0]


def parts_of_two(path):
    """Written: numbers of the weights in this process, and in all."""
    import os

    from accelerate import Accelerator

    from reference_train import shard
    from reference_train.model import Learner

    accelerator = Accelerator(cpu=True)
    learner = Learner(config.load("digits", [*runs.TINY, "run.folder=unused"]), 10)
    numbers = sum(p.numel() for p in learner.parameters())
    shard.share_out(learner, accelerator)
    held = sum(p.to_local().numel() for p in learner.parameters())
    torch.save((held, numbers), f"{path}-{os.environ['RANK']}.pt")
    accelerator.end_training()


@pytest.mark.parametrize(
    "given", ["method.name=dino", "optim.name=lars", "optim.ema=0.9", "run.evaluate_every=1"]
)
def test_what_does_not_go_together_with_shards(given):
    key = given.partition("=")[0]
    with pytest.raises(TrainError, match=rf"{key}: does not go together with run\.shard"):
        config.load("digits", [*runs.TINY, "run.folder=unused", "run.shard=true", given])


def test_one_process_has_no_shards(tmp_path):
    command = runs.command(tmp_path / "run", "run.shard=true")
    codes, printed = runs.run(main, command, output=tmp_path / "o")
    assert codes == [1]
    assert printed == "reference_train: run.shard: expected several processes; found one\n"
