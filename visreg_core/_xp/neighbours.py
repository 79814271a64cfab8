"""Nearest rows: products screen, differences decide.

A product of float32 rows, taken from a common middle, bounds every distance: its rounding error is
at most a known multiple of the squared norms. Rows that may be among the k nearest, given that
bound, are candidates. Candidates that it cannot resolve are compared by their differences in
float64, sums of squares that stay accurate however tight a cluster is and however far it lies from
the middle. Where products cannot resolve a whole cluster (all of its rows are candidates), its
products are repeated in float64 with one of its rows as origin.

Equal rows are one point, so that their distances are equal whatever their positions in a product.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from visreg_core import _xp, threads
from visreg_core._xp.points import Points
from visreg_core._xp.products import Error, kept, product_with
from visreg_core._xp.selection import bound_of_smallest
from visreg_core.typing import Array, Device, Namespace

# Distances made at a time by one thread; and rows at least, for products of few are slow.
_BLOCK = 1 << 22
_BLOCK_DEVICE = 1 << 24
_MIN_ROWS = 64

# Multiplications from which on all threads have a block.
_SHARED = 1 << 26

# Rows of so few numbers are multiplied in float64 from the first, in no more time than it takes to
# look closer at clusters.
_SMALL = 1 << 16

# As many products in float64 take the time of one distance by differences.
_PRODUCTS = 64

# Candidates of a row, beyond a few times its neighbours, from which on their cluster is multiplied
# once more.
_CROWD = 16

# Numbers held by the differences of candidate pairs at a time.
_PAIR_BLOCK = 1 << 15

# Where a bound of the error is more than this share of a distance, differences give it.
_SHARE = 2.0**-12


class Near(NamedTuple):
    """For each of M queries its k nearest rows, and those that are exactly as near as the last.

    Entries by query, then distance, then row: `query` (E,) ascending from 0, `row` (E,), an index,
    and `distance` (E,), half the squared one. Query i's begin at `first[i]`.
    """

    query: np.ndarray
    row: np.ndarray
    distance: np.ndarray
    first: np.ndarray

    def lists(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices and distances (M, k), equal distances by index."""
        entry = self.first[:, None] + np.arange(k)
        return self.row[entry], self.distance[entry]


