"""Losses and metrics of self-supervised representations, on any array library."""

import importlib
from typing import Any

from visreg_core import losses
from visreg_core.gaussian import normal_quantiles
from visreg_core.losses import *  # noqa: F403  (its __all__ lists the losses, once)
from visreg_core.rectified_gaussian import rectified_generalized_gaussian
from visreg_core.slices import random_slices, slices_for
from visreg_core.structured import structured_slices
from visreg_core.subspaces import subspace_slices

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "normal_quantiles",
    "random_slices",
    "rectified_generalized_gaussian",
    "slices_for",
    "structured_slices",
    "subspace_slices",
]
__all__ += losses.__all__
__all__.sort()


def __getattr__(name: str) -> Any:
    """``visreg_core.report``, which is imported when somebody asks for it."""
    if name == "report":
        return importlib.import_module("visreg_core.report")
    raise AttributeError(f"module 'visreg_core' has no attribute {name!r}")
