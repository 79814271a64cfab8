"""The one list of checks, and of the losses it was made from."""

from visreg_core.crosscheck._check import Check
from visreg_core.crosscheck._functions import FUNCTIONS
from visreg_core.crosscheck._losses import LOSSES, checks_of
from visreg_core.crosscheck._metrics import METRICS

__all__ = ["CHECKS", "LOSSES"]

CHECKS: tuple[Check, ...] = (
    *FUNCTIONS,
    *(check for loss in LOSSES for check in checks_of(loss)),
    *METRICS,
)
