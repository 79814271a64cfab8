"""Which library, namespace, device and dtype."""

from __future__ import annotations

from typing import Any

import numpy as np

from visreg_core._xp.dtypes import FLOATING, dtype_name
from visreg_core._xp.rooms import BY_NAME, room, room_of
from visreg_core._xp.standard import Standard
from visreg_core.typing import Array, Device, DType, Namespace


def library(x: object) -> str:
    """Name of the library that `x` is an array of; TypeError for anything else."""
    return room_of(x).name


def is_array(x: object) -> bool:
    """Whether `x` is an array or tracer, not a Python number."""
    # Numbers first: torch cannot trace an attribute of a number.
    return not isinstance(x, (int, float)) and hasattr(x, "shape")


def namespace(*arrays: Array | None) -> Namespace:
    """Array-API namespace shared by `arrays` (None is skipped after the first).

    Raises TypeError where two libraries meet and ValueError where two devices do, naming both.
    """
    if arrays[0] is None:
        raise TypeError("expected an array; found None")
    found = room_of(arrays[0])
    if len(arrays) > 1:
        _check_together(found, [x for x in arrays if x is not None])
    return found.namespace()


def _check_together(room: Standard, arrays: list[Array]) -> None:
    for x in arrays[1:]:
        other = room_of(x)
        if other is not room:
            raise TypeError(
                "expected all arrays from one library; found "
                f"{room.name} and {other.name}: convert one of them explicitly"
            )
    if room.one_device:
        return
    devices = [d for d in map(room.device, arrays) if d is not None]
    for where in devices[1:]:
        if where != devices[0]:
            raise ValueError(
                f"expected all arrays on one device; found {devices[0]} and {where}: "
                "move one of them explicitly"
            )


def as_namespace(xp: Any) -> Namespace:
    """The namespace this package uses for a library named by any of its namespaces.

    `numpy`, `torch`, `jax.numpy`, `jax`, `cupy`, `array_api_strict` and array-api-compat's
    wrappers are all understood; None is NumPy.
    """
    full = getattr(np if xp is None else xp, "__name__", type(xp).__name__)
    parts = full.split(".")
    root = parts[1] if parts[0] == "array_api_compat" and len(parts) > 1 else parts[0]
    if root not in BY_NAME:
        raise TypeError(f"expected xp to be a namespace of {', '.join(BY_NAME)}; found {full}")
    return BY_NAME[root].namespace()


def name(xp: Namespace) -> str:
    """Library's name of a namespace returned by `namespace` or `as_namespace`."""
    return room(xp).name


def device(x: Array) -> Device:
    """Device of `x`; None where it has no single one (a traced or sharded JAX array)."""
    return room_of(x).device(x)


def is_on_host(xp: Namespace) -> bool:
    """Whether arrays are in the host's memory: NumPy's, and JAX's without accelerators."""
    return room(xp).is_on_host()


def on_device(x: Array) -> dict[str, Any]:
    """Keyword argument that creates an array on the device of `x`; empty where JAX decides."""
    where = device(x)
    return {} if where is None else {"device": where}


def is_dtype_of(xp: Namespace, dtype: Any) -> bool:
    """Whether `dtype` is a floating dtype that this package knows, of the library `xp`."""
    if isinstance(dtype, (str, np.generic)) or (is_array(dtype) and not _is_dtype(dtype)):
        return False
    try:
        found = dtype_name(dtype)
    except TypeError:
        return False
    if found not in FLOATING:
        return False
    return room(xp).numpy_dtypes or getattr(xp, found, None) == dtype


def _is_dtype(x: object) -> bool:
    return isinstance(x, (type, np.dtype))  # which, like arrays, have a shape


def default_float(xp: Namespace) -> DType:
    """The library's own default floating dtype (NumPy float64, Torch float32, …)."""
    return room(xp).default_float(xp)
