"""Compare the reference's gradients with central differences of its values."""

from __future__ import annotations

import time

import numpy as np

from visreg_core import _xp
from visreg_core.crosscheck._check import Call, Target
from visreg_core.crosscheck._inputs import Arrays
from visreg_core.crosscheck._losses import LossExample
from visreg_core.crosscheck._records import CheckRecord

# For a directional derivative: above the error that kinks of sorting losses cause in a difference,
# far below that of a missing factor or term.
TOLERANCE = 1e-4
_STEP = 1e-6


def difference(loss: LossExample, arrays: Arrays) -> CheckRecord:
    """Compare ⟨gradient, v⟩ with a central difference of the value along v = gradient + noise."""
    start = time.perf_counter()
    numpy = Target(_xp.as_namespace(None), None, "float64")
    gradients = loss.gradient(Call(numpy, arrays, 1.0))
    names = loss.embeddings
    sizes = [float(np.linalg.norm(arrays[name])) for name in names]
    rng = np.random.default_rng(9)
    direction = [_unit(_unit(g) + 0.5 * _unit(rng.normal(size=g.shape))) for g in gradients]

    def value(step: float) -> float:
        moved = {
            name: arrays[name] + step * size * v
            for name, size, v in zip(names, sizes, direction, strict=True)
        }
        return float(np.sum(loss.value(Call(numpy, {**arrays, **moved}, 1.0))[0]))

    measured = (value(_STEP) - value(-_STEP)) / (2 * _STEP)
    stated = sum(
        size * float(np.sum(g * v)) for g, v, size in zip(gradients, direction, sizes, strict=True)
    )
    # The error of the difference itself is the value's rounding divided by the step.
    scale = max(abs(measured), 1e-3 * loss.magnitudes(arrays)[0])
    error = abs(stated - measured) / scale if scale > 0 else 0.0
    return CheckRecord(
        _xp.name(numpy.xp),
        "cpu",
        "float64",
        loss.function,
        loss.variant,
        "difference",
        error,
        TOLERANCE,
        error <= TOLERANCE,
        time.perf_counter() - start,
    )


def _unit(a: np.ndarray) -> np.ndarray:
    norm = float(np.linalg.norm(a))
    return a / norm if norm > 0 else a
