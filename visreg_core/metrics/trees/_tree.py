"""A dendrogram laid out for range queries: leaf order, intervals of leaves, gaps between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from visreg_core.metrics._inputs import numbers
from visreg_core.typing import Array


class Tree(NamedTuple):
    """A dendrogram of N leaves, whose merge k joins the positions start ≤ p < end, split at mid.

    The lowest common ancestor of two leaves is the last merge among the gaps between their
    positions, where gap g lies between positions g and g + 1 and belongs to the merge split there.
    """

    height: np.ndarray  # (N − 1,) of the merges, non-decreasing
    start: np.ndarray  # (N − 1,) first leaf position of a merge
    mid: np.ndarray  # (N − 1,) first leaf position of its second child
    end: np.ndarray  # (N − 1,) one past its last leaf position
    depth: np.ndarray  # (N − 1,) edges from the root down to a merge
    position: np.ndarray  # (N,) place of each leaf in leaf order
    leaf_depth: np.ndarray  # (N,) edges from the root down to each leaf
    gap: np.ndarray  # (N − 1,) merge of each gap in leaf order
    # As `depth` and `leaf_depth`, except that merges of one height, one below the other, are one
    # node: their order is arbitrary.
    steps: np.ndarray
    leaf_steps: np.ndarray

    @property
    def size(self) -> np.ndarray:
        """Number of leaves of every merge."""
        return self.end - self.start

    @property
    def pairs(self) -> np.ndarray:
        """Number of pairs of leaves that every merge is the lowest common ancestor of."""
        return (self.mid - self.start) * (self.end - self.mid)

    def levels(self, bottom: int, top: int) -> list[np.ndarray]:
        """Merges bottom … top − 1 by depth, root first; those of one depth by position."""
        merges = np.arange(bottom, top)
        depth = self.depth[merges]
        merges = merges[np.lexsort((self.start[merges], depth))]
        return np.split(merges, np.flatnonzero(np.diff(np.sort(depth))) + 1)

    @property
    def order(self) -> np.ndarray:
        """Leaves in leaf order."""
        return np.argsort(self.position)


def checked_linkage(argument: str, z: Array) -> np.ndarray:
    """A linkage matrix on the host in float64; ValueError if it is invalid or not monotone."""
    matrix = numbers(argument, z)
    if matrix.ndim != 2 or matrix.shape[1] != 4 or matrix.shape[0] < 1:
        raise ValueError(
            f"expected {argument} to be a linkage matrix (N - 1, 4) with N >= 2; "
            f"found shape {matrix.shape}"
        )
    n = matrix.shape[0] + 1
    children = matrix[:, :2]
    once = np.array_equal(np.sort(children, axis=None), np.arange(2 * n - 2))
    if not once or np.any(children.max(axis=1) >= n + np.arange(n - 1)):
        raise ValueError(
            f"expected {argument} to join clusters 0 ... {2 * n - 3} once each, after they are "
            "made; found a matrix that is not a dendrogram"
        )
    heights = matrix[:, 2]
    if not np.all(heights[1:] >= heights[:-1]) or np.isnan(heights[0]):
        raise ValueError(
            f"expected the heights of {argument} not to decrease; found an inversion or NaN"
        )
    if heights[0] < 0:
        raise ValueError(f"expected heights of {argument} from 0 on; found {heights[0]:g}")
    sizes = [1] * n
    for a, b in children.astype(np.intp).tolist():
        sizes.append(sizes[a] + sizes[b])
    wrong = np.flatnonzero(matrix[:, 3] != sizes[n:])
    if wrong.size:
        k = int(wrong[0])
        raise ValueError(
            f"expected row {k} of {argument} to count its {sizes[n + k]} leaves; "
            f"found {matrix[k, 3]:g}"
        )
    return matrix


def two_linkages(first: Array, second: Array) -> tuple[np.ndarray, np.ndarray]:
    """Two checked linkage matrices of equally many leaves."""
    a, b = checked_linkage("first", first), checked_linkage("second", second)
    if a.shape != b.shape:
        raise ValueError(
            "expected two dendrograms of the same items; "
            f"found {a.shape[0] + 1} and {b.shape[0] + 1} leaves"
        )
    return a, b


def tree(z: np.ndarray) -> Tree:
    """Lay out a checked linkage matrix, first children to the left."""
    n = z.shape[0] + 1
    left, right = z[:, 0].astype(np.intp), z[:, 1].astype(np.intp)
    first, second = left.tolist(), right.tolist()
    size = [1] * n
    for a, b in zip(first, second, strict=True):
        size.append(size[a] + size[b])
    start, depth, steps = ([0] * (2 * n - 1) for _ in range(3))
    height = [-1.0] * n + z[:, 2].tolist()
    for k in range(n - 2, -1, -1):
        a, b = first[k], second[k]
        start[a] = start[n + k]
        start[b] = start[a] + size[a]
        depth[a] = depth[b] = depth[n + k] + 1
        for child in (a, b):
            steps[child] = steps[n + k] + (height[child] != height[n + k])
    starts, depths, nodes = np.asarray(start), np.asarray(depth), np.asarray(steps)
    mid = starts[right]
    gap = np.empty(n - 1, dtype=np.intp)
    gap[mid - 1] = np.arange(n - 1)
    return Tree(
        height=z[:, 2],
        start=starts[n:],
        mid=mid,
        end=starts[n:] + np.asarray(size[n:]),
        depth=depths[n:],
        position=starts[:n],
        leaf_depth=depths[:n],
        gap=gap,
        steps=nodes[n:],
        leaf_steps=nodes[:n],
    )


def first_of_height(height: np.ndarray) -> np.ndarray:
    """For each merge the first one of its height."""
    return np.searchsorted(height, height)


def redrawn(z: np.ndarray, words: np.ndarray) -> np.ndarray:
    """A checked linkage matrix in which merges of one height, one below the other, are redrawn.

    The branches that such merges join are joined two by two, in the order of the random `words` of
    leaves and merges, as a balanced tree: at one height every order is as valid.
    """
    n = z.shape[0] + 1
    first, second = z[:, 0].astype(np.intp).tolist(), z[:, 1].astype(np.intp).tolist()
    height, word = z[:, 2].tolist(), words.tolist()
    parent = [-1] * (2 * n - 1)
    for k in range(n - 1):
        parent[first[k]] = parent[second[k]] = k
    # The branches that meet in a node, at its topmost merge.
    top = list(range(n - 1))
    branches: list[list[int]] = [[] for _ in range(n - 1)]
    for k in range(n - 2, -1, -1):
        above = parent[n + k]
        if above >= 0 and height[above] == height[k]:
            top[k] = top[above]
        for child in (first[k], second[k]):
            if child < n or height[child - n] != height[k]:
                branches[top[k]].append(child)
    if all(len(b) <= 2 for b in branches):
        return z
    out = np.empty_like(z)
    made, name, size = 0, list(range(n)) + [0] * (n - 1), [1] * n
    for k in range(n - 1):  # a node's branches are lower than it: made before its first merge
        if top[k] != k:
            continue
        ends = sorted(branches[k], key=lambda b: word[b])
        queue = deque(name[b] for b in ends)
        while len(queue) > 1:
            a, b = sorted((queue.popleft(), queue.popleft()))
            size.append(size[a] + size[b])
            out[made] = a, b, height[k], size[-1]
            queue.append(n + made)
            made += 1
        name[n + k] = queue[0]
    return out


def restricted(z: np.ndarray, leaves: np.ndarray) -> np.ndarray:
    """The dendrogram of some leaves of a checked one, at least two; leaf i is then leaves[i]."""
    n, m = len(z) + 1, len(leaves)
    now = [-1] * (2 * n - 1)  # what is left of each cluster
    for i, leaf in enumerate(leaves.tolist()):
        now[leaf] = i
    size = [1] * m
    rows = []
    for k, (a, b, height, _) in enumerate(z.tolist()):
        parts = sorted(part for part in (now[int(a)], now[int(b)]) if part >= 0)
        if len(parts) == 2:
            size.append(size[parts[0]] + size[parts[1]])
            rows.append([*parts, height, size[-1]])
            parts = [len(size) - 1]
        now[n + k] = parts[0] if parts else -1
    return np.asarray(rows, dtype=np.float64)


def ancestors(t: Tree) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Function (p, q) → merge that is the lowest common ancestor of leaf positions p < q.

    Range maxima over gaps by a table of maxima over powers of two: O(N log N) memory, two look-ups
    per query.
    """
    table = [t.gap.astype(np.int32)]
    width = 1
    while 2 * width <= t.gap.size:
        last = table[-1]
        table.append(np.maximum(last[:-width], last[width:]))
        width *= 2
    rows = np.zeros((len(table), t.gap.size), dtype=np.int32)
    for row, values in zip(rows, table, strict=True):
        row[: values.size] = values
    power = np.frexp(np.arange(t.gap.size + 1))[1] - 1  # floor(log2), of a distance ≥ 1

    def lookup(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        k = power[q - p]
        return np.maximum(rows[k, p], rows[k, q - (1 << k)])

    return lookup


def along_leaves(gap_values: np.ndarray, position: int, reduce: np.ufunc) -> np.ndarray:
    """`reduce` (maximum or minimum) over the gaps between a leaf and every other, in leaf order.

    The entry of the leaf itself is 0.
    """
    row = np.zeros(gap_values.size + 1, dtype=gap_values.dtype)
    reduce.accumulate(gap_values[:position][::-1], out=row[:position][::-1])
    reduce.accumulate(gap_values[position:], out=row[position + 1 :])
    return row
