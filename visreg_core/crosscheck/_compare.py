"""The float64 reference of a check, and the error of a library's result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from visreg_core import _xp
from visreg_core.crosscheck._check import Call, Check, Fields, Target
from visreg_core.crosscheck._inputs import Arrays
from visreg_core.optional import MissingExtraError

# Relative perturbation of inputs by which their condition is estimated: 8 roundings of the dtype
# computed in, because sums round at every step.
_MOVE = {"float64": 2.0**-50, "float32": 2.0**-21}
# Losses that sort: several perturbations, four times as large, because projections that differ by a
# few roundings may swap in one evaluation and not in another, and one perturbation finds only some
# of these pairs.
_SORTING_MOVE, _SORTING_MOVES = 4, 6


@dataclass(frozen=True)
class Reference:
    """Result of a check in float64 on NumPy, or the message with which it rejects the inputs."""

    fields: Fields
    scales: tuple[float, ...]
    upstream: float
    refusal: str = ""


def reference_of(check: Check, arrays: Arrays, dtype: str) -> Reference:
    """The check in float64 on NumPy; ValueError where its result is not finite."""
    numpy = Target(_xp.as_namespace(None), None, "float64")
    try:
        fields = check.call(Call(numpy, arrays, 1.0))
    except (ValueError, MissingExtraError) as error:  # such as orthonormalize of N < D rows
        return Reference((), (), 1.0, str(error).split("\n")[0])
    fields = tuple(np.asarray(f) for f in (*check.expected, *fields[len(check.expected) :]))
    # A metric may be NaN; its documentation says where.
    if check.of != "metric" and not all(np.all(np.isfinite(f)) for f in fields):
        raise ValueError(
            f"expected embeddings on which the float64 reference is finite; found "
            f"{check.of} of {check.name} with NaN or infinity"
        )
    upstream = 1.0
    if check.of == "gradient":
        largest = max(float(np.max(np.abs(f))) for f in fields)
        upstream = 2.0 ** -math.frexp(largest)[1] if largest > 0 else 1.0
    scales = check.scales(arrays, fields)
    if check.conditioned:
        unit = _MOVE["float64" if dtype == "float64" else "float32"]
        narrow = check.sorts and dtype != "float64"
        unit, moves = (_SORTING_MOVE * unit, _SORTING_MOVES) if narrow else (unit, 1)
        size = size_of(check, dtype)
        for seed in range(8, 8 + moves):
            moved = check.call(Call(numpy, _perturbed(arrays, unit, seed), 1.0))
            scales = tuple(
                max(scale, size(np.asarray(m) - f) / unit)
                for scale, m, f in zip(scales, moved, fields, strict=True)
            )
    return Reference(fields, scales, upstream)


def _perturbed(arrays: Arrays, unit: float, seed: int) -> Arrays:
    """Every floating element up or down by `unit`, relatively."""
    rng = np.random.default_rng(seed)
    return {
        name: a * (1 + unit * rng.choice([-1.0, 1.0], size=a.shape)) if a.dtype.kind == "f" else a
        for name, a in arrays.items()
    }


def size_of(check: Check, dtype: str) -> Callable[[np.ndarray], float]:
    """The norm of an error, or its largest element."""
    if check.sorts and dtype != "float64":
        return lambda a: float(np.linalg.norm(a))
    return lambda a: float(np.max(np.abs(a), initial=0.0))


def on_host(x: Any) -> np.ndarray:
    a = _xp.to_numpy(x) if _xp.is_array(x) else np.asarray(x)
    return a if a.dtype.kind in "biu" else a.astype(np.float64)


def wrong_kind(check: Check, place: Target, fields: Fields, reference: Reference) -> str:
    """What is wrong with the library, device, dtype or shape of a result; "" if nothing."""
    if reference.refusal:
        return f"expected {reference.refusal!r}, as the reference says; found a result"
    if len(fields) != len(reference.fields):
        return f"expected {len(reference.fields)} fields; found {len(fields)}"
    narrow = place.dtype if check.result == "input" or place.dtype == "float64" else "float32"
    like = _xp.from_numpy(place.xp, np.zeros(1, np.float32), device=place.device)
    for got, wanted in zip(fields, reference.fields, strict=True):
        if check.result == "host":
            if not isinstance(got, float | int | np.ndarray):
                return f"expected a number or NumPy array; found {type(got).__name__}"
        elif _xp.library(got) != _xp.name(place.xp):
            return f"expected an array of {_xp.name(place.xp)}; found one of {_xp.library(got)}"
        elif str(_xp.device(got)) != str(_xp.device(like)) and not isinstance(got, np.generic):
            return f"expected device {_xp.device(like)}; found {_xp.device(got)}"
        elif check.result == "integer":
            if "int" not in _xp.dtype_name(got):
                return f"expected an integer dtype; found {_xp.dtype_name(got)}"
        elif _xp.dtype_name(got) != narrow:
            return f"expected dtype {narrow}; found {_xp.dtype_name(got)}"
        if tuple(np.shape(got)) != wanted.shape:
            return f"expected shape {wanted.shape}; found {tuple(np.shape(got))}"
    return ""


def error_of(
    got: np.ndarray, wanted: np.ndarray, scale: float, size: Callable[[np.ndarray], float]
) -> float:
    """Size of got − wanted, relative to the larger of wanted's and `scale`; integers: a count."""
    if wanted.dtype.kind in "biu":
        return float(np.sum(got != wanted))
    undefined = np.isnan(got) & np.isnan(wanted)
    got, wanted = np.where(undefined, 0.0, got), np.where(undefined, 0.0, wanted)
    difference = got - wanted
    if not np.all(np.isfinite(difference)):
        return math.inf
    unit = float(max(np.max(np.abs(difference)), np.max(np.abs(wanted))))
    if unit == 0.0 or math.isinf(scale):  # equal, or no accuracy can be expected
        return 0.0
    # Divided by the largest element first, so that no square overflows.
    return size(difference / unit) / max(scale / unit, size(wanted / unit))
