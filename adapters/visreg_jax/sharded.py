"""The losses of a batch that is spread over devices: exact values and gradients of the whole batch.

Inside of `jax.shard_map` (or of a `vmap` with an axis name) the functions of this module take the
device's own rows and the name of the axis, and return the loss of all rows, the same on every
device::

    terms = sharded.visreg_loss(z, slices, axis_name="data")

Statistics that are moments (variance, covariance, Barlow Twins, Epps-Pulley) are reduced; terms
that sort divide the directions among the devices and gather embeddings or exchange projections,
whichever moves fewer bytes. With ``slice_axis`` a second axis of the mesh holds other directions:
`slices` are then the device's own, and the loss is that of all.

`on_mesh` does this for whole arrays.

Gradients
---------
One rule: **average the gradients of the parameters over all named axes**, as any data-parallel
program does::

    gradients = lax.pmean(gradients, ("data",))

The result is the exact gradient of the whole batch. Under ``check_vma=True``, the default of
`jax.shard_map`, JAX has summed the gradients of parameters that do not vary by then: they are exact
already, and the mean changes nothing. Under ``check_vma=False`` every device differentiates its own
copy of the value, so that the gradient of its rows is that of the sum of all copies: the number of
devices times the gradient of one, which the mean over the devices undoes. That is how `lax.psum` is
differentiated there, too, and a mean over a device's own rows, another term of the objective, needs
the same average. A gradient taken from outside of the `shard_map` is exact either way.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from visreg_core import checks
from visreg_core.losses.declaration import Declaration, declaration_of, own_losses
from visreg_core.losses.execution import SORTING
from visreg_jax._collectives import Axes, AxisName, names
from visreg_jax._custom_vjp import StaticCall, evaluate, prepare

_DESCRIBED = {
    "axis_name": """axis_name : name or tuple of names
    Of the axes along which the rows are sharded, equally many on each device; `row_mask` leaves
    out padding.
""",
    "slice_axis": """slice_axis : name or tuple of names, optional
    Of an axis whose devices have equally many directions each, their own `slices`.
""",
    "sorting": """sorting : {"auto", "gather", "exchange"}
    How the devices that sort a direction get all of its rows: by gathering the embeddings, by
    exchanging projections, or whichever moves fewer bytes.
