"""Ranks that do not fit are told so, on every rank and in one line; lost ranks hold up no one."""

import os
import time

import pytest
import torch

from tests.torch_adapter.processes import Died, run, successful

SIZE = 3


def message_of(call):
    try:
        call()
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def odd_one(rank, odd):
    """Messages of every rank where the one of number `odd` passes something else."""
    from visreg_torch import Sharding, functional, gather_rows

    is_odd = rank == odd
    slices = torch.eye(4)[:, :2]

    def z(*shape, dtype=torch.float32, requires_grad=False):
        return torch.zeros(shape, dtype=dtype, requires_grad=requires_grad)

    def visreg(z, slices=slices, **options):
        return functional.visreg_loss(z, slices, scope="global", **options)

    def autocast(z):
        with torch.autocast("cpu", torch.bfloat16):
            return visreg(z)

    def pairs(a, n_neighbors=2, **options):
        return functional.random_walk_pairs(a, z(5, 4), n_neighbors, scope="global", **options)

    calls = {
        "dimensions": lambda: visreg(z(2, 5, 3 if is_odd else 4)),
        "views": lambda: visreg(z(3 if is_odd else 2, 5, 4)),
        "axes": lambda: visreg(z(5, 4) if is_odd else z(2, 5, 4)),
        "dtype": lambda: visreg(z(2, 5, 4, dtype=torch.float64 if is_odd else torch.float32)),
        "n_slices": lambda: visreg(z(2, 5, 4), slices[:, : 1 if is_odd else 2]),
        "slices": lambda: visreg(z(2, 5, 4), -slices if is_odd else slices),
        "slices a hundredth off": lambda: visreg(z(2, 5, 4), slices + 0.01 * is_odd),
        "options": lambda: visreg(z(2, 5, 4), weights=(1, 1, 2 if is_odd else 1)),
        "weight": lambda: visreg(z(2, 5, 4), weights=(1, 1, torch.tensor(2.0 if is_odd else 1.0))),
        "way to sort": lambda: visreg(
            z(2, 5, 4), group=Sharding(sorting="gather" if is_odd else "exchange")
        ),
        "padded under autocast": lambda: autocast(z(2, 3 if is_odd else 5, 4, dtype=torch.half)),
        "loss": lambda: (
            functional.scale_loss(z(5, 4), scope="global")
            if is_odd
            else functional.center_loss(z(5, 4), scope="global")
        ),
        "one axis": lambda: visreg(z(5) if is_odd else z(5, 4)),
        "two views": lambda: functional.vicreg_loss(
            z(5, 4), z(6 if is_odd else 5, 4), scope="global"
        ),
        "gathered": lambda: gather_rows(z(5, 3 if is_odd else 4)),
        "no tensor": lambda: visreg(3 if is_odd else z(5, 4)),
        "gradient": lambda: visreg(z(2, 0 if is_odd else 5, 4, requires_grad=not is_odd)),
        "mask": lambda: visreg(z(5, 4), row_mask=torch.ones(5) if is_odd else None),
        "mask of others": lambda: visreg(
            z(5, 4), row_mask=torch.ones(4, dtype=torch.bool) if is_odd else None
        ),
        "too few": lambda: visreg(z(2, is_odd, 4)),
        "same everywhere": lambda: visreg(z(2, 5, 4), weights=(1, 1)),
        "scope": lambda: functional.center_loss(z(5, 4), scope="world"),
        "sorting": lambda: visreg(z(2, 5, 4)),
        "none": lambda: visreg(z(2, rank, 4)),
        "pairs of no tensor": lambda: pairs(3 if is_odd else z(5, 4)),
        "seed": lambda: pairs(z(5, 4), seed=-1 if is_odd else 7),
        "step": lambda: pairs(z(5, 4), step=torch.tensor(8) if is_odd else 7),
        "step of any kind": lambda: pairs(z(5, 4), step=torch.tensor(7) if is_odd else 7),
        "seed everywhere": lambda: pairs(z(5, 4), seed=-1),
        "dtypes everywhere": lambda: pairs(z(5, 4, dtype=torch.bfloat16)),
        "axes everywhere": lambda: functional.random_walk_pairs(*z(2, 1, 5, 4), scope="global"),
        "neighbors everywhere": lambda: pairs(z(5, 4), 16),
        "no neighbors everywhere": lambda: pairs(z(5, 4), 0),
        "percentile everywhere": lambda: pairs(z(5, 4), percentile=101),
        "scale everywhere": lambda: pairs(z(5, 4), scale="world"),
        "flag everywhere": lambda: pairs(z(5, 4), symmetrize=1),
        "steps everywhere": lambda: pairs(z(5, 4), n_steps=0),
    }
    return {name: message_of(call) for name, call in calls.items()}


