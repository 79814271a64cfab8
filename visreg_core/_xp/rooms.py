"""The one place that finds a library's room: by its name, its namespaces or its arrays."""

from __future__ import annotations

import sys

import numpy as np

from visreg_core._xp.of_cupy import CUPY
from visreg_core._xp.of_jax import JAX
from visreg_core._xp.of_numpy import NUMPY
from visreg_core._xp.of_torch import TORCH
from visreg_core._xp.standard import STANDARD, Standard
from visreg_core.typing import Namespace

BY_NAME: dict[str, Standard] = {room.name: room for room in (NUMPY, TORCH, CUPY, JAX, STANDARD)}
_BY_NAMESPACE = BY_NAME | {room.module: room for room in BY_NAME.values()}
# In the order of speed; NumPy's arrays are recognised by their type.
_BY_ARRAY = tuple((*room.array, room) for room in (TORCH, JAX, CUPY, STANDARD))


def room(xp: Namespace) -> Standard:
    """Room of a namespace's library; the standard's for a namespace that has none of its own."""
    return _BY_NAMESPACE.get(xp.__name__, STANDARD)


def room_of(x: object) -> Standard:
    """Room of the library that `x` is an array of; TypeError for anything else.

    Not by array-api-compat's `is_torch_array` and the like: they cache by type, which torch's
    compiler cannot trace, and have none for array-api-strict.
    """
    if type(x) is np.ndarray:
        return NUMPY
    for module, array, found in _BY_ARRAY:
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(x, getattr(loaded, array)):
            return found
    if isinstance(x, (np.ndarray, np.generic)):  # of a class that derives from NumPy's
        return NUMPY
    raise TypeError(
        f"expected an array of {', '.join(BY_NAME)}; found {type(x).__module__}."
        f"{type(x).__qualname__}"
    )
