"""A call of a core loss apart from its tensors, and as what an operator's schema can hold.

Operators that torch compiles take tensors, strings and numbers. So the tensors of a call are listed
by themselves, `Slot` holds their place among the arguments, and the rest is written as text; floats
stay beside it, because a compiled function may be called with others.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import visreg_core


class Slot(NamedTuple):
    """Place of a tensor among a call's arguments."""

    number: int


class Call(NamedTuple):
    """Arguments of the loss of this name, with a `Slot` for each tensor.

    n_embeddings : how many of the tensors, the first, are differentiated; group : name of the
    process group whose batch it is the loss of, None for this process's own; fused : whether
    kernels compute it from end to end, which keeps other arrays than the core does.
    """

    loss: str
    arguments: dict[str, Any]
    n_embeddings: int
    group: str | None = None
    fused: bool = False

    @property
    def function(self) -> Callable[..., Any]:
        """The core's public loss."""
        return getattr(visreg_core, self.loss)


def split(
    arguments: dict[str, Any], differentiated: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments with slots; and the tensors that were there by name, the differentiated first."""
    tensors = {name: arguments[name] for name in differentiated}
    held: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in tensors:
            held[name] = Slot(differentiated.index(name))
        elif isinstance(value, (tuple, list)):
            held[name] = tuple([_slot(f"{name}[{i}]", v, tensors) for i, v in enumerate(value)])
        else:
            held[name] = _slot(name, value, tensors)
    return held, tensors


def check_tensor(name: str, value: Any) -> None:
    """TypeError unless `value` is a tensor whose elements lie in memory."""
    if not isinstance(value, Tensor):
        raise TypeError(f"expected {name} to be a torch.Tensor; found {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"expected {name} to be a dense torch.Tensor; found {value.layout}")


def _slot(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, (Tensor, np.ndarray)):
        check_tensor(name, value)
    if not isinstance(value, Tensor):
        return value
    tensors[name] = value
    return Slot(len(tensors) - 1)


def fill(arguments: dict[str, Any], arrays: Sequence[Any]) -> dict[str, Any]:
    """Arguments with arrays in the slots."""
    return {name: _filled(value, arrays) for name, value in arguments.items()}


# Not inside `fill`: a function that closes over itself would hold the arrays until Python next
# looks for cycles, and with them the embeddings of a hundred steps.
def _filled(value: Any, arrays: Sequence[Any]) -> Any:
    if isinstance(value, Slot):
        return arrays[value.number]
    if isinstance(value, tuple):
        return tuple(_filled(part, arrays) for part in value)
    return value


# --- as text and numbers --------------------------------------------------------------------------


def encode(call: Call) -> tuple[str, list[float]]:
    """A call as text and the numbers that it leaves out; torch can trace it."""
    numbers: list[float] = []
    arguments = [f"{name!r}: {_encoded(value, numbers)}" for name, value in call.arguments.items()]
    rest = f"{call.n_embeddings}, {call.group!r}, {call.fused}"
    return f"({call.loss!r}, {{{', '.join(arguments)}}}, {rest})", numbers


def _encoded(value: Any, numbers: list[float]) -> str:
    if isinstance(value, Slot):
        return f"('tensor', {value.number})"
    if isinstance(value, tuple):
        return f"[{', '.join([_encoded(part, numbers) for part in value])}]"
    if value is None or isinstance(value, (bool, str)):
        return f"{value!r}"
    if isinstance(value, torch.dtype):
        return f"('dtype', {str(value)!r})"
    if isinstance(value, (int, float)):
        numbers.append(float(value))
        return "('int',)" if isinstance(value, int) else "('float',)"
    raise TypeError(
        "expected options to be numbers, strings, dtypes, tensors or tuples of these; "
        f"found {type(value).__name__}"
    )


@functools.lru_cache(maxsize=4096)
def _literal(text: str) -> Any:
    return ast.literal_eval(text)


def decode(text: str, numbers: Sequence[float]) -> Call:
    """The call that `encode` wrote."""
    loss, arguments, *rest = _literal(text)
    left = iter(numbers)

    def decoded(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(decoded(part) for part in value)
        if not isinstance(value, tuple):
            return value
        kind, *of = value
        if kind == "tensor":
            return Slot(of[0])
        if kind == "dtype":
            return getattr(torch, of[0].removeprefix("torch."))
        return int(next(left)) if kind == "int" else next(left)

    return Call(loss, {k: decoded(v) for k, v in arguments.items()}, *rest)
