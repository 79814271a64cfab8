"""Modules on real processes: whose slices, whose pairs, over which group."""

import pytest
import torch

from tests.torch_adapter.processes import run, successful
from tests.torch_adapter.test_distributed_values import UNEVEN
from visreg_core import random_slices

DIM = 6


def batch(n, views=2):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(views, n, DIM, generator=generator, dtype=torch.float64)


def step_of(loss, z, *arguments):
    """Value and gradient of one forward pass."""
    z = z.clone().requires_grad_()
    result = loss(*(z if loss.__class__.__name__ in TWO_VIEWS else (z,)), *arguments)
    value = result.total if isinstance(result, tuple) else result
    value.backward()
    return value.detach(), z.grad


TWO_VIEWS = ("VICRegLoss", "BarlowTwinsLoss", "SAGVICRegLoss")
MODULES = {
    "VISRegLoss": {"n_slices": 24, "seed": 3},
    "VISRegLoss lam": {"n_slices": 24, "lam": 0.9, "n_global": 1},
    "SIGRegLoss": {"n_slices": 24},
    "SlicedWassersteinLoss": {"n_slices": 24, "sampler": "orthogonal"},
    "VICRegLoss": {},
    "BarlowTwinsLoss": {},
    "SAGVICRegLoss": {"n_neighbors": 3},
    "SAGVICRegLoss of two steps": {"n_neighbors": 3, "n_steps": 2},
    "SAGVICRegLoss of one scale": {"n_neighbors": 3, "scale": "global"},
    "SAGVICRegLoss of a symmetric affinity": {"n_neighbors": 3, "symmetrize": True},
}


def make(name, **options):
    import visreg_torch

    return getattr(visreg_torch, name.split()[0])(**MODULES[name], **options)


def global_steps(rank, rows):
    z = batch(sum(rows)).split(rows, dim=1)[rank]
    found = {}
    for name in MODULES:
        loss = make(name, scope="global")
        found[name] = [step_of(loss, z) for _ in range(2)]  # of other slices, other pairs
        found[name] += [step_of(loss.eval(), z)]
    return found


@pytest.mark.parametrize("rows", [UNEVEN[2], UNEVEN[4]], ids=str)
def test_global_scope_is_one_process_with_all_rows(rows):
    results = successful(run(len(rows), global_steps, rows))
    for name in MODULES:
        loss = make(name)
        for i in range(3):
            value, gradient = step_of(loss if i < 2 else loss.eval(), batch(sum(rows)))
            for result in results:
                torch.testing.assert_close(result[name][i][0], value, rtol=1e-10, atol=1e-12)
            found = torch.cat([result[name][i][1] for result in results], dim=1) / len(rows)
            torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-12)


def local_steps(rank, n_slices):
    import visreg_torch

    z = batch(12)
    found = {}
    for sampler in ("gaussian", "orthogonal"):
        loss = visreg_torch.VISRegLoss(n_slices, seed=5, sampler=sampler)
        found[sampler] = [loss.slices(z, step=7), loss(z, step=7).shape]
    loss = visreg_torch.SIGRegLoss(n_slices, seed=5)
    found["sigreg"] = [loss.slices(z, step=7), loss(z, step=7)]
    return found


@pytest.mark.parametrize(("size", "n_slices"), [(2, 12), (3, 8), (8, 128)])
def test_local_scope_shares_out_the_slices_of_one_process(size, n_slices):
    """Eight ranks with 128 slices each are one with 1024: the same set, and on one batch the mean
    of what the ranks find is what it finds.
    """
    from visreg_torch import functional

    results = successful(run(size, local_steps, n_slices))
    for found in ("gaussian", "orthogonal", "sigreg"):
        sampler = "gaussian" if found == "sigreg" else found
        every = functional.random_slices(
            DIM, size * n_slices, seed=5, step=7, sampler=sampler, dtype=torch.float64
        )
        union = torch.cat([result[found][0] for result in results], dim=1)
        if sampler == "gaussian":
            assert torch.equal(union, every)
        torch.testing.assert_close(union, every, rtol=1e-12, atol=1e-14)
        loss = functional.sigreg_loss if found == "sigreg" else functional.shape_loss
        mean = torch.stack([result[found][1] for result in results]).mean()
        torch.testing.assert_close(mean, loss(batch(12), every), rtol=1e-12, atol=0)


