"""Clustering by dendrograms as a scikit-learn estimator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from visreg_core import checks, optional
from visreg_core.metrics.trees.dendrogram import cut_tree
from visreg_core.metrics.trees.linkage import linkage as dendrogram

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator, ClusterMixin
else:
    BaseEstimator, ClusterMixin = (
        getattr(
            optional.require("sklearn.base", extra="report", purpose="HierarchicalClustering"), name
        )
        for name in ("BaseEstimator", "ClusterMixin")
    )


class HierarchicalClustering(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Agglomerative clustering in O(N·D) memory, with scikit-learn's interface.

    What is listed here means what it does in ``sklearn.cluster.AgglomerativeClustering``, whose
    defaults and numbering of clusters are others.

    Parameters
    ----------
    n_clusters : int or None
        How many clusters the tree is cut into; None with `distance_threshold`.
    metric, linkage : str
        As `metric` and `method` of `visreg_core.metrics.linkage`.
    distance_threshold : float or None
        Merges at this distance and above are undone; None with `n_clusters`.

    Attributes
    ----------
    labels_ : numpy.ndarray (N,)
        Cluster of every row, in the order in which the clusters first occur.
    children_ : numpy.ndarray (N − 1, 2)
        The clusters that are merged: rows are 0 … N − 1, merge i makes N + i.
    distances_ : numpy.ndarray (N − 1,)
        Heights of the merges, which do not decrease.
    linkage_matrix_ : numpy.ndarray (N − 1, 4)
        The dendrogram in SciPy's layout, for the functions of `visreg_core.metrics`.
    n_clusters_, n_leaves_, n_features_in_ : int

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics.trees.estimator import HierarchicalClustering
    >>> x = np.asarray([[0.0, 1.0], [9.0, 1.0], [0.1, 1.0]])
    >>> HierarchicalClustering(2, metric="euclidean", linkage="single").fit_predict(x)
    array([0, 1, 0])
    """

    def __init__(
        self,
        n_clusters: int | None = 2,
        *,
        metric: str = "cosine",
        linkage: str = "average",
        distance_threshold: float | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.metric = metric
        self.linkage = linkage
        self.distance_threshold = distance_threshold

    def fit(self, X: Any, y: Any = None) -> HierarchicalClustering:
        """Cluster the rows of `X` (N, D), N ≥ 2; `y` is ignored.

        ValueError for what `linkage` rejects, for both or neither of `n_clusters` and
        `distance_threshold`, and for a threshold that is negative or not finite.
        """
        from sklearn.utils.validation import validate_data

        x = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        if (self.n_clusters is None) == (self.distance_threshold is None):
            raise ValueError(
                "expected either n_clusters or distance_threshold; found both or neither"
            )
        if self.distance_threshold is not None:
            checks.not_negative("distance_threshold", self.distance_threshold)
        z = dendrogram(x, self.linkage, self.metric)
        if self.distance_threshold is None:
            self.n_clusters_ = self.n_clusters
        else:
            self.n_clusters_ = 1 + int(np.count_nonzero(z[:, 2] >= self.distance_threshold))
        self.labels_ = cut_tree(z, n_clusters=self.n_clusters_)
        self.linkage_matrix_ = z
        self.children_ = z[:, :2].astype(np.intp)
        self.distances_ = z[:, 2]
        self.n_leaves_ = len(x)
        return self
