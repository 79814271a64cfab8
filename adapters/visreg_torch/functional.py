"""The declared losses on torch tensors: the same names, arguments and results, with autograd.

The forward pass of a sliced loss computes its gradient chunk by chunk of slices, so that neither
projections nor sort orders nor anything else of size (N, K) is saved for the backward pass. Every
field of a result is differentiable. Arguments and errors are described in `visreg_core`. 16-bit
embeddings may be passed as they are, under autocast or not; computations are in float32 where the
core says so. Weights may be 0-d tensors, whose changes do not make compiled code compile again.

Losses of a batch that may be spread over processes take two more arguments:

scope : {"local", "global"}
    "local": the loss of this process's rows. "global": that of the rows of all processes of
    `group`, the same number on each.
group : torch.distributed.ProcessGroup, optional
    The processes that hold the batch; the default group if not given.

Constants (slices, masks, weights, pairs, affinities) have no gradient. There is no second
derivative: torch differentiates the core's own functions, step by step, as often as wanted.

The losses are made from their declarations. ``functional.pyi`` lists them for readers and type
checkers; ``make stubs`` writes it.
"""

from __future__ import annotations

from visreg_core import joint_objective
from visreg_core.losses.declaration import own_losses
from visreg_torch._differentiable import differentiable
from visreg_torch._slices import random_slices
from visreg_torch._walks import random_walk_affinity, random_walk_pairs

globals().update({loss.name: differentiable(loss.public) for loss in own_losses()})

__all__ = [
    *(loss.name for loss in own_losses()),
    "joint_objective",
    "random_slices",
    "random_walk_affinity",
    "random_walk_pairs",
]
__all__.sort()
