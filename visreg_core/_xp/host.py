"""Between the host and other devices."""

from __future__ import annotations

import numpy as np

from visreg_core._xp.rooms import room_of
from visreg_core.typing import Array, Device, DType, Namespace


def to_numpy(x: Array) -> np.ndarray:
    """Host NumPy array with the values of `x` (detached; a view where the library allows)."""
    return room_of(x).to_numpy(x)


def from_numpy(
    xp: Namespace, a: np.ndarray, *, device: Device = None, dtype: DType = None
) -> Array:
    """Copy of a host array as an array of `xp` (a copy: some libraries would share its memory)."""
    where = {} if device is None else {"device": device}
    return xp.asarray(a, dtype=dtype, copy=True, **where)
