"""Settings of a run that change how fast its steps are, and what memory they take."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from reference_train.config import Run
from reference_train.errors import TrainError
from reference_train.model import Learner


def hasten(learner: Learner, run: Run) -> None:
    """Compile, recompute and lay out a learner as the settings say."""
    torch.set_float32_matmul_precision("high" if run.tf32 else "highest")
    if run.channels_last:
        learner.to(memory_format=torch.channels_last)
    if run.recompute:
        for block in blocks(learner):
            if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in block.modules()):
                raise TrainError(
                    "run.recompute: expected blocks without BatchNorm, which it counts twice"
                )
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    if run.compile is not None:
        known = torch.compiler.list_backends(exclude_tags=())
        if run.compile not in known:
            raise TrainError(
                f"run.compile: expected one of {', '.join(known)}; found {run.compile!r}"
            )
        for block in blocks(learner):
            block.compile(backend=run.compile, dynamic=False)


def blocks(learner: Learner) -> Iterable[nn.Module]:
    """The blocks of a transformer; other backbones are one."""
    return getattr(learner.backbone, "blocks", [learner.backbone])


def average(learner: Learner, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of the weights, if there is to be one.

    The count of its updates stays on the CPU, where asking for it waits for nothing.
    """
    if decay is None:
        return None
    return AveragedModel(learner, multi_avg_fn=get_ema_multi_avg_fn(decay)).requires_grad_(False)


def averaged(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The learner's state in that of its average."""
    start = "module."
    return {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
