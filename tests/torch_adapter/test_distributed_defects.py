"""The classic defects of distributed losses, planted: each makes the comparison fail."""

import pytest
import torch
import torch.distributed as dist

from tests.torch_adapter import test_distributed_values as values
from tests.torch_adapter.processes import run, successful

SIZE = 3
LOSSES = (
    ("visreg_loss", "gather"),
    ("visreg_loss", "exchange"),
    ("sigreg_loss", "auto"),
    ("invariance_loss", "auto"),
    ("vicreg_loss", "auto"),
    ("barlow_twins_loss", "auto"),
    ("sag_vicreg_loss", "auto"),
)
EVEN = [(name, values.EVEN[SIZE], 5, sorting, "torch") for name, sorting in LOSSES]
UNEVEN = [(name, values.UNEVEN[SIZE], 5, sorting, "torch") for name, sorting in LOSSES]
OTHERS_ROWS = [key for key in EVEN + UNEVEN if key[3] == "gather" or "sag" in key[0]]

# Which comparisons a defect must break.
AVERAGED = [key for key in EVEN if key[0] not in ("invariance_loss", "sag_vicreg_loss")]
BROKEN = {
    "none": [],
    "a dropped all-reduce": EVEN + UNEVEN,
    "an averaged sum": EVEN + UNEVEN,
    "a mean of local losses": AVERAGED,
    "a missing factor W": EVEN + UNEVEN,
    "a gradient that does not leave its rank": OTHERS_ROWS,
    "padding that is not masked": UNEVEN,
}


def plant(defect):
    """Break this process's collectives, or what stands around them."""
    from visreg_torch import _autograd, _batch, distributed

    shards = distributed.ProcessShards
    added, padded, evaluate = shards.sum, _batch._padded, _autograd.evaluate
    if defect == "a dropped all-reduce":
        shards.sum = lambda self, x: x
    elif defect == "an averaged sum":
        shards.sum = lambda self, x: added(self, x) / self.size
    elif defect == "a missing factor W":
        distributed.gradient_factor = lambda size: 1
    elif defect == "a gradient that does not leave its rank":
        shards.scatter_sum = lambda self, x, axis: self.own(x, axis)
    elif defect == "padding that is not masked":
        _batch._padded = lambda *given: {**padded(*given), "row_mask": None}
    elif defect == "a mean of local losses":
        from visreg_torch import _differentiable

        def averaged(*arguments, scope, group, **options):
            result = evaluate(*arguments, **options)
            parts = result if isinstance(result, tuple) else (result,)
            for part in parts:
                dist.all_reduce(part.data)
                part.data /= SIZE
            return result

        _differentiable.evaluate = averaged


def on_rank(rank, defect):
    plant(defect)
    return values.on_rank(rank, AVERAGED if defect == "a mean of local losses" else EVEN + UNEVEN)


@pytest.mark.parametrize("defect", BROKEN)
def test_a_planted_defect_is_seen(defect):
    results = successful(run(SIZE, on_rank, defect))
    if defect == "none":
        for key in EVEN + UNEVEN:
            values.assert_is_whole(results, key)
    for key in BROKEN[defect]:
        if key in EVEN:  # not by a NaN, which would be seen without a comparison
            assert all(torch.isfinite(x).all() for r in results for part in r[key] for x in part)
        with pytest.raises(AssertionError):
            values.assert_is_whole(results, key)
