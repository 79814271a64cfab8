"""Similarity of two sets of embeddings of the same items: linear CKA and mutual neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from visreg_core import _checks, _xp
from visreg_core._selection import smallest
from visreg_core._typing import Array, Namespace
from visreg_core.metrics._inputs import (
    centred,
    matrix,
    numbers,
    paired,
    power_of_two,
    same_ids,
    unit_rows,
)

_CKA = ("biased", "unbiased")
_METRICS = ("cosine", "euclidean")

# Elements of a block of pairwise distances.
_BLOCK = 1 << 22


def linear_cka(
    x: Array,
    y: Array,
    *,
    convention: str = "biased",
    ids_x: Sequence[Any] | None = None,
    ids_y: Sequence[Any] | None = None,
) -> float:
    """Linear centred kernel alignment of two sets of embeddings.

    ‖YᵀX‖_F² / (‖XᵀX‖_F ‖YᵀY‖_F) of the centred matrices (Kornblith et al. 2019). It does not
    change under rotation, isotropic scaling or translation of either set.

    Parameters
    ----------
    x, y : array (N, Dx), (N, Dy)
        Row i the same item in both; any one namespace.
    convention : str
        "biased": the formula above, which tends to 1 as D/N grows, even for independent sets.
        "unbiased": with the unbiased estimator of HSIC (Song et al. 2012, eq. 5; Nguyen et al.
        2021) in all three places, near 0 for independent sets of any width; needs N ≥ 4.
    ids_x, ids_y : sequence, optional
        Ids of the items, compared row by row.

    Returns
    -------
    float
        In [0, 1] for "biased"; NaN where one set is constant (and, for "unbiased", where an
        estimated variance is not positive).

    Notes
    -----
    Nothing of size N × N is kept: N ≥ D works with D × D products, N < D with blocks of Gram
    matrices. `linear_cka_from_covariances` is the form for streams.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import linear_cka
    >>> x = np.asarray([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0]])
    >>> round(linear_cka(x, 3.0 * x[:, ::-1] - 7.0), 12)
    1.0
    """
    _checks.choice("convention", convention, _CKA)
    xp, x, y = paired(x, y, min_rows=2 if convention == "biased" else 4)
    same_ids(ids_x, ids_y, x.shape[0])
    x, y = _centred_unit(xp, x), _centred_unit(xp, y)
    inner = _hsic_sums if convention == "biased" else _hsic_unbiased
    return _ratio(inner(xp, x, y), inner(xp, x, x), inner(xp, y, y))


def linear_cka_from_covariances(cov_xx: Any, cov_yy: Any, cov_xy: Any) -> float:
    """Linear CKA ("biased") from the blocks of the joint covariance.

    Parameters
    ----------
    cov_xx, cov_yy, cov_xy : array_like (Dx, Dx), (Dy, Dy), (Dx, Dy)
        Covariances, or sums of centred products: any common factor cancels. Works on the host in
        float64.

    Returns
    -------
    float
        ‖C_xy‖_F² / (‖C_xx‖_F ‖C_yy‖_F); NaN where one set is constant.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import linear_cka_from_covariances
    >>> c = np.asarray([[2.0, 0.5], [0.5, 1.0]])
    >>> round(linear_cka_from_covariances(c, c, c), 12)
    1.0
    """
    xx, yy, xy = (
        numbers(name, c)
        for name, c in zip(("cov_xx", "cov_yy", "cov_xy"), (cov_xx, cov_yy, cov_xy), strict=True)
    )
    dx, dy = xx.shape[:1], yy.shape[:1]
    if xx.shape != dx + dx or yy.shape != dy + dy or xy.shape != dx + dy:
        raise ValueError(
            "expected covariances of shapes (Dx, Dx), (Dy, Dy), (Dx, Dy); "
            f"found {xx.shape}, {yy.shape}, {xy.shape}"
        )
    if not all(np.isfinite(c).all() for c in (xx, yy, xy)):
        raise ValueError("expected finite covariances; found NaN or infinity")
    # Scaled first: squares of covariances may overflow.
    a, b = float(np.max(np.abs(xx))), float(np.max(np.abs(yy)))
    if a == 0 or b == 0:
        return math.nan
    cross = np.sum((xy / math.sqrt(a) / math.sqrt(b)) ** 2)
    return float(cross / (np.linalg.norm(xx / a) * np.linalg.norm(yy / b)))


def mutual_knn(
    x: Array,
    y: Array,
    k: int = 10,
    *,
    metric: str = "cosine",
    ids_x: Sequence[Any] | None = None,
    ids_y: Sequence[Any] | None = None,
) -> float:
    """Mean share of the k nearest neighbours that an item has in common in both sets.

    (1/N) Σ_i |N_k(x_i) ∩ N_k(y_i)| / k, the item itself left out (Huh et al. 2024). Independent
    sets give k/(N − 1) on average.

    Parameters
    ----------
    x, y : array (N, Dx), (N, Dy)
        Row i the same item in both; any one namespace.
    k : int
        Neighbours, 1 ≤ k ≤ N − 1. Equal distances go by index.
    metric : str
        "cosine" or "euclidean". A zero vector has cosine distance 1 to everything.
    ids_x, ids_y : sequence, optional
        Ids of the items, compared row by row.

    Returns
    -------
    float
        In [0, 1].

    Notes
    -----
    O(N²D) time, by blocks of rows: nothing of size N × N is kept.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import mutual_knn
    >>> x = np.asarray([[0.0], [1.0], [3.0], [7.0]])
    >>> mutual_knn(x, -x, k=1, metric="euclidean")
    1.0
    """
    _checks.choice("metric", metric, _METRICS)
    _checks.positive_int("k", k)
    _, x, y = paired(x, y)
    n = x.shape[0]
    same_ids(ids_x, ids_y, n)
    if k > n - 1:
        raise ValueError(f"expected k <= N - 1 = {n - 1} neighbours; found k = {k}")
    a, b = (nearest(z, z, k, metric=metric, leave_one_out=True)[0] for z in (x, y))
    # An index occurs once in a row, so that equal entries count the intersection.
    step = max(1, _BLOCK // (k * k))
    common = sum(
        int(np.sum(a[i : i + step, :, None] == b[i : i + step, None, :])) for i in range(0, n, step)
    )
    return common / (n * k)


# --- centred kernel alignment ---------------------------------------------------------------------


def _centred_unit(xp: Namespace, x: Array) -> Array:
    """Centred `x`, divided by its largest element (CKA knows no scale, squares of squares do)."""
    x = centred(xp, x)
    largest = float(xp.max(xp.abs(x)))
    return x if largest == 0 else x * 2.0 ** -math.frexp(largest)[1]


def _hsic_sums(xp: Namespace, x: Array, y: Array) -> float:
    """‖XᵀY‖_F² = Σ_ij (XXᵀ)_ij (YYᵀ)_ij, by whichever side is smaller."""
    n, dx, dy = x.shape[0], x.shape[1], y.shape[1]
    if dx * dy <= n * (dx + dy):
        products = xp.matrix_transpose(x) @ y
        return float(xp.sum(products * products))
    step = max(1, _BLOCK // n)
    total = 0.0
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        products = (x[rows, :] @ xp.matrix_transpose(x)) * (y[rows, :] @ xp.matrix_transpose(y))
        total += float(xp.sum(products))
    return total


def _hsic_unbiased(xp: Namespace, x: Array, y: Array) -> float:
    """HSIC₁ of Song et al. 2012 for linear kernels, from sums over rows.

    With K̃ = XXᵀ without its diagonal, and L̃ likewise,
    HSIC₁ = [tr K̃L̃ + (1ᵀK̃1)(1ᵀL̃1)/((n−1)(n−2)) − 2/(n−2) 1ᵀK̃L̃1] / (n(n−3)).
    On centred x the row sums of XXᵀ vanish and K̃1 = −diag(XXᵀ).
    """
    n = x.shape[0]
    k, m = xp.sum(x * x, axis=1), xp.sum(y * y, axis=1)
    diagonals = float(xp.sum(k * m))
    traces = float(xp.sum(k)) * float(xp.sum(m))
    trace = _hsic_sums(xp, x, y) - diagonals
    return (trace + traces / ((n - 1) * (n - 2)) - 2.0 * diagonals / (n - 2)) / (n * (n - 3))


def _ratio(xy: float, xx: float, yy: float) -> float:
    if xx <= 0 or yy <= 0:
        return math.nan
    return xy / math.sqrt(xx) / math.sqrt(yy)


# --- neighbours -----------------------------------------------------------------------------------


def nearest(
    queries: Array, x: Array, k: int, *, metric: str, leave_one_out: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (M, k) of the k rows of x (N, D) nearest to each query (M, D), nearest first.

    Also their similarities, up to a constant of the query: the cosine, or for "euclidean" minus
    half the squared distance in some unit. Equal ones go by index. With `leave_one_out` the queries
    are the rows of x, and none is its own neighbour. Works by blocks of queries: nothing is of
    size M × N.
    """
    _, queries = matrix("queries", queries, min_rows=1)
    xp, x = matrix("x", x)
    dtype = x.dtype if x.dtype == queries.dtype else xp.float64
    *factors, scale = _similarity_factors(queries, x, metric)
    queries, x = (_xp.from_numpy(xp, f, device=_xp.device(x), dtype=dtype) for f in factors)
    m, n = queries.shape[0], x.shape[0]
    columns = xp.matrix_transpose(x)
    index = xp.arange(n, **_xp.on_device(x))
    step = max(1, _BLOCK // n)
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for start in range(0, m, step):
        stop = min(start + step, m)
        similarity = queries[start:stop, :] @ columns
        if leave_one_out:
            own = index[None, :] == index[start:stop, None]
            similarity = xp.where(own, -math.inf, similarity)
        order = smallest(xp, -similarity, k)
        found[0].append(_xp.to_numpy(order))
        found[1].append(_xp.to_numpy(xp.take_along_axis(similarity, order, axis=1)))
    indices, similarities = (np.concatenate(f) for f in found)
    return indices, similarities.astype(np.float64) * scale


def _similarity_factors(
    queries: Array, x: Array, metric: str
) -> tuple[np.ndarray, np.ndarray, float]:
    """Host matrices (M, D + 1), (N, D + 1) and a scale of their inner products.

    These are −‖q − x‖²/2 up to the scale and constants of q; and so, as 1 − ⟨u, v⟩ = ‖u − v‖²/2,
    cosines of unit vectors. Rows are taken from that of x nearest to the mean: where the mean is
    far larger than the spread, products would lose their digits; whole numbers stay whole. A zero
    vector has no cosine: it gets the spread 1 of the random unit vector that it is the mean of, and
    so is at (0 + 1 + 1)/2 from every other.
    """
    q, p = (_xp.to_numpy(a).astype(np.float64) for a in (queries, x))
    cosine = metric == "cosine"
    if cosine:
        q, p = unit_rows(np, q), unit_rows(np, p)
    unit = power_of_two(q, p)
    q, p = q / unit, p / unit
    no_query, no_row = (cosine & ~a.any(axis=1) for a in (q, p))
    rows = p if np.all(no_row) else p[~no_row]
    middle = rows[np.argmin(np.sum((rows - rows.mean(axis=0)) ** 2, axis=1))]
    q, p = q - middle, p - middle
    again = power_of_two(q, p)
    q, p = q / again, p / again
    scale = (unit * again) ** 2 if cosine else 1.0  # of squared distances nobody asks for it
    offset = (np.einsum("nd,nd->n", p, p) + no_row / scale) / 2
    q = np.concatenate([q, np.ones((q.shape[0], 1))], axis=1)
    q[no_query] = 0  # as near to everything
    return q, np.concatenate([p, -offset[:, None]], axis=1), scale
