"""Every loss, gradient and metric on every installed array library against float64 NumPy.

`visreg check` is this module's `crosscheck` with its records printed. A loss or a metric is added
to the list in ``_losses.py``, ``_functions.py`` or ``_metrics.py``; ``_magnitudes.py`` says what
its error is relative to.
"""

from visreg_core.crosscheck._records import CheckRecord
from visreg_core.crosscheck._render import print_tables, to_json
from visreg_core.crosscheck._run import crosscheck

__all__ = ["CheckRecord", "crosscheck", "print_tables", "to_json"]
