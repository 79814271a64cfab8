"""Losses: one family a module, each with its value and its analytic gradient."""

from visreg_core.losses.barlow_twins import BarlowTwinsTerms, barlow_twins_loss
from visreg_core.losses.declaration import Example, declare_loss, value_and_grad, value_and_vjp
from visreg_core.losses.epps_pulley import epps_pulley, sigreg_loss
from visreg_core.losses.execution import Execution
from visreg_core.losses.gaussian_ksd import gaussian_ksd
from visreg_core.losses.gaussian_mmd import gaussian_mmd
from visreg_core.losses.gaussian_sliced_energy_distance import gaussian_sliced_energy_distance
from visreg_core.losses.gaussian_sliced_wasserstein import gaussian_sliced_wasserstein
from visreg_core.losses.invariance import invariance_loss, joint_objective
from visreg_core.losses.random_walk import (
    random_walk_affinity,
    random_walk_pairs,
    sample_random_walk,
    transition_matrix,
)
from visreg_core.losses.sag_vicreg import SAGVICRegTerms, sag_vicreg_loss
from visreg_core.losses.sigreg_limit import sigreg_limit
from visreg_core.losses.sliced_statistic import sliced_statistic
from visreg_core.losses.sliced_wasserstein import max_sliced_wasserstein, sliced_wasserstein
from visreg_core.losses.spectralnet import orthonormalize, spectralnet_loss
from visreg_core.losses.spherical_mmd import spherical_mmd
from visreg_core.losses.swav import swav_loss
from visreg_core.losses.variance_covariance import covariance_loss, variance_loss
from visreg_core.losses.vicreg import VICRegTerms, vicreg_loss
from visreg_core.losses.visreg import VISRegTerms, center_loss, scale_loss, shape_loss, visreg_loss
from visreg_core.losses.weak_sigreg import weak_sigreg_loss
from visreg_core.losses.wmse import wmse_loss

__all__ = [
    "BarlowTwinsTerms",
    "Example",
    "Execution",
    "SAGVICRegTerms",
    "VICRegTerms",
    "VISRegTerms",
    "barlow_twins_loss",
    "center_loss",
    "covariance_loss",
    "declare_loss",
    "epps_pulley",
    "gaussian_ksd",
    "gaussian_mmd",
    "gaussian_sliced_energy_distance",
    "gaussian_sliced_wasserstein",
    "invariance_loss",
    "joint_objective",
    "max_sliced_wasserstein",
    "orthonormalize",
    "random_walk_affinity",
    "random_walk_pairs",
    "sag_vicreg_loss",
    "sample_random_walk",
    "scale_loss",
    "shape_loss",
    "sigreg_limit",
    "sigreg_loss",
    "sliced_statistic",
    "sliced_wasserstein",
    "spectralnet_loss",
    "spherical_mmd",
    "swav_loss",
    "transition_matrix",
    "value_and_grad",
    "value_and_vjp",
    "variance_loss",
    "vicreg_loss",
    "visreg_loss",
    "weak_sigreg_loss",
    "wmse_loss",
]
