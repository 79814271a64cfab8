"""Runs a call's forward and backward pass in the core, on torch or on NumPy views of the tensors.

Neither pass is recorded by autograd or touched by autocast. What the backward pass needs is a list
of tensors, ``kept``, and a `Pullback`, which holds no tensor: the core's vjp without its arrays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from visreg_core import _tiles
from visreg_core.losses._differentiable import closed_arrays, implementation_of
from visreg_core.losses._execution import PLAIN, Execution
from visreg_torch import distributed
from visreg_torch._call import Call, fill
from visreg_torch.kernels import KERNELS, fused

# Losses between two samples, and SpectralNet's, are always those of this process's rows.
UNSHARDED = ("epps_pulley", "max_sliced_wasserstein", "sliced_wasserstein", "spectralnet_loss")


class View(NamedTuple):
    """An array of the vjp that lies in the memory of one of the call's tensors."""

    number: int
    strides: tuple[int, ...]  # of the tensor
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # from the tensor's first element


class Pullback(NamedTuple):
    """What makes the core's vjp again, given the call's tensors and those that were kept.

    sources : for each array of the vjp its index among the kept, or its `View` of a tensor.
    dtypes : of the embeddings.
    """

    call: Call
    remake: Callable[[Sequence[Any]], Callable[..., Any]]
    sources: tuple[int | View, ...]
    dtypes: tuple[torch.dtype, ...]
    on_numpy: bool

    @property
    def needed(self) -> list[int]:
        """Indices of the call's tensors that the backward pass looks at."""
        return sorted({s.number for s in self.sources if isinstance(s, View)})


# --- where ----------------------------------------------------------------------------------------


def execution(call: Call, device: torch.device, on_numpy: bool = False) -> Execution:
    """Shards and kernels of a call."""
    # What has no numbers, or NumPy's arrays, has no kernels.
    here = PLAIN if on_numpy or device.type == "meta" else PLAIN._replace(kernels=KERNELS)
    if call.group is None:
        return here
    shards, sorting = distributed.shards_of(call.group, call.loss, device, on_numpy)
    return here._replace(shards=shards, sorting=sorting)


def runs_on_numpy(call: Call, tensors: Sequence[Tensor]) -> bool:
    """Whether NumPy's path of the core computes this call: on a CPU it is several times faster.

    It shares whole chunks of slices over threads, and sorts small integers. Its floats have 32 or
    64 bits.
    """
    dtypes = (None, torch.float32, torch.float64)
    on_cpu = all(t.device.type == "cpu" for t in tensors)
    return on_cpu and call.arguments.get("projection_dtype") in dtypes


def is_fused(call: Call, tensors: Sequence[Tensor]) -> bool:
    """Whether kernels compute this call from end to end, and not the core."""
    z = tensors[0]
    here = call.group is None and not runs_on_numpy(call, tensors)
    return here and fused.takes(call.loss, z.device, z.dtype, **call.arguments)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Context in which products have the precision of their factors."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextlib.contextmanager
def _apart(device: torch.device, on_numpy: bool) -> Iterator[None]:
    """Without autograd and autocast; NumPy held to as many threads as torch is."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(without_autocast(device))
        if on_numpy:
            stack.enter_context(_tiles.at_most_threads(torch.get_num_threads()))
        yield


def _widened(t: Tensor, *, embedding: bool, compute: torch.dtype, on_numpy: bool) -> Tensor:
    """A tensor as the core takes it.

    Float16 embeddings become float32, so that a gradient beyond float16's range is Inf in the end,
    which is what loss scaling looks for, and not the largest float16. For NumPy, which has no
    bfloat16, all 16-bit tensors do; and a float without axes takes the embeddings' precision,
    which is how torch would treat it.
    """
    t = t.resolve_neg()
    if t.dtype == torch.float16 and (embedding or on_numpy):
        return t.to(torch.float32)
    if on_numpy and (t.dtype == torch.bfloat16 or (t.ndim == 0 and t.is_floating_point())):
        return t.to(compute)
    return t


def _as_array(t: Tensor, on_numpy: bool) -> Any:
    return t.detach().numpy() if on_numpy else t


def _as_tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else torch.from_numpy(np.asarray(x))


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


# --- forward --------------------------------------------------------------------------------------


def forward(
    call: Call, tensors: Sequence[Tensor], *, need_grad: bool
) -> tuple[list[Tensor], list[Tensor], Pullback | None]:
    """The loss's fields; with `need_grad` also what is kept, and how to go back."""
    on_numpy = runs_on_numpy(call, tensors)
    device, compute = tensors[0].device, _compute_dtype(tensors[0].dtype)
    with _apart(device, on_numpy):
        wide = [
            _widened(t, embedding=i < call.n_embeddings, compute=compute, on_numpy=on_numpy)
            for i, t in enumerate(tensors)
        ]
        if need_grad:
            wide = _disjoint(wide)
        arguments = fill(call.arguments, [_as_array(t, on_numpy) for t in wide])
        if on_numpy and arguments.get("projection_dtype") is not None:
            name = str(arguments["projection_dtype"]).removeprefix("torch.")
            arguments["projection_dtype"] = np.dtype(name)
        if call.fused:
            result, vjp = fused.run(call.function, **arguments, need_grad=need_grad)
        else:
            if call.loss not in UNSHARDED:
                arguments["execution"] = execution(call, device, on_numpy)
            result, vjp = implementation_of(call.function)(**arguments, need_grad=need_grad)
        fields = [_as_tensor(f) for f in (result if isinstance(result, tuple) else (result,))]
        if not need_grad:
            return fields, [], None
        arrays, remake = closed_arrays(vjp)
        kept: list[Tensor] = []
        sources = tuple(_source(_as_tensor(a), wide, kept) for a in arrays)
    dtypes = tuple(t.dtype for t in tensors[: call.n_embeddings])
    return fields, kept, Pullback(call, remake, sources, dtypes, on_numpy)


