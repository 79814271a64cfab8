"""Each declared loss as a pair of torch operators, for tracers: compilers, export, profilers.

Eager code does not need them: `visreg_torch._autograd` runs the passes directly. The operators,
``visreg::NAME`` and ``visreg::NAME_backward``, have the loss's own arguments. The forward operator
returns the fields and then the saved tensors, which are arguments of the backward operator, so that
there is no hidden state. Shapes come from the core's forward pass on meta tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from visreg_core.losses.declaration import Declaration
from visreg_torch import _passes
from visreg_torch._call import LossCall, split

_KINDS = {
    "float": "float",
    "float | None": "float?",
    "int": "int",
    "int | None": "int?",
    "bool": "bool",
    "str": "str",
    "DType": "ScalarType?",
    "Scalar": "Tensor",
    "tuple[Scalar, Scalar, Scalar]": "Tensor[]",
    "Array": "Tensor",
    "Array | None": "Tensor?",
}

_LIBRARY: Any = torch.library.Library("visreg", "FRAGMENT")  # type: ignore[no-untyped-call]
_ARGUMENTS: dict[str, dict[str, str]] = {}  # the types of each operator's arguments


def is_needed(tensors: Sequence[Tensor]) -> bool:
    """Whether code is being traced, or a tensor is of a subclass that dispatches by itself."""
    needed = (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or any([type(t) is not Tensor and is_traceable_wrapper_subclass(t) for t in tensors])  # noqa: C419
    )
    if needed:  # else nobody exports, and torch imports a lot to find that out
        _refuse_onnx()
    return needed


def _refuse_onnx() -> None:
    if torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            "expected a model without loss in torch.onnx.export; found one of visreg_torch, for "
            "which ONNX has no operators: export the module that makes the embeddings, or save "
            "model and loss together by torch.export"
        )


def second_derivative(loss: str) -> str:
    """Message of the error that a second derivative raises."""
    return (
        f"expected one derivative of visreg_torch.{loss}; found a second: "
        f"torch differentiates visreg_core.{loss} as often as you like"
    )


def call(of: LossCall, tensors: Sequence[Tensor], wanted: bool) -> Sequence[Tensor]:
    """The fields of a call by its operator."""
    declaration = of.declaration
    if declaration.saved is None:
        raise TypeError(
            f"expected {declaration.name} to be declared with saved=, the class of what its "
            "forward pass saves, which torch's tracers need; found None"
        )
    inputs = of.filled(tensors)
    device = tensors[0].device
    operator_name = name_of(declaration)
    for name, kind in _ARGUMENTS[operator_name].items():
        if kind == "Tensor[]":
            inputs[name] = [_as_tensor(x, device) for x in inputs[name]]
        elif kind == "Tensor":
            inputs[name] = _as_tensor(inputs[name], device)
        elif kind in ("float", "float?") and inputs[name] is not None:
            inputs[name] = float(inputs[name])
    # A recorded graph may be differentiated later.
    wanted = wanted or torch._C._get_tracing_state() is not None or torch.compiler.is_exporting()
    operator = getattr(torch.ops.visreg, operator_name)
    return _apply(operator, *inputs.values(), of.group or "", wanted)[: len(declaration.fields)]


def _apply(operator: Any, *values: Any) -> list[Tensor]:
    return operator(*values)


def _as_tensor(x: Any, device: torch.device) -> Tensor:
    if isinstance(x, Tensor):
        return x
    return torch.full((), x, dtype=torch.float64 if device.type == "cpu" else torch.float32)


# --- definition -----------------------------------------------------------------------------------


def _kinds(declaration: Declaration) -> dict[str, str]:
    """The type of each argument in the operator's schema."""
    kinds = {}
    for name, p in declaration.signature.parameters.items():
        written = p.annotation
        if name in (*declaration.row_axes, *declaration.constants, "slices"):
            written = "Array" if p.default is inspect.Parameter.empty else "Array | None"
        elif not isinstance(written, str):
            written = getattr(written, "__name__", "")
        if written not in _KINDS and not isinstance(p.default, (type(None), type)):
            written = type(p.default).__name__
        if written not in _KINDS:
            raise TypeError(
                f"expected {name} of {declaration.name} to be annotated as one of "
                f"{', '.join(_KINDS)}; found {p.annotation}"
            )
        kinds[name] = _KINDS[written]
    return kinds