class Search:
    """The k nearest of some rows to each query.

    Parameters
    ----------
    queries, rows : Points, M and N of them
        Of magnitude about 1: finite, with squares that neither overflow nor vanish.
    k : int
        At most N, or N − 1 with `own`.
    own : bool
        The queries are the rows, and none is its own neighbour.
    directions : bool
        Rows and queries have length 1, or 0: such are at distance 1 from everything.
    ordered : bool
        Neighbours in the order of their distances, equal ones by index, as far as differences tell;
        else by products, where these tell which the neighbours are.
    exact : bool
        All distances by differences; else those that products give to 2⁻¹² or better are as exact
        as float32.
    place : namespace and device, optional
        Where products are made, in float64; else on the host, by NumPy.
    """

    def __init__(
        self,
        queries: Points,
        rows: Points,
        k: int,
        *,
        own: bool = False,
        directions: bool = False,
        ordered: bool = True,
        exact: bool = False,
        place: tuple[Namespace, Device] | None = None,
    ) -> None:
        self.k, self.own, self.exact, self.directions = k, own, exact, directions
        self.ordered = ordered
        self.queries = queries
        first, self.members = rows.distinct()
        self.rows = rows if self.members is None else rows.only(first)
        self.without_direction, self.lone_rows = (
            p.zero if directions else np.zeros(len(p), dtype=bool) for p in (queries, self.rows)
        )
        # The own row is found like any other, at distance 0, and left out at the end.
        self.wanted = min(k + own, len(self.rows))
        wide = rows.x.size < _SMALL or place is not None
        # In float64 the middle of directions may be 0: products resolve angles of 1e-6.
        self.middle = np.zeros(rows.dim) if wide and directions else self.rows.middle()
        self.unit, self.longest = float(directions), 0.0  # which the first operand tells
        self.operand = self._multiplied(np.dtype(np.float64 if wide else np.float32))
        self.on_device: tuple[Namespace, Device, Array] | None = None
        if place is not None:
            xp, device = place
            with _xp.pinned_precision(xp, x64=True):
                self.on_device = xp, device, _xp.from_numpy(xp, self.operand.T, device=device)

    def _multiplied(self, dtype: np.dtype) -> np.ndarray:
        """Rows as queries are multiplied with them, and half their squares."""
        operand = np.empty((len(self.rows), self.rows.dim + 1), dtype)
        centred = operand[:, :-1]
        self.rows.less(self.middle, centred, negative=True)
        if self.unit == 0:
            largest = max(float(centred.max()), -float(centred.min()))
            self.unit = 2.0 ** (np.frexp(largest)[1] - 1) if largest > 0 else 1.0
        if not self.directions:
            centred /= self.unit
        offset = np.einsum("nd,nd->n", centred, centred) / 2
        self.longest = max(self.longest, float(np.sqrt(2 * offset.max())))
        offset[self.lone_rows] += 0.5 / self.unit**2
        operand[:, -1] = offset
        return operand

    @functools.cached_property
    def wide(self) -> np.ndarray:
        """The operand in float64, for blocks that need it."""
        return self._multiplied(np.dtype(np.float64))

    @property
    def block_rows(self) -> int:
        """Queries to ask for at a time."""
        if self.on_device is not None:
            return max(_MIN_ROWS, _BLOCK_DEVICE // len(self.rows))
        block, queries = _BLOCK // len(self.rows), len(self.queries)
        if queries * self.rows.x.size >= _SHARED:
            block = min(block, -(-queries // threads.available_threads()))
        return max(_MIN_ROWS, block)

    def block(self, start: int, stop: int) -> Near:
        """What the queries start … stop − 1 have near them."""
        without = self.without_direction[start:stop]
        chosen = start + np.flatnonzero(~without)
        taken, squares = self._taken(chosen, self.operand)
        if self.on_device is None:
            parts = self._screened(product_with(taken, self.operand), squares, chosen)
        else:
            parts = self._screened_on_device(taken, squares, chosen)
        lost = start + np.flatnonzero(without)
        if lost.size:
            every = np.broadcast_to(np.arange(len(self.rows)), (lost.size, len(self.rows)))
            parts.append(self._finished(lost, every, np.ones(every.shape)))
        query, index, distance = parts[0]
        if len(parts) > 1:
            query, index, distance = (np.concatenate(a) for a in zip(*parts, strict=True))
            order = np.argsort(query, kind="stable")
            query, index, distance = query[order], index[order], distance[order]
        first = np.searchsorted(query, np.arange(start, stop))
        return Near(query - start, index, distance, first)

    def _taken(self, chosen: np.ndarray, operand: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Queries as `operand` multiplies them, and their squared distances from the middle."""
        whole = chosen.size and chosen[-1] - chosen[0] == chosen.size - 1  # no need for a copy
        index = slice(chosen[0], chosen[-1] + 1) if whole else chosen
        taken = kept("taken", (len(chosen), operand.shape[1]), operand.dtype)
        centred = taken[:, :-1]
        self.queries.only(index).less(self.middle, centred)
        if not self.directions:
            centred /= self.unit
        taken[:, -1] = 1
        return taken, np.einsum("nd,nd->n", centred, centred).astype(np.float64)

    def _screened_on_device(
        self, taken: np.ndarray, squares: np.ndarray, queries: np.ndarray
    ) -> list[_Entries]:
        """By the device's products in float64, of which the host sees the least ones of each row.

        Where these are not all that may be near, as on a lattice, by the host's own.
        """
        if not len(queries):
            return []
        assert self.on_device is not None
        xp, device, operand = self.on_device
        most = min(2 * self.wanted + _CROWD, len(self.rows))
        with _xp.pinned_precision(xp, x64=True):
            product = _xp.from_numpy(xp, taken, device=device) @ operand
            place = _xp.smallest(xp, product, most)
            least = _xp.to_numpy(xp.take_along_axis(product, place, axis=-1))
        place = _xp.to_numpy(place)
        error = Error(squares, self.longest, self.rows.dim, least.dtype)
        beyond = least[:, -1] <= error.limit(least[:, self.wanted - 1])
        beyond &= most < len(self.rows)
        rest, done = np.flatnonzero(beyond), np.flatnonzero(~beyond)
        parts = self._screened(least[done], squares[done], queries[done], place[done])
        again = taken[rest] @ self.operand.T
        return parts + self._screened(again, squares[rest], queries[rest])

    def _screened(
        self,
        product: np.ndarray,
        squares: np.ndarray,
        queries: np.ndarray,
        columns: np.ndarray | None = None,
        longest: float | None = None,
    ) -> list[_Entries]:
        """What is near to `queries` by half the squared distances less half of `squares`.

        `product` (B, C) are these with all rows, or those of `columns` (C,) or (B, C): in units of
        `self.unit` from the common middle, or in units of 1 from another, from which the rows are
        at most at `longest`.
        """
        if not len(queries):
            return []
        parts: list[_Entries] = []
        unit = self.unit if longest is None else 1.0
        longest = self.longest if longest is None else longest
        error = Error(squares, longest, self.rows.dim, product.dtype)
        bound = bound_of_smallest(product, self.wanted)
        if product.dtype == np.float32 and columns is None and self._lost(bound, error, product):
            taken, squares = self._taken(queries, self.wide)
            return self._screened(product_with(taken, self.wide), squares, queries)
        limit = error.limit(bound)
        query, column = np.divmod(np.flatnonzero(product <= limit[:, None]), product.shape[1])
        count = np.bincount(query, minlength=len(queries))
        if columns is None:
            crowd = count > 2 * self.wanted + _CROWD
            if crowd.any():
                parts += self._by_clusters(product, limit, np.flatnonzero(crowd), queries)
                few = np.flatnonzero(~crowd)
                if not few.size:
                    return parts
                every = np.arange(len(self.rows))
                return parts + self._screened(product[few], squares[few], queries[few], every)
        first = np.cumsum(count) - count
        shape = len(queries), int(count.max())
        at = query, np.arange(query.size) - first[query]
        value, name = np.full(shape, np.inf), np.zeros(shape, dtype=np.intp)
        value[at], name[at] = product[query, column], column
        order = np.argsort(value, axis=1)
        line = np.arange(len(queries))[:, None]
        value = value[line, order]
        # From the k-th smallest itself rather than a bound of it, and its own error.
        limit = error.limit(value[:, self.wanted - 1]).astype(np.float64)
        beyond = value > limit[:, None]
        most = np.count_nonzero(~beyond.all(axis=0))
        value, name = value[:, :most], name[line, order[:, :most]]
        value[beyond[:, :most]] = np.inf
        if columns is not None:
            name = columns[name] if columns.ndim == 1 else columns[line, name]

        # Neighbours in order whose errors may overlap, and all where errors are large.
        wide = unit**2 * error.of(limit)[:, None]
        distance = (value + squares[:, None] / 2) * unit**2
        finite = distance < np.inf
        gap = 2 * wide + self._rounding((limit[:, None] + squares[:, None] / 2) * unit**2)
        close = (distance[:, 1:] <= distance[:, :-1] + gap) & finite[:, 1:]
        if not self.ordered and self.members is None:
            last = self.wanted - 1
            close &= close[:, last : last + 1].any(axis=1, keepdims=True)
        unsure = finite if self.exact else distance < wide / _SHARE
        unsure[:, 1:] |= close
        unsure[:, :-1] |= close
        if self.own and self.members is None:
            itself = (name == queries[:, None]) & finite
            distance[itself], unsure[itself] = 0.0, False
        query, place = np.nonzero(unsure)
        if query.size:
            distance[query, place] = self._distances(queries[query], name[query, place])
        mixed = np.flatnonzero(np.any(close, axis=1)) if query.size else query
        if mixed.size:
            distance[mixed], name[mixed] = self._in_order(distance[mixed], name[mixed])
        parts.append(self._finished(queries, name, distance))
        return parts

    def _lost(self, bound: np.ndarray, error: Error, product: np.ndarray) -> bool:
        """Whether products lose so many neighbours that those in float64 take less time."""
        bound = bound.astype(np.float64)
        lost = error.of(bound) > _SHARE * (bound + error.squares / 2)
        return bool(np.count_nonzero(lost) * self.wanted * _PRODUCTS > product.size)

    def _by_clusters(
        self, product: np.ndarray, limit: np.ndarray, crowded: np.ndarray, queries: np.ndarray
    ) -> list[_Entries]:
        """Queries that have a candidate in common, once more from one of them, in float64."""
        parts = []
        while crowded.size:
            one = crowded[0]
            shared = product[crowded, np.argmin(product[one])] <= limit[crowded]
            shared[0] = True
            group, crowded = crowded[shared], crowded[~shared]
            columns = np.flatnonzero(np.any(product[group] <= limit[group, None], axis=0))
            middle = self.queries[queries[one]]
            taken, rows = self.queries[queries[group]] - middle, self.rows[columns] - middle
            offset = np.einsum("nd,nd->n", rows, rows) / 2
            longest = float(np.sqrt(2 * offset.max()))
            offset[self.lone_rows[columns]] += 0.5
            again = offset - taken @ rows.T
            squares = np.einsum("nd,nd->n", taken, taken)
            parts += self._screened(again, squares, queries[group], columns, longest)
        return parts

    def _distances(self, query: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Half the squared distances of pairs by differences: equal rows, equal distances."""
        out = np.empty(query.size)
        step = max(1, _PAIR_BLOCK // self.rows.dim)
        for start in range(0, query.size, step):
            part = slice(start, start + step)
            difference = self.queries[query[part]]
            difference -= self.rows[column[part]]
            np.einsum("pd,pd->p", difference, difference, out=out[part])
        out /= 2
        out[self.lone_rows[column]] = 1.0
        return out

    def _rounding(self, distance: np.ndarray) -> np.ndarray:
        """Error of distances by differences: one for each term of a sum, a few of directions."""
        terms = (self.rows.dim + 4) * distance
        if self.directions:
            terms += 8 * np.sqrt(np.maximum(distance, 0))
        return np.finfo(np.float64).eps * terms

    def _in_order(self, distance: np.ndarray, name: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """By distance, then index; distances equal but for rounding become equal."""
        order = np.argsort(distance, axis=1)
        distance, name = (np.take_along_axis(a, order, axis=1) for a in (distance, name))
        with np.errstate(invalid="ignore"):  # ∞ − ∞ beyond the last
            apart = np.diff(distance) > self._rounding(distance[:, 1:])
        new = np.concatenate([np.ones((len(name), 1), dtype=bool), apart], axis=1)
        run = np.maximum.accumulate(np.where(new, np.arange(new.shape[1]), 0), axis=1)
        distance = np.where(distance < np.inf, np.take_along_axis(distance, run, axis=1), np.inf)
        order = np.lexsort((name, distance), axis=1)
        return np.take_along_axis(distance, order, axis=1), np.take_along_axis(name, order, axis=1)

    def _finished(self, queries: np.ndarray, name: np.ndarray, distance: np.ndarray) -> _Entries:
        """Entries, of all rows instead of distinct ones, without the queries' own."""
        if self.members is not None:
            return self._with_members(queries, name, distance)
        # The largest of them: where the order does not matter, some distances are more exact.
        last = distance[:, : self.k].max(axis=1)
        if self.own:
            others = name != queries[:, None]
            all_others = np.all(others[:, : self.k], axis=1)
            last = np.where(all_others, last, np.maximum(last, distance[:, self.k]))
        some = distance <= last[:, None]
        if self.own:
            some &= others
        query, place = np.nonzero(some)
        return queries[query], name[query, place], distance[query, place]

    def _with_members(
        self, queries: np.ndarray, name: np.ndarray, distance: np.ndarray
    ) -> _Entries:
        assert self.members is not None
        some = distance < np.inf
        count = np.where(some, self.members.size[name], 0)
        # Enough of the nearest points, and those as near as the last of them.
        enough = np.cumsum(count, axis=1) - count < self.k + self.own
        last = np.max(np.where(some & enough, distance, -np.inf), axis=1, keepdims=True)
        query, place = np.nonzero(some & (distance <= last))
        name, value, count = name[query, place], distance[query, place], count[query, place]
        begin = self.members.first[name] - (np.cumsum(count) - count)
        index = self.members.order[np.repeat(begin, count) + np.arange(count.sum())]
        query, value = np.repeat(query, count), np.repeat(value, count)
        if self.own:
            others = index != queries[query]
            query, index, value = query[others], index[others], value[others]
        order = np.lexsort((index, value, query))
        query, index, value = query[order], index[order], value[order]
        first = np.searchsorted(query, np.arange(len(queries)))
        keep = value <= value[first + self.k - 1][query]
        return queries[query[keep]], index[keep], value[keep]


# Query, index of the row, distance.
_Entries = tuple[np.ndarray, np.ndarray, np.ndarray]


def nearest(search: Search) -> tuple[np.ndarray, np.ndarray]:
    """Indices and half the squared distances (M, k) of the rows nearest to every query."""
    blocks = ranges(len(search.queries), search.block_rows)

    def work(mine: Sequence[tuple[int, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [search.block(*block).lists(search.k) for block in mine]

    parts = threads.spread(work, blocks, search.operand.nbytes, search.on_device is not None)
    if len(blocks) == 1:
        return parts[0][0]
    index, distance = zip(*(pair for part in parts for pair in part), strict=True)
    return np.concatenate(index), np.concatenate(distance)


def ranges(size: int, step: int) -> list[tuple[int, int]]:
    """Ranges of `step` and less, one after the other, that make `size`."""
    return [(start, min(start + step, size)) for start in range(0, size, step)]
