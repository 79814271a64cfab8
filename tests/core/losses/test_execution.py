"""What adapters stand on: losses on the shards of a batch, and the arrays that a vjp keeps.

Shards are threads here, with a barrier for a network: the oracle is the loss of the whole batch.
"""

import threading

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from tests.cases import CASES, FUNCTIONS
from visreg_core import epps_pulley, sigreg_loss
from visreg_core.losses._differentiable import closed_arrays, implementation_of
from visreg_core.losses._execution import Execution

SHARDED = (
    "center_loss",
    "scale_loss",
    "shape_loss",
    "visreg_loss",
    "invariance_loss",
    "gaussian_sliced_wasserstein",
    "sigreg_loss",
    "variance_loss",
    "covariance_loss",
    "vicreg_loss",
    "barlow_twins_loss",
    "sag_vicreg_loss",
)
SORTING = {"shape_loss", "visreg_loss", "gaussian_sliced_wasserstein"}


class Threads:
    """Shards of one process: what one posts, all read after the barrier."""

    def __init__(self, size):
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60)
        self.posted = [None] * size
        self.calls = 0


class Shard:
    def __init__(self, threads, rank):
        self.threads, self.rank, self.size = threads, rank, threads.size

    def _all(self, x):
        self.threads.posted[self.rank] = x
        self.threads.barrier.wait()
        every = list(self.threads.posted)
        self.threads.barrier.wait()
        if self.rank == 0:
            self.threads.calls += 1
        return every

    def sum(self, x):
        return sum(self._all(x))

    def maximum(self, x):
        return torch.stack(self._all(x)).amax(0)

    def gather(self, x, axis):
        return torch.cat(self._all(x), axis)

    def own(self, x, axis):
        return x.chunk(self.size, axis)[self.rank]

    def scatter_sum(self, x, axis):
        return self.own(sum(self._all(x)), axis)

    def exchange(self, x, split, join):
        return torch.cat([y.chunk(self.size, split)[self.rank] for y in self._all(x)], join)


def run(size, work):
    """`work(shard)` on every shard at once; their results in order."""
    threads, results = Threads(size), [None] * size

    def target(rank):
        try:
            results[rank] = work(Shard(threads, rank))
        except BaseException as error:
            results[rank] = error
            threads.barrier.abort()

    started = [threading.Thread(target=target, args=(r,)) for r in range(size)]
    for t in started:
        t.start()
    for t in started:
        t.join()
    errors = [r for r in results if isinstance(r, BaseException)]
    if errors:
        raise next(
            (e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0]
        )
    return results, threads


def whole(case, arrays, mask, cotangents):
    positional, keyword = case.split(arrays)
    result, vjp = implementation_of(case.function)(
        *positional, **keyword, row_mask=mask, need_grad=True
    )
    result = tuple(result) if isinstance(result, tuple) else (result,)
    gradient = vjp(*cotangents[: len(result)])
    return result, gradient if isinstance(gradient, tuple) else (gradient,)


