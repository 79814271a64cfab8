"""torchmetrics' metrics: the library's numbers, however the rows came and wherever they were."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from torchmetrics import MetricCollection

from tests.torch_adapter.processes import run, successful
from visreg_core import metrics as core
from visreg_torch import metrics

N, DIM = 60, 5


def rows(seed=0, n=N, shift=0.3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, DIM, generator=generator, dtype=torch.float64) * 1.5 + shift


def pair():
    return rows(), rows() + 0.5 * rows(1)


def value(x):
    return {k: float(v) for k, v in x.items()} if isinstance(x, dict) else float(x)


def gaussianity(z):
    slices = core_slices()
    found = core.gaussianity(z, slices)
    return {
        "epps_pulley_z": found.epps_pulley.mean_z,
        "wasserstein_z": found.wasserstein.mean_z,
    }


def core_slices():
    from visreg_core import random_slices

    return random_slices(DIM, 8, xp=torch, dtype=torch.float32)


def rank_of_covariance(z):
    """Effective rank of the covariance, by NumPy."""
    p = np.linalg.eigvalsh(np.cov(z.numpy().T))
    p = p / p.sum()
    return np.exp(-np.sum(p * np.log(p)))


# A metric, what it is to be, and whether it is of pairs.
CASES = {
    "rankme": (lambda: metrics.RankMe(DIM), core.rankme, False),
    "rankme paper": (
        lambda: metrics.RankMe(DIM, "paper"),
        lambda z: core.rankme(z, convention="paper"),
        False,
    ),
    "rankme centred": (
        lambda: metrics.RankMe(DIM, "reptrix"),
        lambda z: core.rankme(z, convention="reptrix"),
        False,
    ),
    "effective rank": (lambda: metrics.EffectiveRank(DIM), rank_of_covariance, False),
    "gaussianity": (lambda: metrics.Gaussianity(DIM, n_slices=8), gaussianity, False),
    "uniformity": (lambda: metrics.Uniformity(DIM), core.uniformity, False),
    "alignment": (lambda: metrics.Alignment(DIM), core.alignment, True),
    "knn": (lambda: metrics.KNNAgreement(DIM, k=4), lambda x, y: core.mutual_knn(x, y, 4), True),
    "lca": (
        lambda: metrics.LCAStability(DIM),
        lambda x, y: core.lca_similarity(x, y)._asdict(),
        True,
    ),
}


def sets(pairs):
    return pair() if pairs else pair()[:1]


def parts(pairs, sizes=(20, 31, 9)):
    return zip(*(z.split(list(sizes)) for z in sets(pairs)), strict=True)


def agrees(metric, case):
    _, oracle, pairs = CASES[case]
    # Rows are kept in float32, sums of products in float64.
    assert value(metric.compute()) == pytest.approx(value(oracle(*sets(pairs))), rel=3e-5, abs=3e-5)


@pytest.mark.parametrize("case", CASES)
def test_rows_in_parts_give_the_number_of_all(case):
    make, _, pairs = CASES[case]
    metric = make()
    for _ in range(2):  # again after a reset
        for part in parts(pairs):
            metric.update(*part)
        agrees(metric, case)
        metric.reset()


@pytest.mark.parametrize("case", CASES)
def test_states_merge_and_survive_copies(case):
    make, _, pairs = CASES[case]
    first, second, third = make(), make(), make()
    for metric, part in zip((first, second, third), parts(pairs), strict=True):
        metric.update(*part)
    first.merge_state(pickle.loads(pickle.dumps(second)))  # noqa: S301
    first.merge_state(copy.deepcopy(third))
    agrees(first, case)


def on_rank(rank):
    found = {}
    for case, (make, _, pairs) in CASES.items():
        metric = make()
        for i, part in enumerate(parts(pairs)):
            if i % 2 == rank:
                metric.update(*part)
        found[case] = value(metric.compute())
    return found


def test_processes_reduce_by_themselves():
    """Two updates on the one process, one on the other, of other sizes."""
    for found in successful(run(2, on_rank)):
        for case, (_, oracle, pairs) in CASES.items():
            expected = value(oracle(*sets(pairs)))
            assert found[case] == pytest.approx(expected, rel=3e-5, abs=3e-5), case


def test_forward_gives_the_batch_and_keeps_the_rest():
    metric = metrics.Uniformity(DIM)
    first, second = rows().split(30)
    for part in (first, second):
        assert float(metric(part)) == pytest.approx(core.uniformity(part), rel=1e-5)
    assert float(metric.compute()) == pytest.approx(core.uniformity(rows()), rel=1e-5)


def test_a_collection():
    collection = MetricCollection([metrics.RankMe(DIM), metrics.EffectiveRank(DIM)])
    collection.update(rows())
    found = collection.compute()
    assert float(found["RankMe"]) == pytest.approx(core.rankme(rows()))
    assert float(found["EffectiveRank"]) == pytest.approx(rank_of_covariance(rows()))


def test_a_mean_far_away_leaves_no_rank_of_rounding():
    """One direction varies, at a mean of 1e6 deviations: the others are the sums' rounding."""
    z = torch.zeros(N, DIM, dtype=torch.float64) + 1e6 / 3
    z[:, 0] += rows()[:, 0]
    metric = metrics.EffectiveRank(DIM)
    metric.update(z)
    assert float(metric.compute()) == pytest.approx(1, abs=1e-6)


def test_a_sample_is_uniform_over_updates_and_leaves_random_numbers_alone():
    """Where more rows came than are kept, each has the same chance, early or late."""
    state, kept = torch.get_rng_state(), []
    for seed in range(60):
        metric = metrics.Uniformity(1, max_rows=10, seed=seed)
        for start in range(0, 40, 8):
            metric.update(torch.arange(start, start + 8.0)[:, None])
        kept.append(metric._sets()[0][:, 0])
    assert torch.equal(torch.get_rng_state(), state)
    counts = torch.bincount(torch.cat(kept).long(), minlength=40)
    assert counts.sum() == 600 and all(len(set(k.tolist())) == 10 for k in kept)
    # Each update has keys of its own: the places that it keeps are not those of the others.
    assert max(len({int(v) % 8 for v in k}) for k in kept) > 4
    by_update = counts.reshape(5, 8).sum(1).numpy()
    assert stats.chisquare(by_update).pvalue > 1e-3
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_processes_draw_their_own_keys(monkeypatch):
    kept = []
    for rank in range(2):
        monkeypatch.setattr("visreg_torch.distributed.rank_of", lambda rank=rank: rank)
        metric = metrics.Uniformity(1, max_rows=10)
        metric.update(torch.arange(40.0)[:, None])
        kept.append(set(metric._sets()[0][:, 0].tolist()))
    assert kept[0] != kept[1]


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match=r"expected z \(\.\.\., 5\); found shape \(3, 4\)"):
        metrics.RankMe(DIM).update(torch.ones(3, 4))
    with pytest.raises(ValueError, match="expected x and y with as many rows; found 60 and 3"):
        metrics.Alignment(DIM).update(rows(), rows(n=3))
    with pytest.raises(ValueError, match="expected convention"):
        metrics.RankMe(DIM, "none")
