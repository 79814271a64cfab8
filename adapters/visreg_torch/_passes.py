"""The two passes of a loss, run on torch tensors or on NumPy views of them.

Neither pass is recorded by autograd or changed by autocast. A forward pass returns what it saves as
a flat list of tensors (`flat`), which the backward pass takes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from visreg_core import threads
from visreg_core.losses.execution import PLAIN, Execution
from visreg_core.losses.kernels import NUMPY
from visreg_torch import distributed
from visreg_torch._call import LossCall
from visreg_torch.kernels import KERNELS, whole

_NUMPY_FLOATS = (torch.float32, torch.float64)


# --- where ----------------------------------------------------------------------------------------


def runs_on_numpy(call: LossCall, tensors: Sequence[Tensor]) -> bool:
    """Whether this call runs on NumPy views: on a CPU, where that is several times faster.

    NumPy's kernels spread chunks of slices over threads and sort small integers. They need float32
    or float64.
    """
    if any([not t.is_cpu for t in tensors]):  # noqa: C419  (half of a generator's time)
        return False
    wanted = call.inputs.get("projection_dtype")
    return wanted is None or wanted in _NUMPY_FLOATS


def with_kernels(call: LossCall, tensors: Sequence[Tensor]) -> LossCall:
    """The call, with the kernels that compute it whole where there are any."""
    if call.group is not None or runs_on_numpy(call, tensors):
        return call
    found = whole.whole(call.declaration, call.filled(tensors))
    return call if found is None else call._replace(kernels=found)


def passes_of(call: LossCall) -> Any:
    """The two passes: those of kernels, or the declaration's own."""
    return call.declaration if call.kernels is None else call.kernels


def execution(
    call: LossCall,
    device: torch.device,
    on_numpy: bool,
    *,
    need_gradient: bool = False,
    donated: bool = False,
) -> Execution:
    """Shards and kernels of a call."""
    kernels = NUMPY if on_numpy else KERNELS
    here = Execution(kernels=kernels, need_gradient=need_gradient, donated=donated)
    if call.group is None:
        return here
    shards, sorting = distributed.shards_of(call.group, call.declaration.name, device, on_numpy)
    return here._replace(shards=shards, sorting=sorting)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Context in which products have the precision of their factors."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def apart(tensors: Sequence[Tensor], on_numpy: bool) -> contextlib.AbstractContextManager[Any]:
    """Context without autograd and autocast; for NumPy, with as many threads as torch has."""
    if on_numpy:
        nbytes = max([t.nbytes for t in tensors])
        return threads.at_most_threads(torch.get_num_threads(), nbytes)
    device = tensors[0].device
    if not torch.is_grad_enabled() and not _is_cast(device):
        return contextlib.nullcontext()
    context = contextlib.ExitStack()
    context.enter_context(torch.no_grad())
    context.enter_context(without_autocast(device))
    return context


def _is_cast(device: torch.device) -> bool:
    """Whether autocast changes what is computed on a device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


# --- meta tensors ---------------------------------------------------------------------------------


def _at_once(
    xp: Any, body: Any, slices: Any, samples: Any, **_: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """In place of the engine's loop over chunks."""
    (values,), gradients = body(slices)
    return values, tuple(gradients)


SHAPES: dict[str, Callable[..., Any]] = {
    "over_chunks": _at_once,
    "quantiles": lambda xp, size, z, *_: z.new_empty(size),
    "barlow_tiles": lambda xp, standard, *_: (standard[0].sum((-2, -1)), *standard[:2]),
}
"""Kernels for meta tensors."""


# --- tensors as the core takes them ---------------------------------------------------------------


def widened(call: LossCall, tensors: Sequence[Tensor], on_numpy: bool) -> list[Tensor]:
    """Tensors in the dtypes that the core takes.

    Float16 embeddings become float32, so that a gradient beyond float16's range overflows to Inf,
    which loss scaling detects. For NumPy, which has no bfloat16, all 16-bit tensors become float32,
    and 0-d floats get the embeddings' precision, as torch's promotion would have it.
    """
    compute = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    out = []
    for i, t in enumerate(tensors):
        t, dtype = t.detach(), t.dtype
        if t.is_neg():
            t = t.resolve_neg()
        if call.kernels is not None:
            pass  # kernels take 16-bit numbers as they are, and round gradients to infinity
        elif dtype == torch.float16 and (i < len(call.names) or on_numpy):
            t = t.to(torch.float32)
        elif on_numpy and (dtype == torch.bfloat16 or (t.ndim == 0 and dtype.is_floating_point)):
            t = t.to(compute)
        out.append(t)
    return out


def _inputs(call: LossCall, tensors: Sequence[Tensor], on_numpy: bool) -> dict[str, Any]:
    wide = widened(call, tensors, on_numpy)
    if not on_numpy:
        return call.filled(wide)
    inputs = call.filled([_as_array(t) for t in wide])
    if inputs.get("projection_dtype") is not None:
        inputs["projection_dtype"] = np.dtype(str(inputs["projection_dtype"])[len("torch.") :])
    return inputs


def _as_array(t: Tensor) -> Any:
    return t.numpy() if t.ndim else t.numpy()[()]


def _as_tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else torch.from_numpy(np.asarray(x))


# --- the two passes -------------------------------------------------------------------------------