EXPECTED = {
    "weight": "weights=(1, 1, 2), ",
    "way to sort": "sorting='gather' on rank 1; ",
    "padded under autocast": "no error",
    "dimensions": "ValueError: expected visreg_loss with one shape of z but for its rows on all "
    "ranks; found z float32 (2, N, 3) on rank 1; z float32 (2, N, 4) on ranks 0, 2",
    "views": "found z float32 (3, N, 4) on rank 1; z float32 (2, N, 4) on ranks 0, 2",
    "axes": "found z float32 (N, 4) on rank 1; z float32 (2, N, 4) on ranks 0, 2",
    "dtype": "found z float64 (2, N, 4) on rank 1; z float32 (2, N, 4) on ranks 0, 2",
    "n_slices": "found slices float32 (4, 1) on rank 1; slices float32 (4, 2) on ranks 0, 2",
    "slices": "expected visreg_loss with the same slices on all ranks",
    "slices a hundredth off": "expected visreg_loss with the same slices on all ranks",
    "options": "weights=(1, 1, 2), detach_scale=True",
    "loss": "ValueError: expected the same loss on all ranks; found scale_loss on rank 1; "
    "center_loss on ranks 0, 2",
    "one axis": "ValueError: visreg_loss on rank 1: expected z of at least 2 axes; "
    "found shape (5,)",
    "two views": "ValueError: vicreg_loss on rank 1: expected as many rows of all arguments; "
    "found a with 5, b with 6",
    "gathered": "gather_rows with one shape of z but for its rows on all ranks; "
    "found z float32 (N, 3) on rank 1; z float32 (N, 4) on ranks 0, 2",
    "no tensor": "ValueError: visreg_loss on rank 1: expected z to be a torch.Tensor; found int",
    "gradient": "ValueError: expected visreg_loss with one requires_grad of the embeddings on all "
    "ranks; found requires_grad=False on rank 1; requires_grad=True on ranks 0, 2",
    "mask": "ValueError: visreg_loss on rank 1: expected row_mask bool (N); found float32 (5)",
    "mask of others": "ValueError: visreg_loss on rank 1: expected as many rows of all arguments; "
    "found z with 5, row_mask with 4",
    "too few": "ValueError: expected visreg_loss of at least 2 rows on all ranks together; "
    "found 1 on ranks 0, 1, 2",
    "same everywhere": "ValueError: expected weights to be 3 numbers",
    "scope": "ValueError: expected scope to be one of ['local', 'global']; found 'world'",
    "none": "no error",
    "pairs of no tensor": "random_walk_pairs on rank 1: expected a to be a torch.Tensor; found int",
    "seed": "n_steps=1, seed=-1, step=0 on rank 1; ",
    "step": "n_steps=1, seed=0, step=8 on rank 1; ",
    "step of any kind": "no error",
    "seed everywhere": "ValueError: expected seed in 0 ... 2**32 - 1; found -1",
    "dtypes everywhere": "TypeError: expected a and b of one dtype; found bfloat16 and float32",
    "axes everywhere": "ValueError: expected a of shape (N, D); found (1, 15, 4)",
    "neighbors everywhere": "ValueError: expected n_neighbors <= N = 15; found 16",
    "no neighbors everywhere": "ValueError: expected n_neighbors to be an integer >= 1; found 0",
    "percentile everywhere": "ValueError: expected percentile in 0 ... 100; found 101",
    "scale everywhere": "ValueError: expected scale to be one of ['local', 'global']",
    "flag everywhere": "TypeError: expected symmetrize to be True or False; found 1",
    "steps everywhere": "ValueError: expected n_steps to be an integer >= 1; found 0",
}


def test_a_rank_that_does_not_fit_is_named_on_every_rank():
    results = successful(run(SIZE, odd_one, 1))
    for name, expected in EXPECTED.items():
        for result in results:
            assert expected in result[name], name
            assert "\n" not in result[name]


def lost(rank, how, seconds):
    """What the other ranks hear, and after how long, of a rank that is lost after one step."""
    from visreg_torch import functional

    z = torch.randn(2, 4, 3)
    functional.scale_loss(z, scope="global")
    if rank == 1 and how == "dies":
        os._exit(1)
    if rank == 1:
        time.sleep(2 * seconds)
        return ["", 0.0]
    start = time.monotonic()
    message = message_of(lambda: functional.scale_loss(z, scope="global"))
    return [message, time.monotonic() - start]


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_a_lost_rank_ends_the_others_within_the_timeout(how):
    seconds = 4.0  # for a step of a busy machine
    first, second, third = run(SIZE, lost, how, seconds, timeout=seconds)
    assert isinstance(second, Died) == (how == "dies")
    for rank, (message, waited) in ((0, first), (2, third)):
        assert message.startswith(
            f"RuntimeError: scale_loss of z float32 (2, 4, 3) on rank {rank} of 3 ranks: "
            "all_gather of uint8 (2048) failed after"
        )
        assert "another rank is gone or does not take part" in message
        assert "\n" not in message
        assert waited < 300  # and not for ever


def lost_inside(rank):
    """As `lost`, in the midst of a loss; the shapes were not exchanged."""
    from visreg_torch import functional
    from visreg_torch.distributed import ProcessShards, Sharding

    if rank == 1:
        ProcessShards.maximum = lambda shards, x: os._exit(1)
    z = torch.randn(2, 4, 3)
    return [
        message_of(
            lambda: functional.scale_loss(z, scope="global", group=Sharding(static_shapes=True))
        )
    ]


def test_a_rank_lost_inside_a_loss():
    results = run(SIZE, lost_inside, timeout=10.0)
    assert isinstance(results[1], Died)
    for rank in (0, 2):
        (message,) = results[rank]
        assert f"scale_loss on rank {rank} of 3 ranks: all_reduce of float32 (2, 2, 3)" in message
