"""A loss by its import name: of visreg_torch, or of somebody's own package.

``method.name=package.module:NAME`` names a function ``loss(z)``, a function ``loss(z, slices)``,
or a class of modules that are called as ``module(z, step)``. z (V, N, D) holds the embeddings of
all crops; the result is a number, or a named tuple whose first field is ``total``.
``method.options`` are its arguments. Of `n_slices`, `seed` and `scope` those that it takes are the
run's settings, unless the options say otherwise.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import visreg_torch as vt
from reference_train.collectives import rank
from reference_train.config import Method
from reference_train.errors import TrainError, one_line


def own_loss(method: Method, n_slices: int | None, seed: int) -> nn.Module:
    """The regulariser that ``method.name`` imports, with the run's settings that it takes."""
    found = imported(method.name)
    given = {"n_slices": n_slices, "seed": seed, "scope": method.scope}
    try:
        takes = inspect.signature(found).parameters
        options = {k: v for k, v in given.items() if k in takes} | method.options
        if inspect.isclass(found):
            return found(**options)
        inspect.signature(found).bind_partial(**options)
        return OfFunction(found, options, given if "slices" in takes else None, method.scope)
    except (TypeError, ValueError) as error:
        raise TrainError(f"method.options of {method.name}: {one_line(error)}") from None


def draws_slices(name: str) -> bool:
    """Whether what ``package.module:NAME`` names takes slices, or how many to draw."""
    return not {"slices", "n_slices"}.isdisjoint(inspect.signature(imported(name)).parameters)


def imported(name: str) -> Callable[..., Any]:
    """What ``package.module:NAME`` is."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise TrainError(f"method.name={name}: {one_line(error)}") from None
    if not callable(found):
        raise TrainError(f"method.name={name}: expected a function or class; found {found!r}")
    return found


class OfFunction(nn.Module):
    """A function of embeddings, and of slices where it takes them, as a module."""

    def __init__(
        self,
        function: Callable[..., Any],
        options: dict[str, Any],
        drawn: dict[str, Any] | None,
        scope: str,
    ) -> None:
        super().__init__()
        self.function = function
        self.options = options
        self.drawn = drawn
        self.scope = scope  # read by `JointObjective`

    def forward(self, z: torch.Tensor, step: int) -> Any:
        """The function's value on the embeddings (V, N, D)."""
        if self.drawn is None:
            return self.function(z, **self.options)
        n_slices = self.drawn["n_slices"]
        slices = vt.random_slices(
            z.shape[-1],
            n_slices,
            seed=self.drawn["seed"],
            step=step,
            start=0 if self.scope == "global" else rank() * n_slices,
            dtype=torch.float64 if z.dtype == torch.float64 else torch.float32,
            device=z.device,
        )
        return self.function(z, slices, **self.options)
