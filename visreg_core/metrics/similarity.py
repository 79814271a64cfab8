"""Similarity of two sets of embeddings of the same items: linear CKA and mutual neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from visreg_core import _xp, checks, threads
from visreg_core._xp import neighbours
from visreg_core._xp.neighbours import Near, Search
from visreg_core._xp.points import Points
from visreg_core.metrics._inputs import centred, matrix, numbers, paired, power_of_two, same_ids
from visreg_core.typing import Array, Device, Namespace

_CKA = ("biased", "unbiased")
METRICS = ("cosine", "euclidean")

# Elements of a block of Gram matrices.
_BLOCK = 1 << 22

# A numerator below this share of its largest possible value is rounding error.
_NO_SPREAD = 1e-9


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
    No N × N matrix is stored: N ≥ D works with D × D products, N < D with blocks of Gram
    matrices. `linear_cka_from_covariances` is the form for streams.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import linear_cka
    >>> x = np.asarray([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0]])
    >>> round(linear_cka(x, 3.0 * x[:, ::-1] - 7.0), 12)
    1.0
    """
    checks.choice("convention", convention, _CKA)
    xp, x, y = paired(x, y, min_rows=2 if convention == "biased" else 4)
    same_ids(ids_x, ids_y, x.shape[0])
    if convention == "biased":
        x, y = _centred_unit(xp, x), _centred_unit(xp, y)
        return _ratio(_hsic_sums(xp, x, y), _hsic_sums(xp, x, x), _hsic_sums(xp, y, y))
    with _xp.float64_inside(xp):  # the diagonal, which is subtracted, may be nearly all
        x, y = (_centred_unit(xp, _xp.cast(xp, z, _xp.widest(xp, z))) for z in (x, y))
        return _ratio(*(_hsic_unbiased(xp, *pair) for pair in ((x, y), (x, x), (y, y))))


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
    sets give k/(N − 1) on average, collapsed ones exactly.

    Parameters
    ----------
    x, y : array (N, Dx), (N, Dy)
        Row i the same item in both; any one namespace.
    k : int
        Neighbours, 1 ≤ k ≤ N − 1.
    metric : str
        "cosine" or "euclidean". A zero vector has cosine distance 1 to everything.
    ids_x, ids_y : sequence, optional
        Ids of the items, compared row by row.

    Returns
    -------
    float
        In [0, 1]; 0 where ties make it less.

    Notes
    -----
    O(N²D) time, by blocks of rows: no N × N matrix is stored. On devices other than the host
    products are made there.

    Products only screen, with a bound of their error; differences in float64 decide. So neighbours
    are exact however tight clusters are: for "euclidean" at any spread of the numbers given, for
    "cosine" down to angles of about 1e-15, where unit vectors in float64 end. Distances that differ
    by no more than the rounding of that are equal: ε (D + 4) d, and for cosine ε 8 √d more, of half
    the squared distance d, where ε = 2⁻⁵². Identical rows are at one distance from everything.

    Where several items are at the distance of the last place, no order of rows decides: each has
    its share of the places left, as if they were drawn. With p and q the shares of an item in the
    two sets and r their correlation over the other items, the row counts c + (k − c) r, where
    c = k²/(N − 1) is what chance gives: |N_k(x_i) ∩ N_k(y_i)| without ties, k for an isometry with
    any, c where all distances tie.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import mutual_knn
    >>> x = np.asarray([[0.0], [1.0], [3.0], [7.0]])
    >>> mutual_knn(x, -x, k=1, metric="euclidean")
    1.0
    """
    checks.choice("metric", metric, METRICS)
    checks.positive_int("k", k)
    _, x, y = paired(x, y)
    n = x.shape[0]
    same_ids(ids_x, ids_y, n)
    if k > n - 1:
        raise ValueError(f"expected k <= N - 1 = {n - 1} neighbours; found k = {k}")
    return max(math.fsum(shared_neighbors(x, y, k, metric)) / (n * k), 0.0)


def shared_neighbors(x: Array, y: Array, k: int, metric: str = "cosine") -> np.ndarray:
    """How many of its k nearest others each row has in both sets, (N,), of checked arguments."""
    n = x.shape[0]
    first, second = (_search(z, z, k, metric, own=True, ordered=False) for z in (x, y))

    def work(blocks: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        near = ((first.block(*block), second.block(*block)) for block in blocks)
        return [_shared(a, b, n - 1, k) for a, b in near]

    blocks = neighbours.ranges(n, min(first.block_rows, second.block_rows))
    on_device = first.on_device is not None
    parts = threads.spread(work, blocks, first.operand.nbytes, on_device)
    return np.concatenate([shared for part in parts for shared in part])


# --- centred kernel alignment ---------------------------------------------------------------------


def _centred_unit(xp: Namespace, x: Array) -> Array:
    """Centred `x`, divided by its largest element (CKA is scale-free; fourth powers overflow)."""
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

    Also half the squared distances of the rows, for "cosine" of unit vectors: 1 − cos; for
    "euclidean" in some unit. Equal ones go by index. With `leave_one_out` the queries are the rows
    of x, and none is its own neighbour. Works by blocks of queries: nothing is of size M × N.
    """
    matrix("queries", queries, min_rows=1)
    matrix("x", x)
    return neighbours.nearest(_search(queries, x, k, metric, own=leave_one_out))


