"""What `explain` tells is what is sent, and adds up by hand."""

import re
from pathlib import Path

import pytest
import torch

from tests.cases import PRIMARY
from tests.core.losses.test_execution import SHARDED, both_passes
from tests.torch_adapter.processes import run, successful
from tests.torch_adapter.test_distributed_values import draw, part, ways
from visreg_core.losses.execution import PLAIN
from visreg_torch import Sharding, explain, functional

OF_PAIRS_OF_ROWS = ("gaussian_ksd", "gaussian_mmd", "sigreg_limit", "spherical_mmd")
SIZE, ROWS = 3, (6, 6, 6)
CASES = {case.id: case for case in PRIMARY if case.loss.name in SHARDED}
KEYS = [
    (name, dim, sorting)
    for name, case in CASES.items()
    for dim in (5, 40)  # N > D and N < D
    for sorting in ways(case)
]


def arguments_of(name, dim, rank):
    case = CASES[name]
    own = part(case, draw(case, ROWS, dim), ROWS, rank)
    return case.split({key: a.detach() for key, a in own.items()})


def counted(rank):
    """Calls and bytes of every key, by the collectives themselves."""
    from visreg_torch.distributed import ProcessShards

    found = {}
    for name, dim, sorting in KEYS:
        shards = ProcessShards(None, name)
        positional, keyword = arguments_of(name, dim, rank)
        execution = PLAIN._replace(shards=shards, sorting=sorting)
        both_passes(CASES[name].function, execution, positional, keyword, [1.0] * 4)
        found[name, dim, sorting] = [shards.traffic.n_calls, shards.traffic.n_bytes]
    return found


def test_what_is_told_is_what_is_sent():
    results = successful(run(SIZE, counted))
    for name, dim, sorting in KEYS:
        positional, keyword = arguments_of(name, dim, 0)
        told = explain(
            getattr(functional, CASES[name].loss.name),
            *positional,
            **keyword,
            size=SIZE,
            group=Sharding(sorting=sorting),
        )
        for found in results:
            assert found[name, dim, sorting] == [told.traffic.n_calls, told.traffic.n_bytes]
        if len(ways(CASES[name])) > 1:
            assert told.way == sorting and "as requested" in told.reason
        elif told.way == "rows":
            assert dim == 40 or "sag" in name or name.startswith(OF_PAIRS_OF_ROWS)
        else:
            assert told.way == "moments"


def moved(rank, sorting):
    """Collectives of a loss, called as people call it."""
    from visreg_torch.distributed import ProcessShards

    calls, communicate = [], ProcessShards._run

    def spied(shards, operation, x, call):
        calls.append(operation)
        communicate(shards, operation, x, call)

    ProcessShards._run = spied
    z, slices = torch.randn(2, 4, 5), torch.randn(5, 7)
    functional.shape_loss(z, slices, scope="global", group=Sharding(sorting=sorting))
    return calls


@pytest.mark.parametrize("sorting", ["gather", "exchange"])
def test_what_is_asked_for_is_done(sorting):
    for calls in successful(run(2, moved, sorting)):
        assert ("all_to_all" in calls) == (sorting == "exchange")


@pytest.mark.parametrize("sorting", ["gather", "exchange"])
def test_bytes_by_hand(sorting):
    (v, n, d, k), w = (2, 6, 5, 9), 3
    z, slices = torch.randn(v, n, d), torch.randn(d, k)
    told = explain("visreg_loss", z, slices, size=w, group=Sharding(sorting=sorting))
    # Of 4 bytes: mean, its rest and variance (V, D), the range (V, 2 D);
    moments = 2 * (w - 1) / w * (3 * v * d + 2 * v * d)
    values = (w - 1) * v * k / w  # the values of the own slices, gathered;
    rows = 2 * (w - 1) * v * n * d  # embeddings and their gradients, or
    projections = 2 * (w - 1) / w * v * n * k  # projections there and back.
    expected = moments + values + (rows if sorting == "gather" else projections)
    assert told.traffic.n_bytes == round(4 * expected)
    by = {
        "gather": {"all_gather": 2, "reduce_scatter": 1},
        "exchange": {"all_gather": 1, "all_to_all": 2},
    }
    assert told.traffic.calls == {"all_reduce": 4, **by[sorting]}


def test_the_way_with_fewer_bytes_is_taken():
    for dim, n_slices, size in ((4, 16, 2), (4, 16, 8), (16, 16, 2), (8, 100, 13), (8, 104, 13)):
        z, slices = (
            torch.empty(2, 64, dim, device="meta"),
            torch.empty(dim, n_slices, device="meta"),
        )
        sent = {
            way: explain(
                "visreg_loss", z, slices, size=size, group=Sharding(sorting=way)
            ).traffic.n_bytes
            for way in ("gather", "exchange")
        }
        assert explain("visreg_loss", z, slices, size=size).traffic.n_bytes == min(sent.values())


def test_as_text():
    z, slices = torch.empty(8, 512, 256, device="meta"), torch.empty(256, 4096, device="meta")
    assert str(explain("visreg_loss", z, slices, size=2)) == (
        "visreg_loss on 2 processes: gather, since ⌈4096 slices / 2⌉ ≥ 256 dimensions (exchange "
        "would send 67.2 MB); each sends 8.5 MB a step by 2 all_gather, 4 all_reduce, "
        "1 reduce_scatter"
    )
    assert str(explain(functional.scale_loss, z)) == (
        "scale_loss: nothing is sent, all rows are here"
    )
    with pytest.raises(TypeError, match="expected a declared loss"):
        explain("spectral", z)
    with pytest.raises(TypeError, match="expected a loss of the rows of a batch; found sliced"):
        explain("sliced_wasserstein", z, z, slices, size=2)


def test_the_manual_shows_what_is_printed(capsys):
    page = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
    shown = re.findall(r"```python\n([^`]*print[^`]*)```\n\n```text\n(.*?)```", page, re.S)
    ((code, printed),) = shown
    exec(code, {"torch": torch})
    assert capsys.readouterr().out.split() == printed.split()
