"""A run that is killed and started again ends bit for bit where the uninterrupted one does."""

import random
import time

import pytest

from reference_train.train import main
from tests.train import runs


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def uninterrupted(request, tmp_path_factory):
    """(processes, final state, seconds) of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    runs.run(str, output=folder / "output")  # so that the server's own start is not counted
    begun = time.monotonic()
    arguments = runs.command(folder / "run")
    codes, printed = runs.run(main, arguments, output=folder / "output", processes=request.param)
    assert codes == [0] * request.param, printed
    return request.param, runs.state(folder / "run"), time.monotonic() - begun


def killed_and_resumed(uninterrupted, folder, kills, seed):
    processes, expected, seconds = uninterrupted
    rng = random.Random(seed)
    arguments, output = runs.command(folder / "run"), folder / "output"
    resumed = 0
    for _ in range(kills):
        started = runs.start(main, arguments, output=output, processes=processes)
        time.sleep(rng.uniform(0.2, 0.9) * seconds)
        resumed += any((folder / "run").glob("checkpoint-*.pt"))
        runs.kill(started)
        if (folder / "run" / "checkpoint-000000012.pt").exists():
            for path in (folder / "run").glob("checkpoint-*"):  # done: once more from the start
                path.unlink()
    codes, printed = runs.run(main, arguments, output=output, processes=processes)
    assert codes == [0] * processes, printed
    assert "Traceback" not in printed or processes > 1  # a peer may die in a collective
    runs.assert_same(runs.state(folder / "run"), expected)
    return resumed


def test_three_kills(uninterrupted, tmp_path):
    killed_and_resumed(uninterrupted, tmp_path, kills=3, seed=1)


@pytest.mark.slow
def test_twenty_kills(uninterrupted, tmp_path):
    assert killed_and_resumed(uninterrupted, tmp_path, kills=20, seed=2) > 3