def forward(
    call: LossCall, tensors: Sequence[Tensor], *, need_gradient: bool
) -> tuple[list[Tensor], list[Tensor | None]]:
    """The loss's fields, and the saved tensors (see `flat`): none without `need_gradient`."""
    on_numpy = runs_on_numpy(call, tensors)
    with apart(tensors, on_numpy):
        how = execution(call, tensors[0].device, on_numpy, need_gradient=need_gradient)
        inputs = _inputs(call, tensors, on_numpy)
        result, saved = passes_of(call).forward(how, **inputs)
        fields = [_as_tensor(f) for f in (result if isinstance(result, tuple) else (result,))]
        return fields, flat(saved) if need_gradient else []


def forward_of_shapes(
    call: LossCall, tensors: Sequence[Tensor], *, need_gradient: bool
) -> list[Tensor]:
    """What `forward` returns, as meta tensors, whose sizes may be symbols."""
    if call.kernels is not None:
        return _of_kernels(call, tensors, need_gradient)
    on_numpy = runs_on_numpy(call, tensors)
    with torch.no_grad(), without_autocast(tensors[0].device):
        how = execution(call, torch.device("meta"), False, need_gradient=need_gradient)
        inputs = call.filled(widened(call, tensors, on_numpy))
        inputs = {k: 1.0 if isinstance(v, torch.SymFloat) else v for k, v in inputs.items()}
        inputs |= {"chunk_size": None} if "chunk_size" in inputs else {}
        result, saved = call.declaration.forward(how._replace(kernels=SHAPES), **inputs)
        fields = list(result) if isinstance(result, tuple) else [result]
        return [*fields, *without_none(flat(saved), fields[0])] if need_gradient else fields


def _of_kernels(call: LossCall, tensors: Sequence[Tensor], need_gradient: bool) -> list[Tensor]:
    """The same where kernels compute the whole loss: on the meta device none is launched.

    Kernels branch on sizes and strides. Where these are symbols, so become those of what is saved,
    each a new one, which only a call tells: one graph then serves all sizes.
    """
    symbols = any(isinstance(n, torch.SymInt) for t in tensors for n in t.shape)
    with _disable_current_modes(), torch.no_grad():
        shapes = [
            torch.empty_strided(
                [_hint(n) for n in t.shape],
                [_hint(n) for n in t.stride()],
                dtype=t.dtype,
                device="meta",
            )
            for t in tensors
        ]
        inputs = call.filled(shapes)
        how = PLAIN._replace(need_gradient=need_gradient)
        fields, saved = passes_of(call).forward(how, **inputs)
        fields = list(fields) if isinstance(fields, tuple) else [fields]
        found = [*fields, *without_none(flat(saved), fields[0])] if need_gradient else fields
    device = tensors[0].device
    size = torch.library.get_ctx().new_dynamic_size if symbols else None
    return [
        torch.empty([size() if size else n for n in x.shape], dtype=x.dtype, device=device)
        for x in found
    ]


def _hint(size: Any) -> int:
    """The size that a symbol stands for while code is traced."""
    found: int = size.node.hint if isinstance(size, torch.SymInt) else size
    return found


def backward(
    call: LossCall,
    tensors: Sequence[Tensor],
    saved: Sequence[Tensor | None],
    cotangents: Sequence[Tensor | None],
    *,
    donated: bool = False,
) -> list[Tensor]:
    """Gradients of the embeddings, in their dtypes.

    cotangents : one for each field, None for 0; donated : the saved tensors may be overwritten.
    """
    on_numpy = runs_on_numpy(call, tensors)
    with apart(tensors, on_numpy):
        how = execution(call, tensors[0].device, on_numpy, donated=donated)
        factor = distributed.gradient_factor(how.shards.size)
        inputs = _inputs(call, tensors, on_numpy)
        passes = passes_of(call)
        found = passes.backward(
            how,
            inputs,
            structured(passes.saved, saved, on_numpy),
            *[_cotangent(c, factor, on_numpy) for c in cotangents],
        )
        gradients = found if isinstance(found, tuple) else (found,)
        # Detached: autograd takes over a tensor without a copy where it holds the only reference.
        return [
            _as_tensor(g).detach().to(t.dtype) for g, t in zip(gradients, tensors, strict=False)
        ]


def _cotangent(c: Tensor | None, factor: int, on_numpy: bool) -> Any:
    """A field's cotangent for the core, times a factor."""
    if c is None:
        return 0.0
    given = _as_array(c.detach()) if on_numpy else c
    return given if factor == 1 else given * factor


# --- saved arrays as a list -----------------------------------------------------------------------


def flat(saved: Any) -> list[Tensor | None]:
    """The entries of a ``Saved`` tuple in order, tuples inside of it flattened."""
    out: list[Tensor | None] = []
    for field in saved:
        for x in field if isinstance(field, tuple) else (field,):
            out.append(None if x is None else _as_tensor(x))
    return out


def without_none(saved: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """The same with an empty tensor in place of None, where only tensors are accepted."""
    return [like.new_empty(0) if x is None else x for x in saved]


def structured(kind: Any, saved: Sequence[Tensor | None], on_numpy: bool) -> Any:
    """The ``Saved`` of class `kind` that `flat` listed; fields that are tuples are equally long."""
    arrays: list[Any] = [
        None if t is None or not t.numel() else _as_array(t) if on_numpy else t for t in saved
    ]
    tuples = _are_tuples(kind)
    if not any(tuples):
        return kind(*arrays)
    length = (len(arrays) - tuples.count(False)) // tuples.count(True)
    left = iter(arrays)
    return kind(*[tuple([next(left) for _ in range(length)]) if t else next(left) for t in tuples])


@functools.cache
def _are_tuples(kind: Any) -> list[bool]:
    """Which fields of a ``Saved`` have an entry a view."""
    return ["tuple[" in str(annotation) for annotation in kind.__annotations__.values()]
