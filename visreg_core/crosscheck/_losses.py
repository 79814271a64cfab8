"""Checks of the losses: their values, and the gradients that `value_and_vjp` gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import visreg_core
from visreg_core import _xp
from visreg_core._typing import Array
from visreg_core.crosscheck import _magnitudes as magnitudes
from visreg_core.crosscheck._check import TOLERANCES, Call, Check, Fields, Place, as_fields
from visreg_core.crosscheck._inputs import Arrays
from visreg_core.losses._differentiable import value_and_vjp


@dataclass(frozen=True)
class Loss:
    """A way to call a loss: names of its arrays, its options, and its magnitudes."""

    function: str
    arguments: tuple[str, ...]
    magnitude: Callable[..., tuple[float, ...]]
    variant: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    inputs: str = "given"
    sorts: bool = False
    differentiable: bool = True
    root: float = 1  # the loss is a root of this order of a mean of powers

    @property
    def name(self) -> str:
        """Function and variant, as in the checks made of it."""
        return f"{self.function} ({self.variant})" if self.variant else self.function

    @property
    def public(self) -> Callable[..., Any]:
        """The loss itself, looked up when it is called."""
        return getattr(visreg_core, self.function)

    def bound(self, arrays: Arrays) -> tuple[list[Array], dict[str, Any]]:
        """Positional and keyword arguments."""
        keywords = {k: arrays[name] for k, name in self.weights.items()}
        return [arrays[name] for name in self.arguments], {**self.options, **keywords}

    def magnitudes(self, arrays: Arrays) -> tuple[float, ...]:
        """Sums of absolute values before cancellation, one for each field."""
        return self.magnitude(*(arrays[name] for name in self.arguments), **self.options)

    def value(self, call: Call) -> Fields:
        """Fields of the loss's result."""
        positional, keywords = self.bound(call.arrays)
        return as_fields(self.public(*positional, **keywords))

    def gradient(self, call: Call) -> Fields:
        """Gradients of `upstream` times the loss (its total, its sum)."""
        positional, keywords = self.bound(call.arrays)
        result, vjp = value_and_vjp(self.public)(*positional, **keywords)
        others = len(as_fields(result)) - 1
        return as_fields(vjp(call.upstream, *[0.0] * others))

    def value_scales(self, arrays: Arrays, reference: Fields) -> tuple[float, ...]:
        """The larger of |reference| and the magnitude."""
        sizes = self.magnitudes(arrays)
        return tuple(
            max(abs(float(np.max(np.abs(r)))), m) for r, m in zip(reference, sizes, strict=True)
        )

    def gradient_floor(self, arrays: Arrays, index: int) -> float:
        """Norm of the gradient of a sum that does not cancel.

        M / ‖z‖ with M the magnitude, as Euler's relation ⟨∇L, z⟩ = p L of a loss of degree p
        suggests: a gradient that nearly vanishes (of the scale loss of standardised embeddings,
        say) has no relative accuracy of its own. A p-th root L = S^(1/p) divides the gradient of
        the sum S by L^(p−1), and so its error.
        """
        size = float(np.linalg.norm(arrays[self.arguments[index]]))
        if size == 0:
            return 0.0
        (magnitude, *_) = self.magnitudes(arrays)
        if self.root == 1:
            return magnitude / size
        host = Place(_xp.as_namespace(None), None, "float64")
        (value,) = self.value(Call(host, arrays, 1.0))
        if value == 0:
            return math.inf  # where the root has no derivative
        return magnitude / size * (magnitude / float(value)) ** (self.root - 1)


def checks_of(loss: Loss) -> list[Check]:
    """The check of a loss's value and that of its gradient."""
    exact = loss.inputs == "ties"  # every projection is exact in every dtype

    def gradient_scales(arrays: Arrays, reference: Fields) -> tuple[float, ...]:
        floors = [loss.gradient_floor(arrays, i) for i in range(len(reference))]
        if loss.sorts and not exact:
            return tuple(floors)
        return tuple(f / math.sqrt(r.size) for f, r in zip(floors, reference, strict=True))

    return [
        Check(
            loss.function,
            loss.variant,
            "value",
            loss.inputs,
            loss.value,
            loss.value_scales,
            TOLERANCES["value"],
            "compute",
        ),
        Check(
            loss.function,
            loss.variant,
            "gradient",
            loss.inputs,
            loss.gradient,
            gradient_scales,
            TOLERANCES["gradient"],
            "input",
            sorts=loss.sorts and not exact,
            conditioned=loss.sorts and not exact,
        ),
    ]


