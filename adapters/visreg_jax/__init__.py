"""The losses of `visreg_core` for JAX: custom gradients, and exact sharding over a device mesh."""

from visreg_core import (
    BarlowTwinsTerms,
    SAGVICRegTerms,
    VICRegTerms,
    VISRegTerms,
    joint_objective,
    orthonormalize,
    random_walk_affinity,
    random_walk_pairs,
    sample_random_walk,
    transition_matrix,
)
from visreg_jax import functional, sharded
from visreg_jax._large_batch import large_batch
from visreg_jax.functional import *  # noqa: F403  (its __all__ lists the losses, once)

__all__ = [
    "BarlowTwinsTerms",
    "SAGVICRegTerms",
    "VICRegTerms",
    "VISRegTerms",
    "functional",
    "joint_objective",
    "large_batch",
    "orthonormalize",
    "random_walk_affinity",
    "random_walk_pairs",
    "sample_random_walk",
    "sharded",
    "transition_matrix",
]
__all__ += functional.__all__
__all__.sort()