def name_of(declaration: Declaration) -> str:
    """The operator's name: the loss's; outside of this package its module's comes first."""
    module = declaration.forward.__module__
    own = module.split(".")[0] == "visreg_core"
    return declaration.name if own else f"{module}.{declaration.name}".replace(".", "_")


def define(declaration: Declaration) -> None:
    """Define the two operators of a loss, once."""
    name = name_of(declaration)
    if name in _ARGUMENTS:
        return
    kinds = _ARGUMENTS[name] = _kinds(declaration)
    arguments = ", ".join(f"{kind} {name}" for name, kind in kinds.items())
    _LIBRARY.define(f"{name}({arguments}, str group, bool need_gradient) -> Tensor[]")
    _LIBRARY.define(
        f"{name}_backward({arguments}, str group, Tensor[] saved, Tensor?[] cotangents) -> Tensor[]"
    )
    n, n_fields = len(kinds), len(declaration.fields)

    def described(values: Sequence[Any]) -> tuple[LossCall, list[Tensor]]:
        _refuse_onnx()  # here too: torch.compile takes is_in_onnx_export to be False
        inputs = dict(zip(kinds, values[:n], strict=True))
        of, named = split(declaration, inputs, values[n] or None)
        tensors = list(named.values())
        return _passes.with_kernels(of, tensors), tensors

    def forward(*values: Any) -> list[Tensor]:
        of, tensors = described(values)
        fields, saved = _passes.forward(of, tensors, need_gradient=values[-1])
        return [x.contiguous() for x in (*fields, *_passes.without_none(saved, fields[0]))]

    def forward_shapes(*values: Any) -> list[Tensor]:
        of, tensors = described(values)
        outputs = _passes.forward_of_shapes(of, tensors, need_gradient=values[-1])
        return [x.contiguous() for x in outputs]

    def backward(*values: Any) -> list[Tensor]:
        of, tensors = described(values)
        saved, cotangents = values[-2:]
        return [x.contiguous() for x in _passes.backward(of, tensors, saved, cotangents)]

    def backward_shapes(*values: Any) -> list[Tensor]:
        of, tensors = described(values)
        return [
            torch.empty_like(t, memory_format=torch.contiguous_format)
            for t in tensors[: len(of.names)]
        ]

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        of, _ = described(inputs)
        ctx.values = [None if isinstance(v, (Tensor, list)) else v for v in inputs[:-1]]
        ctx.counts = [
            len(v) if isinstance(v, list) else -1 if isinstance(v, Tensor) else 0
            for v in inputs[:-1]
        ]
        ctx.embeddings = [i for i, k in enumerate(kinds) if k in of.names]
        given = [x for v in inputs[:-1] for x in (v if isinstance(v, list) else (v,))]
        ctx.save_for_backward(*(x for x in given if isinstance(x, Tensor)), *output[n_fields:])

    def through(ctx: Any, cotangents: Any) -> Any:
        left = list(ctx.saved_tensors)
        values: list[Any] = []
        for value, count in zip(ctx.values, ctx.counts, strict=True):
            if count == -1:
                values.append(left.pop(0))
            elif count:
                values.append([left.pop(0) for _ in range(count)])
            else:
                values.append(value)
        given = list(cotangents[:n_fields])
        found = getattr(torch.ops.visreg, f"{name}_backward")(*values, left, given)
        gradients: list[Any] = [None] * (n + 2)
        for i, g in zip(ctx.embeddings, found, strict=True):
            gradients[i] = g
        for i, count in enumerate(ctx.counts):
            if count > 0:
                gradients[i] = [None] * count
        return tuple(gradients)

    def refuse(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(second_derivative(declaration.name))

    for suffix, real, shapes, derivative, setup in (
        ("", forward, forward_shapes, through, setup_context),
        ("_backward", backward, backward_shapes, refuse, None),
    ):
        full = f"visreg::{name}{suffix}"
        torch.library.impl(full, "CompositeExplicitAutograd", real, lib=_LIBRARY)
        torch.library.register_fake(full, shapes, lib=_LIBRARY)
        torch.library.register_autograd(full, derivative, setup_context=setup, lib=_LIBRARY)
