"""scope="global" on real processes: value and gradient are those of one process with all rows."""

import numpy as np
import pytest
import torch

from tests.cases import CASES, PRIMARY
from tests.core.losses.test_execution import SHARDED, SORTING, both_passes
from tests.torch_adapter.processes import run, successful
from visreg_core.losses.execution import PLAIN

# Rows of each rank, by number of ranks: another number on each, one without any.
UNEVEN = {1: (7,), 2: (9, 3), 3: (7, 0, 5), 4: (1, 6, 0, 5)}
EVEN = {size: (6,) * size for size in UNEVEN}
COTANGENTS = (0.7, -1.3, 0.4, 2.1)
BY_NAME = {case.id: case for case in CASES}


def draw(case, rows, dim):
    """Arguments of a loss of the whole batch, the same in every process."""
    arrays = case.draw(np.random.default_rng(7), n=sum(rows), d=dim, k=7)
    return {name: torch.from_numpy(a) for name, a in arrays.items()}


def row_axis(case, name):
    if name == "slices":
        return None
    return case.loss.row_axis(name) if case.arrays is None else -2


def part(case, arrays, rows, rank):
    """The arguments that a rank passes, embeddings asking for gradients."""
    own = {}
    for name, a in arrays.items():
        axis = row_axis(case, name)
        own[name] = a if axis is None else a.split(rows, axis)[rank].clone()
        own[name].requires_grad_(name in case.differentiated)
    return own


def on_rank(rank, plan, **sharding):
    """{key: [values, gradients]} of every key (case, rows, dim, sorting, path) in the plan."""
    from visreg_torch import _passes, functional
    from visreg_torch.distributed import Sharding

    found = {}
    numpy_fits = _passes.runs_on_numpy
    for key in plan:
        name, rows, dim, sorting, path = key
        _passes.runs_on_numpy = numpy_fits if path == "NumPy" else lambda *call: False
        case = BY_NAME[name]
        own = part(case, draw(case, rows, dim), rows, rank)
        positional, keyword = case.split(own)
        result = getattr(functional, case.loss.name)(
            *positional, **keyword, scope="global", group=Sharding(sorting=sorting, **sharding)
        )
        fields = tuple(result) if isinstance(result, tuple) else (result,)
        sum(c * f for c, f in zip(COTANGENTS, fields, strict=False)).backward()
        found[key] = [
            [f.detach() for f in fields],
            [own[argument].grad for argument in case.differentiated],
        ]
    return found


def whole(name, rows, dim):
    """The same of one process with all rows."""
    case = BY_NAME[name]
    positional, keyword = case.split(draw(case, rows, dim))
    return both_passes(case.function, PLAIN, positional, keyword, COTANGENTS)[:2]


def assert_is_whole(results, key):
    """Every rank's value is the whole batch's, and its gradient, averaged over ranks, too."""
    values, gradients = whole(*key[:3])
    for result in results:
        of_first = results[0][key][0]
        for found, first, expected in zip(result[key][0], of_first, values, strict=True):
            assert torch.equal(found, first)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for i, expected in enumerate(gradients):
        found = torch.cat([result[key][1][i] for result in results], dim=-2) / len(results)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def ways(case):
    return ("gather", "exchange") if case.loss.name in SORTING else ("auto",)


def plan_for(size):
    cases = [case for case in CASES if case.loss.name in SHARDED]
    plan = [
        (case.id, UNEVEN[size], 5, sorting, "torch") for case in cases for sorting in ways(case)
    ]
    if size == 2:  # the only loss of a single row
        plan += [("invariance_loss", (1, 0), 5, "auto", "torch")]
    return plan + [
        (case.id, rows[size], dim, sorting, path)
        for case in cases
        if case in PRIMARY
        # N < D: covariances go through Gram matrices
        for rows, dim, path in ((EVEN, 5, "torch"), (UNEVEN, 40, "torch"), (UNEVEN, 5, "NumPy"))
        for sorting in ways(case)
    ]


@pytest.fixture(scope="module")
def results():
    """Of every plan, by number of ranks; each is run once, when first asked for."""
    known = {}

    def of(size):
        if size not in known:
            known[size] = successful(run(size, on_rank, plan_for(size)))
        return known[size]

    return of


@pytest.mark.parametrize("size", sorted(UNEVEN))
@pytest.mark.parametrize("name", [case.id for case in CASES if case.loss.name in SHARDED])
def test_processes_compute_the_loss_of_the_whole_batch(name, size, results):
    keys = [key for key in plan_for(size) if key[0] == name]
    for key in keys:
        assert_is_whole(results(size), key)
