"""Measures of embeddings: spectrum, Gaussianity, uniformity, hierarchy, similarity of two sets.

Inputs are arrays of any namespace; results are Python floats or small named tuples of them.
"""

from visreg_core.metrics._resampling import Estimate
from visreg_core.metrics.gaussianity import (
    Gaussianity,
    SlicedTest,
    WorstDirection,
    gaussianity,
    worst_direction,
)
from visreg_core.metrics.hierarchy import hierarchical_knn_accuracy, hierarchical_linear_accuracy
from visreg_core.metrics.lidar import lidar
from visreg_core.metrics.normality import (
    NormalityTest,
    SlicedNormalityTest,
    henze_zirkler,
    sliced_normality_test,
)
from visreg_core.metrics.partitions import (
    RandIndices,
    adjusted_rand_index,
    hierarchical_rand_index,
    rand_index,
    rand_index_sweep,
)
from visreg_core.metrics.similarity import linear_cka, linear_cka_from_covariances, mutual_knn
from visreg_core.metrics.sparsity import Sparsity, sparsity
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
from visreg_core.metrics.summary import summary
from visreg_core.metrics.trees.branches import (
    Branch,
    branch_correlations,
    disagreeing_branches,
)
from visreg_core.metrics.trees.class_tree import (
    cifar100_parents,
    hierarchical_labels,
    wordnet_paths,
)
from visreg_core.metrics.trees.dendrogram import cophenetic_distances, cut_tree, to_networkx
from visreg_core.metrics.trees.dendrogram_similarity import (
    FowlkesMallows,
    bakers_gamma,
    dendrogram_correlations,
    fowlkes_mallows,
)
from visreg_core.metrics.trees.linkage import linkage
from visreg_core.metrics.trees.newick import from_newick, to_newick
from visreg_core.metrics.trees.tanglegram import Tanglegram, entanglement, tanglegram
from visreg_core.metrics.trees.tree_bootstrap import (
    Difference,
    LCAComparison,
    compare_lca_similarity,
)
from visreg_core.metrics.trees.tree_similarity import (
    CopheneticSimilarity,
    Correlations,
    SampledCopheneticSimilarity,
    SampledCorrelations,
    cophenetic_correlation,
    cophenetic_similarity,
    lca_similarity,
)
from visreg_core.metrics.trees.triplets import triplet_accuracy
from visreg_core.metrics.two_sample import TwoSampleTest, two_sample_test
from visreg_core.metrics.uniformity import alignment, uniformity

__all__ = [
    "Branch",
    "CopheneticSimilarity",
    "Correlations",
    "Difference",
    "Estimate",
    "FowlkesMallows",
    "Gaussianity",
    "LCAComparison",
    "NormalityTest",
    "PowerLaw",
    "RandIndices",
    "SampledCopheneticSimilarity",
    "SampledCorrelations",
    "SlicedNormalityTest",
    "SlicedTest",
    "Sparsity",
    "Tanglegram",
    "TwoSampleTest",
    "WorstDirection",
    "adjusted_rand_index",
    "alignment",
    "alpha_req",
    "alpha_req_from_singular_values",
    "bakers_gamma",
    "branch_correlations",
    "cifar100_parents",
    "compare_lca_similarity",
    "condition_number",
    "condition_number_from_singular_values",
    "cophenetic_correlation",
    "cophenetic_distances",
    "cophenetic_similarity",
    "cut_tree",
    "dendrogram_correlations",
    "disagreeing_branches",
    "effective_rank",
    "effective_rank_from_singular_values",
    "entanglement",
    "fowlkes_mallows",
    "from_newick",
    "gaussianity",
    "henze_zirkler",
    "hierarchical_knn_accuracy",
    "hierarchical_labels",
    "hierarchical_linear_accuracy",
    "hierarchical_rand_index",
    "lca_similarity",
    "lidar",
    "linear_cka",
    "linear_cka_from_covariances",
    "linkage",
    "mutual_knn",
    "participation_ratio",
    "participation_ratio_from_singular_values",
    "power_law_fit",
    "rand_index",
    "rand_index_sweep",
    "rankme",
    "rankme_from_singular_values",
    "singular_values",
    "singular_values_from_gram",
    "sliced_normality_test",
    "sparsity",
    "stable_rank",
    "stable_rank_from_singular_values",
    "summary",
    "tanglegram",
    "to_networkx",
    "to_newick",
    "triplet_accuracy",
    "two_sample_test",
    "uniformity",
    "wordnet_paths",
    "worst_direction",
]
