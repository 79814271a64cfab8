"""Measures of pairs of rows, of a sample: uniformity, hubs, outliers, near duplicates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from visreg_core.metrics import uniformity, worst_direction
from visreg_core.metrics.similarity import nearest

NEIGHBORS = 10
_STARTS = 64
_STEPS = 30
# Rows whose neighbours are so many times as far as the median's, in robust deviations.
_FAR = 8.0
# Rows whose nearest one is so much nearer than the median's.
_NEAR = 1e-3
_DEAD = 1e-5
_FEWEST = 8


class Geometry(NamedTuple):
    """Of the rows drawn, as places among them.

    `occurrences`: how often each is among another's ten nearest; `outliers` and `near_duplicates`;
    `overlap`: the share of neighbours by cosine that are neighbours by Euclidean distance, too;
    `islands`: groups that no neighbour joins to the largest or to another, the smallest first;
    `neighbors` (T, k) by cosine, the nearest first, and their `distances`; `contrast`: the mean
    distance of two rows over the median one to the nearest.
    """

    uniformity: float
    occurrences: np.ndarray
    outliers: np.ndarray
    near_duplicates: np.ndarray
    overlap: float
    islands: tuple[np.ndarray, ...]
    neighbors: np.ndarray
    distances: np.ndarray
    contrast: float

    @property
    def anti_hubs(self) -> float:
        """Share of rows that are no other row's neighbour."""
        return float(np.mean(self.occurrences == 0))


def geometry(points: np.ndarray) -> Geometry:
    """Geometry of rows (T, D) in memory."""
    n = len(points)
    k = min(NEIGHBORS, n - 1)
    by_cosine, by_distance = (
        nearest(points, points, k, metric=m, leave_one_out=True)[0] for m in ("cosine", "euclidean")
    )
    common = np.sum(by_cosine[:, :, None] == by_distance[:, None, :])
    unit = _unit(points)
    apart = _cosine_distances(unit, unit, by_cosine)
    mean = apart.mean(axis=1)
    middle = float(np.median(mean))
    spread = 1.4826 * float(np.median(np.abs(mean - middle)))
    far = np.flatnonzero(mean > middle + _FAR * spread) if spread > 0 else np.arange(0)
    first = apart[:, 0]
    typical = float(np.median(first))
    near = np.flatnonzero((first < _NEAR * typical) & (first > 0))
    return Geometry(
        uniformity(points),
        np.bincount(by_cosine.ravel(), minlength=n),
        far[np.argsort(-mean[far], kind="stable")],
        near,
        float(common / (n * k)),
        _islands(by_cosine) if points.shape[1] > 1 else (),  # two directions are no islands
        by_cosine,
        apart,
        _mean_distance(unit) / typical if typical > 0 else np.inf,
    )


class Searched(NamedTuple):
    """Queries among the rows drawn.

    `far`, the farthest first, are farther from their nearest row than 99 % of the rows are from
    theirs; `occurrences` of each row among the queries' ten nearest.
    """

    far: np.ndarray
    occurrences: np.ndarray
    queries: int


def searched(points: np.ndarray, distances: np.ndarray, queries: np.ndarray) -> Searched:
    """Queries (Q, D) among rows (T, D), whose `distances` (T, k) to their nearest are known."""
    index = nearest(queries, points, distances.shape[1], metric="cosine")[0]
    first = _cosine_distances(_unit(queries), _unit(points), index[:, :1])[:, 0]
    far = np.flatnonzero(first > np.quantile(distances[:, 0], 0.99))
    return Searched(
        far[np.argsort(-first[far], kind="stable")],
        np.bincount(index.ravel(), minlength=len(points)),
        len(queries),
    )


def _islands(index: np.ndarray) -> tuple[np.ndarray, ...]:
    """Components of the graph of neighbours (T, k), in either direction, without the largest."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    n, k = index.shape
    ends = np.arange(0, n * k + 1, k)
    graph = csr_array((np.ones(n * k, bool), index.ravel(), ends), shape=(n, n))
    count, of = connected_components(graph, directed=True, connection="weak")
    sizes = np.bincount(of, minlength=count)
    return tuple(np.flatnonzero(of == c) for c in np.argsort(sizes, kind="stable")[:-1])


def _unit(points: np.ndarray) -> np.ndarray:
    """Rows of norm 1 in float64; zeros stay."""
    unit = points.astype(np.float64)
    norms = np.linalg.norm(unit, axis=1, keepdims=True)
    unit /= np.where(norms > 0, norms, 1)
    return unit


def _cosine_distances(queries: np.ndarray, unit: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Cosine distances (Q, k) of unit rows to those of these numbers, by differences."""
    out = np.empty(index.shape)
    for j in range(index.shape[1]):
        difference = queries - unit[index[:, j]]
        out[:, j] = np.einsum("nd,nd->n", difference, difference) / 2
    return out


def _mean_distance(unit: np.ndarray) -> float:
    """Mean cosine distance of two different unit rows."""
    n, total = len(unit), unit.sum(axis=0)
    return float((n * n - total @ total) / (n * (n - 1)))


class Direction(NamedTuple):
    """The worst direction of standardised columns: z, p, and the column of most weight in it."""

    z: float
    p: float
    column: int


def direction(
    points: np.ndarray, mean: np.ndarray, sigma: np.ndarray, slices: np.ndarray, seed: int
) -> Direction | None:
    """`worst_direction` of the rows drawn, each column less `mean` and by `sigma`.

    Columns that do not vary are left out; None where no two do, or rows are too few.
    """
    live = np.flatnonzero(varies(sigma))
    if len(live) < 2 or len(points) < _FEWEST:
        return None
    z = ((points[:, live] - mean[live]) / sigma[live]).astype(np.float32)
    starts = slices[live, :_STARTS]
    starts = (starts / np.linalg.norm(starts, axis=0)).astype(np.float32)
    found = worst_direction(z, starts, n_steps=_STEPS, seed=seed)
    column = int(live[np.argmax(np.abs(found.direction))])
    return Direction(found.z, found.p, column)


def varies(sigma: np.ndarray) -> np.ndarray:
    """Which columns have a standard deviation above 1e-5 of the median of those above 0."""
    positive = sigma[sigma > 0]
    return sigma > (_DEAD * np.median(positive) if len(positive) else 0)
