"""What adapters stand on: losses on the shards of a batch, and what a forward pass saves.

Shards are threads here, with a barrier for a network: the oracle is the loss of the whole batch.
"""

import threading

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from tests.cases import CASES, FUNCTIONS
from visreg_core import epps_pulley, sigreg_loss
from visreg_core.losses.declaration import declaration_of
from visreg_core.losses.execution import PLAIN, Execution

SHARDED = [name for name, loss in FUNCTIONS.items() if declaration_of(loss.function).sharded]
SORTING = [name for name in SHARDED if declaration_of(FUNCTIONS[name].function).sorts]
SHARDED.remove("epps_pulley")  # whose rows are along another axis: it has a test of its own


class Threads:
    """Shards of one process: what one posts, all read after the barrier."""

    def __init__(self, size):
        self.size = size
        self.barrier = threading.Barrier(size, timeout=600)
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


def both_passes(function, execution, args, kwargs, cotangents):
    """Fields, gradients, and what was saved in between."""
    declaration = declaration_of(function)
    inputs = declaration.bind(args, kwargs)
    result, saved = declaration.forward(execution._replace(need_gradient=True), **inputs)
    fields = tuple(result) if isinstance(result, tuple) else (result,)
    gradients = declaration.gradients(execution, inputs, saved, cotangents[: len(fields)])
    return fields, gradients, saved


def whole(case, arrays, mask, cotangents):
    positional, keyword = case.split(arrays)
    extra = {"row_mask": mask} if case.loss.row_mask else {}
    return both_passes(case.function, PLAIN, positional, {**keyword, **extra}, cotangents)


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
    values, gradients, _ = whole(case, arrays, mask, cotangents)

    def part(shard, key, a):
        if key == "slices":
            return a
        return shard.own(a, case.loss.row_axis(key) if case.arrays is None else -2)

    def work(shard):
        own = {key: part(shard, key, a) for key, a in arrays.items()}
        positional, keyword = case.split(own)
        own_mask = None if mask is None else shard.own(mask, 0)
        execution = Execution(shards=shard, sorting=sorting)
        keyword = {**keyword, "row_mask": own_mask}
        return both_passes(case.function, execution, positional, keyword, cotangents)[:2]

    results, threads = run(size, work)
    assert threads.calls > 0
    for result, _ in results:
        for found, expected in zip(result, values, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    for i, expected in enumerate(gradients):
        found = torch.cat([g[i] for _, g in results], dim=-2)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_saved_goes_back_with_other_inputs_of_the_same_values(case, rng):
    """A backward pass needs what was saved and the inputs, and no state of the forward pass."""
    arrays = {key: torch.asarray(a.copy()) for key, a in case.draw(rng).items()}
    cotangents = (0.7, -1.3, 0.4, 2.1)
    fields, expected, saved = whole(case, arrays, None, cotangents)
    declaration = declaration_of(case.function)
    copies = {key: a.clone() for key, a in arrays.items()}
    positional, keyword = case.split(copies)
    inputs = declaration.bind(positional, keyword)
    again = type(saved)(*map(_cloned, saved))
    found = declaration.gradients(PLAIN, inputs, again, cotangents[: len(fields)])
    for e, f in zip(expected, found, strict=True):
        assert torch.equal(e, f)


def _cloned(x):
    return tuple(map(_cloned, x)) if isinstance(x, tuple) else None if x is None else x.clone()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_saved_arrays_are_new_ones(case, rng):
    """None of them is an input, or a part of one or of another."""
    arrays = {key: torch.asarray(a.copy()) for key, a in case.draw(rng).items()}
    _, _, saved = whole(case, arrays, None, (0.7, -1.3, 0.4, 2.1))
    flat = [x for f in saved for x in (f if isinstance(f, tuple) else (f,)) if x is not None]
    owners = [x.untyped_storage().data_ptr() for x in (*arrays.values(), *flat)]
    assert len(set(owners)) == len(owners)
    assert type(saved) is declaration_of(case.function).saved


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
    monkeypatch.setattr("visreg_core._xp.tiles._TILE_BYTES", 1 << 16)
    x, z, slices = rng.normal(size=(64, 4096)), rng.normal(size=(4096, 8)), np.eye(8)
    for loss, axis, arguments, reductions in (
        (epps_pulley, -1, {"x": x}, 1),
        (sigreg_loss, -2, {"z": z, "slices": slices, "chunk_size": 3}, 3),
    ):
        declaration, shards = declaration_of(loss), Twice()
        kernels = declaration.execution(declaration.bind((), arguments)).kernels

        def run_on(shards, arguments, declaration=declaration, kernels=kernels):
            execution = Execution(shards, kernels=kernels, need_gradient=True)
            inputs = declaration.bind((), arguments)
            value, saved = declaration.forward(execution, **inputs)
            cotangents = (np.ones_like(value),)
            return value, declaration.gradients(execution, inputs, saved, cotangents)[0]

        value, gradient = run_on(shards, arguments)
        assert shards.callers == [threading.get_ident()] * reductions
        first = next(iter(arguments))
        own = arguments.pop(first)
        whole = np.concatenate([own, own], axis=axis)
        exact, of_whole = run_on(PLAIN.shards, {first: whole, **arguments})
        assert_allclose(value, exact, rtol=1e-12)
        assert_allclose(gradient, np.split(of_whole, 2, axis=axis)[0], rtol=1e-9, atol=1e-15)
