"""Checks of slices, quantiles, affinities and walks: functions that return arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

import visreg_core
from visreg_core import _xp
from visreg_core._xp.threefry import threefry2x32
from visreg_core.crosscheck import _magnitudes as magnitudes
from visreg_core.crosscheck._check import TOLERANCES, Call, Check, Fields, as_fields, largest
from visreg_core.crosscheck._inputs import Arrays
from visreg_core.typing import Array


def _words(call: Call) -> Fields:
    """Words of the known answers, and of a block of counters under one key."""
    known, many = (
        threefry2x32(*(call.arrays[name][i, :] for i in range(4))) for name in ("known", "block")
    )
    return (*known, *many)


_KNOWN_WORDS = ((0x6B200159, 0x1CB996FC, 0xC4923A9C), (0x99BA4EFE, 0xBB002BE7, 0x483DF7A0))


def _dyadic_walk(call: Call) -> Fields:
    """A walk whose cumulative probabilities are multiples of 1/8: exact in every dtype."""
    return (visreg_core.sample_random_walk(call.arrays["walk"], seed=5, step=6, n_steps=3),)


def _array(
    function: str,
    variant: str,
    call: Callable[[Call], Any],
    tolerance: str = "array",
    *,
    inputs: str = "given",
    result: str = "input",
    scale: Callable[[Arrays], float] | None = None,
    conditioned: bool = False,
) -> Check:
    def scales(arrays: Arrays, reference: Fields) -> tuple[float, ...]:
        return tuple(scale(arrays) if scale else r for r in largest(reference))

    return Check(
        function,
        variant,
        "array",
        inputs,
        lambda c: as_fields(call(c)),
        scales,
        TOLERANCES[tolerance],
        result,
        conditioned=conditioned,
    )


def _wide(call: Call, name: str) -> Array:
    """An array in the compute dtype, which losses and affinities are always in."""
    x = call.arrays[name]
    return _xp.cast(call.place.xp, x, _xp.compute_dtype(call.place.xp, x))


def _orthonormal_scale(arrays: Arrays) -> float:
    return math.sqrt(arrays["z"].shape[0]) * magnitudes.column_condition(arrays["z"])


FUNCTIONS: tuple[Check, ...] = (
    Check(
        "random_slices",
        "Threefry words",
        "words",
        "exact",
        _words,
        lambda arrays, reference: (1.0,) * len(reference),
        TOLERANCES["exact"],
        "integer",
        expected=tuple(np.array(w, dtype=np.uint32).view(np.int32) for w in _KNOWN_WORDS),
    ),
    _array(
        "random_slices",
        "",
        lambda c: visreg_core.random_slices(13, 40, seed=7, step=8, **c.place.options),
    ),
    _array(
        "random_slices",
        "orthogonal",
        lambda c: visreg_core.random_slices(
            13, 40, seed=7, sampler="orthogonal", **c.place.options
        ),
        scale=lambda arrays: 30.0,
    ),
    _array(
        "structured_slices",
        "",
        lambda c: visreg_core.structured_slices(24, 40, seed=7, step=8, **c.place.options),
    ),
    _array(
        "subspace_slices",
        "",
        lambda c: visreg_core.subspace_slices(
            13, 40, n_subspaces=5, subspace_dim=4, seed=7, step=8, **c.place.options
        ),
        scale=lambda arrays: 30.0,
    ),
    _array(
        "rectified_generalized_gaussian",
        "",
        lambda c: visreg_core.rectified_generalized_gaussian(
            13, 8, p=1.0, nonzero=0.3, **c.place.options
        ),
    ),
    _array("normal_quantiles", "", lambda c: visreg_core.normal_quantiles(101, **c.place.options)),
    _array(
        "joint_objective",
        "",
        lambda c: visreg_core.joint_objective(_wide(c, "one"), _wide(c, "other"), 0.75),
        "value",
        result="compute",
    ),
    _array(
        "random_walk_affinity",
        "",
        lambda c: visreg_core.random_walk_affinity(c.arrays["a"], c.arrays["b"]),
        "value",
        result="compute",
        scale=lambda arrays: magnitudes.affinity(arrays["a"], arrays["b"]),
        conditioned=True,
    ),
    _array(
        "transition_matrix",
        "",
        lambda c: visreg_core.transition_matrix(_wide(c, "affinity")),
        "value",
        result="compute",
    ),
    _array("sample_random_walk", "", _dyadic_walk, "exact", inputs="exact", result="integer"),
    _array(
        "random_walk_pairs",
        "nearest",
        lambda c: visreg_core.random_walk_pairs(c.arrays["a"], c.arrays["b"], 1)[:1],
        "exact",
        result="integer",
    ),
    _array(
        "orthonormalize",
        "",
        lambda c: visreg_core.orthonormalize(c.arrays["z"]),
        scale=_orthonormal_scale,
    ),
)