def _source(x: Tensor, tensors: Sequence[Tensor], kept: list[Tensor]) -> int | View:
    """Where an array of the vjp will be found; appended to `kept` unless a tensor holds it."""
    for i, t in enumerate(tensors):
        offset = _offset_in(x, t)
        if offset is not None:
            return View(i, t.stride(), tuple(x.shape), x.stride(), offset)
    kept.append(x)
    return len(kept) - 1


def _offset_in(x: Tensor, t: Tensor) -> int | None:
    """Elements from t's first to x's first, where x lies between t's elements; else None."""
    if x.dtype != t.dtype:
        return None
    if x.device.type == "meta":  # without addresses
        same = x.untyped_storage()._cdata == t.untyped_storage()._cdata
        return int(x.storage_offset() - t.storage_offset()) if same else None
    (start, end), (first, last) = _span(x), _span(t)
    return (start - first) // x.itemsize if first <= start < end <= last else None


def _span(t: Tensor) -> tuple[int, int]:
    """Addresses of a tensor's first element, and behind its last."""
    start = t.data_ptr()
    if not t.numel():
        return start, start
    reach = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return start, start + (reach + 1) * t.itemsize


def _disjoint(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, one whose memory an earlier one reaches into as a copy.

    So an array of the vjp lies in one of them at most. What is made for a loss of one embedding
    twice, or of overlapping ones, goes back for another call with two of their own.
    """
    out: list[Tensor] = []
    spans: list[tuple[int, int]] = []
    for t in tensors:
        start, end = _span(t)
        if t.device.type != "meta" and any(start < last and first < end for first, last in spans):
            t = t.clone()
        out.append(t)
        spans.append(_span(t))
    return out


# --- backward -------------------------------------------------------------------------------------


def backward(
    pullback: Pullback,
    tensors: Mapping[int, Tensor],
    kept: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    *,
    donated: bool = False,
) -> list[Tensor]:
    """Gradients of the embeddings: of the call's `tensors` the needed ones, by their index.

    cotangents : one for each field, None for 0. donated : what is kept may be overwritten.
    """
    call, on_numpy = pullback.call, pullback.on_numpy
    device, compute = tensors[0].device, _compute_dtype(pullback.dtypes[0])

    def found(source: int | View) -> Tensor:
        if isinstance(source, int):
            return kept[source]
        embedding = source.number < call.n_embeddings
        t = _widened(
            tensors[source.number], embedding=embedding, compute=compute, on_numpy=on_numpy
        )
        if t.stride() != source.strides:
            t = _with_strides(t, source.strides)
        return t.as_strided(source.size, source.stride, t.storage_offset() + source.offset)

    with _apart(device, on_numpy):
        vjp = pullback.remake([_as_array(found(s), on_numpy) for s in pullback.sources])
        factor = distributed.gradient_factor(execution(call, device).shards.size)
        given = [_cotangent(c, factor, on_numpy) for c in cotangents]
        takes = {"donated": True} if donated and "donated" in (vjp.__kwdefaults__ or {}) else {}
        result = vjp(*given, **takes)
        gradients = result if isinstance(result, tuple) else (result,)
        return [_as_tensor(g).to(d) for g, d in zip(gradients, pullback.dtypes, strict=True)]


def _with_strides(t: Tensor, strides: tuple[int, ...]) -> Tensor:
    """The same numbers in other strides, of which those that are 0 expand a single element."""
    out = torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device)
    once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in strides)
    out[once].copy_(t[once])
    return out


def _cotangent(c: Tensor | None, factor: int, on_numpy: bool) -> Any:
    """A field's cotangent for the core, times a factor."""
    if c is None:
        return 0.0
    given = _as_array(c, on_numpy)[()]
    return given if factor == 1 else given * factor
