"""Random walks between rows: by NumPy on the CPU, and on batches that lie on several processes.

Of such a batch each process looks for the neighbours of its own rows of one view among all rows of
the other, which is nearly all of the work. Where a pair depends on other rows' neighbours, these
few numbers are gathered, and every process draws all pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import visreg_core
from visreg_core import _checks, _tiles
from visreg_core.losses.random_walk import (
    Nearest,
    check_neighbors,
    nearest,
    needs_all_rows,
    pairs_of_nearest,
)
from visreg_torch import _batch
from visreg_torch._call import check_tensor
from visreg_torch._run import without_autocast
from visreg_torch._slices import are_traced, word_for
from visreg_torch.distributed import ProcessShards, Sharding, rank_of

Word = int | Tensor


def affinity(a: Tensor, b: Tensor, **options: Any) -> Tensor:
    """`visreg_core.random_walk_affinity`."""

    def compute(a: Any, b: Any) -> tuple[Any, ...]:
        return (visreg_core.random_walk_affinity(a, b, **options),)

    return _computed(compute, a, b)[0]


def pairs(
    a: Tensor, b: Tensor, *, sharding: Sharding | None, seed: Word, step: Word, **options: Any
) -> tuple[Tensor, Tensor]:
    """`visreg_core.random_walk_pairs` of this process's rows, as part of those of `sharding`."""
    check_tensor("a", a)
    check_tensor("b", b)
    if not are_traced(a, b, seed, step):
        seed, step = (word_for(k, w, a.device) for k, w in (("seed", seed), ("step", step)))
    words: dict[str, Any] = {"seed": seed, "step": step}
    if sharding is not None:
        return _sharded_pairs(a, b, sharding, words, **options)

    def compute(a: Any, b: Any) -> tuple[Any, ...]:
        return visreg_core.random_walk_pairs(a, b, **options, **words)

    at, weights = _computed(compute, a, b)
    return at, weights


def _sharded_pairs(
    a: Tensor,
    b: Tensor,
    sharding: Sharding,
    words: dict[str, Any],
    *,
    n_neighbors: int,
    percentile: float,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    told = {"a": a, "b": b, "n_neighbors": n_neighbors, "percentile": percentile, **options}
    rows = _batch.agreed_rows("random_walk_pairs", told, sharding, least=1)
    _checks.same_shape("a", a, "b", b)
    check_neighbors(n_neighbors, sum(rows))
    shards = ProcessShards(sharding.group, "random_walk_pairs")
    rank = rank_of(sharding)
    own = slice(sum(rows[:rank]), sum(rows[: rank + 1]))

    def search(a: Any, b: Any) -> tuple[Any, ...]:
        return nearest(a, b, n_neighbors)[:2]

    found = _computed(search, a, _batch.gathered(shards, b.detach(), rows))
    every = needs_all_rows(options["scale"], options["symmetrize"], options["n_steps"])
    if every:
        found = [_batch.gathered(shards, x, rows) for x in found]

    def draw(index: Any, distance: Any) -> tuple[Any, ...]:
        near, first = Nearest(index, distance, sum(rows)), 0 if every else own.start
        return pairs_of_nearest(near, percentile, **options, **words, first=first)

    at, weights = _computed(draw, *found)
    return (at[own], weights[own]) if every else (at, weights)


def _computed(function: Callable[..., tuple[Any, ...]], *tensors: Tensor) -> Sequence[Tensor]:
    """What a function of the core returns, which carries no gradient.

    On a CPU it is given NumPy arrays, 16-bit floats as float32, which is what they are computed in.
    """
    with torch.no_grad(), without_autocast(tensors[0].device):
        if are_traced(*tensors) or any(t.device.type != "cpu" for t in tensors):
            return function(*tensors)
        wide = [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors]
        with _tiles.at_most_threads(torch.get_num_threads()):
            found = function(*[t.resolve_neg().numpy() for t in wide])
        return [torch.from_numpy(np.ascontiguousarray(x)) for x in found]
