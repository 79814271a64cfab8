"""What all modules share: settings, the step at which slices and walks are drawn, slices."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from visreg_core import (
    checks,
)
from visreg_core.slices import SAMPLERS
from visreg_torch import distributed, functional

Number = float | Tensor


Step = int | Tensor | None
Drawn = TypeVar("Drawn")


_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class LossModule(nn.Module):
    """A loss with its settings, which `repr` shows."""

    def __new__(cls, *args: Any, **options: Any) -> LossModule:
        """Refuse options that the class does not have."""
        known = _options(cls)
        for name in options:
            if name not in known:
                raise TypeError(f"expected options of {', '.join(known)}; found {name}")
        return super().__new__(cls)

    def __init__(self, scope: str, group: Any) -> None:
        super().__init__()
        checks.choice("scope", scope, distributed.SCOPES)
        self.scope = scope
        self.group = group

    def extra_repr(self) -> str:
        """Settings by name."""
        kept = {name: vars(self)[name] for name in _options(type(self)) if name in vars(self)}
        return ", ".join(f"{k}={v!r}" for k, v in kept.items() if k != "group" or v is not None)


def _options(cls: type[nn.Module]) -> list[str]:
    """Names of a class's options, and of its base's where it passes on what it does not know."""
    names: dict[str, None] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
            names |= dict.fromkeys(p.name for p in parameters if p.kind not in _VARIABLE)
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
    return list(names)


class DrawingLoss(LossModule):
    """A loss that draws by a seed and a step."""

    step: Tensor

    def __init__(self, seed: int, scope: str, group: Any) -> None:
        super().__init__(scope, group)
        checks.positive_int("seed", seed, minimum=0)
        self.seed = seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def _drawn(self, draw: Callable[[int | Tensor], Drawn], step: Step) -> Drawn:
        """What is drawn at a step: as given, else the buffer's, which training then advances."""
        if step is not None:
            return draw(step)
        buffer = self.step
        drawn = draw(buffer)
        if self.training:
            buffer += 1  # in place: setting an attribute of a module takes a while
        return drawn


class SlicedLoss(DrawingLoss):
    """A loss on random slices."""

    def __init__(
        self,
        n_slices: int,
        sampler: str,
        chunk_size: int | None,
        projection_dtype: torch.dtype | None,
        seed: int,
        scope: str,
        group: Any,
    ) -> None:
        super().__init__(seed, scope, group)
        checks.positive_int("n_slices", n_slices)
        checks.choice("sampler", sampler, SAMPLERS)
        if chunk_size is not None:
            checks.positive_int("chunk_size", chunk_size)
        if projection_dtype is not None:
            checks.dtype("projection_dtype", projection_dtype, torch)
        self.n_slices = n_slices
        self.sampler = sampler
        self.chunk_size = chunk_size
        self.projection_dtype = projection_dtype

    def slices(self, z: Tensor, step: Step = None) -> Tensor:
        """Directions (D, n_slices) for z (..., N, D), on its device."""
        # torch.jit.trace records sizes as tensors
        traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        dim = int(z.shape[-1]) if traced else z.shape[-1]

        def draw(now: int | Tensor) -> Tensor:
            return functional.random_slices(
                dim,
                self.n_slices,
                seed=self.seed,
                step=now,
                start=_first_slice(self.scope, self.group, self.n_slices),
                sampler=self.sampler,
                dtype=torch.float64 if z.dtype == torch.float64 else torch.float32,
                device=z.device,
            )

        return self._drawn(draw, step)

    def _common(self) -> dict[str, Any]:
        return {
            "chunk_size": self.chunk_size,
            "projection_dtype": self.projection_dtype,
            "scope": self.scope,
            "group": self.group,
        }


def _first_slice(scope: str, group: Any, n_slices: int) -> int:
    """Where a process's slices start: each has its own in local scope, all the same in global."""
    return 0 if scope == "global" else distributed.rank_of(group) * n_slices
