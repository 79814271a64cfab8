"""Minimum spanning trees, which are single linkage: all distances once, and O(N·D) memory.

An edge cannot improve a known spanning tree that joins its ends by shorter edges only. The longest
edge on the path between two points is an ultrametric h: for any third point c,
h(i, j) ≤ max(h(i, c), h(c, j)). So a tile of products is compared with the outer maximum of two
vectors, and only what is below it, up to the products' rounding, is computed from differences. With
a good tree that is little: the first one comes from a sample of the points, whose leaf order brings
near points together, and after the tiles next to the diagonal hardly anything is left to improve.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from visreg_core import threads
from visreg_core.metrics._inputs import power_of_two
from visreg_core.metrics.trees._clusters import GROUP
from visreg_core.metrics.trees._nearest_products import nearest_products
from visreg_core.metrics.trees._tree import Tree, ancestors, tree

# Points of a tile's rows, and of its columns.
_BLOCK = 1024

# One point of this many is in the sample; and edges from each point at first.
_SAMPLED = 32
_LINKED = 8

# Where more than this share of a float32 tile may improve the tree, it is repeated in float64.
_SHARE = 1 / 8

# Elements of a block of differences of pairs.
_PAIR_BLOCK = 1 << 16


class Edges(NamedTuple):
    """Edges (E,) of a graph of points, by ascending squared length, then first and second point."""

    first: np.ndarray
    second: np.ndarray
    squared: np.ndarray


def spanning_tree(points: np.ndarray) -> Edges:
    """The minimum spanning tree of M ≥ 2 distinct points (M, D), float64 and of magnitude about 1.

    Edges of equal length go by their points, the lower first, so that the tree is unique.
    """
    n = len(points)
    blocks = np.split(np.arange(n), range(_BLOCK, n, _BLOCK))
    best = _linked(points, _near_samples(points))
    order = _leaf_order(best)
    blocks = [order[block] for block in blocks]
    near = threads.spread(lambda mine: _near_within(points, mine), blocks, points.nbytes)
    best = forest(n, [best, *near])

    # Tiles next to the diagonal, then up to twice as far from it each time.
    spans = [0, *(2**k for k in range(len(blocks).bit_length()) if 2**k < len(blocks)), len(blocks)]
    for low, high in itertools.pairwise(spans):
        tiles = [
            (a, b) for a in range(len(blocks)) for b in range(a + low, min(a + high, len(blocks)))
        ]
        bound = _Heights(best, blocks)

        def work(mine: Sequence[tuple[int, int]], bound: _Heights = bound) -> Edges:
            useful = (_useful_of_tile(points, blocks, bound, tile) for tile in mine)
            return _gathered(n, itertools.chain.from_iterable(useful))

        best = forest(n, [best, *threads.spread(work, tiles, points.nbytes)])
    return best


def merged(edges: Edges) -> np.ndarray:
    """Children (M − 1, 2) of the merges by a spanning tree's edges, one after the other."""
    n = edges.first.size + 1
    parent, cluster = list(range(n)), list(range(n))
    children = np.empty((n - 1, 2), dtype=np.intp)
    for k, (a, b) in enumerate(zip(edges.first.tolist(), edges.second.tolist(), strict=True)):
        while parent[a] != a:
            parent[a] = a = parent[parent[a]]
        while parent[b] != b:
            parent[b] = b = parent[parent[b]]
        children[k] = cluster[a], cluster[b]
        parent[b] = a
        cluster[a] = n + k
    return children


def forest(n: int, parts: Sequence[Edges]) -> Edges:
    """The minimum spanning forest of n points by the edges of all parts."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    first, second, squared = _together(parts)
    first, second = np.minimum(first, second), np.maximum(first, second)
    order = np.lexsort((second, first, squared))
    first, second, squared = first[order], second[order], squared[order]
    new = np.ones(first.size, dtype=bool)  # an edge may come twice
    new[1:] = (np.diff(first) != 0) | (np.diff(second) != 0)
    first, second, squared = first[new], second[new], squared[new]
    # Ranks in place of lengths: no two are equal, and none is 0.
    rank = np.arange(1.0, first.size + 1)
    kept = minimum_spanning_tree(coo_array((rank, (first, second)), shape=(n, n)).tocsr())
    kept = np.sort(kept.data).astype(np.intp) - 1
    return Edges(first[kept], second[kept], squared[kept])


def _together(parts: Sequence[Edges]) -> Edges:
    return Edges(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _gathered(n: int, parts: Iterable[Edges]) -> Edges:
    """The edges of all parts that may be of a spanning forest, of which few are held at a time."""
    found = [Edges(np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0))]
    for edges in parts:
        found.append(edges)
        if sum(some.first.size for some in found) > 2 * n:
            found = [forest(n, found)]
    return _together(found)


def _linked(points: np.ndarray, edges: Edges) -> Edges:
    """The forest of `edges`, its trees linked one to the next by any edge."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(points)
    graph = coo_array((np.ones(edges.first.size), (edges.first, edges.second)), shape=(n, n))
    _, label = connected_components(graph, directed=False)
    one = np.unique(label, return_index=True)[1]
    return forest(n, [edges, _measured(points, one[:-1], one[1:])])


