"""Random walks between rows: by NumPy on the CPU, and on batches spread over several processes.

Each process finds the nearest neighbours of its own rows of one view among all rows of the other,
which is nearly all of the work. Where a pair depends on other rows' neighbours, the neighbours,
which are few numbers, are gathered, and every process draws all pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import visreg_core
from visreg_core import checks, threads
from visreg_core.losses.random_walk import (
    Nearest,
    check_call,
    nearest,
    needs_all_rows,
    pairs_of_nearest,
)
from visreg_torch import _batch
from visreg_torch._call import check_tensor
from visreg_torch._passes import without_autocast
from visreg_torch._slices import Word, are_traced, word_for
from visreg_torch.distributed import Sharding, rank_of, sharding_of

_PAIRS = "random_walk_pairs"  # in messages


def random_walk_affinity(
    a: Tensor,
    b: Tensor,
    n_neighbors: int = 10,
    percentile: float = 20,
    *,
    scale: str = "local",
    symmetrize: bool = False,
) -> Tensor:
    """Affinity (N, N) of the rows of two views, as `visreg_core.random_walk_affinity`.

    Examples
    --------
    >>> import torch
    >>> from visreg_torch import random_walk_affinity
    >>> a, b = torch.randn(2, 16, 4)
    >>> random_walk_affinity(a, b, n_neighbors=3).shape
    torch.Size([16, 16])
    """
    _check(a, b)

    def compute(a: Any, b: Any) -> tuple[Any, ...]:
        return (
            visreg_core.random_walk_affinity(
                a, b, n_neighbors, percentile, scale=scale, symmetrize=symmetrize
            ),
        )

    return _computed(compute, a, b)[0]


def random_walk_pairs(
    a: Tensor,
    b: Tensor,
    n_neighbors: int = 10,
    percentile: float = 20,
    *,
    scale: str = "local",
    symmetrize: bool = False,
    n_steps: int = 1,
    seed: int | Tensor = 0,
    step: int | Tensor = 0,
    scope: str = "local",
    group: Any = None,
) -> tuple[Tensor, Tensor]:
    """Pairs (N,) of the rows of two views and their weights, as `visreg_core.random_walk_pairs`.

    In global scope pairs index b's rows of all processes, in order of rank, and each process gets
    those of its own rows of a.

    Examples
    --------
    >>> import torch
    >>> from visreg_torch import random_walk_pairs, sag_vicreg_loss
    >>> a, b = torch.randn(2, 16, 4)
    >>> at, pair_weights = random_walk_pairs(a, b, n_neighbors=3, step=7)
    >>> sag_vicreg_loss(a, b, at, pair_weights)._fields
    ('total', 'invariance', 'variance', 'covariance')
    """
    options: dict[str, Any] = {
        "n_neighbors": n_neighbors,
        "percentile": percentile,
        "scale": scale,
        "symmetrize": symmetrize,
        "n_steps": n_steps,
    }
    words = {"seed": seed, "step": step}
    sharding = sharding_of(scope, group)
    if sharding is not None:
        return _sharded_pairs(a, b, sharding, words, **options)
    _check(a, b)

    def compute(a: Any, b: Any, **words: Any) -> tuple[Any, ...]:
        return visreg_core.random_walk_pairs(a, b, **options, **words)

    at, weights = _computed(compute, a, b, **words)
    return at, weights


def _sharded_pairs(
    a: Tensor, b: Tensor, sharding: Sharding, words: dict[str, Word], **options: Any
) -> tuple[Tensor, Tensor]:
    compared = {"a": a, "b": b, **options, **words}
    rows = _batch.agreed_rows(_PAIRS, compared, sharding, least=1)
    n, before = sum(rows), sum(rows[: rank_of(sharding)])
    _check(a, b)
    # Checked with the shapes of the whole batch, so that all processes raise the same error.
    whole = (
        torch.empty((*x.shape[:-2], n, x.shape[-1]), dtype=x.dtype, device="meta") for x in (a, b)
    )
    check_call(*whole, **options)
    n_neighbors, percentile = options.pop("n_neighbors"), options.pop("percentile")

    def search(a: Any, b: Any) -> tuple[Any, ...]:
        return nearest(a, b, n_neighbors)[:2]

    found = _computed(search, a, _batch.gathered(sharding, _PAIRS, b, rows))
    every = needs_all_rows(**options)
    if every:
        found = [_batch.gathered(sharding, _PAIRS, x, rows) for x in found]

    def draw(index: Any, distance: Any, **words: Any) -> tuple[Any, ...]:
        near, first = Nearest(index, distance, n), 0 if every else before
        return pairs_of_nearest(near, percentile, **options, **words, first=first)

    at, weights = _computed(draw, *found, **words)
    own = slice(before, before + a.shape[0]) if every else slice(None)
    return at[own], weights[own]


def _check(a: Tensor, b: Tensor) -> None:
    """Check shape and dtype here: NumPy would see two 16-bit dtypes widened to one."""
    check_tensor("a", a)
    check_tensor("b", b)
    checks.floating("a", a)
    checks.same_shape("a", a, "b", b)


def _computed(
    function: Callable[..., tuple[Any, ...]], *tensors: Tensor, **words: Word
) -> Sequence[Tensor]:
    """The result of a function of the core, without a gradient.

    On a CPU the function gets NumPy arrays, 16-bit floats as float32, the dtype that it computes
    in.
    """
    device = tensors[0].device
    with torch.no_grad(), without_autocast(device):
        if are_traced(*tensors, *words.values()):
            return function(*tensors, **words)
        words = {name: word_for(name, word, device) for name, word in words.items()}
        if any(t.device.type != "cpu" for t in tensors):
            return function(*tensors, **words)
        wide = [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors]
        with threads.at_most_threads(torch.get_num_threads()):
            found = function(*[t.resolve_neg().numpy() for t in wide], **words)
        return [torch.from_numpy(np.ascontiguousarray(x)) for x in found]
