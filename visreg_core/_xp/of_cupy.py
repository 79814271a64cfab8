"""What CuPy does differently from the standard."""

from __future__ import annotations

import importlib

import numpy as np

from visreg_core._xp.standard import Standard, counted_sums
from visreg_core.typing import Array, Device, Namespace


class CuPyRoom(Standard):
    """NumPy's functions beyond the standard, on the device."""

    name = "cupy"
    module = "array_api_compat.cupy"
    array = ("cupy", "ndarray")
    numpy_dtypes = True
    writes_in_place = True
    branches = False  # it would wait for the device

    def to_numpy(self, x: Array) -> np.ndarray:
        return x.get()

    def device_names(self, xp: Namespace) -> tuple[str, ...]:
        return ("cuda",) if xp.is_available() else ()

    def find_device(self, xp: Namespace, device_name: str) -> Device:
        return xp.cuda.Device(int(device_name.removeprefix("cuda").removeprefix(":") or 0))

    def special(self, xp: Namespace, function: str, x: Array) -> Array:
        return getattr(importlib.import_module("cupyx.scipy.special"), function)(x)

    def put_last(self, xp: Namespace, index: Array, values: Array) -> Array:
        out = xp.empty_like(values)
        xp.put_along_axis(out, index, values, axis=-1)
        return out

    def add_last(self, xp: Namespace, size: int, index: Array, values: Array) -> Array:
        return counted_sums(xp, size, index, values).astype(values.dtype)

    def beside(self, x: Array, other: Array) -> Array:
        return x

    def sum_rows(self, xp: Namespace, x: Array) -> Array:
        return xp.sum(x, axis=-2, keepdims=True, dtype=x.dtype)  # in blocks by itself


CUPY = CuPyRoom()
