"""A call of a loss with its tensors set apart, as autograd and operators need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from visreg_core.losses.declaration import Declaration


class Slot(NamedTuple):
    """Place of a tensor among a call's tensors."""

    number: int


class LossCall(NamedTuple):
    """A call without its tensors.

    inputs : all arguments by name, with a `Slot` for each tensor; names : of the embeddings, which
    are the first tensors; group : name of the process group whose batch it is the loss of, None
    for this process's own; kernels : the two passes of kernels that compute it whole, None where
    the core does.
    """

    declaration: Declaration
    inputs: dict[str, Any]
    names: list[str]
    group: str | None = None
    kernels: Any = None

    def filled(self, arrays: Sequence[Any]) -> dict[str, Any]:
        """The arguments with arrays in the slots."""
        return {name: _filled(value, arrays) for name, value in self.inputs.items()}

    def shape_only(self) -> list[int]:
        """The tensors of which the backward pass needs only the shape."""
        given = (self.inputs[name] for name in self.declaration.shape_only)
        return [slot.number for slot in given if isinstance(slot, Slot)]


# Not an inner function: a recursive closure is a reference cycle, which would keep the arrays of a
# hundred steps alive until the garbage collector runs.
def _filled(value: Any, arrays: Sequence[Any]) -> Any:
    if isinstance(value, Slot):
        return arrays[value.number]
    if isinstance(value, tuple):
        return tuple([_filled(part, arrays) for part in value])
    return value


def split(
    declaration: Declaration, inputs: Mapping[str, Any], group: str | None = None
) -> tuple[LossCall, dict[str, Tensor]]:
    """The call, and its tensors by name, embeddings first."""
    names = declaration.embeddings(inputs)
    tensors: dict[str, Tensor] = {}
    for name in names:
        check_tensor(name, inputs[name])
        tensors[name] = inputs[name]
    held: dict[str, Any] = {}
    for name, value in inputs.items():
        if name in names:
            held[name] = Slot(names.index(name))
        elif isinstance(value, (tuple, list)):
            held[name] = tuple([_slot(f"{name}[{i}]", v, tensors) for i, v in enumerate(value)])
        else:
            held[name] = _slot(name, value, tensors)
    return LossCall(declaration, held, names, group), tensors


def _slot(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, np.ndarray):
        check_tensor(name, value)
    if not isinstance(value, Tensor):
        return value
    check_tensor(name, value)
    tensors[name] = value
    return Slot(len(tensors) - 1)


def check_tensor(name: str, value: Any) -> None:
    """TypeError unless `value` is a tensor whose elements lie in memory."""
    if not isinstance(value, Tensor):
        raise TypeError(f"expected {name} to be a torch.Tensor; found {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"expected {name} to be a dense torch.Tensor; found {value.layout}")
