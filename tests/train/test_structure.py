"""The experiments on the structure of embeddings, and that a table is one command."""

from concurrent.futures import Future

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from reference_train import config, experiments, methods, structure
from reference_train.model import Learner
from tests.train import runs


@pytest.mark.filterwarnings("ignore:Graph is not fully connected")
def test_numbers_by_level_of_embeddings_that_are_their_classes(rng):
    """Digits apart, and families farther: what can be perfect is."""
    labels = rng.permutation(np.arange(300) % 10)
    centres = 30 * np.eye(3)[[structure.FAMILY[d] for d in range(10)]]
    x = np.concatenate([centres[labels], 10 * np.eye(10)[labels]], axis=1)
    x += 0.1 * rng.standard_normal(x.shape)
    found = structure.by_level(x, labels)
    # ten separate pieces: which of them make three clusters is open, and five or twenty are wrong
    assert found[1] == found[3] == pytest.approx(1)
    assert found[2] < 1 and found[4] < 1
    assert found[6:] == pytest.approx([1] * 4)


def test_own_arm_is_the_share_of_neighbours(rng):
    z, arm = rng.standard_normal((60, 3)), np.arange(60) % 3
    rows = arm == 0
    near = NearestNeighbors(n_neighbors=11).fit(z).kneighbors(z[rows], return_distance=False)
    expected = np.mean([(arm[n[1:]] == 0).mean() for n in near])
    assert structure.own_arm(z, arm, rows) == pytest.approx(expected)


def test_arms_of_a_spiral_are_one_turned():
    points, arm = structure.spirals(0)
    assert np.bincount(arm).tolist() == [structure.POINTS] * structure.ARMS
    turn = np.array([[0, -1], [1, 0]])  # a quarter
    np.testing.assert_allclose(points[arm == 0] @ turn.T, points[arm == 1], atol=0.1)


def test_settings_of_the_walk_reach_the_loss():
    given = ["method.name=sag_vicreg", "method.percentile=55", "method.walk_steps=3"]
    settings = config.load("digits", [*runs.TINY, *given])
    loss = methods.build(settings, Learner(settings, 0)).loss
    assert (loss.percentile, loss.n_steps) == (55, 3)


def test_the_spirals_table_and_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(structure, "RUNS", tmp_path)
    monkeypatch.setattr(structure, "STEPS", 5)
    monkeypatch.setattr(structure, "POINTS", 30)
    table = structure.spiral(experiments.Runs(None, (0, 1), {}))
    assert [r[0] for r in table.rows] == ["vicreg", "sag_vicreg"]
    assert all(len(r) == len(table.columns) == 5 for r in table.rows)
    assert (tmp_path / "spiral.png").read_bytes().startswith(b"\x89PNG")


def test_a_quick_table_runs_two_seeds_and_stores_nothing(tmp_path, capsys, monkeypatch):
    (tmp_path / "results.json").write_text('{"trained": {"kNN": 0.5}}')
    given = []

    class Here:  # in place of the pool
        def __init__(self, *args, **named): ...
        def __enter__(self):
            return self

        def __exit__(self, *args): ...
        def submit(self, function, settings, seed):
            given.append((settings, seed))
            done = Future()
            done.set_result(tmp_path)
            return done

    small = experiments.EXPERIMENTS["ablation"]._replace(variants={"one": {}}, columns=("kNN",))
    monkeypatch.setitem(experiments.EXPERIMENTS, "ablation", small)
    monkeypatch.setattr(experiments, "ROOT", tmp_path)
    monkeypatch.setattr(experiments.concurrent.futures, "ProcessPoolExecutor", Here)
    experiments.main(["ablation", "--quick"])
    assert capsys.readouterr().out == "one | 50.0 ± 0.0 %\n"
    short = {"run.epochs": 1, "optim.warmup_epochs": 0.1}
    assert given == [(short, 0), (short, 1)]
    assert not (tmp_path / "docs").exists()
