"""Checkpoints beside the training, read by one process; other numbers of processes and readers."""

import itertools
import os
import threading

import numpy as np
import pytest
import torch

from reference_train import checkpoint, data
from reference_train.errors import TrainError
from reference_train.ledger import Ledger
from reference_train.train import main
from tests.train import runs

# --- the writer -----------------------------------------------------------------------------------


def state_of(step, value):
    return {"step": step, "weights": {"w": torch.full((3,), float(value))}, "list": [1, (2, 3)]}


def test_a_checkpoint_is_written_beside_the_training(tmp_path, monkeypatch):
    """`add` returns before anything is written, and what is trained meanwhile changes nothing."""
    may_write, save = threading.Event(), checkpoint.save

    def held(folder, state, keep):
        assert may_write.wait(30)
        return save(folder, state, keep)

    monkeypatch.setattr(checkpoint, "save", held)
    writer, state = checkpoint.Writer(tmp_path, keep=2), state_of(1, 5)
    writer.add(state)
    assert list(tmp_path.iterdir()) == []
    state["weights"]["w"].zero_()
    may_write.set()
    writer.wait()
    read = checkpoint.read(checkpoint.path_of(tmp_path, 1))
    assert read["weights"]["w"].tolist() == [5, 5, 5] and read["list"] == [1, (2, 3)]


def test_what_goes_wrong_beside_the_training_is_raised_at_the_next_one(tmp_path, monkeypatch):
    written = []

    def failing(folder, state, keep):
        if state["step"] == 1:
            raise TrainError("no space")
        written.append(state["step"])

    monkeypatch.setattr(checkpoint, "save", failing)
    writer = checkpoint.Writer(tmp_path, keep=2)
    writer.add(state_of(1, 5))
    with pytest.raises(TrainError, match="no space"):
        writer.add(state_of(2, 5))
    writer.add(state_of(3, 5))  # an error is raised once
    writer.wait()
    writer.wait()
    assert written == [3]


def test_checkpoints_by_the_clock(tmp_path):
    """Due at every reading of the metrics after less than no time."""
    given = ["run.checkpoint_every=null", "run.checkpoint_minutes=1e-9", "run.log_every=5"]
    codes, printed = runs.run(main, runs.command(tmp_path / "run", *given), output=tmp_path / "o")
    assert codes == [0], printed
    names = sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*"))
    assert names == [f"checkpoint-{step:09d}.pt" for step in (5, 10, 12)]


# --- other numbers of processes -------------------------------------------------------------------


def main_that_tells_its_images(arguments, path):
    """Written for each process: the ids of every step, and how often it read a checkpoint."""
    add, read, told = Ledger.add, checkpoint.read, {"ids": [], "reads": 0}

    def adding(self, step, terms, statistics, ids):
        told["ids"].append(ids)
        add(self, step, terms, statistics, ids)

    def reading(found):
        told["reads"] += 1
        return read(found)

    Ledger.add, checkpoint.read = adding, reading
    main(arguments)
    torch.save(told, f"{path}-{os.environ.get('RANK', '0')}.pt")


def images_of(folder, name, processes, *given):
    """Sorted ids of each step of a run, on so many processes, what they read, and what is said."""
    command = runs.command(folder / "run", *given)
    codes, printed = runs.run(
        main_that_tells_its_images, command, folder / name, output=folder / f"{name}.txt",
        processes=processes,
    )  # fmt: skip
    assert codes == [0] * processes, printed
    told = [torch.load(folder / f"{name}-{r}.pt", weights_only=True) for r in range(processes)]
    steps = zip(*(each["ids"] for each in told), strict=True)
    return [sorted(torch.cat(s).tolist()) for s in steps], [t["reads"] for t in told], printed


def cut_at(folder, step):
    """Take away the checkpoints after a step."""
    for path in (folder / "run").glob("checkpoint-*.pt"):
        if path.name > checkpoint.path_of(folder, step).name:
            path.unlink()


def test_a_run_goes_on_with_other_processes_on_the_same_images(tmp_path):
    """2 x 16 x 2 images a step, then 1 x 32 x 2, then 1 x 16 x 4; over the end of an epoch."""
    given = ["run.max_steps=26", "run.checkpoint_every=9", "data.classes=[1,2,3,4,5,6,7,8,9]"]
    whole, reads, _ = images_of(tmp_path, "whole", 2, *given, "run.accumulate=2")
    assert len(whole) == 26 and {len(step) for step in whole} == {64} and reads == [0, 0]
    cut_at(tmp_path, 9)
    one = ["run.accumulate=2", "data.batch_size=32"]
    second, reads, printed = images_of(tmp_path, "second", 1, *given, *one)
    assert second == whole[9:] and reads == [1]
    assert "on 1 process x 32 x 2 images a step, before 2 processes x 16 x 2: " in printed
    assert "not bit-identical" in printed
    cut_at(tmp_path, 18)
    third, _, printed = images_of(tmp_path, "third", 1, *given, "run.accumulate=4")
    assert third == whole[18:]
    assert "on 1 process x 16 x 4 images a step, before 1 process x 32 x 2: " in printed
    cut_at(tmp_path, 18)
    fourth, reads, printed = images_of(tmp_path, "fourth", 2, *given, "run.accumulate=2")
    assert fourth == whole[18:]
    assert reads == [1, 0]  # the main process reads for all


def test_another_number_of_images_a_step_is_another_run(tmp_path):
    given = ["run.max_steps=2"]
    images_of(tmp_path, "first", 1, *given)
    command = runs.command(tmp_path / "run", "run.max_steps=2", "data.batch_size=8")
    codes, printed = runs.run(main, command, output=tmp_path / "again")
    assert codes == [1]
    assert "holds another run (1 process x 16 x 1 images a step, not 1 process x 8 x 1)" in printed


def test_two_processes_go_on_with_what_one_has_read(tmp_path):
    """The state that one read is on both: the bits are those of an undisturbed run."""
    command = runs.command(tmp_path / "run")
    codes, printed = runs.run(main, command, output=tmp_path / "o", processes=2)
    assert codes == [0, 0], printed
    expected = runs.state(tmp_path / "run")
    cut_at(tmp_path, 11)
    _, reads, _ = images_of(tmp_path, "again", 2)
    assert reads == [1, 0]
    runs.assert_same(runs.state(tmp_path / "run"), expected)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (4, 1), (2, 2)])
def test_an_order_of_steps_depends_on_the_product_alone(world, accumulate):
    """Against the permutation's blocks, of whole steps."""
    n, size, start = 67, 2, 3 * accumulate
    orders = [
        data.Order(n, size, seed=3, rank=r, world=world, start=start, accumulate=accumulate)
        for r in range(world)
    ]
    read = [list(itertools.islice(order, 12 * accumulate)) for order in orders]
    for step in range(12):
        micro = range(step * accumulate, (step + 1) * accumulate)
        found = [i for m in micro for r in range(world) for i in read[r][m]]
        epoch, place = divmod(step + 3, n // 8)
        permutation = np.random.default_rng([3, epoch]).permutation(n)
        assert found == permutation[8 * place : 8 * place + 8].tolist()
