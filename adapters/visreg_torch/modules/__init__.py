"""The losses as modules: settings once, slices by themselves, a step that a checkpoint resumes.

A loss that draws (slices, walks) draws them from the core's counter-based stream, by its `seed` and
a step. The step is a buffer: each forward pass in training mode advances it, evaluation does not,
and ``state_dict`` holds it, so that a resumed run draws what the uninterrupted one would have
drawn. Where a forward pass is run twice (``torch.utils.checkpoint``) pass ``step=`` yourself, which
leaves the buffer alone.

Modules return what their function does: a tensor, or named terms whose first is ``total``.
"""

from visreg_torch.modules.objective import JointObjective, JointTerms
from visreg_torch.modules.sliced import (
    SIGRegLoss,
    SlicedWassersteinLoss,
    VISRegLoss,
    VISRegObjective,
)
from visreg_torch.modules.views import BarlowTwinsLoss, SAGVICRegLoss, VICRegLoss

__all__ = [
    "BarlowTwinsLoss",
    "JointObjective",
    "JointTerms",
    "SAGVICRegLoss",
    "SIGRegLoss",
    "SlicedWassersteinLoss",
    "VICRegLoss",
    "VISRegLoss",
    "VISRegObjective",
]
