"""A call of a loss with its tensors set apart, as autograd and operators need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from visreg_core.losses.declaration import Declaration


class LossCall(NamedTuple):
    """A call without its tensors.

    inputs : all arguments by name, with None in the place of each tensor; names : of the
    embeddings, which are the first tensors; places : of each tensor its argument, and where among
    a tuple's parts it is, or None; group : name of the process group whose batch it is the loss
    of, None for this process's own; kernels : the two passes of kernels that compute it whole,
    None where the core does.
    """

    declaration: Declaration
    inputs: dict[str, Any]
    names: list[str]
    places: Sequence[tuple[str, int | None]] = ()
    group: str | None = None
    kernels: Any = None

    def filled(self, arrays: Sequence[Any]) -> dict[str, Any]:
        """The arguments with arrays in the tensors' places."""
        inputs = dict(self.inputs)
        for (name, part), x in zip(self.places, arrays, strict=True):
            if part is None:
                inputs[name] = x
            else:
                inputs[name] = (*inputs[name][:part], x, *inputs[name][part + 1 :])
        return inputs

    def shape_only(self) -> list[int]:
        """The tensors of which the backward pass needs only the shape."""
        names = self.declaration.shape_only
        return [i for i, (name, _) in enumerate(self.places) if name in names]


def split(
    declaration: Declaration, inputs: Mapping[str, Any], group: str | None = None
) -> tuple[LossCall, dict[str, Tensor]]:
    """The call, and its tensors by name, embeddings first."""
    names = declaration.embeddings(inputs)
    tensors: dict[str, Tensor] = {}
    places: list[tuple[str, int | None]] = []
    held = dict(inputs)

    def take(name: str, value: Any, part: int | None = None) -> None:
        told = name if part is None else f"{name}[{part}]"
        check_tensor(told, value)
        tensors[told] = value
        places.append((name, part))

    for name in names:
        take(name, inputs[name])
        held[name] = None
    for name, value in held.items():
        if isinstance(value, (Tensor, np.ndarray)):
            take(name, value)
            held[name] = None
        elif isinstance(value, (tuple, list)):
            held[name] = tuple([None if isinstance(x, Tensor) else x for x in value])
            for part, x in enumerate(value):
                if isinstance(x, (Tensor, np.ndarray)):
                    take(name, x, part)
    return LossCall(declaration, held, names, places, group), tensors


def check_tensor(name: str, value: Any) -> None:
    """TypeError unless `value` is a tensor whose elements lie in memory."""
    if not isinstance(value, Tensor):
        raise TypeError(f"expected {name} to be a torch.Tensor; found {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"expected {name} to be a dense torch.Tensor; found {value.layout}")
