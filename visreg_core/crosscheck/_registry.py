"""The one list of checks: of functions, of all declared losses, of metrics."""

from visreg_core.crosscheck._check import Check
from visreg_core.crosscheck._functions import FUNCTIONS
from visreg_core.crosscheck._losses import checks_of, examples
from visreg_core.crosscheck._metrics import METRICS


def all_checks() -> list[Check]:
    """Every check, those of losses that were declared outside of this package included."""
    return [*FUNCTIONS, *(check for loss in examples() for check in checks_of(loss)), *METRICS]