""",
}


def along_axis(loss: Callable[..., Any]) -> Callable[..., Any]:
    """A loss for use inside of `shard_map`: each device passes its own rows.

    Parameters
    ----------
    loss : callable
        A declared loss that can be sharded.

    Returns
    -------
    callable
        With the arguments of `loss`, and `axis_name`; of slices also `slice_axis`; of a loss that
        sorts also `sorting`.

    Raises
    ------
    TypeError
        Where `loss` is not one that can be sharded.

    Examples
    --------
    >>> import jax
    >>> from visreg_core import center_loss
    >>> rows = jax.numpy.ones((2, 4, 3))  # two devices' rows
    >>> loss = along_axis(center_loss)
    >>> jax.vmap(lambda z: loss(z, axis_name="data"), axis_name="data")(rows).tolist()
    [1.0, 1.0]
    """
    declaration = declaration_of(loss)
    if not declaration.sharded:
        raise TypeError(f"expected a loss of the rows of a batch; found {declaration.name}")
    given = [
        "axis_name",
        *["slice_axis"] * declaration.takes_slices,
        *["sorting"] * declaration.sorts,
    ]
    defaults = {"axis_name": inspect.Parameter.empty, "slice_axis": None, "sorting": "auto"}
    signature = declaration.signature.replace(
        parameters=[
            *declaration.signature.parameters.values(),
            *(
                inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=defaults[key])
                for key in given
            ),
        ]
    )

    def function(*args: Any, **kwargs: Any) -> Any:
        inputs = {**defaults, **signature.bind(*args, **kwargs).arguments}
        axes = Axes(inputs["axis_name"], inputs["slice_axis"])
        checks.choice("sorting", inputs["sorting"], SORTING)
        rest = {key: value for key, value in kwargs.items() if key not in given}
        bound = declaration.bind(args, rest)
        call, arrays = prepare(declaration, bound, inputs["sorting"], axes)
        return evaluate(
            call,
            [
                axes.varied(x) if argument in declaration.differentiated else x
                for argument, x in zip(call.names, arrays, strict=True)
            ],
        )

    own: Any = function
    own.__name__ = own.__qualname__ = declaration.name
    own.__module__ = __name__
    own.__signature__, own.declaration = signature, declaration
    described, _, _ = (inspect.getdoc(loss) or "").partition("Examples\n--------\n")
    further = "".join(_DESCRIBED[key] for key in given)
    own.__doc__ = described.replace("\n\nReturns\n", f"\n{further}\nReturns\n", 1)
    return own


_LOSSES = {loss.name: along_axis(loss.public) for loss in own_losses() if loss.sharded}
globals().update(_LOSSES)

__all__ = ["along_axis", "on_mesh"]
__all__ += list(_LOSSES)
__all__.sort()


# --- whole arrays ---------------------------------------------------------------------------------


def on_mesh(
    loss: Callable[..., Any],
    mesh: Mesh,
    *,
    axis_name: AxisName,
    slice_axis: AxisName = None,
    sorting: str = "auto",
) -> Callable[..., Any]:
    """A loss of whole arrays, computed on the devices of a mesh.

    Parameters
    ----------
    loss : callable
        One of this package's losses of embeddings, from any of its modules.
    mesh : jax.sharding.Mesh
        Its axes are automatic or explicit.
    axis_name : name or tuple of names
        Of the mesh's axes along which rows are spread.
    slice_axis : name or tuple of names, optional
        Of the axis along which directions are spread, for a loss of slices. Their number must be a
        multiple of its size.
    sorting : {"auto", "gather", "exchange"}
        As in `visreg_loss` of this module, for a loss that sorts.

    Returns
    -------
    callable
        With the arguments of `loss`. Embeddings may have any number of rows: they are padded to
        equal parts, and the padding is masked. Outside of `jit` they may be on any device. Its
        gradient is exact.

    Raises
    ------
    TypeError
        Where `loss` is not one of the package's, or takes no such axis.
    ValueError
        Where the mesh has no such axis, or directions do not divide.

    Examples
    --------
    >>> import jax
    >>> from visreg_jax import random_slices, visreg_loss
    >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
    >>> loss = on_mesh(visreg_loss, mesh, axis_name="data")
    >>> z = jax.random.normal(jax.random.key(0), (101, 8))
    >>> jax.jit(jax.grad(lambda z: loss(z, random_slices(8, 16)).total))(z).shape
    (101, 8)
    """
    declaration = declaration_of(loss)
    on_device = along_axis(declaration.public)
    keywords: dict[str, Any] = {"axis_name": axis_name}
    if slice_axis is not None:
        keywords["slice_axis"] = slice_axis
    if sorting != "auto":
        keywords["sorting"] = sorting
    axes = Axes(axis_name, slice_axis)
    for axis in axes.all or (axis_name,):
        if axis not in mesh.axis_names:
            raise ValueError(f"expected an axis of the mesh {mesh.axis_names}; found {axis!r}")
    inspect.signature(on_device).bind_partial(**keywords)  # a loss without slices has no slice_axis

    def function(*args: Any, **kwargs: Any) -> Any:
        given = declaration.bind(args, kwargs)
        _check(declaration, given)
        places = _places(declaration, given, axes)
        _fill_up(given, places, math.prod(mesh.shape[axis] for axis in names(axis_name)))
        call, arrays = prepare(declaration, given)
        specs = [
            _spec(x.ndim, *places.get(k, (-1, None)))
            for k, x in zip(call.names, arrays, strict=True)
        ]
        parts = math.prod(mesh.shape[axis] for axis in names(slice_axis))
        if declaration.takes_slices and given["slices"].shape[-1] % parts:
            raise ValueError(
                f"expected slices whose number divides by {parts}, the size of "
                f"axis {slice_axis!r}; found {given['slices'].shape[-1]}"
            )
        placed = [_placed(x, mesh, spec) for x, spec in zip(arrays, specs, strict=True)]
        return spread(call, tuple(specs), placed)

    @functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
    def spread(call: StaticCall, specs: tuple[PartitionSpec, ...], arrays: list[jax.Array]) -> Any:
        return jax.shard_map(
            lambda *own: on_device(**call.inputs(own), **keywords),
            mesh=mesh,
            in_specs=specs,
            out_specs=PartitionSpec(),
        )(*arrays)

    function.__name__ = function.__qualname__ = f"{declaration.name}_on_mesh"
    function.__signature__ = declaration.signature  # type: ignore[attr-defined]
    return function


def _check(declaration: Declaration, given: dict[str, Any]) -> None:
    """The loss's own checks of the arguments as passed; nothing is computed."""
    call, arrays = prepare(declaration, given)
    _whole.eval_shape(call, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays])


@functools.partial(jax.jit, static_argnums=0)
def _whole(call: StaticCall, arrays: list[jax.Array]) -> Any:
    return call.loss(**call.inputs(arrays))


def _placed(x: jax.Array, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    """`x` on the devices of the mesh; under `jit` the compiler moves those of automatic axes."""
    sharding = NamedSharding(mesh, spec)
    if not isinstance(x, jax.core.Tracer):
        return jax.device_put(x, sharding)
    return jax.sharding.reshard(x, sharding) if AxisType.Explicit in mesh.axis_types else x


def _places(
    declaration: Declaration, given: dict[str, Any], axes: Axes
) -> dict[str, tuple[int, AxisName]]:
    """For each sharded argument the axis, from its end, and the axis of the mesh."""
    places: dict[str, tuple[int, AxisName]] = {"slices": (-1, axes.slices)}
    for name in declaration.row_axes:
        places[name] = declaration.row_axis(name, given), axes.rows
    return places


def _fill_up(given: dict[str, Any], places: dict[str, tuple[int, AxisName]], devices: int) -> None:
    """Add masked rows, until all devices have equally many, and at least two."""
    first = next(iter(given))  # embeddings are a loss's first argument
    size = given[first].shape[places[first][0]]
    missing = max(2, -(-size // devices)) * devices - size
    if not missing:
        return
    if given.get("row_mask") is None:
        given["row_mask"] = jnp.ones(size, dtype=bool)
    for key, (axis, along) in places.items():
        x = given.get(key)
        if x is not None and along == places["row_mask"][1]:
            widths = [(0, 0)] * x.ndim
            widths[axis] = (0, missing)
            given[key] = jnp.pad(x, widths)


def _spec(ndim: int, axis: int, along: AxisName) -> PartitionSpec:
    """PartitionSpec of an array with one sharded axis."""
    spec: list[Any] = [None] * ndim
    if ndim and names(along):
        spec[axis] = along
    return PartitionSpec(*spec)
