"""The list of all checks: of functions, declared losses and metrics."""

from visreg_core.crosscheck._check import Check
from visreg_core.crosscheck._functions import FUNCTIONS
from visreg_core.crosscheck._losses import checks_of, examples
from visreg_core.crosscheck._metrics import METRICS


def all_checks() -> list[Check]:
    """Every check, including those of losses declared outside this package."""
    return [*FUNCTIONS, *(check for loss in examples() for check in checks_of(loss)), *METRICS]
