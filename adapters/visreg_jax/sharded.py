"""The losses of a batch that is spread over devices: exact values and gradients of the whole batch.

Inside of `jax.shard_map` (or of a `vmap` with an axis name) the functions of this module take the
device's own rows and the name of the axis, and return the loss of all rows, the same on every
device::

    terms = sharded.visreg_loss(z, slices, axis_name="data")

Statistics that are moments (variance, covariance, Barlow Twins, Epps-Pulley) are reduced; terms
that sort share the directions out to the devices and gather embeddings or exchange projections,
whichever moves fewer bytes. With ``slice_axis`` a second axis of the mesh holds other directions:
`slices` are then the device's own, and the loss is that of all.

`on_mesh` does this for arrays that are not cut up yet.

Gradients
---------
One rule: **average the gradients of the parameters over all axes named**, as any data-parallel
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

from visreg_core import _checks
from visreg_core.losses._execution import SORTING
from visreg_jax._collectives import Axes, AxisName, names
from visreg_jax._custom_vjp import Call, evaluate, prepare
from visreg_jax.functional import EMBEDDINGS, LOSSES, documented

__all__ = [
    "barlow_twins_loss",
    "center_loss",
    "covariance_loss",
    "epps_pulley",
    "gaussian_sliced_wasserstein",
    "invariance_loss",
    "on_mesh",
    "sag_vicreg_loss",
    "scale_loss",
    "shape_loss",
    "sigreg_loss",
    "variance_loss",
    "vicreg_loss",
    "visreg_loss",
]

_SORTING = ("shape_loss", "visreg_loss", "gaussian_sliced_wasserstein")
_SLICED = (*_SORTING, "sigreg_loss")
_DESCRIBED = {
    "axis_name": """axis_name : name or tuple of names
    Of the axes along which the rows are spread, equally many on each device; `row_mask` leaves
    out what fills them up.
""",
    "slice_axis": """slice_axis : name or tuple of names, optional
    Of an axis whose devices have equally many directions each, their own `slices`.
""",
    "sorting": """sorting : {"auto", "gather", "exchange"}
    How the devices that sort a direction get all of its rows: by gathering the embeddings, by
    exchanging projections, or whichever moves fewer bytes.
