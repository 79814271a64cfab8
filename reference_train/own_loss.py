"""A loss by its import name: of visreg_torch, or of somebody's own.

``method.name`` is MODULE:NAME or FILE.py:NAME of a function ``loss(z)``, of a function
``loss(z, slices)``, or of a class of modules that are called as ``module(z, step)``. z (V, N, D)
holds the embeddings of V crops of N images, the global ones first; the result is a number, or a
named tuple whose first field is ``total``. ``method.options`` are its keywords. Of `n_slices`,
`seed` and `scope` those that it takes are the run's settings, unless the options say otherwise.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import visreg_torch as vt
from reference_train.collectives import rank, world_size
from reference_train.config import Method
from reference_train.errors import TrainError, one_line


def own_loss(method: Method, seed: int) -> nn.Module:
    """The regulariser that ``method.name`` imports, with the run's settings that it takes."""
    found = imported(method.name)
    processes = world_size() if method.scope == "global" else 1
    given = {"n_slices": processes * method.n_slices, "seed": seed, "scope": method.scope}
    try:
        takes = inspect.signature(found).parameters
        options = {k: v for k, v in given.items() if k in takes} | method.options
        if inspect.isclass(found):
            return found(**options)
        inspect.signature(found).bind_partial(**options)
        return OfFunction(found, options, given, "slices" in takes)
    except (TypeError, ValueError) as error:
        raise TrainError(f"method.name={method.name}: {one_line(error)}") from None


def draws_slices(name: str) -> bool:
    """Whether the loss takes slices, or how many to draw."""
    return not {"slices", "n_slices"}.isdisjoint(inspect.signature(imported(name)).parameters)


def imported(name: str) -> Callable[..., Any]:
    """What ``MODULE:NAME`` or ``FILE.py:NAME`` is."""
    where, _, attribute = name.rpartition(":")
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location("own_loss", where)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        found = getattr(module, attribute)
    except (ImportError, OSError, AttributeError, ValueError) as error:
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
        run: dict[str, Any],
        sliced: bool,
    ) -> None:
        super().__init__()
        self.function = function
        self.options = options
        self.sliced = sliced
        self.n_slices, self.seed = run["n_slices"], run["seed"]
        self.scope = run["scope"]  # read by `JointObjective`

    def forward(self, z: torch.Tensor, step: int) -> Any:
        """The function's value on the embeddings (V, N, D)."""
        if not self.sliced:
            return self.function(z, **self.options)
        slices = vt.random_slices(
            z.shape[-1],
            self.n_slices,
            seed=self.seed,
            step=step,
            start=0 if self.scope == "global" else rank() * self.n_slices,
            dtype=torch.float64 if z.dtype == torch.float64 else torch.float32,
            device=z.device,
        )
        return self.function(z, slices, **self.options)
