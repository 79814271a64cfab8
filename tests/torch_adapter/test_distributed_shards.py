"""The collectives by themselves: every dtype, any strides, counted, and closed to autograd."""

import pytest
import torch

from tests.torch_adapter.processes import run, successful

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.bool, torch.int64]
REDUCED = (torch.float64, torch.float32, torch.int64)
SIZES = (2, 3)


def arrays(size, dtype):
    """What each rank passes: (4, 2 W, 3 W), not contiguous."""
    generator = torch.Generator().manual_seed(3)
    every = torch.randint(0, 2 if dtype == torch.bool else 9, (size, 2 * size, 3 * size, 4))
    return [x.permute(2, 0, 1) for x in every.random_(0, 9, generator=generator).to(dtype)]


def moves(rank, size):
    from visreg_torch.distributed import ProcessShards

    shards = ProcessShards(None, "test")
    found = {}
    for dtype in DTYPES:
        x = arrays(size, dtype)[rank]
        assert not x.is_contiguous()
        of = found[str(dtype)] = {
            "gather 0": shards.gather(x, 0),
            "gather -2": shards.gather(x, -2),
            "own": shards.own(x, -1),
            "exchange": shards.exchange(x, split=1, join=0),
            "exchange back": shards.exchange(shards.exchange(x, split=2, join=1), 1, 2),
        }
        if dtype in REDUCED:
            of["sum"], of["maximum"] = shards.sum(x), shards.maximum(x)
            of["scatter_sum"] = shards.scatter_sum(x, -1)
            of["reduce_scatter"] = shards._reduce_scattered(shards._parts(x, -1))
            of["scalar"] = shards.sum(x.sum())
        assert torch.equal(x, arrays(size, dtype)[rank])  # nothing is written into
    return found


def expected(size, dtype):
    """The same, from all ranks' arrays, by rank."""
    every = arrays(size, dtype)
    rows = [{} for _ in range(size)]
    for rank, of in enumerate(rows):
        of["gather 0"] = torch.cat(every, 0)
        of["gather -2"] = torch.cat(every, -2)
        of["own"] = every[rank].chunk(size, -1)[rank]
        of["exchange"] = torch.cat([x.chunk(size, 1)[rank] for x in every], 0)
        of["exchange back"] = every[rank]
        if dtype in REDUCED:
            total = torch.stack(every).sum(0)
            of["sum"], of["maximum"] = total, torch.stack(every).amax(0)
            of["scatter_sum"] = of["reduce_scatter"] = total.chunk(size, -1)[rank]
            of["scalar"] = total.sum()
    return rows


@pytest.mark.parametrize("size", SIZES)
def test_collectives(size):
    results = successful(run(size, moves, size))
    for dtype in DTYPES:
        for found, of in zip(results, expected(size, dtype), strict=True):
            assert found[str(dtype)].keys() == of.keys()
            for name, x in of.items():
                torch.testing.assert_close(
                    found[str(dtype)][name], x, rtol=0, atol=0, msg=lambda m, name=name: name + m
                )


def with_autograd(rank):
    from visreg_torch.distributed import ProcessShards

    shards = ProcessShards(None, "sigreg_loss")
    x = torch.ones(4, requires_grad=True)
    messages = []
    for operation in (
        lambda: shards.sum(x),
        lambda: shards.maximum(2 * x),
        lambda: shards.gather(x, 0),
        lambda: shards.scatter_sum(x, 0),
        lambda: shards.exchange(x, 0, 0),
    ):
        try:
            operation()
        except RuntimeError as error:
            messages.append(str(error))
    with torch.no_grad():
        shards.sum(x)
    return [messages, shards.traffic.calls, shards.traffic.n_bytes]


def test_autograd_never_flows_through_a_collective():
    for messages, calls, n_bytes in successful(run(2, with_autograd)):
        assert len(messages) == 5
        assert all("sigreg_loss to run without autograd" in m for m in messages)
        assert calls == {"all_reduce": 1} and n_bytes == 16