""",
}


def _sharded(name: str, arguments: str) -> Callable[..., Any]:
    """The loss of this name for use where its axes are manual."""
    loss, embeddings = LOSSES[name], EMBEDDINGS[name]
    keywords = ["axis_name", *["slice_axis"] * (name in _SLICED), *["sorting"] * (name in _SORTING)]
    defaults = {"axis_name": inspect.Parameter.empty, "slice_axis": None, "sorting": "auto"}
    signature = inspect.signature(loss)
    signature = signature.replace(
        parameters=[
            *signature.parameters.values(),
            *(
                inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=defaults[key])
                for key in keywords
            ),
        ]
    )

    def function(*args: Any, **kwargs: Any) -> Any:
        given = {**defaults, **signature.bind(*args, **kwargs).arguments}
        axes = Axes(given["axis_name"], given["slice_axis"])
        _checks.choice("sorting", given["sorting"], SORTING)
        rest = {key: value for key, value in kwargs.items() if key not in keywords}
        call, arrays = prepare(loss, embeddings, args, rest, given["sorting"], axes)
        return evaluate(
            call,
            [
                axes.varied(x) if argument in embeddings else x
                for argument, x in zip(call.names, arrays, strict=True)
            ],
        )

    function.__name__ = function.__qualname__ = name
    function.__module__ = __name__
    function.__signature__ = signature  # type: ignore[attr-defined]
    described = "".join(_DESCRIBED[key] for key in keywords)
    example = f"On each device, with its own rows::\n\n    {name}({arguments}, axis_name='data')"
    function.__doc__ = documented(loss, example).replace(
        "\n\nReturns\n", f"\n{described}\nReturns\n", 1
    )
    return function


center_loss = _sharded("center_loss", "z")
scale_loss = _sharded("scale_loss", "z")
shape_loss = _sharded("shape_loss", "z, slices")
visreg_loss = _sharded("visreg_loss", "z, slices")
invariance_loss = _sharded("invariance_loss", "views")
gaussian_sliced_wasserstein = _sharded("gaussian_sliced_wasserstein", "z, slices")
epps_pulley = _sharded("epps_pulley", "x")
sigreg_loss = _sharded("sigreg_loss", "z, slices")
variance_loss = _sharded("variance_loss", "z")
covariance_loss = _sharded("covariance_loss", "z")
vicreg_loss = _sharded("vicreg_loss", "a, b")
barlow_twins_loss = _sharded("barlow_twins_loss", "a, b")
sag_vicreg_loss = _sharded("sag_vicreg_loss", "a, b, pairs, pair_weights")


# --- arrays that are not cut up yet ---------------------------------------------------------------


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
        With the arguments of `loss`. Embeddings may have any number of rows: those that are
        missing for equal parts are added and masked. Outside of a program they may lie on any
        device. Its gradient is exact.

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
    name = getattr(loss, "__name__", "")
    if name not in _NAMES:
        raise TypeError(f"expected one of the losses {', '.join(_NAMES)}; found {loss!r}")
    keywords: dict[str, Any] = {"axis_name": axis_name}
    if slice_axis is not None:
        keywords["slice_axis"] = slice_axis
    if sorting != "auto":
        keywords["sorting"] = sorting
    axes = Axes(axis_name, slice_axis)
    for axis in axes.all or (axis_name,):
        if axis not in mesh.axis_names:
            raise ValueError(f"expected an axis of the mesh {mesh.axis_names}; found {axis!r}")
    on_device = globals()[name]
    inspect.signature(on_device).bind_partial(**keywords)  # a loss without slices has no slice_axis

    def function(*args: Any, **kwargs: Any) -> Any:
        given = dict(inspect.signature(LOSSES[name]).bind(*args, **kwargs).arguments)
        _check(name, given)
        places = _places(name, given, axes)
        _fill_up(given, places, math.prod(mesh.shape[axis] for axis in names(axis_name)))
        call, arrays = prepare(LOSSES[name], EMBEDDINGS[name], (), given)
        specs = [
            _spec(x.ndim, *places.get(k, (-1, None)))
            for k, x in zip(call.names, arrays, strict=True)
        ]
        parts = math.prod(mesh.shape[axis] for axis in names(slice_axis))
        if "slices" in given and given["slices"].shape[-1] % parts:
            raise ValueError(
                f"expected slices whose number divides by {parts}, the size of "
                f"axis {slice_axis!r}; found {given['slices'].shape[-1]}"
            )
        placed = [_placed(x, mesh, spec) for x, spec in zip(arrays, specs, strict=True)]
        return spread(call, tuple(specs), placed)

    @functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
    def spread(call: Call, specs: tuple[PartitionSpec, ...], arrays: list[jax.Array]) -> Any:
        return jax.shard_map(
            lambda *own: on_device(**call.arguments(own), **keywords),
            mesh=mesh,
            in_specs=specs,
            out_specs=PartitionSpec(),
        )(*arrays)

    function.__name__ = function.__qualname__ = f"{name}_on_mesh"
    function.__signature__ = inspect.signature(LOSSES[name])  # type: ignore[attr-defined]
    return function


def _check(name: str, given: dict[str, Any]) -> None:
    """The loss's own checks, of the arguments as they came; nothing is computed."""
    call, arrays = prepare(LOSSES[name], EMBEDDINGS[name], (), given)
    _whole.eval_shape(call, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays])


@functools.partial(jax.jit, static_argnums=0)
def _whole(call: Call, arrays: list[jax.Array]) -> Any:
    return call.loss(**call.arguments(arrays))


def _placed(x: jax.Array, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    """`x` on the devices of the mesh; of a program's arrays the compiler moves automatic ones."""
    sharding = NamedSharding(mesh, spec)
    if not isinstance(x, jax.core.Tracer):
        return jax.device_put(x, sharding)
    return jax.sharding.reshard(x, sharding) if AxisType.Explicit in mesh.axis_types else x


def _places(name: str, given: dict[str, Any], axes: Axes) -> dict[str, tuple[int, AxisName]]:
    """The axis of each argument that is spread, from its end, and along which axis of the mesh."""
    row = given.get("axis", -1) if name == "epps_pulley" else -2
    places = dict.fromkeys(EMBEDDINGS[name], (row, axes.rows))
    places |= dict.fromkeys(("row_mask", "pairs", "pair_weights"), (-1, axes.rows))
    return {**places, "slices": (-1, axes.slices)}


def _fill_up(given: dict[str, Any], places: dict[str, tuple[int, AxisName]], devices: int) -> None:
    """Add masked rows, until all devices have as many, and the two that a loss asks for."""
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
    """That of an array with one axis spread."""
    spec: list[Any] = [None] * ndim
    if ndim and names(along):
        spec[axis] = along
    return PartitionSpec(*spec)


_NAMES = [name for name in __all__ if name in LOSSES]