def _search(
    queries: Array, x: Array, k: int, metric: str, *, own: bool, ordered: bool = True
) -> Search:
    cosine = metric == "cosine"
    p = _xp.to_numpy(x)
    q = p if own else _xp.to_numpy(queries)
    if cosine:
        rows = Points.directions(p)
        asked = rows if own else Points.directions(q)
    else:
        unit = power_of_two(q, p)
        rows = Points.in_units(p, unit)
        asked = rows if own else Points.in_units(q, unit)
    place = _elsewhere(x)
    return Search(asked, rows, k, own=own, directions=cosine, ordered=ordered, place=place)


def _elsewhere(x: Array) -> tuple[Namespace, Device] | None:
    """Where products with `x` are made, unless by NumPy."""
    device = _xp.device(x)
    on_host = device is None or str(getattr(device, "platform", device)).lower().startswith("cpu")
    return None if on_host or _xp.library(x) == "array_api_strict" else (_xp.namespace(x), device)


def _shared(first: Near, second: Near, n: int, k: int) -> np.ndarray:
    """How many neighbours each query has in both sets, of n candidates.

    Where more candidates than places are at the distance of the last, each has its share of the
    places: an item is a neighbour with probability p in the one set and q in the other. The
    correlation r of p and q over the candidates then gives c + (k − c) r, where c = k²/n is what
    two random choices share. Without ties that is Σ p q, the number of items in both.
    """
    m = first.first.size
    if first.query.size == second.query.size == m * k:  # no ties: compare all with all
        a, b = first.lists(k)[0], second.lists(k)[0]
        return np.count_nonzero(a[:, :, None] == b[:, None, :], axis=(1, 2)).astype(np.float64)
    chance = k * k / n
    p, q = _membership(first, k), _membership(second, k)
    size = max(int(first.row.max()), int(second.row.max())) + 1
    keys, at_first, at_second = np.intersect1d(
        first.query * size + first.row,
        second.query * size + second.row,
        assume_unique=True,
        return_indices=True,
    )
    both = np.bincount(keys // size, p[at_first] * q[at_second], minlength=m)
    in_first, in_second = (
        np.bincount(near.query, share * share, minlength=m)
        for near, share in ((first, p), (second, q))
    )
    spread = np.sqrt(np.maximum(in_first - chance, 0) * np.maximum(in_second - chance, 0))
    r = np.where(spread > _NO_SPREAD * k, both - chance, 0.0) / np.maximum(spread, _NO_SPREAD * k)
    tied = (in_first < k) | (in_second < k)
    return np.where(tied, chance + (k - chance) * r, both)


def _membership(near: Near, k: int) -> np.ndarray:
    """The probability that each entry is among the k, if those as near as the last are drawn."""
    last = near.distance[near.first + k - 1][near.query]
    nearer = near.distance < last
    places = k - np.bincount(near.query, nearer, minlength=near.first.size)
    tied = np.bincount(near.query, ~nearer, minlength=near.first.size)
    return np.where(nearer, 1.0, (places / tied)[near.query])
