"""Whole losses by kernels, in the form of a declaration's two passes.

The passes are in `visreg_torch.kernels.sliced` and `pairs`, each with the arguments that it uses.
Arguments are checked here, with the core's messages, because kernels read memory unchecked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch

from visreg_core import arrays, checks
from visreg_core.losses.declaration import Declaration, Inputs
from visreg_core.losses.execution import Execution
from visreg_torch.kernels import _tape
from visreg_torch.kernels.dispatch import passes


class Whole:
    """The two passes of a loss by kernels, and the class of the tuple saved between them."""

    def __init__(self, declaration: Declaration, forward: Any, backward: Any, saved: type) -> None:
        self.declaration, self.saved = declaration, saved
        self._forward, self._backward = forward, backward
        known = list(declaration.signature.parameters)
        self._to_forward, self._to_backward = (
            [name for name in inspect.signature(f).parameters if name in known]
            for f in (forward, backward)
        )

    def forward(self, execution: Execution, **inputs: Any) -> tuple[Any, Any]:
        """Fields and the saved tuple."""
        need_grad = execution.need_gradient

        def run() -> list[Any]:
            check(self.declaration, inputs)
            given = {name: inputs[name] for name in self._to_forward}
            fields, saved = self._forward(**given, need_grad=need_grad)
            return [*fields, *(saved if need_grad else ())]

        found = self._played(("forward", need_grad), inputs.values(), run)
        count = len(self.declaration.fields)
        return tuple(found[:count]), self.saved(*found[count:]) if need_grad else None

    def backward(self, execution: Execution, inputs: Inputs, saved: Any, *cotangents: Any) -> Any:
        """Gradients of the embeddings."""
        tensors = tuple([c if isinstance(c, torch.Tensor) else None for c in cotangents])
        donated = execution.donated

        def run() -> list[Any]:
            given = {name: inputs[name] for name in self._to_backward}
            found = self._backward(**given, saved=saved, cotangents=tensors, donated=donated)
            return list(found) if isinstance(found, tuple) else [found]

        values = (*inputs.values(), *saved, *tensors)
        found = self._played(("backward", donated), values, run)
        return tuple(found)

    def _played(self, what: tuple[Any, ...], values: Iterable[Any], run: Callable[[], Any]) -> Any:
        """Results of a pass, by its tape where it has one."""
        key, tensors = _tape.signature(values)
        if tensors[0].device.type not in _tape.DEVICES:
            return run()
        return _tape.played((self.declaration.name, *what, *key), tensors, run)


_WHOLE: dict[str, Whole] = {}


def whole(declaration: Declaration, inputs: Inputs) -> Whole | None:
    """The loss by kernels, or None where the core must compute it."""
    embeddings = [inputs[name] for name in declaration.differentiated]
    options = {name: x for name, x in inputs.items() if name not in declaration.differentiated}
    found = passes(declaration.name, *embeddings, **options)
    if found is None:
        return None
    made = _WHOLE.get(declaration.name)
    if made is None:
        made = _WHOLE[declaration.name] = Whole(declaration, *found)
    return made


def check(declaration: Declaration, inputs: Inputs) -> None:
    """The checks of the core's forward passes, with their messages."""
    first, *others = declaration.embeddings(inputs)
    z = inputs[first]
    tensors = [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.ndim]
    namespace = arrays.namespace(*tensors)
    checks.embeddings(first, z)
    for name in others:
        checks.embeddings(name, inputs[name])
        checks.same_shape(first, z, name, inputs[name])
    size = z.shape[-2]
    for name, value in inputs.items():
        if name == "slices":
            checks.slices(value, z)
        elif name == "row_mask":
            checks.row_mask(value, z)
        elif name == "weights":
            assert declaration.terms is not None
            checks.weights(name, value, declaration.terms._fields[1:])  # type: ignore[attr-defined]
        elif name == "eps":
            divides = declaration.name in ("visreg_loss", "shape_loss")
            (checks.positive if divides else checks.not_negative)(name, value)
        elif name in ("gamma", "off_diagonal_weight"):
            checks.number(name, value)
        elif name in ("detach_scale", "scale_by_n"):
            checks.flag(name, value)
        elif name == "chunk_size" and value is not None:
            checks.positive_int(name, value)
        elif name == "projection_dtype" and value is not None:
            checks.dtype(name, value, namespace)
        elif name in ("pairs", "pair_weights") and tuple(value.shape) != (size,):
            raise ValueError(f"expected {name} of shape ({size},); found {tuple(value.shape)}")
    if "pairs" in inputs and "int" not in arrays.dtype_name(inputs["pairs"]):
        found = arrays.dtype_name(inputs["pairs"])
        raise TypeError(f"expected pairs of an integer dtype; found {found}")
