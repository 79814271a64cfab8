"""Checks of the losses: their values, and their gradients by `value_and_vjp`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from visreg_core import _xp
from visreg_core.crosscheck._check import TOLERANCES, Call, Check, Fields, Target, as_fields
from visreg_core.crosscheck._inputs import Arrays
from visreg_core.losses.declaration import Declaration, Example, declared, value_and_vjp


@dataclass(frozen=True)
class LossExample:
    """A declared loss and one of its examples."""

    declaration: Declaration
    example: Example

    @property
    def function(self) -> str:
        """Name of the loss."""
        return self.declaration.name

    @property
    def variant(self) -> str:
        """Name of the example."""
        return self.example.name

    @property
    def name(self) -> str:
        """Function and variant, as in its checks."""
        return f"{self.function} ({self.variant})" if self.variant else self.function

    @property
    def inputs(self) -> str:
        """Name of the set of arrays."""
        return self.example.inputs

    @property
    def sorts(self) -> bool:
        """Whether a swap of ranks may change single elements of the gradient."""
        return self.declaration.sorts and self.inputs != "ties"  # exact in every dtype

    @property
    def arrays(self) -> dict[str, str]:
        """Names of arrays by the arguments' names, the embeddings first."""
        needed = dict.fromkeys((*self.declaration.differentiated, *self.declaration.required))
        taken = {name: name for name in needed} | dict(self.example.arrays)
        return {argument: name for argument, name in taken.items() if name is not None}

    @property
    def embeddings(self) -> list[str]:
        """Names of the arrays that are differentiated."""
        arrays = self.arrays
        return [arrays[a] for a in self.declaration.differentiated if a in arrays]

    def bound(self, arrays: Arrays) -> dict[str, Any]:
        """All arguments by name."""
        return {a: arrays[name] for a, name in self.arrays.items()} | dict(self.example.options)

    def magnitudes(self, arrays: Arrays) -> tuple[float, ...]:
        """Sums of absolute values before cancellation, one for each field."""
        if self.declaration.magnitude is None:
            host = Target(_xp.as_namespace(None), None, "float64")
            return tuple(float(np.sum(np.abs(v))) for v in self.value(Call(host, arrays, 1.0)))
        return self.declaration.magnitude(**self.bound(arrays))

    def value(self, call: Call) -> Fields:
        """Fields of the loss's result."""
        return as_fields(self.declaration.public(**self.bound(call.arrays)))

    def gradient(self, call: Call) -> Fields:
        """Gradients of `upstream` times the loss (its total, or its sum)."""
        result, vjp = value_and_vjp(self.declaration.public)(**self.bound(call.arrays))
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
        suggests: a gradient that nearly vanishes (such as the scale loss's at standardised
        embeddings) has no relative accuracy of its own. A p-th root L = S^(1/p) divides the
        gradient of the sum S by L^(p−1), and so its error.
        """
        size = float(np.linalg.norm(arrays[self.embeddings[index]]))
        if size == 0:
            return 0.0
        (magnitude, *_) = self.magnitudes(arrays)
        root = self.declaration.root
        order = 1.0 if root is None else root(**self.example.options)
        if order == 1:
            return magnitude / size
        host = Target(_xp.as_namespace(None), None, "float64")
        (value,) = self.value(Call(host, arrays, 1.0))
        if value == 0:
            return math.inf  # where the root has no derivative
        return magnitude / size * (magnitude / float(value)) ** (order - 1)


def checks_of(loss: LossExample) -> list[Check]:
    """The check of a loss's value and that of its gradient."""

    def gradient_scales(arrays: Arrays, reference: Fields) -> tuple[float, ...]:
        floors = [loss.gradient_floor(arrays, i) for i in range(len(reference))]
        if loss.sorts:
            return tuple(floors)
        return tuple(f / math.sqrt(r.size) for f, r in zip(floors, reference, strict=True))

    given = loss.inputs == "given"  # a user's embeddings may be of any condition
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
            conditioned=given,
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
            sorts=loss.sorts,
            conditioned=given or loss.sorts,
        ),
    ]


def examples() -> tuple[LossExample, ...]:
    """The declared examples of all declared losses."""
    return tuple(
        LossExample(declaration, example)
        for declaration in declared()
        for example in declaration.examples
    )
