"""The forward and the backward pass of every loss as two operators, which compilers do not open.

Eager code needs none of this: `visreg_torch._autograd` calls `visreg_torch._run` directly. Under
``torch.compile``, and wherever else tensors stand for something, the two passes are these
operators. Their outputs' shapes come from a run on the meta device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import (
    _disable_current_modes,
    is_traceable_wrapper_subclass,
)

from visreg_torch import _run
from visreg_torch._call import decode


def is_needed(tensors: Sequence[Tensor]) -> bool:
    """Whether code is traced, or tensors are more than their numbers."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or any(is_traceable_wrapper_subclass(t) for t in tensors)
    )


# The real forward pass leaves here how to go back, for a backward pass that has only tensors.
_PULLBACKS: dict[Any, _run.Pullback] = {}
_MAX_PULLBACKS = 4096


def _key(text: str, numbers: Sequence[float], tensors: Sequence[Tensor]) -> Any:
    signature = tuple((t.dtype, t.device, t.shape, t.stride()) for t in tensors)
    return text, tuple(numbers), signature


@torch.library.custom_op("visreg::forward", mutates_args=())
def forward(
    tensors: list[Tensor], call: str, numbers: list[float], need_grad: bool
) -> list[Tensor]:
    """Fields of a call, and with `need_grad` behind them what its backward pass needs."""
    fields, kept, pullback = _run.forward(decode(call, numbers), tensors, need_grad=need_grad)
    if pullback is not None:
        if len(_PULLBACKS) >= _MAX_PULLBACKS:
            _PULLBACKS.pop(next(iter(_PULLBACKS)), None)
        _PULLBACKS[_key(call, numbers, tensors)] = pullback
    return [_own(x) for x in (*fields, *kept)]


@torch.library.custom_op("visreg::backward", mutates_args=())
def backward(
    tensors: list[Tensor],
    kept: list[Tensor],
    cotangents: list[Tensor],
    call: str,
    numbers: list[float],
) -> list[Tensor]:
    """Gradients of the embeddings of a call."""
    pullback = _PULLBACKS.get(_key(call, numbers, tensors))
    if pullback is None:  # so many calls ago that it was dropped
        _, _, pullback = _run.forward(decode(call, numbers), tensors, need_grad=True)
        assert pullback is not None
    gradients = _run.backward(pullback, dict(enumerate(tensors)), kept, cotangents)
    return [_own(x) for x in gradients]


def _own(x: Tensor) -> Tensor:
    """Contiguous, as the shapes below promise."""
    return x.contiguous()


# --- shapes ---------------------------------------------------------------------------------------


@forward.register_fake
def _forward_shapes(
    tensors: list[Tensor], call: str, numbers: list[float], need_grad: bool
) -> list[Tensor]:
    described = decode(call, numbers)
    device = tensors[0].device
    sizes = _Sizes(tensors, described.n_embeddings, _run.execution(described, device).shards.size)
    with _disable_current_modes():
        stand_ins = [torch.empty(s, dtype=d, device="meta") for s, d in sizes.stand_ins]
        fields, kept, _ = _run.forward(described, stand_ins, need_grad=need_grad)
    return [
        torch.empty([sizes.real(s) for s in x.shape], dtype=x.dtype, device=device)
        for x in (*fields, *kept)
    ]


@backward.register_fake
def _backward_shapes(
    tensors: list[Tensor],
    kept: list[Tensor],
    cotangents: list[Tensor],
    call: str,
    numbers: list[float],
) -> list[Tensor]:
    embeddings = tensors[: decode(call, numbers).n_embeddings]
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in embeddings]


class _Sizes:
    """Stand-ins on the meta device for tensors whose sizes may be symbols.

    The core's shapes are products of its arguments' sizes and small constants. So the sizes of the
    last two axes are primes in the stand-ins, and a shape is read by its factors; leading axes,
    over which the core loops, become constants. Whether N < D, which decides how a covariance is
    computed, is a condition on the symbols, and holds for the stand-ins as it does for them.
    """

    def __init__(self, tensors: Sequence[Tensor], n_embeddings: int, shards: int) -> None:
        self.primes: dict[int, Any] = {}
        symbolic = any(not isinstance(s, int) for t in tensors for s in t.shape)
        for t in tensors[:n_embeddings] if symbolic else ():
            *_, n, d = (2, *t.shape)
            rows = self._prime(n, 1000)
            self._prime(d, rows * shards if n * shards < d else 500)
        shapes = [self._shape(t) if symbolic else list(t.shape) for t in tensors]
        self.stand_ins = [(s, t.dtype) for s, t in zip(shapes, tensors, strict=True)]

    def _shape(self, t: Tensor) -> list[int]:
        leading = max(t.ndim - 2, 0)
        return [int(s) for s in t.shape[:leading]] + [self._prime(s) for s in t.shape[leading:]]

    def _prime(self, size: Any, above: int = 1000) -> int:
        """The prime of a size, by default one that was not used."""
        for prime, known in self.primes.items():
            if _hint(known) == _hint(size) and known == size:
                return prime
        prime = next(p for p in _primes(above) if p not in self.primes)
        self.primes[prime] = size
        return prime

    def real(self, size: int) -> Any:
        """The size that a stand-in's stands for."""
        symbols: Any = 1
        for prime, known in self.primes.items():
            while size % prime == 0:
                size, symbols = size // prime, symbols * known
        return symbols * size


def _hint(size: Any) -> int:
    return size if isinstance(size, int) else size.node.hint


def _primes(above: int) -> Iterator[int]:
    for p in itertools.count(above + 1):
        if all(p % i for i in range(2, math.isqrt(p) + 1)):
            yield p
