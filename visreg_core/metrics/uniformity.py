"""Alignment of positive pairs and uniformity on the sphere (Wang and Isola 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from visreg_core import _xp, checks
from visreg_core.metrics._inputs import centred, matrix, paired, same_ids, unit_rows
from visreg_core.typing import Array, Namespace

_PAIRS = ("distinct", "all")

# Rows of a tile of pairwise distances.
_TILE = 2048


def alignment(
    x: Array,
    y: Array,
    alpha: float = 2.0,
    *,
    normalize: bool = True,
    ids_x: Sequence[Any] | None = None,
    ids_y: Sequence[Any] | None = None,
) -> float:
    """Mean distance of positive pairs, (1/N) Σ_i ‖x_i − y_i‖^α.

    Parameters
    ----------
    x, y : array (N, D)
        Two views of the same items, row by row; any one namespace.
    alpha : float
        Exponent, positive; 2 as published.
    normalize : bool
        Divide rows by their norms first, as published; zero rows stay zero.
    ids_x, ids_y : sequence, optional
        Ids of the items, compared row by row.

    Returns
    -------
    float
        0 for identical views; at most 2^α for normalised ones.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import alignment
    >>> x = np.asarray([[1.0, 0.0], [0.0, 2.0]])
    >>> round(alignment(x, np.asarray([[3.0, 0.0], [5.0, 0.0]])), 12)
    1.0
    """
    _positive("alpha", alpha)
    xp, x, y = paired(x, y)
    if x.shape != y.shape:
        raise ValueError(
            f"expected x and y of one shape; found {tuple(x.shape)} and {tuple(y.shape)}"
        )
    same_ids(ids_x, ids_y, x.shape[0])
    if normalize:
        x, y = unit_rows(xp, x), unit_rows(xp, y)
    unit, mean = _xp.compiled(xp, _mean_power, "xp", "alpha")(xp, x, y, alpha)
    return float(unit) ** alpha * float(mean)


def _mean_power(xp: Namespace, x: Array, y: Array, alpha: float) -> tuple[Array, Array]:
    """The largest |x − y|, and the mean of distances^α in units of it."""
    difference = x - y
    unit = xp.max(xp.abs(difference))  # squares of 1e-30 or 1e30 leave float32
    scaled = difference / xp.where(unit > 0, unit, 1.0)
    return unit, xp.mean(xp.sqrt(xp.sum(scaled**2, axis=1)) ** alpha)


def uniformity(
    x: Array, t: float = 2.0, *, normalize: bool = True, convention: str = "distinct"
) -> float:
    """Logarithm of the mean Gaussian potential of pairs, log mean exp(−t ‖x_i − x_j‖²).

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace, N ≥ 2.
    t : float
        Inverse width, positive; 2 as published.
    normalize : bool
        Divide rows by their norms first, as published; zero rows stay zero. Otherwise columns
        are centred, which keeps distances and their digits.
    convention : str
        "distinct": mean over the N(N − 1)/2 pairs i < j, as in the published code. "all": over
        all N² ordered pairs, an item with itself included, which adds about 1/N to the mean.

    Returns
    -------
    float
        Between −4t (for normalised rows) and 0, which is collapse; lower is more uniform. On a
        sphere of many dimensions the least possible value tends to −2t.

    Notes
    -----
    A log-sum-exp over tiles of the distance matrix: no N × N matrix is stored and nothing
    underflows. Squared distances come from inner products, and are good to the rounding unit of
    the dtype times the largest squared norm.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import uniformity
    >>> uniformity(np.asarray([[1.0, 0.0], [-1.0, 0.0]]))
    -8.0
    """
    _positive("t", t)
    checks.choice("convention", convention, _PAIRS)
    xp, x = matrix("x", x)
    if normalize:
        x = unit_rows(xp, x)
    else:  # squares of 1e-30 or 1e30 leave float32
        x = centred(xp, x)
        unit = 2.0 ** math.frexp(float(xp.max(xp.abs(x))))[1]
        x, t = x / unit, t * unit * unit
    log_sum = _log_sum_exp(xp, x, t)
    n = x.shape[0]
    if convention == "distinct":
        return log_sum - math.log(n * (n - 1) // 2)
    twice, own = log_sum + math.log(2), math.log(n)
    top = max(twice, own)
    return top + math.log(math.exp(twice - top) + math.exp(own - top)) - 2 * math.log(n)


def _log_sum_exp(xp: Namespace, x: Array, t: float) -> float:
    """Logarithm of Σ_{i<j} exp(−t ‖x_i − x_j‖²), tile by tile, which are added up in float64."""
    of_tile = _xp.compiled(xp, _tile_sum, "xp", "diagonal")
    # Of a larger t, whose products leave the dtype, only equal distances would count.
    within = min(t, float(xp.finfo(x.dtype).max) / (8 * x.shape[1]))
    n, top, total = x.shape[0], -math.inf, 0.0
    for first in range(0, n, _TILE):
        rows = x[first : min(first + _TILE, n), :]
        for left in range(first, n, _TILE):
            columns = x[left : min(left + _TILE, n), :]
            nearest, added = map(float, of_tile(xp, rows, columns, within, left == first))
            if nearest == math.inf:  # one row has no pairs
                continue
            if -t * nearest > top:
                total *= math.exp(top + t * nearest)
                top = -t * nearest
            total += added * math.exp(-t * nearest - top)
    return top + math.log(total)


def _tile_sum(
    xp: Namespace, rows: Array, columns: Array, t: float, diagonal: bool
) -> tuple[Array, Array]:
    """Least squared distance d² of a tile's pairs, and Σ exp(t (d² − ‖x_i − x_j‖²))."""
    half, other = (xp.sum(x * x, axis=1) / 2 for x in (rows, columns))
    inner = rows @ xp.matrix_transpose(columns)
    d2 = 2 * (half[:, None] + other[None, :] - inner)
    d2 = xp.where(d2 > 0, d2, 0.0)
    index = xp.arange(rows.shape[0], **_xp.on_device(rows))
    pairs = index[:, None] < index[None, :] if diagonal else d2 >= 0
    nearest = xp.min(xp.where(pairs, d2, math.inf))
    potential = xp.exp(-t * xp.where(d2 > nearest, d2 - nearest, 0.0))
    return nearest, xp.sum(xp.where(pairs, potential, 0.0))


def _positive(argument: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"expected {argument} to be a positive number; found {value!r}")