def slices_per_process(rank, rows, n_slices):
    """Local scope on a rank's own rows, and global scope with all processes' slices."""
    import visreg_torch

    z = batch(sum(rows)).split(rows, dim=1)[rank]
    loss = visreg_torch.VISRegLoss(len(rows) * n_slices, seed=5, scope="global")
    return step_of(loss, z)


def test_1024_slices_on_8_ranks_are_those_of_one():
    import visreg_torch

    rows = (3,) * 8
    results = successful(run(8, slices_per_process, rows, 128))
    value, gradient = step_of(visreg_torch.VISRegLoss(1024, seed=5), batch(24))
    for found, _ in results:
        torch.testing.assert_close(found, value, rtol=1e-10, atol=0)
    found = torch.cat([g for _, g in results], dim=1) / 8
    torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-12)


# --- groups and settings --------------------------------------------------------------------------


def in_subgroups(rank, rows):
    """Two batches of two ranks each: ranks 0 and 2, ranks 1 and 3."""
    import torch.distributed as dist

    from visreg_torch import VISRegLoss, scale_loss
    from visreg_torch.distributed import Sharding

    groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    group, other = groups[rank % 2], groups[1 - rank % 2]
    z = batch(sum(rows)).split(rows, dim=1)[rank // 2]
    found = [
        step_of(VISRegLoss(9, lam=0.7, scope="global", group=of), (1 + rank % 2) * z)
        for of in (group, Sharding(group))
    ]
    messages = []
    for call in (
        lambda: scale_loss(z if rank < 2 else z[0], scope="global", group=group),
        lambda: scale_loss(z, scope="global", group=other),
    ):
        try:
            call()
        except ValueError as error:
            messages.append(str(error))
    local = VISRegLoss(9, group=group).slices(z, step=0)
    assert torch.equal(VISRegLoss(9, group=Sharding(group)).slices(z, step=0), local)
    return [found, messages, local]


def test_groups():
    import visreg_torch

    rows = (5, 2)
    results = successful(run(4, in_subgroups, rows))
    for batch_number, ranks in enumerate(((0, 2), (1, 3))):
        z = (1 + batch_number) * batch(sum(rows))
        value, gradient = step_of(visreg_torch.VISRegLoss(9, lam=0.7), z)
        for way in range(2):
            found = [results[rank][0][way] for rank in ranks]
            for of_rank, _ in found:
                torch.testing.assert_close(of_rank, value, rtol=1e-10, atol=0)
            together = torch.cat([g for _, g in found], dim=1) / 2
            torch.testing.assert_close(together, gradient, rtol=1e-10, atol=1e-12)
        for rank in ranks:
            odd, foreign = results[rank][1]
            assert f"on rank {ranks[0]}; z float64 (N, 6) on rank {ranks[1]}" in odd
            assert foreign == "expected a group that this process belongs to; found another one"
        local = torch.cat([results[rank][2] for rank in ranks], dim=1)
        assert torch.equal(local, visreg_torch.random_slices(DIM, 18, dtype=torch.float64))


def without_agreement(rank, rows):
    """Static shapes, by which nothing is exchanged or padded, and masks that differ."""
    from visreg_torch import VISRegLoss, _batch
    from visreg_torch.distributed import Sharding

    def never(*_):
        raise AssertionError("expected no agreement")

    _batch._exchange_headers = never
    z = batch(sum(rows)).split(rows, dim=1)[rank]
    loss = VISRegLoss(9, scope="global", group=Sharding(static_shapes=True))
    keep = torch.arange(rows[rank]) != rank
    masked = z.clone().requires_grad_()
    loss(masked, step=0, row_mask=keep).total.backward()
    return [step_of(loss, z, 0), (keep, masked.grad)]


@pytest.mark.parametrize("rows", [(4, 4, 4), (1, 1, 1)], ids=str)
def test_static_shapes(rows):
    import visreg_torch

    z, loss = batch(sum(rows)), visreg_torch.VISRegLoss(9)
    results = successful(run(3, without_agreement, rows))
    value, gradient = step_of(loss, z, 0)
    for (found, _), _ in results:
        torch.testing.assert_close(found, value, rtol=1e-10, atol=0)
    together = torch.cat([g for (_, g), _ in results], dim=1) / 3
    torch.testing.assert_close(together, gradient, rtol=1e-10, atol=1e-12)
    keep = torch.cat([mask for _, (mask, _) in results])
    together = torch.cat([g for _, (_, g) in results], dim=1) / 3
    if keep.sum() >= 2:
        _, gradient = step_of(loss, z[:, keep], 0)
        torch.testing.assert_close(together[:, keep], gradient, rtol=1e-10, atol=1e-12)
        assert not together[:, ~keep].any()


def masked_on_some(rank, rows):
    """A mask on the first rank alone."""
    import visreg_torch

    z = batch(sum(rows)).split(rows, dim=1)[rank].clone().requires_grad_()
    keep = torch.arange(rows[0]) % 3 > 0 if rank == 0 else None
    value = visreg_torch.barlow_twins_loss(z[0], z[1], row_mask=keep, scope="global").total
    value.backward()
    return [value.detach(), z.grad]


def test_a_mask_on_some_ranks():
    import visreg_torch

    rows = (5, 5, 2)
    results = successful(run(3, masked_on_some, rows))
    keep = torch.arange(sum(rows))
    keep = (keep % 3 > 0) | (keep >= rows[0])
    kept = batch(sum(rows))[:, keep].requires_grad_()
    value = visreg_torch.barlow_twins_loss(kept[0], kept[1]).total
    value.backward()
    together = torch.cat([gradient for _, gradient in results], dim=1) / 3
    for found, _ in results:
        torch.testing.assert_close(found, value.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(together[:, keep], kept.grad, rtol=1e-10, atol=1e-12)
    assert not together[:, ~keep].any()


def test_pairs_are_renumbered():
    from visreg_torch._batch import _renumbered

    rows, most = [2, 0, 3, 1], 3  # rows 0 1 | | 2 3 4 | 5 of ranks padded to three
    pairs = torch.tensor([0, 1, 2, 3, 4, 5, 6, -1])
    found = _renumbered(pairs, rows, most)
    assert found[:6].tolist() == [0, 1, 6, 7, 8, 9]
    assert found[6] >= 4 * most and found[7] < 0  # outside the batch stays outside


def test_no_group_means_one_process():
    import visreg_torch

    z = batch(12)
    for name in MODULES:
        for found, expected in zip(
            step_of(make(name, scope="global"), z), step_of(make(name), z), strict=True
        ):
            assert torch.equal(found, expected)
    rows, start = visreg_torch.gather_rows(z)
    assert torch.equal(rows, z) and start == 0


def two_threads(rank, rows):
    """Chunks of slices that send something must not be shared out to threads."""
    from visreg_torch import functional
    from visreg_torch.distributed import Sharding

    torch.set_num_threads(2)
    z = batch(sum(rows)).split(rows, dim=1)[rank].requires_grad_()
    slices = random_slices(DIM, 512, xp=torch, dtype=torch.float64)
    found = []
    for loss in (functional.sigreg_loss, functional.gaussian_sliced_wasserstein):
        z.grad = None
        value = loss(z, slices, chunk_size=8, scope="global", group=Sharding(sorting="exchange"))
        value.backward()
        found.append([value.detach(), z.grad])
    return found


def test_threads_do_not_mix_up_collectives():
    from visreg_torch import functional

    rows = (400, 300)
    results = successful(run(2, two_threads, rows))
    z = batch(sum(rows)).requires_grad_()
    slices = random_slices(DIM, 512, xp=torch, dtype=torch.float64)
    for i, loss in enumerate((functional.sigreg_loss, functional.gaussian_sliced_wasserstein)):
        z.grad = None
        value = loss(z, slices)
        value.backward()
        together = torch.cat([result[i][1] for result in results], dim=1) / 2
        torch.testing.assert_close(results[0][i][0], value.detach(), rtol=1e-10, atol=0)
        torch.testing.assert_close(together, z.grad, rtol=1e-9, atol=1e-12)
