"""Weights, gradients and the optimiser's state in shards over the processes: FSDP2.

Checkpoints hold whole tensors, so that they are evaluated as any others.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from reference_train.checkpoint import of_tensors
from reference_train.errors import TrainError
from reference_train.model import Learner
from reference_train.speed import blocks


def share_out(learner: Learner, accelerator: Accelerator) -> None:
    """Each block's weights, and the rest, are gathered when they are needed."""
    if accelerator.num_processes == 1:
        raise TrainError("run.shard: expected several processes; found one")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in blocks(learner):
        fully_shard(block, mesh=mesh)
    fully_shard(learner, mesh=mesh)


def whole(tree: Any) -> Any:
    """With the whole of each tensor that is in shards; all processes have to ask."""
    return of_tensors(tree, lambda x: x.full_tensor() if isinstance(x, DTensor) else x)


def load(part: nn.Module | torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give a part its state, each process its shards of it."""
    if isinstance(part, torch.optim.Optimizer):
        weights = [p for group in part.param_groups for p in group["params"]]
        of_weights = {
            i: {name: _like(value, weights[i]) for name, value in values.items()}
            for i, values in state["state"].items()
        }
        part.load_state_dict({**state, "state": of_weights})
    else:
        own = part.state_dict()
        part.load_state_dict({k: _like(v, own[k]) if k in own else v for k, v in state.items()})


def _like(value: Any, own: torch.Tensor) -> Any:
    if not isinstance(own, DTensor) or value.shape != own.shape:
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
