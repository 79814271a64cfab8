"""Float64 inside a function of float32, where a library does not give it as such."""

from __future__ import annotations

import contextlib
import sys

from visreg_core import _xp
from visreg_core._typing import Array, DType, Namespace


def float64_inside(xp: Namespace) -> contextlib.AbstractContextManager[None]:
    """Context in which float64 arrays exist: JAX makes them only if told so, traced or not."""
    if _xp.name(xp) == "jax":
        return sys.modules["jax"].enable_x64(True)
    return contextlib.nullcontext()


def widest(xp: Namespace, x: Array) -> DType:
    """float64, or float32 on a device that has no other (Apple's)."""
    device = _xp.device(x)
    return xp.float32 if getattr(device, "type", None) == "mps" else xp.float64
