"""The definition of a check: a call, its inputs, and its tolerance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from visreg_core.crosscheck._inputs import Arrays
from visreg_core.typing import Device, Namespace

Fields = tuple[Any, ...]
Tolerance = Mapping[str, float]


class Target(NamedTuple):
    """A library, one of its devices, and the name of the floating dtype under test."""

    xp: Namespace
    device: Device
    dtype: str

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of a function that makes arrays there."""
        return {"xp": self.xp, "device": self.device, "dtype": getattr(self.xp, self.dtype)}


class Call(NamedTuple):
    """Arguments of a check: where it runs, its arrays, and the factor on the loss (gradients)."""

    place: Target
    arrays: Arrays
    upstream: float


# Tolerances of relative errors. Two correct evaluations differ by a few roundings of the dtype
# computed in, which is float32 for the 16-bit dtypes: their inputs are exact, and only results in
# the inputs' dtype are rounded, by 2⁻⁸ (bfloat16) or 2⁻¹¹ (float16) at most. The comments give the
# largest errors on this package's own inputs (NumPy, torch, JAX, array-api-strict; CPUs).
TOLERANCES: dict[str, Tolerance] = {}


def _tolerance(name: str, float64: float, float32: float, bfloat16: float, float16: float) -> None:
    TOLERANCES[name] = {
        "float64": float64,
        "float32": float32,
        "bfloat16": bfloat16,
        "float16": float16,
    }


_tolerance("value", 1e-12, 2e-6, 2e-6, 2e-6)  # 3e-16, 1e-7, 1e-7, 2e-7
_tolerance("gradient", 1e-12, 5e-6, 4e-3, 5e-4)  # 7e-16, 5e-7, 3e-3, 4e-4
_tolerance("array", 1e-12, 2e-6, 4e-3, 5e-4)  # 3e-16, 3e-7, 3e-3, 4e-4
_tolerance("metric", 1e-11, 2e-5, 2e-5, 2e-5)  # 7e-16, 3e-7, 5e-7, 3e-7
_tolerance("exact", 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Check:
    """One call whose result on a library is compared with NumPy's in float64.

    function : the checked public name; variant : its options, in words.
    of : "value", "gradient", "metric", "array" or "words".
    call : computes the result's fields, arrays or Python numbers.
    scales : what the error of each field is relative to, from the host's arrays and reference.
    result : "compute" (float64 for float64 inputs, else float32), "input" (the dtype under test),
        "integer" or "host" (Python numbers, NumPy arrays): the required kind of the fields.
    sorts : a swap of nearly equal projections changes single elements, so that below float64 the
        error is measured by the norm.
    conditioned : a small change of the inputs may change the result by much (ranks, neighbours,
        small singular values, a user's own inputs): the error is also relative to that change.
    host : computed on the host from a copy of the arrays, whatever their library.
    expected : known answers for the first fields, in place of the reference's.
    """

    function: str
    variant: str
    of: str
    inputs: str
    call: Callable[[Call], Fields]
    scales: Callable[[Arrays, Fields], tuple[float, ...]]
    tolerance: Tolerance
    result: str
    sorts: bool = False
    conditioned: bool = False
    host: bool = False
    expected: Fields = ()

    @property
    def name(self) -> str:
        """Function and variant."""
        return f"{self.function} ({self.variant})" if self.variant else self.function


def largest(fields: Fields) -> tuple[float, ...]:
    """Largest absolute element of each field."""
    return tuple(float(np.max(np.abs(f), initial=0.0)) for f in fields)


def as_fields(result: Any) -> Fields:
    """Fields of a result that is a tuple of them, or one."""
    return tuple(result) if isinstance(result, tuple) else (result,)
