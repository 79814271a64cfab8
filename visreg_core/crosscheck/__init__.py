"""Every loss, gradient and metric on every installed array library against float64 NumPy.

`visreg check` is this module's `crosscheck` with its records printed. A loss or a metric is added
to the list of checks in ``_registry.py``; ``_magnitudes.py`` says what its error is relative to.
"""

from visreg_core.crosscheck._render import print_tables, to_json
from visreg_core.crosscheck._run import CheckRecord, crosscheck

__all__ = ["CheckRecord", "crosscheck", "print_tables", "to_json"]