def _measured(points: np.ndarray, first: np.ndarray, second: np.ndarray) -> Edges:
    squared = np.empty(first.size)
    step = max(1, _PAIR_BLOCK // points.shape[1])
    for start in range(0, first.size, step):
        difference = points[first[start : start + step]]
        difference -= points[second[start : start + step]]
        np.einsum("pd,pd->p", difference, difference, out=squared[start : start + step])
    return Edges(first, second, squared)


def _near_samples(points: np.ndarray) -> Edges:
    """Edges from every point to the nearest ones of a sample."""
    n = len(points)
    sample = np.arange(0, n, _SAMPLED)
    blocks = np.split(np.arange(n), range(_BLOCK, n, _BLOCK))

    def work(mine: Sequence[np.ndarray]) -> Edges:
        return _gathered(n, (_near(points, block, sample) for block in mine))

    return forest(n, threads.spread(work, blocks, points.nbytes))


def _near_within(points: np.ndarray, blocks: Sequence[np.ndarray]) -> Edges:
    """Edges from every point to near ones of its block."""
    return _gathered(len(points), (_near(points, block, block) for block in blocks))


def _near(points: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Edges:
    """Edges from `rows` to about the nearest of `columns`: the same, or ascending."""
    a, b, _ = _operands(points[rows], points[columns], np.dtype(np.float32))
    empty = -len(b) % GROUP
    b = np.concatenate([b, np.zeros((empty, b.shape[1]), dtype=b.dtype)])
    b[len(columns) :, -2] = np.inf
    own = np.searchsorted(columns, rows) if rows is not columns else np.arange(len(rows))
    own[columns[np.minimum(own, len(columns) - 1)] != rows] = -1
    place, value = nearest_products(a, b, own, min(_LINKED, len(b)))
    row, k = np.nonzero(value < np.inf)
    return _measured(points, rows[row], columns[place[row, k]])


def _operands(
    a: np.ndarray, b: np.ndarray, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray, float]:
    """Matrices whose product is the squared distances of rows of a and b, in units squared.

    The origin is moved to the middle between a and b, so that tight clusters keep their digits.
    """
    middle = (a.mean(axis=0) + b.mean(axis=0)) / 2
    a, b = a - middle, b - middle
    unit = power_of_two(a, b)
    left, right = (np.empty((len(x), x.shape[1] + 2), dtype=dtype) for x in (a, b))
    for operand, x, factor in ((left, a, -2), (right, b, 1)):
        x /= unit
        operand[:, :-2] = factor * x
        operand[:, -2] = operand[:, -1] = np.einsum("nd,nd->n", x, x)
    left[:, -2] = right[:, -1] = 1
    return left, right, unit


class _Heights:
    """Longest edges on paths in a spanning tree; a block's core is its first point to merge."""

    def __init__(self, edges: Edges, blocks: Sequence[np.ndarray]) -> None:
        self.layout = _layout(edges)
        self.ancestor = ancestors(self.layout)
        gap = np.concatenate([[np.inf], self.layout.gap, [np.inf]])
        first_merge = np.minimum(gap[:-1], gap[1:])[self.layout.position]
        self.core = [block[np.argmin(first_merge[block])] for block in blocks]

    def between(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Squared length of the longest edge on the path between points; 0 from one to itself."""
        position = self.layout.position
        a, b = position[first], position[second]
        low = np.minimum(np.minimum(a, b), position.size - 2)
        merge = self.ancestor(low, np.maximum(np.maximum(a, b), low + 1))
        return np.where(a == b, 0.0, self.layout.height[merge])


def _layout(edges: Edges) -> Tree:
    unused = np.zeros(edges.first.size)
    return tree(np.column_stack([merged(edges), edges.squared, unused]))


def _useful_of_tile(
    points: np.ndarray,
    blocks: Sequence[np.ndarray],
    bound: _Heights,
    tile: tuple[int, int],
) -> Iterator[Edges]:
    """Edges between two blocks that may be of a better spanning tree."""
    rows, columns = blocks[tile[0]], blocks[tile[1]]
    # By way of the core, of either block, that gives lower bounds.
    ways = [
        (bound.between(rows, core), bound.between(columns, core))
        for core in {bound.core[block] for block in tile}
    ]
    u, w = min(ways, key=lambda way: way[0].sum() + way[1].sum())
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        a, b, unit = _operands(points[rows], points[columns], dtype)
        product, limit, useful = (
            np.empty((rows.size, columns.size), kind) for kind in (dtype, dtype, bool)
        )
        np.matmul(a, b.T, out=product)
        # The error bound of products of lengths up to h, as in `Screen._error`.
        info = np.finfo(dtype)
        error = (a.shape[1] + 6) * 8 * (float(info.eps) / 2)
        least = error * float(a[:, -1].max()) + float(info.tiny)
        u_limit, w_limit = (
            np.nextafter(((1 + error) * h / unit**2 + least).astype(dtype), dtype.type(np.inf))
            for h in (u, w)
        )
        np.maximum(u_limit[:, None], w_limit, out=limit)
        np.less_equal(product, limit, out=useful)
        del product, limit
        chosen = np.flatnonzero(useful)
        if chosen.size <= _SHARE * useful.size:
            break
    for start in range(0, chosen.size, _PAIR_BLOCK):
        row, column = np.divmod(chosen[start : start + _PAIR_BLOCK], columns.size)
        if tile[0] == tile[1]:
            upper = row < column
            row, column = row[upper], column[upper]
        edges = _measured(points, rows[row], columns[column])
        shorter = edges.squared <= bound.between(edges.first, edges.second)
        yield Edges(*(column[shorter] for column in edges))


def _leaf_order(edges: Edges) -> np.ndarray:
    return _layout(edges).order
