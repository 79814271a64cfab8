"""Reports on saved embeddings: what `visreg report` and `visreg compare` compute and print.

The package can be called as its function is: ``visreg_core.report(array)``.
"""

import sys
import types

from visreg_core.report._compute import compare, report
from visreg_core.report._model import (
    Comparison,
    Drift,
    Finding,
    Hierarchy,
    Interval,
    Labelled,
    Measurement,
    Pair,
    Pictures,
    Report,
    TreeOptions,
    TreePair,
)
from visreg_core.report._streaming import Place

__all__ = [
    "Comparison",
    "Drift",
    "Finding",
    "Hierarchy",
    "Interval",
    "Labelled",
    "Measurement",
    "Pair",
    "Pictures",
    "Place",
    "Report",
    "TreeOptions",
    "TreePair",
    "compare",
    "report",
]


class _Callable(types.ModuleType):
    __call__ = staticmethod(report)


sys.modules[__name__].__class__ = _Callable
