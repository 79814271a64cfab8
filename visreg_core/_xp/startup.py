"""For programs: a library chosen by its name, its devices and its precision."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util

from visreg_core._xp.rooms import BY_NAME, room
from visreg_core.typing import Device, Namespace


def installed() -> tuple[str, ...]:
    """Names of the libraries that can be imported."""
    return tuple(which for which in BY_NAME if importlib.util.find_spec(which) is not None)


def import_namespace(which: str) -> Namespace:
    """Import a library by its name.

    ValueError for an unknown name, ModuleNotFoundError where it is not installed.
    """
    if which not in BY_NAME:
        raise ValueError(f"expected a backend of {', '.join(BY_NAME)}; found {which!r}")
    importlib.import_module(which)
    return BY_NAME[which].namespace()


def device_names(xp: Namespace) -> tuple[str, ...]:
    """One device of each kind that a library can compute on, as `find_device` takes them."""
    return room(xp).device_names(xp)


def find_device(xp: Namespace, device_name: str) -> Device:
    """The library's device of this name ("cpu", "cuda:1", "gpu"); ValueError without one."""
    try:
        found = room(xp).find_device(xp, device_name)
        xp.zeros(1, device=found)
    except Exception as error:  # each library has its own for a device it does not have
        said = str(error).strip().split("\n")[0]
        raise ValueError(
            f"expected a device of {room(xp).name}; found {device_name!r}: {said}"
        ) from error
    return found


def open_backend(which: str, device_name: str | None = None) -> tuple[Namespace, Device]:
    """Import a library by its name; returns its namespace and the device (None: its default).

    For commands, not for libraries: JAX's 64-bit types are switched on, so that float64 stays.
    ValueError for an unknown name or device, ModuleNotFoundError where it is not installed.
    """
    xp = import_namespace(which)
    room(xp).keep_float64()
    return xp, None if device_name is None else find_device(xp, device_name)


def pinned_precision(
    xp: Namespace, *, x64: bool
) -> contextlib.AbstractContextManager[None, bool | None]:
    """Context of full-precision matrix products (no TF32), JAX's 64-bit types as requested."""
    return room(xp).pinned_precision(xp, x64)


def compiles(xp: Namespace) -> bool:
    """Whether `compiled` makes one program of a function: operations by themselves take long."""
    return room(xp).compiles


def forget_programs(xp: Namespace) -> None:
    """Free the memory of all programs that the library has compiled."""
    room(xp).forget_programs()
