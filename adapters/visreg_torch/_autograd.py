"""How autograd sees a loss: its fields are differentiable, what its backward pass needs is saved.

`evaluate` is what every loss of `visreg_torch.functional` ends in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from visreg_torch import _batch, _op, _run, distributed
from visreg_torch._call import Call, check_tensor, encode, split

# The core holds these constant whatever they ask for.
_HELD = ("affinity", "pair_weights", "x_weights", "y_weights")


def evaluate(
    loss: str,
    arguments: dict[str, Any],
    differentiated: Sequence[str],
    terms: Any = None,
    *,
    scope: str = "local",
    group: Any = None,
) -> Any:
    """Result of the core's loss of this name, differentiable by autograd.

    arguments : tensors and options by the core's names; differentiated : names of the embeddings
    among them; terms : class of the result, None for a loss of one field.
    """
    sharding = distributed.sharding_of(scope, group)
    if sharding is not None:
        wanted = _is_wanted(arguments[name] for name in differentiated)
        arguments = _batch.global_batch(loss, arguments, sharding, wanted)
    for name in differentiated:
        check_tensor(name, arguments[name])
    held, named = split(arguments, differentiated)
    if torch.is_grad_enabled():
        _check_constants(named, differentiated)
    tensors = list(named.values())
    call = loss, held, len(differentiated), distributed.name_of(sharding)
    fused = _run.is_fused(Call(*call), tensors)
    fields = _fields(Call(*call, fused), tensors, 1 if terms is None else len(terms._fields))
    return fields[0] if terms is None else terms(*fields)


def _is_wanted(embeddings: Iterable[Any]) -> bool:
    """Whether autograd will ask for a gradient."""
    return torch.is_grad_enabled() and any(getattr(t, "requires_grad", False) for t in embeddings)


def _check_constants(named: dict[str, Tensor], differentiated: Sequence[str]) -> None:
    for name, t in named.items():
        if t.requires_grad and name not in differentiated and name not in _HELD:
            raise ValueError(
                f"expected {name} without gradient; found requires_grad=True: "
                "the losses are differentiated with respect to the embeddings only"
            )


def _fields(call: Call, tensors: list[Tensor], n_fields: int) -> Sequence[Tensor]:
    wanted = _is_wanted(tensors[: call.n_embeddings])
    if _op.is_needed(tensors):
        text, numbers = encode(call)
        if wanted:
            return _apply(_Traced, text, numbers, n_fields, *_apart(tensors))[:n_fields]
        return torch.ops.visreg.forward(tensors, text, numbers, False)
    # Inside a transform of torch.func a tensor need not say that it requires a gradient.
    if wanted or torch._C._are_functorch_transforms_active():
        return _apply(_Direct, _Tape(call), *tensors)[:n_fields]
    return _run.forward(call, tensors, need_grad=False)[0]


def _apart(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors, a second mention of one as its view: Dynamo takes none twice."""
    return [
        t.view_as(t) if any(t is other for other in tensors[:i]) else t
        for i, t in enumerate(tensors)
    ]


def _apply(function: Any, *inputs: Any) -> Any:
    """``function.apply``, which torch does not type."""
    return function.apply(*inputs)


# --- eager ----------------------------------------------------------------------------------------


class _Tape:
    """A call on its way through autograd. The forward pass leaves here how to go back."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.n_fields = 0
        self.pullback: Any = None


class _Direct(Function):
    """Fields of a call, and behind them, not differentiable, the tensors that it keeps."""

    @staticmethod
    def forward(tape: _Tape, *tensors: Tensor) -> tuple[Tensor, ...]:
        fields, kept, tape.pullback = _run.forward(tape.call, tensors, need_grad=True)
        tape.n_fields = len(fields)
        return (*fields, *kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        tape, *tensors = inputs
        kept = output[tape.n_fields :]
        ctx.tape, ctx.n_tensors = tape, len(tensors)
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(tensors[i] for i in tape.pullback.needed), *kept)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        pullback, given = ctx.tape.pullback, cotangents[: ctx.tape.n_fields]
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            present = [c is not None for c in given]
            arrays = [c for c in given if c is not None]
            gradients = _apply(_Back, pullback, present, *arrays, *ctx.saved_tensors)
        else:
            donated = not torch._C._autograd._get_current_graph_task_keep_graph()
            gradients = _back(pullback, given, ctx.saved_tensors, donated=donated)
        return (None, *gradients, *[None] * (ctx.n_tensors - len(gradients)))

    @staticmethod
    def vmap(info: Any, in_dims: Any, tape: _Tape, *tensors: Tensor) -> Any:
        return _one_by_one(
            lambda *sample: _apply(_Direct, tape, *sample), info.batch_size, in_dims[1:], tensors
        )


def _back(
    pullback: _run.Pullback,
    cotangents: Sequence[Tensor | None],
    saved: Sequence[Tensor],
    *,
    donated: bool = False,
) -> list[Tensor]:
    needed = pullback.needed
    tensors = dict(zip(needed, saved, strict=False))  # and behind them what was kept
    return _run.backward(pullback, tensors, saved[len(needed) :], cotangents, donated=donated)


class _Back(Function):
    """The backward pass where a second derivative may be asked for, or under torch.func."""

    @staticmethod
    def forward(
        pullback: _run.Pullback, present: Sequence[bool], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        given = iter(tensors)
        cotangents = [next(given) if there else None for there in present]
        return tuple(_back(pullback, cotangents, list(given)))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.loss = inputs[0].call.loss

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            f"expected one derivative of visreg_torch.{ctx.loss}; found a second: "
            f"torch differentiates visreg_core.{ctx.loss} as often as you like"
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, pullback: Any, present: Any, *tensors: Tensor) -> Any:
        return _one_by_one(
            lambda *sample: _apply(_Back, pullback, present, *sample),
            info.batch_size,
            in_dims[2:],
            tensors,
        )


def _one_by_one(
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


# --- traced ---------------------------------------------------------------------------------------


class _Traced(Function):
    """The same by the two operators, in code that torch can trace."""

    @staticmethod
    def forward(
        text: str, numbers: list[float], n_fields: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(torch.ops.visreg.forward(list(tensors), text, numbers, True))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        text, numbers, n_fields, *tensors = inputs
        ctx.text, ctx.numbers, ctx.n_fields, ctx.n_tensors = text, numbers, n_fields, len(tensors)
        ctx.mark_non_differentiable(*output[n_fields:])
        ctx.save_for_backward(*tensors, *output[n_fields:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        n = ctx.n_tensors
        gradients = torch.ops.visreg.backward(
            list(ctx.saved_tensors[:n]),
            list(ctx.saved_tensors[n:]),
            list(cotangents[: ctx.n_fields]),
            ctx.text,
            ctx.numbers,
        )
        return (None, None, None, *gradients, *[None] * (n - len(gradients)))