_Z, _Z_SLICES, _X_Y_SLICES = ("z",), ("z", "slices"), ("z", "y", "slices")
_PAIR, _VIEWS = ("a", "b"), ("views",)

LOSSES: tuple[Loss, ...] = (
    Loss("center_loss", _Z, magnitudes.center),
    Loss("scale_loss", _Z, magnitudes.scale),
    # The default holds σ fixed in the gradient, which differences of the value do not.
    Loss("shape_loss", _Z_SLICES, magnitudes.shape, sorts=True, differentiable=False),
    Loss(
        "shape_loss",
        _Z_SLICES,
        magnitudes.shape,
        "detach_scale=False",
        {"detach_scale": False},
        sorts=True,
    ),
    Loss("visreg_loss", _Z_SLICES, magnitudes.visreg, sorts=True, differentiable=False),
    Loss(
        "visreg_loss",
        _Z_SLICES,
        magnitudes.visreg,
        "detach_scale=False",
        {"detach_scale": False, "weights": (0.5, 2.0, 3.0)},
        sorts=True,
    ),
    Loss("invariance_loss", _VIEWS, magnitudes.invariance),
    Loss("invariance_loss", _VIEWS, magnitudes.invariance, "n_global=2", {"n_global": 2}),
    Loss("gaussian_sliced_wasserstein", _Z_SLICES, magnitudes.to_quantiles, sorts=True),
    Loss(
        "gaussian_sliced_wasserstein",
        _Z_SLICES,
        magnitudes.to_quantiles,
        "equal keys",
        inputs="ties",
        sorts=True,
        differentiable=False,
    ),
    Loss("sliced_wasserstein", ("a", "b", "slices"), magnitudes.two_sample, sorts=True, root=2),
    Loss(
        "sliced_wasserstein",
        _X_Y_SLICES,
        magnitudes.two_sample,
        "unequal sizes",
        sorts=True,
        root=2,
    ),
    Loss(
        "sliced_wasserstein",
        _X_Y_SLICES,
        magnitudes.two_sample,
        "weights, p=1.5",
        {"p": 1.5},
        {"x_weights": "z_weights", "y_weights": "y_weights"},
        sorts=True,
        root=1.5,
    ),
    Loss(
        "sliced_wasserstein",
        _X_Y_SLICES,
        magnitudes.two_sample,
        "equal keys",
        {"power": True},
        inputs="ties",
        sorts=True,
        differentiable=False,
    ),
    Loss("max_sliced_wasserstein", _X_Y_SLICES, magnitudes.farthest, sorts=True, root=2),
    Loss("epps_pulley", ("line",), magnitudes.epps_pulley),
    Loss("sigreg_loss", _Z_SLICES, magnitudes.sigreg),
    Loss("variance_loss", _Z, magnitudes.variance, "gamma=2", {"gamma": 2.0}),
    Loss("covariance_loss", _Z, magnitudes.covariance),
    Loss("covariance_loss", _Z, magnitudes.covariance, "N < D", inputs="wide"),
    *(
        Loss(
            "vicreg_loss",
            _PAIR,
            magnitudes.vicreg,
            "" if convention == "vicreg" else convention,
            {"convention": convention},
        )
        for convention in ("vicreg", "solo-learn", "paper", "visreg")
    ),
    Loss("vicreg_loss", _VIEWS, magnitudes.vicreg_of_views, "three views"),
    Loss("barlow_twins_loss", _PAIR, magnitudes.barlow_twins),
    Loss("barlow_twins_loss", _PAIR, magnitudes.barlow_twins, "N < D", inputs="wide"),
    Loss("barlow_twins_loss", _VIEWS, magnitudes.barlow_twins_of_views, "three views"),
    Loss("sag_vicreg_loss", (*_PAIR, "pairs", "pair_weights"), magnitudes.sag_vicreg),
    Loss("spectralnet_loss", ("z", "affinity"), magnitudes.spectralnet),
)
