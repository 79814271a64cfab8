"""Two dendrograms side by side: leaf orders with few crossings, and how tangled they are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from visreg_core.metrics._inputs import labels
from visreg_core.metrics._resampling import drawn_words
from visreg_core.metrics.trees._pair_counts import Walk
from visreg_core.metrics.trees._tree import Tree, redrawn, tree, two_linkages
from visreg_core.typing import Array


class Tanglegram(NamedTuple):
    """Leaf orders for drawing two dendrograms facing each other.

    `left` and `right` are NumPy arrays (N,): the leaves from top to bottom. `crossings` counts the
    pairs of lines between equal leaves that cross, `entanglement` is `entanglement(left, right)`.
    """

    left: np.ndarray
    right: np.ndarray
    crossings: int
    entanglement: float


def tanglegram(first: Array, second: Array, *, untangle: bool = True) -> Tanglegram:
    """Layout of two dendrograms of the same items with few crossings of lines.

    Parameters
    ----------
    first, second : array (N − 1, 4)
        Linkage matrices whose leaf i is the same item.
    untangle : bool
        Rotate branches to reduce crossings; otherwise the first child of every row is on top, as
        in SciPy's ``leaves_list``.

    Returns
    -------
    Tanglegram

    Notes
    -----
    With the other tree's order fixed, the crossings between the two sides of a branch depend only
    on its own rotation, so that one tree's best layout is found exactly. The trees are optimized in
    turn until neither improves: no rotation within a single tree is better then, but the layout
    need not be the best of both.

    With `untangle`, merges of one height, one below the other, are redrawn at random, independently
    in each tree: collapsed embeddings come out tangled.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import linkage, tanglegram
    >>> x = np.asarray([[0.0], [1.0], [3.0], [7.0]])
    >>> layout = tanglegram(linkage(x, metric="euclidean"), linkage(-x, metric="euclidean"))
    >>> layout.crossings, layout.entanglement
    (0, 0.0)
    """
    a, b = two_linkages(first, second)
    if untangle:
        a, b = drawn_trees(a, b)
    left, right = tree(a), tree(b)
    crossed = _crossings(left, right)
    idle = 0 if untangle else 2  # consecutive turns without a change
    turning, still = (a, left), (b, right)
    swapped = False
    while idle < 2:
        z, t = turning
        turn = 2 * crossed > t.pairs
        if turn.any():
            z = z.copy()
            z[turn, :2] = z[turn, 1::-1]
            turning = (z, tree(z))
            idle = 0
        else:
            idle += 1
        turning, still = still, turning
        swapped = not swapped
        crossed = _crossings(turning[1], still[1])
    if swapped:
        turning, still = still, turning
    orders = turning[1].order, still[1].order
    return Tanglegram(*orders, int(crossed.sum()), entanglement(*orders))


def drawn_trees(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two checked linkage matrices as `tanglegram` untangles them, with ties redrawn."""
    a, b = (redrawn(z, drawn_words(2 * len(z) + 1, draw)) for draw, z in enumerate((first, second)))
    return a, b


def entanglement(left: Array, right: Array, *, power: float = 1.5) -> float:
    """How far apart equal leaves are in two leaf orders, from 0 (level) to 1 (upside down).

    Parameters
    ----------
    left, right : integer array (N,)
        The same leaves in two orders.
    power : float
        Exponent L > 0 of the differences in position; 1.5 is dendextend's default.

    Returns
    -------
    float
        Σ |difference in position|^L, divided by that of an order and its reverse.

    Raises
    ------
    ValueError
        Orders of different leaves, or of repeated ones, or a power that is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import entanglement
    >>> entanglement(np.asarray([2, 0, 1]), np.asarray([1, 0, 2]))
    1.0
    """
    if not power > 0:
        raise ValueError(f"expected a power above 0; found {power!r}")
    a, b = labels("left", left), labels("right", right)
    place_a, place_b = np.argsort(a), np.argsort(b)
    if (
        a.ndim != 1
        or a.shape != b.shape
        or a.size < 2
        or not np.array_equal(a[place_a], b[place_b])
        or np.any(np.diff(a[place_a]) == 0)
    ):
        raise ValueError("expected two orders of the same leaves, each once, at least two")
    reverse = np.abs(2 * np.arange(a.size) - (a.size - 1.0))
    apart = np.abs(place_a - place_b).astype(np.float64)
    return float(np.sum(apart**power) / np.sum(reverse**power))


def _crossings(t: Tree, other: Tree) -> np.ndarray:
    """For every merge of `t`, the pairs of leaves across it in reverse order in `other`."""
    walk = Walk(t, other)
    crossed = np.zeros(t.height.size, dtype=np.int64)
    for merges in t.levels(0, t.height.size):
        _, offset, _, right = walk.split(merges)
        before = np.cumsum(right)  # including earlier merges', subtracted below
        own = before - np.repeat(before[offset] - right[offset], t.size[merges])
        crossed[merges] = np.add.reduceat(np.where(right, 0, own), offset)
    return crossed
