"""Reports on saved embeddings: what `visreg report` and `visreg compare` compute and print."""

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
