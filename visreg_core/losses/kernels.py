"""Which faster equivalents an array library has for the functions of rows, chosen in one place.

A kernel replaces the function of the same name of a loss or of the sliced engine, and is tested
against it. Those for NumPy are here. Adapters have their own for their devices, and pass them in
`Execution.kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from visreg_core.losses import epps_pulley_numpy, numpy_kernels

Kernels = Mapping[str, Callable[..., Any]]

NUMPY: Kernels = {
    "over_chunks": numpy_kernels.over_threads,
    "moments": numpy_kernels.moments,
    "divide": numpy_kernels.divide,
    "combine": numpy_kernels.combine,
    "multiples": epps_pulley_numpy.multiples,
    "multiples_scratch": epps_pulley_numpy.scratch,
    "quantiles": numpy_kernels.quantiles,
}

_BY_LIBRARY = {"numpy": NUMPY}
_NONE: Kernels = {}


def kernels_of(library: str) -> Kernels:
    """The kernels for arrays of a library, by the name of the function that each replaces."""
    return _BY_LIBRARY.get(library, _NONE)
