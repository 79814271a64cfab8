"""The forward and the backward pass of every loss as two operators, which compilers do not open.

Eager code needs none of this: `visreg_torch._autograd` calls `visreg_torch._run` directly. Under
``torch.compile``, and wherever else tensors stand for something, the two passes are these
operators. Their outputs' shapes come from a run on the meta device, where kernels only make the
arrays that they would fill.
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

_SMALLEST = 1000  # above all constants of the core's shapes


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
    return [x.contiguous() for x in (*fields, *kept)]


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
    return [x.contiguous() for x in gradients]


# --- shapes, all contiguous -----------------------------------------------------------------------


@forward.register_fake
def _forward_shapes(
    tensors: list[Tensor], call: str, numbers: list[float], need_grad: bool
) -> list[Tensor]:
    described = decode(call, numbers)
    if "chunk_size" in described.arguments:  # which changes no shape, but may make many chunks
        described.arguments["chunk_size"] = None
    device = tensors[0].device
    shards = _run.execution(described, device).shards.size

    def outputs(sizes: _Sizes) -> list[Tensor]:
        with _disable_current_modes():
            stand_ins = [
                torch.empty(shape, dtype=t.dtype, device="meta")
                for shape, t in zip(sizes.shapes, tensors, strict=True)
            ]
            fields, kept, _ = _run.forward(described, stand_ins, need_grad=need_grad)
        return [*fields, *kept]

    sizes = _Sizes(tensors, described.n_embeddings, shards)
    found = outputs(sizes)
    if any(sizes.real(s) is None for x in found for s in x.shape):
        sizes = _Sizes(tensors, described.n_embeddings, shards, constant=True)
        found = outputs(sizes)
    return [
        torch.empty([sizes.real(s) for s in x.shape], dtype=x.dtype, device=device) for x in found
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
    """Shapes of stand-ins for tensors whose sizes may be symbols.

    Nearly all sizes in the core are small multiples of one of its arguments' sizes. So the sizes of
    the last two axes are primes in the stand-ins, and what is found is divided by them; leading
    axes, over which the core loops, become constants. Whether N < D, which decides how a
    covariance is computed, is a condition on the symbols, and holds for their primes as well.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        n_embeddings: int,
        shards: int,
        *,
        constant: bool = False,
    ) -> None:
        self.primes: dict[int, Any] = {}
        self.shapes = [[*t.shape] for t in tensors]
        if all(isinstance(s, int) for shape in self.shapes for s in shape):
            return
        if constant:
            self.shapes = [[int(s) for s in shape] for shape in self.shapes]
            return
        for *_, n, d in (s for s in self.shapes[:n_embeddings] if len(s) > 1):
            rows = self._prime(n)
            self._prime(d, rows * shards if n * shards < d else _SMALLEST // 2)
        self.shapes = [
            [int(s) for s in shape[:-2]] + [self._prime(s) for s in shape[-2:]]
            for shape in self.shapes
        ]

    def _prime(self, size: Any, above: int = _SMALLEST) -> int:
        """The prime of a size, a new one for a new size."""
        for prime, known in self.primes.items():
            if _hint(known) == _hint(size) and known == size:
                return prime
        prime = next(p for p in _primes(above) if p not in self.primes)
        self.primes[prime] = size
        return prime

    def real(self, size: int) -> Any:
        """The size that a stand-in's size means; None for one that is no small multiple."""
        if not self.primes:
            return size
        multiples = [(known, size // p) for p, known in self.primes.items() if size % p == 0]
        known, times = multiples[0] if multiples else (1, size)
        return known * times if times < _SMALLEST // 2 else None


def _hint(size: Any) -> int:
    return size if isinstance(size, int) else size.node.hint


def _primes(above: int) -> Iterator[int]:
    for p in itertools.count(above + 1):
        if all(p % i for i in range(2, math.isqrt(p) + 1)):
            yield p
