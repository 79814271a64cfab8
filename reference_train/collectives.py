"""Sums and concatenations over the training processes, with their gradients.

The gradient is that of the sum of all processes' losses: data-parallel averaging then makes it
that of their mean.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.autograd import Function


def world_size() -> int:
    """Training processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The place of this process among them."""
    return dist.get_rank() if dist.is_initialized() else 0


class _Sum(Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return _Sum.apply(gradient)


class _Gather(Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return _Sum.apply(gradient)[dist.get_rank()]


def all_sum(x: torch.Tensor) -> torch.Tensor:
    """Sum of `x` over the processes."""
    return _Sum.apply(x) if world_size() > 1 else x


def all_stack(x: torch.Tensor) -> torch.Tensor:
    """Every process's `x`, of one shape, along a new first axis."""
    return _Gather.apply(x) if world_size() > 1 else x[None]
