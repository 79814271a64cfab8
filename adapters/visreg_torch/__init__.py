"""Losses of self-supervised representations for torch: functions, modules, several processes."""

from visreg_core import (
    BarlowTwinsTerms,
    SAGVICRegTerms,
    VICRegTerms,
    VISRegTerms,
    orthonormalize,
    sample_random_walk,
    transition_matrix,
)
from visreg_torch import functional
from visreg_torch._batch import gather_rows
from visreg_torch._differentiable import differentiable
from visreg_torch._large_batch import large_batch
from visreg_torch.distributed import Sharding
from visreg_torch.explanation import Explanation, explain
from visreg_torch.functional import *  # noqa: F403  (its __all__ lists the losses, once)
from visreg_torch.modules import (
    BarlowTwinsLoss,
    JointObjective,
    JointTerms,
    SAGVICRegLoss,
    SIGRegLoss,
    SlicedWassersteinLoss,
    VICRegLoss,
    VISRegLoss,
    VISRegObjective,
)

__all__ = [
    "BarlowTwinsLoss",
    "BarlowTwinsTerms",
    "Explanation",
    "JointObjective",
    "JointTerms",
    "SAGVICRegLoss",
    "SAGVICRegTerms",
    "SIGRegLoss",
    "Sharding",
    "SlicedWassersteinLoss",
    "VICRegLoss",
    "VICRegTerms",
    "VISRegLoss",
    "VISRegObjective",
    "VISRegTerms",
    "differentiable",
    "explain",
    "gather_rows",
    "large_batch",
    "orthonormalize",
    "sample_random_walk",
    "transition_matrix",
]
__all__ += functional.__all__
__all__.sort()
