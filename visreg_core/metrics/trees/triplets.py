"""How well a dendrogram places the classes of a hierarchy of labels, level by level."""

from __future__ import annotations

from typing import Any

import numpy as np

from visreg_core.metrics._levels import level_columns, numbered
from visreg_core.metrics.trees._tree import along_leaves, checked_linkage, tree
from visreg_core.typing import Array


def triplet_accuracy(z: Array, labels: Any) -> tuple[float, ...]:
    """How often a dendrogram joins two items of one class before one of another class.

    Parameters
    ----------
    z : array (N − 1, 4)
        Linkage matrix.
    labels : array_like (N, L) or (N,)
        Of its leaves, column 0 the coarsest level.

    Returns
    -------
    tuple of float
        One for each level, in [0, 1]: of the triples a, b, c where a and b agree on this level and
        on all coarser ones, and c agrees with a on the coarser ones only, the share in which the
        dendrogram joins a with b at a lower height than with c, where equal heights count one
        half. It is the mean over all items a that have such b and c; 0.5 is chance. NaN where there
        are none.

    Notes
    -----
    A level is compared inside the classes of the level above it, so that each says what it adds:
    the first level whose share falls to 0.5 is where the dendrogram loses the hierarchy. Nothing
    depends on the sizes of the heights, nor on how many clusters a cut makes. O(N² L) time, O(N L)
    memory, on the host.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import linkage, triplet_accuracy
    >>> x = np.asarray([[0.0], [0.1], [1.0], [1.1], [9.0], [9.2], [9.1], [9.3]])
    >>> labels = [[0, 0], [0, 0], [0, 1], [0, 1], [1, 2], [1, 2], [1, 3], [1, 3]]
    >>> triplet_accuracy(linkage(x, metric="euclidean"), labels)
    (1.0, 0.625)
    """
    t = tree(checked_linkage("z", z))
    n = t.position.size
    paths: list[np.ndarray] = []
    for column in level_columns(labels, n):
        above = paths[-1] if paths else np.zeros(n, dtype=np.int64)
        paths.append(numbered(above * (column.max() + 1) + column))
    in_order = [path[t.order] for path in paths]
    levels = len(paths)
    heights, rank = np.unique(t.height, return_inverse=True)
    gaps = rank[t.gap] + 1  # 0 is left for the leaf itself
    share, items = np.zeros(levels), np.zeros(levels)
    for leaf in range(n):
        height = along_leaves(gaps, leaf, np.maximum)
        agreed = np.sum([path == path[leaf] for path in in_order], axis=0)
        cell = height * (levels + 1) + agreed
        count = np.bincount(cell, minlength=(heights.size + 1) * (levels + 1))
        count = count.reshape(-1, levels + 1)[1:]
        others = count[:, :-1]
        same = np.cumsum(count[:, ::-1], axis=1)[:, -2::-1]  # agree on the level, too
        before = np.cumsum(same, axis=0) - same / 2
        triples = same.sum(axis=0) * others.sum(axis=0)
        some = triples > 0
        share[some] += (before * others).sum(axis=0)[some] / triples[some]
        items += some
    return tuple(np.where(items > 0, share / np.maximum(items, 1), np.nan).tolist())
