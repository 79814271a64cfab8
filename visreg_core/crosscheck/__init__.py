"""Compare every loss, gradient and metric of every installed array library with float64 NumPy.

`visreg check` prints the records of this module's `crosscheck`. Declared losses are checked on the
examples of their declarations; other functions are listed in ``_functions.py`` and ``_metrics.py``.
``_magnitudes.py`` defines what their errors are relative to.
"""

from visreg_core.crosscheck._records import CheckRecord
from visreg_core.crosscheck._render import print_tables, to_json
from visreg_core.crosscheck._run import crosscheck

__all__ = ["CheckRecord", "crosscheck", "print_tables", "to_json"]
