"""Mergeable statistics of embeddings whose rows are split over files or machines.

One pass over the rows fills `Statistics`: mean, covariance and spectrum, SIGReg, a sample of rows,
the numbers of bad rows. A second pass fills `SliceDistributions`, which needs the mean and σ of all
rows: the shape loss and the sliced Wasserstein distance to the Gaussian, with a bound.
`CrossScatter` compares two sets of the same items, for linear CKA.

Each has `update(rows)`, `merge(other)` and `result()`; `to_arrays()` and `from_arrays(arrays)`
convert it to and from plain arrays of bounded size. The result does not depend on the split.
"""

from visreg_core.statistics._moments import CrossScatter, Moments
from visreg_core.statistics._slices import Bounded
from visreg_core.statistics._state import SliceDistances, SliceDistributions, Statistics, Summary

__all__ = [
    "Bounded",
    "CrossScatter",
    "Moments",
    "SliceDistances",
    "SliceDistributions",
    "Statistics",
    "Summary",
]
