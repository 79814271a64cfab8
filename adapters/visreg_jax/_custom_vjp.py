"""A core loss as a JAX function: `jax.custom_vjp` over the core's value and gradient.

The core computes both; what it keeps between them becomes the residuals. Nothing of the losses'
mathematics is here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.sharding import NamedSharding, PartitionSpec

from visreg_core import _xp
from visreg_core.losses._differentiable import closed_arrays, implementation_of
from visreg_core.losses._execution import PLAIN, Execution
from visreg_jax._collectives import Axes
from visreg_jax._kernels import KERNELS

# Arguments that the core documents as constants: their gradient is 0 by definition.
_CONSTANTS = ("pair_weights", "x_weights", "y_weights", "affinity")


@dataclass(frozen=True)
class Call:
    """One call of a loss: everything but its arrays. Calls that differ in nothing are equal.

    embeddings : names of the differentiated arguments; structure : of all arguments by name;
    leaves : of that structure, with `_ARRAY` in the places of arrays; kinds : their types, since
    17 and 17.0 are equal, but not as a number of knots; names : the argument that each array
    belongs to; sorting : see `Execution`; axes : of the mesh, where each device has a part of the
    batch.
    """

    loss: Callable[..., Any]
    embeddings: tuple[str, ...]
    structure: Any
    leaves: tuple[Any, ...]
    kinds: tuple[type, ...]
    names: tuple[str, ...]
    sorting: str
    axes: Axes | None

    def arguments(self, arrays: Sequence[jax.Array]) -> dict[str, Any]:
        """The arguments by name, with these arrays in their places."""
        given = iter(arrays)
        leaves = [next(given) if leaf is _ARRAY else leaf for leaf in self.leaves]
        return jax.tree.unflatten(self.structure, leaves)

    def run(self, arrays: Sequence[jax.Array], *, need_grad: bool) -> tuple[Any, Any]:
        """The implementation's ``(result, vjp)``."""
        arguments = self.arguments(arrays)
        implementation = implementation_of(self.loss)
        if takes_execution(self.loss):
            shards = PLAIN.shards if self.axes is None else self.axes.shards()
            arguments["execution"] = Execution(shards, self.sorting, KERNELS)
        result, vjp = implementation(**arguments, need_grad=need_grad)
        return (result if self.axes is None else self.axes.averaged(result)), vjp


class _Array:
    """Stands in the place of an array among a call's leaves."""


_ARRAY = _Array()


def takes_execution(loss: Callable[..., Any]) -> bool:
    """Whether a loss can be told what to run on (the two-sample distances cannot)."""
    return "execution" in inspect.signature(implementation_of(loss)).parameters


def prepare(
    loss: Callable[..., Any],
    embeddings: tuple[str, ...],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    sorting: str = "auto",
    axes: Axes | None = None,
) -> tuple[Call, list[jax.Array]]:
    """Split the arguments of a call into arrays and everything else.

    TypeError where the embeddings are no arrays of JAX, or another argument is one of NumPy.
    """
    arguments = inspect.signature(loss).bind(*args, **kwargs).arguments
    for name in embeddings:
        given = arguments.get(name)
        if given is not None and not isinstance(given, jax.Array):
            kind = f"{type(given).__module__}.{type(given).__qualname__}"
            raise TypeError(f"expected {name} to be an array of jax; found {kind}")
    paths, structure = jax.tree.flatten_with_path(dict(arguments))
    arrays = [leaf for _, leaf in paths if isinstance(leaf, jax.Array)]
    of_numpy = (leaf for _, leaf in paths if isinstance(leaf, np.ndarray))
    _xp.namespace(arguments[embeddings[0]], *of_numpy)
    leaves = tuple(_ARRAY if isinstance(leaf, jax.Array) else leaf for _, leaf in paths)
    call = Call(
        loss,
        embeddings,
        structure,
        leaves,
        tuple(map(type, leaves)),
        tuple(path[0].key for path, leaf in paths if isinstance(leaf, jax.Array)),
        sorting,
        axes,
    )
    return call, arrays


def evaluate(call: Call, arrays: list[jax.Array]) -> Any:
    """The loss's result, differentiable with respect to the embeddings.

    Where the arrays lie along explicit axes of a mesh, the compiler decides inside of the loss.
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


# Calls from outside of any program are one program, too, instead of hundreds of operations and
# loops that would be compiled again each time; others take it apart (`inline`).
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _compiled(call: Call, arrays: list[jax.Array]) -> Any:
    return _evaluate(call, arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _evaluate(call: Call, arrays: list[jax.Array]) -> Any:
    return call.run(arrays, need_grad=False)[0]


def _forward(call: Call, arrays: list[CustomVJPPrimal]) -> tuple[Any, Pullback]:
    for name, array in zip(call.names, arrays, strict=True):
        if array.perturbed and name not in (*call.embeddings, *_CONSTANTS):
            raise ValueError(
                f"expected {name} without gradient: {call.loss.__name__} is differentiated with "
                f"respect to {' and '.join(call.embeddings)} only; pass stop_gradient({name})"
            )
    values = [array.value for array in arrays]
    result, vjp = call.run(values, need_grad=True)
    return result, Pullback.of(call, vjp)


def _backward(call: Call, pullback: Pullback, cotangent: Any) -> tuple[list[Any]]:
    parts = cotangent if isinstance(cotangent, tuple) else (cotangent,)
    fields = [0.0 if isinstance(c, SymbolicZero) else c for c in parts]
    gradient = pullback(*(fields if call.axes is None else call.axes.cotangents(fields)))
    of_name = dict(
        zip(call.embeddings, gradient if isinstance(gradient, tuple) else (gradient,), strict=False)
    )
    return ([of_name.get(name) for name in call.names],)  # None: a cotangent of 0


_evaluate.defvjp(_forward, _backward, symbolic_zeros=True)


# --- what is kept for the backward pass -----------------------------------------------------------


class _Remake:
    """Makes a vjp over other arrays. Those of one call and of equal shapes are interchangeable.

    JAX may trace a call twice and compares what it got.
    """

    def __init__(self, key: object, function: Callable[[Sequence[Any]], Any]) -> None:
        self.key, self.function = key, function

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Remake) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@jax.tree_util.register_pytree_node_class
class Pullback:
    """A vjp of the core as a pytree: its leaves are the arrays that it closes over."""

    def __init__(self, arrays: Sequence[Any], remake: _Remake) -> None:
        self.arrays, self.remake = list(arrays), remake

    @classmethod
    def of(cls, call: Call, vjp: Callable[..., Any]) -> Pullback:
        arrays, function = closed_arrays(vjp)
        shapes = tuple((a.shape, np.dtype(a.dtype).name) for a in arrays)
        return cls(arrays, _Remake((call, shapes), function))

    def __call__(self, *cotangents: Any) -> Any:
        return self.remake.function(self.arrays)(*cotangents)

    def tree_flatten(self) -> tuple[list[Any], _Remake]:
        return self.arrays, self.remake

    @classmethod
    def tree_unflatten(cls, remake: _Remake, arrays: Sequence[Any]) -> Pullback:
        return cls(arrays, remake)