WAYS = [
    pytest.param(case, sorting, id=f"{case}-{sorting}")
    for case in CASES
    if case.loss.name in SHARDED
    for sorting in (("gather", "exchange") if case.loss.name in SORTING else ("auto",))
]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("shape", [(12, 5, 7), (6, 9, 2)], ids=["N>D", "N<D"])
@pytest.mark.parametrize(("case", "sorting"), WAYS)
def test_shards_make_the_loss_of_the_whole_batch(case, sorting, shape, masked, size, rng):
    n, d, k = shape
    arrays = {key: torch.asarray(a.copy()) for key, a in case.draw(rng, n=n, d=d, k=k).items()}
    mask = None
    if masked:
        mask = torch.ones(n, dtype=torch.bool)
        mask[[1, n - 1]] = False
        if "pairs" in arrays:  # a kept row must be paired with a kept row
            arrays["pairs"] = torch.where(mask[arrays["pairs"]], arrays["pairs"], 0)
    cotangents = (0.7, -1.3, 0.4, 2.1)
    values, gradients = whole(case, arrays, mask, cotangents)

    def part(shard, key, a):
        if key == "slices":
            return a
        return shard.own(a, case.loss.row_axis(key) if case.arrays is None else -2)

    def work(shard):
        own = {key: part(shard, key, a) for key, a in arrays.items()}
        positional, keyword = case.split(own)
        result, vjp = implementation_of(case.function)(
            *positional,
            **keyword,
            row_mask=None if mask is None else shard.own(mask, 0),
            need_grad=True,
            execution=Execution(shards=shard, sorting=sorting),
        )
        result = tuple(result) if isinstance(result, tuple) else (result,)
        gradient = vjp(*cotangents[: len(result)])
        return result, gradient if isinstance(gradient, tuple) else (gradient,)

    results, threads = run(size, work)
    assert threads.calls > 0
    for result, _ in results:
        for found, expected in zip(result, values, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    for i, expected in enumerate(gradients):
        found = torch.cat([g[i] for _, g in results], dim=-2)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_every_loss_of_embeddings_runs_on_shards():
    local = {"sliced_wasserstein", "max_sliced_wasserstein", "epps_pulley", "spectralnet_loss"}
    assert set(SHARDED) | local == set(FUNCTIONS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_vjp_can_be_made_again_over_other_arrays(case, rng):
    first, second = (
        {key: torch.asarray(a.copy()) for key, a in case.draw(rng).items()} for _ in range(2)
    )
    positional, keyword = case.split(first)
    result, vjp = implementation_of(case.function)(*positional, **keyword, need_grad=True)
    arrays, remake = closed_arrays(vjp)
    positional, keyword = case.split(second)
    _, other = implementation_of(case.function)(*positional, **keyword, need_grad=True)
    others, _ = closed_arrays(other)
    cotangents = (1.0, 0.5, 0.25, 0.125)[: len(result) if isinstance(result, tuple) else 1]
    if case.loss.name == "epps_pulley":
        cotangents = (torch.asarray(np.float64(1.0)),)
    assert [tuple(a.shape) for a in arrays] == [tuple(a.shape) for a in others]
    expected, found = other(*cotangents), remake(others)(*cotangents)
    for e, f in zip(*(x if isinstance(x, tuple) else (x,) for x in (expected, found)), strict=True):
        assert torch.equal(e, f)
    if case.loss.name != "center_loss":  # whose gradient is the same for all rows
        unlike = vjp(*cotangents)
        first_of = unlike[0] if isinstance(unlike, tuple) else unlike
        first_expected = expected[0] if isinstance(expected, tuple) else expected
        assert not torch.equal(first_of, first_expected)


class Twice:
    """Two shards of which the other holds the same rows; remembers who asked it for a sum."""

    size = 2

    def __init__(self):
        self.callers = []

    def sum(self, x):
        self.callers.append(threading.get_ident())
        return 2 * x


def test_shards_on_numpy_reduce_once_a_chunk_and_in_order(rng, monkeypatch):
    """Large enough for several threads and tiles: those would reduce in any order."""
    monkeypatch.setattr("visreg_core._tiles._TILE_BYTES", 1 << 16)
    x, z, slices = rng.normal(size=(64, 4096)), rng.normal(size=(4096, 8)), np.eye(8)
    for loss, axis, arguments, reductions in (
        (epps_pulley, -1, {"x": x}, 1),
        (sigreg_loss, -2, {"z": z, "slices": slices, "chunk_size": 3}, 3),
    ):
        implementation, shards = implementation_of(loss), Twice()
        value, vjp = implementation(**arguments, need_grad=True, execution=Execution(shards))
        assert shards.callers == [threading.get_ident()] * reductions
        first = next(iter(arguments))
        own = arguments.pop(first)
        whole = np.concatenate([own, own], axis=axis)
        exact, exact_vjp = implementation(**{first: whole}, **arguments, need_grad=True)
        assert_allclose(value, exact, rtol=1e-12)
        gradient = np.split(exact_vjp(np.ones_like(exact)), 2, axis=axis)[0]
        assert_allclose(vjp(np.ones_like(exact)), gradient, rtol=1e-9, atol=1e-15)
