"""Between the host and other devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from visreg_core._xp.rooms import room, room_of
from visreg_core.typing import Array, Device, DType, Namespace

Function = TypeVar("Function", bound=Callable[..., Any])


def to_numpy(x: Array) -> np.ndarray:
    """Host NumPy array with the values of `x` (detached; a view where the library allows)."""
    return room_of(x).to_numpy(x)


def seen(x: Array) -> np.ndarray | None:
    """The same, unless that would wait for a device or stop a tracer: then None."""
    return room_of(x).seen(x)


def from_numpy(
    xp: Namespace, a: np.ndarray, *, device: Device = None, dtype: DType = None
) -> Array:
    """Copy of a host array as an array of `xp` (a copy: some libraries would share its memory)."""
    return room(xp).from_numpy(xp, a, device, dtype)


def host_constants(function: Function) -> Function:
    """Decorator: constants that the host computes of Python numbers, kept by those.

    Torch's compiler, which would trace NumPy, calls the function instead, as
    `torch.compiler.assume_constant_result` makes it; that one needs torch to be imported.
    """
    cached = functools.lru_cache(maxsize=64)(function)

    @functools.wraps(function)
    def constants(*args: Any) -> Any:
        return cached(*args)

    constants._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return constants  # type: ignore[return-value]


def fixed_size(size: int) -> int:
    """A size on which constants depend, as a number where torch traces it as a symbol."""
    return len(range(size))  # what Dynamo has to know the length of; `int` leaves the symbol


def fixed_number(x: float) -> float:
    """The same of a number, before anything else is done with it."""
    return float.fromhex(x.hex()) if isinstance(x, float) else x
