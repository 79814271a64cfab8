"""A few numbers that tell how a representation fares, for the log of a training run."""

from __future__ import annotations

import math
from typing import Any

from visreg_core import checks
from visreg_core.metrics._inputs import plain
from visreg_core.metrics.similarity import mutual_knn
from visreg_core.metrics.spectrum import (
    effective_rank_from_singular_values,
    rankme,
    singular_values,
)
from visreg_core.metrics.trees.tree_similarity import lca_similarity
from visreg_core.metrics.uniformity import alignment, uniformity
from visreg_core.typing import Array

__all__ = ["summary"]


def summary(z: Array, *, n_neighbors: int = 10) -> dict[str, float]:
    """Measures of the embeddings of a batch, or of the last few, by name.

    Parameters
    ----------
    z : array (N, D) or (V, N, D)
        Embeddings of any namespace, or V views of them, row by row.
    n_neighbors : int
        Neighbours that are compared between views; at most N − 1 of them are.

    Returns
    -------
    dict of str to float
        Of the first view: ``rankme``; ``effective_rank`` of the covariance; ``uniformity``;
        ``std``, the root of the mean variance of a dimension, which is 0 for collapsed embeddings.
        Of the first two views, where there are two: ``alignment``; ``knn_agreement``, the share of
        neighbours that they have in common (`mutual_knn`); ``lca_stability``, Spearman's
        correlation of their trees' distances (`lca_similarity`, from three rows on).

    Raises
    ------
    ValueError
        For another shape, fewer than two rows, or numbers that are not finite.
    TypeError
        For what is no dense array of floating numbers.

    Examples
    --------
    >>> import numpy as np
    >>> views = np.random.default_rng(0).standard_normal((2, 100, 8))
    >>> found = summary(views)
    >>> round(found["rankme"]), round(found["lca_stability"], 1)
    (8, 0.0)
    """
    checks.positive_int("n_neighbors", n_neighbors)
    z = plain("z", z)
    if z.ndim not in (2, 3):
        raise ValueError(f"expected z (N, D) or (V, N, D); found shape {tuple(z.shape)}")
    x = z if z.ndim == 2 else z[0, ...]
    centred = singular_values(x, center=True)
    rows, dim = x.shape
    unit = centred[0] or 1.0  # so that no square leaves the range
    found = {
        "rankme": rankme(x),
        "effective_rank": effective_rank_from_singular_values(centred, convention="covariance"),
        "uniformity": uniformity(x),
        "std": float(unit * math.sqrt(sum((centred / unit) ** 2) / rows / dim)),
    }
    if z.ndim == 3 and z.shape[0] > 1:
        y = z[1, ...]
        k = min(n_neighbors, rows - 1)
        found |= {"alignment": alignment(x, y), "knn_agreement": mutual_knn(x, y, k)}
        if rows > 2:
            trees: Any = lca_similarity(x, y)
            found["lca_stability"] = trees.spearman
    return found
