"""Losses as autograd functions.

Every loss of `visreg_torch.functional` calls `evaluate`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from visreg_core.losses.declaration import Declaration
from visreg_torch import _batch, _operators, _passes, distributed
from visreg_torch._call import LossCall, split


def evaluate(
    declaration: Declaration, inputs: Mapping[str, Any], *, scope: str = "local", group: Any = None
) -> Any:
    """Result of a declared loss, differentiable by autograd. `inputs` holds all its arguments."""
    sharding = distributed.sharding_of(scope, group)
    if sharding is not None:
        wanted = _is_wanted(inputs[name] for name in declaration.differentiated)
        inputs = _batch.global_batch(declaration, inputs, sharding, wanted)
    call, named = split(declaration, inputs, distributed.name_of(sharding))
    tensors = list(named.values())
    # Lists, not generators, which take twice the time.
    wanted = torch.is_grad_enabled() and any([t.requires_grad for t in tensors])  # noqa: C419
    if wanted:
        _check_constants(declaration, named, len(call.names))
        wanted = any([t.requires_grad for t in tensors[: len(call.names)]])  # noqa: C419
    traced = _operators.is_needed(tensors)
    if not traced:
        call = _passes.with_kernels(call, tensors)
    if traced:
        fields: Sequence[Tensor] = _operators.call(call, tensors, wanted)
    elif torch._C._are_functorch_transforms_active():
        # Under a transform of torch.func, requires_grad of a tensor is not reliable.
        fields = _apply(_Transformed, call, *tensors)[: len(declaration.fields)]
    elif wanted:
        fields = _apply(_Eager, call, *tensors)
    else:
        fields = _passes.forward(call, tensors, need_gradient=False)[0]
    return fields[0] if declaration.terms is None else declaration.terms(*fields)


def _is_wanted(embeddings: Iterable[Any]) -> bool:
    """Whether autograd needs a gradient."""
    return torch.is_grad_enabled() and any(getattr(t, "requires_grad", False) for t in embeddings)


def _check_constants(declaration: Declaration, named: dict[str, Tensor], count: int) -> None:
    for name, t in list(named.items())[count:]:
        if t.requires_grad and name not in declaration.constants:
            raise ValueError(
                f"expected {name} without gradient; found requires_grad=True: "
                "the losses are differentiated with respect to the embeddings only"
            )


def _apply(function: type[Function], *args: Any) -> Any:
    return function.apply(*args)  # type: ignore[no-untyped-call]


class _Eager(Function):
    """A call outside of transforms, which make torch bind the arguments much more slowly."""

    @staticmethod
    def forward(ctx: Any, call: LossCall, *tensors: Tensor) -> tuple[Tensor, ...]:
        fields, saved = _passes.forward(call, tensors, need_gradient=True)
        _save(ctx, call, tensors, saved)
        return tuple(fields)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return _back(ctx, cotangents)


class _Transformed(Function):
    """A call inside a transform: returns the fields, then the saved tensors, not differentiable."""

    @staticmethod
    def forward(call: LossCall, *tensors: Tensor) -> tuple[Tensor, ...]:
        fields, saved = _passes.forward(call, tensors, need_gradient=True)
        return (*fields, *_passes.without_none(saved, fields[0]))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        call, *tensors = inputs
        saved = output[len(call.declaration.fields) :]
        ctx.mark_non_differentiable(*saved)
        _save(ctx, call, tensors, saved)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return _back(ctx, cotangents[: len(ctx.call.declaration.fields)])

    @staticmethod
    def vmap(info: Any, in_dims: Any, call: LossCall, *tensors: Tensor) -> Any:
        return one_by_one(
            lambda *sample: _apply(_Transformed, call, *sample),
            info.batch_size,
            in_dims[1:],
            tensors,
        )


def _save(
    ctx: Any, call: LossCall, tensors: Sequence[Tensor], saved: Sequence[Tensor | None]
) -> None:
    """Save the inputs and the forward pass's tensors; of `shape_only` inputs only the shape."""
    absent = call.shape_only()
    ctx.call, ctx.n_tensors = call, len(tensors)
    ctx.shapes = [(i, tensors[i].dtype, tensors[i].shape) for i in absent]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*[t for i, t in enumerate(tensors) if i not in absent], *saved)


def _back(ctx: Any, given: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Gradients of the tensors of a call, from one cotangent a field."""
    call, n = ctx.call, ctx.n_tensors
    for c in given:
        if c is not None and torch._C._functorch.is_legacy_batchedtensor(c):
            raise RuntimeError(
                f"expected one cotangent of visreg_torch.{call.declaration.name} at a time; found "
                "a batch of them (is_grads_batched, vectorize): use torch.func.jacrev or vmap"
            )
    left = list(ctx.saved_tensors)
    for i, dtype, shape in ctx.shapes:  # in order, so that each is inserted at its index
        left.insert(i, _shape_alone(shape, dtype, left[0].device))
    tensors, saved = left[:n], left[n:]
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        present = [c is not None for c in given]
        arrays = [c for c in given if c is not None]
        saved = _passes.without_none(saved, tensors[0])
        gradients = _apply(_Gradient, call, n, present, *arrays, *tensors, *saved)
    else:
        donated = not torch._C._autograd._get_current_graph_task_keep_graph()
        gradients = _passes.backward(call, tensors, saved, given, donated=donated)
    return (None, *gradients, *[None] * (n - len(gradients)))


@functools.lru_cache(maxsize=16)
def _shape_alone(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of which nothing but the shape is looked at."""
    return torch.empty((), dtype=dtype, device=device).expand(shape)


class _Gradient(Function):
    """The backward pass where a second derivative may follow, or under torch.func."""

    @staticmethod
    def forward(
        call: LossCall, n: int, present: Sequence[bool], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        left = iter(tensors)
        cotangents = [next(left) if there else None for there in present]
        inputs = [next(left) for _ in range(n)]
        return tuple(_passes.backward(call, inputs, list(left), cotangents))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.loss = inputs[0].declaration.name

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(_operators.second_derivative(ctx.loss))

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, call: LossCall, n: int, present: Any, *tensors: Tensor
    ) -> Any:
        return one_by_one(
            lambda *sample: _apply(_Gradient, call, n, present, *sample),
            info.batch_size,
            in_dims[3:],
            tensors,
        )


def one_by_one(
    function: Callable[..., tuple[Tensor, ...]],
    size: int,
    in_dims: Sequence[int | None],
    tensors: Sequence[Tensor],
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Results for each index of the batch axes, stacked along a new first one, for vmap."""
    results = [
        function(
            *(
                t if dim is None else t.select(dim, b)
                for t, dim in zip(tensors, in_dims, strict=True)
            )
        )
        for b in range(size)
    ]
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)
