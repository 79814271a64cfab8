"""Is one model's hierarchy closer than another's? A paired bootstrap over items."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from visreg_core import checks
from visreg_core.metrics._inputs import paired, same_ids
from visreg_core.metrics._resampling import probability, resample, taken
from visreg_core.metrics.trees._pair_counts import height_moments
from visreg_core.metrics.trees._tree import tree
from visreg_core.metrics.trees.linkage import drawn_linkage
from visreg_core.metrics.trees.tree_similarity import Correlations
from visreg_core.typing import Array


class Difference(NamedTuple):
    """A difference, its interval, and the share of resamples where it is above 0."""

    observed: float
    low: float
    high: float
    share_above: float


class LCAComparison(NamedTuple):
    """LCA similarities of two models, and their differences (first minus second)."""

    first: Correlations
    second: Correlations
    pearson: Difference
    spearman: Difference
    kendall: Difference


def compare_lca_similarity(
    first: tuple[Array, Array],
    second: tuple[Array, Array],
    method: str = "average",
    metric: str = "cosine",
    *,
    ids_first: Sequence[Any] | None = None,
    ids_second: Sequence[Any] | None = None,
    n_resamples: int = 200,
    seed: int = 0,
    confidence: float = 0.95,
) -> LCAComparison:
    """Whether one model's LCA similarity is higher than another's, with a paired bootstrap.

    Parameters
    ----------
    first, second : pair of arrays (N, D)
        For each model the two sets whose hierarchies are compared, as for `lca_similarity`:
        ``(a, reference)`` and ``(b, reference)``, or one model's embeddings with the items seen and
        unseen in training. Row i is the same item in all four.
    method, metric : str
        As in `linkage`.
    ids_first, ids_second : sequence, optional
        Ids of the items of both models, compared row by row.
    n_resamples : int
        Resamples of the items with replacement, at least 2; the same for both models.
    seed : int
        Of the resamples, 0 … 2³² − 1.
    confidence : float
        Of the intervals, between 0 and 1.

    Returns
    -------
    LCAComparison
        Both similarities on all items, and for each coefficient their difference with the interval
        observed ± z · (standard deviation over resamples).

    Raises
    ------
    ValueError
        As `lca_similarity`, and where the models differ in their number of items.

    Notes
    -----
    A resample holds copies of items. Pairs of copies, at height 0 in every tree, say nothing about
    a model and are left out. Trees of fewer distinct items differ from those of all, which shifts
    both similarities; so the interval is centred on the observed difference.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import compare_lca_similarity
    >>> rng = np.random.default_rng(0)
    >>> x, noise = rng.standard_normal((2, 60, 4))
    >>> result = compare_lca_similarity((x, x), (noise, x), n_resamples=20)
    >>> result.spearman.low > 0, result.spearman.share_above
    (True, 1.0)
    """
    checks.positive_int("n_resamples", n_resamples, minimum=2)
    probability("confidence", confidence)
    for argument, model in (("first", first), ("second", second)):
        if not isinstance(model, tuple | list) or len(model) != 2:
            raise ValueError(
                f"expected {argument} to be two sets (x, y) of embeddings; "
                f"found {type(model).__name__} of length {len(model)}"
            )
    _, x, y = paired(*first)
    _, u, v = paired(*second)
    n = x.shape[0]
    if u.shape[0] != n:
        raise ValueError(f"expected both models on the same items; found {n} and {u.shape[0]} rows")
    same_ids(ids_first, ids_second, n)
    everything = np.arange(n)
    similarity = functools.partial(_similarity, method=method, metric=metric)
    a, b = similarity(everything, x, y), similarity(everything, u, v)
    differences = np.empty((n_resamples, 3))
    for repeat in range(n_resamples):
        rows = resample(n, seed=seed, repeat=repeat)
        differences[repeat] = np.subtract(similarity(rows, x, y), similarity(rows, u, v))

    from scipy.special import ndtri

    gap = np.subtract(a, b)
    reach = float(ndtri((1 + confidence) / 2)) * differences.std(axis=0, ddof=1)
    above = np.where(np.isnan(differences).any(axis=0), np.nan, np.mean(differences > 0, axis=0))
    intervals = np.stack([gap, gap - reach, gap + reach, above], axis=1).tolist()
    return LCAComparison(a, b, *(Difference(*row) for row in intervals))


def _similarity(rows: np.ndarray, x: Array, y: Array, *, method: str, metric: str) -> Correlations:
    """LCA similarity of the items `rows`, ascending, without pairs of copies of one item."""
    first, second = (
        tree(drawn_linkage(taken(z, rows), method, metric, draw=draw))
        for draw, z in enumerate((x, y))
    )
    copies = np.unique(rows, return_counts=True)[1]
    identical = int(np.sum(copies * (copies - 1)) // 2)
    return Correlations(*height_moments(first, second, identical=identical)[:3])
