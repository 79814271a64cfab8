"""A declared loss as a JAX function: `jax.custom_vjp` over its forward and backward pass.

The forward pass's `saved` becomes the residuals. There is no mathematics here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.sharding import NamedSharding, PartitionSpec

from visreg_core.arrays import cast_finite, namespace
from visreg_core.losses.declaration import Declaration
from visreg_core.losses.execution import PLAIN, Execution
from visreg_jax._collectives import Axes
from visreg_jax._kernels import KERNELS


@dataclass(frozen=True)
class StaticCall:
    """A call of a loss without its arrays: hashable, and equal for equal calls.

    loss : the public function, which has the declaration; structure : the pytree of all arguments
    by name; leaves : its leaves, with `_ARRAY` in place of arrays; kinds : their types, because 17
    and 17.0 are equal, but not as a number of knots; names : the argument that each array belongs
    to; sorting : see `Execution`; axes : of the mesh, if each device has a part of the batch.
    """

    loss: Callable[..., Any]
    structure: Any
    leaves: tuple[Any, ...]
    kinds: tuple[type, ...]
    names: tuple[str, ...]
    sorting: str
    axes: Axes | None

    @property
    def declaration(self) -> Declaration:
        """Of the loss."""
        return self.loss.declaration  # type: ignore[attr-defined]

    def inputs(self, arrays: Sequence[Any]) -> dict[str, Any]:
        """The arguments by name, with these arrays in their places."""
        given = iter(arrays)
        leaves = [next(given) if leaf is _ARRAY else leaf for leaf in self.leaves]
        return jax.tree.unflatten(self.structure, leaves)

    def execution(self, *, need_gradient: bool) -> Execution:
        """What the passes run on."""
        shards = PLAIN.shards if self.axes is None else self.axes.shards()
        return Execution(shards, self.sorting, KERNELS, need_gradient)

    def run(self, arrays: Sequence[jax.Array], *, need_gradient: bool) -> tuple[Any, Any]:
        """The result and the saved tuple."""
        execution = self.execution(need_gradient=need_gradient)
        result, saved = self.declaration.forward(execution, **self.inputs(arrays))
        return (result if self.axes is None else self.axes.averaged(result)), saved


class _Array:
    """Placeholder of an array among a call's leaves."""


_ARRAY = _Array()


@jax.tree_util.register_static
@dataclass(frozen=True)
class ShapeOnly:
    """Placeholder of an array of which the backward pass needs only the shape."""

    shape: tuple[int, ...]


def prepare(
    declaration: Declaration,
    inputs: Mapping[str, Any],
    sorting: str = "auto",
    axes: Axes | None = None,
) -> tuple[StaticCall, list[jax.Array]]:
    """Split the arguments of a call into arrays and everything else.

    TypeError where embeddings are not JAX arrays, or another argument is a NumPy array.
    """
    for name in declaration.embeddings(inputs):
        if not isinstance(inputs[name], jax.Array):
            kind = f"{type(inputs[name]).__module__}.{type(inputs[name]).__qualname__}"
            raise TypeError(f"expected {name} to be an array of jax; found {kind}")
    paths, structure = jax.tree.flatten_with_path(dict(inputs))
    arrays = [leaf for _, leaf in paths if isinstance(leaf, jax.Array)]
    of_numpy = (leaf for _, leaf in paths if isinstance(leaf, np.ndarray))
    namespace(inputs[declaration.differentiated[0]], *of_numpy)
    leaves = tuple(_ARRAY if isinstance(leaf, jax.Array) else leaf for _, leaf in paths)
    call = StaticCall(
        declaration.public,
        structure,
        leaves,
        tuple(map(type, leaves)),
        tuple(path[0].key for path, leaf in paths if isinstance(leaf, jax.Array)),
        sorting,
        axes,
    )
    return call, arrays


def evaluate(call: StaticCall, arrays: list[jax.Array]) -> Any:
    """The loss's result, differentiable with respect to the embeddings.

    On a mesh with explicit axes, the axes are automatic inside of the loss.
    """
    mesh = next((m for m in (jax.typeof(x).sharding.mesh for x in arrays) if m.explicit_axes), None)
    if mesh is None:
        return _compiled(call, arrays)
    inside = jax.sharding.auto_axes(
        lambda *arrays: _compiled(call, list(arrays)),
        axes=mesh.explicit_axes,
        out_sharding=NamedSharding(mesh, PartitionSpec()),
    )
    return inside(*arrays)


# A call outside of `jit` is compiled as a whole, instead of hundreds of operations and of loops
# that would be compiled each time; inside of `jit` it is inlined.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _compiled(call: StaticCall, arrays: list[jax.Array]) -> Any:
    return _evaluate(call, arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _evaluate(call: StaticCall, arrays: list[jax.Array]) -> Any:
    return call.run(arrays, need_gradient=False)[0]


def _forward(call: StaticCall, arrays: list[CustomVJPPrimal]) -> tuple[Any, Any]:
    declaration = call.declaration
    for name, array in zip(call.names, arrays, strict=True):
        if array.perturbed and name not in (*declaration.differentiated, *declaration.constants):
            raise ValueError(
                f"expected {name} without gradient: {declaration.name} is differentiated with "
                f"respect to {' and '.join(declaration.differentiated)} only; "
                f"pass stop_gradient({name})"
            )
    values = [array.value for array in arrays]
    result, saved = call.run(values, need_gradient=True)
    held = [
        ShapeOnly(value.shape) if name in declaration.shape_only else value
        for name, value in zip(call.names, values, strict=True)
    ]
    return result, (held, saved)


def _backward(call: StaticCall, residuals: Any, cotangent: Any) -> tuple[list[Any]]:
    arrays, saved = residuals
    declaration, inputs = call.declaration, call.inputs(arrays)
    parts = cotangent if isinstance(cotangent, tuple) else (cotangent,)
    fields = [0.0 if isinstance(c, SymbolicZero) else c for c in parts]
    fields = fields if call.axes is None else call.axes.cotangents(fields)
    found = declaration.gradients(call.execution(need_gradient=False), inputs, saved, fields)
    gradients = {
        name: cast_finite(jnp, g, inputs[name].dtype)
        for name, g in zip(declaration.embeddings(inputs), found, strict=True)
    }
    return ([gradients.get(name) for name in call.names],)  # None: a cotangent of 0


_evaluate.defvjp(_forward, _backward, symbolic_zeros=True)
