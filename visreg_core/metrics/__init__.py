"""Measures of embeddings: spectrum, Gaussianity, uniformity, hierarchy, similarity of two sets.

Inputs are arrays of any namespace; results are Python floats or small named tuples of them.
"""

from visreg_core.metrics.gaussianity import (
    Gaussianity,
    SlicedTest,
    WorstDirection,
    gaussianity,
    worst_direction,
)
from visreg_core.metrics.similarity import linear_cka, linear_cka_from_covariances, mutual_knn
from visreg_core.metrics.spectrum import (
    PowerLaw,
    alpha_req,
    alpha_req_from_singular_values,
    condition_number,
    condition_number_from_singular_values,
    effective_rank,
    effective_rank_from_singular_values,
    participation_ratio,
    participation_ratio_from_singular_values,
    power_law_fit,
    rankme,
    rankme_from_singular_values,
    singular_values,
    singular_values_from_gram,
    stable_rank,
    stable_rank_from_singular_values,
)
from visreg_core.metrics.uniformity import alignment, uniformity

__all__ = [
    "Gaussianity",
    "PowerLaw",
    "SlicedTest",
    "WorstDirection",
    "alignment",
    "alpha_req",
    "alpha_req_from_singular_values",
    "condition_number",
    "condition_number_from_singular_values",
    "effective_rank",
    "effective_rank_from_singular_values",
    "gaussianity",
    "linear_cka",
    "linear_cka_from_covariances",
    "mutual_knn",
    "participation_ratio",
    "participation_ratio_from_singular_values",
    "power_law_fit",
    "rankme",
    "rankme_from_singular_values",
    "singular_values",
    "singular_values_from_gram",
    "stable_rank",
    "stable_rank_from_singular_values",
    "uniformity",
    "worst_direction",
]
