"""Statistics of embeddings as states that merge, for rows that are divided over files or machines.

One pass over the rows fills `Statistics`: mean, covariance and spectrum, SIGReg, a sample of rows,
the numbers of bad ones. A second fills `SliceDistributions`, which needs mean and σ of all rows
first: the shape loss and the sliced Wasserstein distance to the Gaussian, with a bound.
`CrossScatter` is of two sets of the same items, for linear CKA.

Each has `update(rows)`, `merge(other)`, `result()`, and `to_arrays()` and `from_arrays(arrays)`,
plain arrays of a bounded size. The result does not depend on how the rows were divided.
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
