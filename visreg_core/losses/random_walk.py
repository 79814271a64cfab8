"""Random-walk pairing of two views (SAG-VICReg, Appendices G.2 and I)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core._xp import neighbours
from visreg_core._xp.neighbours import Search
from visreg_core._xp.points import Points
from visreg_core.losses.rows import safe_reciprocal, safe_root
from visreg_core.slices import DOMAIN_WALKS, uniforms
from visreg_core.typing import Array, DType, Namespace, Scalar

SCALES = ("local", "global")
_SMALLEST_SCALE = 1e-7

_GROUP = 64  # rows that are multiplied together


def random_walk_affinity(
    a: Array,
    b: Array,
    n_neighbors: int = 10,
    percentile: float = 20,
    *,
    scale: str = "local",
    symmetrize: bool = False,
) -> Array:
    """Affinity of the rows of one view with their nearest neighbours in the other.

    Cosine distances d_ij = 1 − cos(a_i, b_j); the `n_neighbors` nearest j of each i are kept; the
    row's smallest distance is subtracted; σ_i is a percentile of the row's kept, adjusted
    distances, at least 1e-7; W_ij = exp(−d̃_ij² / σ_i²) on the kept entries, 0 elsewhere.

    Parameters
    ----------
    a, b : arrays of shape (N, D)
        Embeddings of two views. A zero row has distance 1 to every other.
    n_neighbors : int
        Neighbours kept in each row, 1 … N; ties go by index.
    percentile : float
        0 … 100, linearly interpolated.
    scale : {"local", "global"}
        One σ for each row, or one percentile of all kept distances.
    symmetrize : bool
        Return (W + Wᵀ)/2.

    Returns
    -------
    array of shape (N, N)
        In the inputs' dtype, float32 at least. It has no gradient.

    Raises
    ------
    ValueError
        For shapes that do not fit, ``n_neighbors > N``, or unknown options.
    TypeError
        For dtypes that are not floating or differ, or arrays of two libraries.

    Notes
    -----
    Source: SAG-VICReg Appendix I. The authors' number of neighbours is not known; 10 is this
    project's default. A row never has zero mass: its nearest neighbour has weight 1.

    Distances are half the squared differences of unit rows. NumPy's are decided by differences in
    float64, down to angles of about 1e-15. Elsewhere, where nothing may depend on values, products
    in float64 of what rows are apart from their mean give them, with an error of about
    (D + 8) 2⁻⁵³ times the squared distance r from it: neighbours are exact to float32 within
    clusters as wide as 1e-3 r, and distinguished down to about 1e-6 r. Equal rows of b tie.

    Examples
    --------
    >>> import numpy as np
    >>> a, b = np.random.default_rng(0).standard_normal((2, 20, 4))
    >>> w = random_walk_affinity(a, b, n_neighbors=3)
    >>> w.shape, float(w.max())  # a row's nearest neighbour has weight 1
    ((20, 20), 1.0)
    """
    check_call(
        a, b, n_neighbors=n_neighbors, percentile=percentile, scale=scale, symmetrize=symmetrize
    )
    near = nearest(a, b, n_neighbors)
    return _affinity(near, _weights(near, percentile, scale), symmetrize)


def random_walk_pairs(
    a: Array,
    b: Array,
    n_neighbors: int = 10,
    percentile: float = 20,
    *,
    scale: str = "local",
    symmetrize: bool = False,
    n_steps: int = 1,
    seed: Scalar = 0,
    step: Scalar = 0,
) -> tuple[Array, Array]:
    """For each row of one view the row of the other that a random walk pairs it with.

    As `sample_random_walk` on the `transition_matrix` of `random_walk_affinity`, but on the kept
    entries alone: unless W is symmetrised, no matrix of weights is made. Sums are of other numbers,
    whose rounding decides where a uniform is as near as that to a border between two neighbours.

    Parameters
    ----------
    a, b, n_neighbors, percentile, scale, symmetrize
        As in `random_walk_affinity`.
    n_steps, seed, step
        As in `sample_random_walk`.

    Returns
    -------
    pairs : integer array of shape (N,)
        j(i), the row of b.
    pair_weights : array of shape (N,)
        w_i = W_{i, j(i)}, in the inputs' dtype, float32 at least; 0 where a walk of several steps
        ends beyond the row's neighbours. Neither has a gradient.

    Raises
    ------
    ValueError
        For shapes that do not fit, ``n_neighbors > N``, ``n_steps < 1``, or unknown options.
    TypeError
        For dtypes that are not floating or differ, or arrays of two libraries.

    Notes
    -----
    Source: SAG-VICReg Appendices G.2 and I.

    Examples
    --------
    >>> import numpy as np
    >>> a, b = np.random.default_rng(0).standard_normal((2, 20, 4))
    >>> pairs, pair_weights = random_walk_pairs(a, b, n_neighbors=3, step=7)
    >>> affinity = random_walk_affinity(a, b, n_neighbors=3)
    >>> bool(np.all(pairs == sample_random_walk(transition_matrix(affinity), step=7)))
    True
    >>> bool(np.all(pair_weights == affinity[np.arange(20), pairs]))
    True
    """
    check_call(
        a,
        b,
        n_neighbors=n_neighbors,
        percentile=percentile,
        scale=scale,
        symmetrize=symmetrize,
        n_steps=n_steps,
    )
    return pairs_of_nearest(
        nearest(a, b, n_neighbors),
        percentile,
        scale=scale,
        symmetrize=symmetrize,
        n_steps=n_steps,
        seed=seed,
        step=step,
    )


def check_call(
    a: Array,
    b: Array,
    *,
    n_neighbors: int,
    percentile: float,
    scale: str,
    symmetrize: bool,
    n_steps: int = 1,
) -> None:
    """TypeError or ValueError for arguments that do not fit, without a look at values."""
    _xp.namespace(a, b)
    for argument, x in (("a", a), ("b", b)):
        checks.plain(argument, x)
        checks.embeddings(argument, x, min_rows=1, shape="(N, D)")
        if x.ndim != 2:
            raise ValueError(f"expected {argument} of shape (N, D); found {tuple(x.shape)}")
    checks.same_shape("a", a, "b", b)
    checks.positive_int("n_neighbors", n_neighbors)
    if n_neighbors > a.shape[0]:
        raise ValueError(f"expected n_neighbors <= N = {a.shape[0]}; found {n_neighbors}")
    check_percentile(percentile)
    checks.choice("scale", scale, SCALES)
    checks.flag("symmetrize", symmetrize)
    checks.positive_int("n_steps", n_steps)


def check_percentile(percentile: float) -> None:
    """ValueError unless it is in 0 … 100, TypeError if it is not a number."""
    checks.number("percentile", percentile, static=True)
    if not 0 <= percentile <= 100:
        raise ValueError(f"expected percentile in 0 ... 100; found {percentile!r}")


# --- step by step, for batches whose rows lie on several processes --------------------------------


class Nearest(NamedTuple):
    """The rows of one view nearest to each row of the other, nearest first but for rounding.

    index, distance : (M, n_neighbors), the latter less the row's smallest; n : rows of that view.
    """

    index: Array
    distance: Array
    n: int


def nearest(a: Array, b: Array, n_neighbors: int) -> Nearest:
    """Those of b (N, D) nearest to each row of a (M, D) by the cosine, ties by index."""
    xp = _xp.namespace(a, b)
    n = b.shape[0]
    dtype = _xp.compute_dtype(xp, a)
    if not a.shape[0]:  # a process may have none
        nothing = xp.zeros((0, n_neighbors), dtype=dtype, **_xp.on_device(a))
        return Nearest(xp.astype(nothing, xp.int64), nothing, n)
    a, b = _xp.stop_gradient(a), _xp.stop_gradient(b)
    found = _nearest_by_differences(_xp.seen(a), _xp.seen(b), n_neighbors)
    if found is None:
        index, kept = _nearest_by_products(xp, a, b, n_neighbors, dtype)
    else:
        where = _xp.device(a)
        index, kept = (_xp.from_numpy(xp, x, device=where) for x in found)
        kept = _xp.cast(xp, kept, dtype)
    return Nearest(index, kept - kept[:, :1], n)


def _nearest_by_differences(
    a: np.ndarray | None, b: np.ndarray | None, n_neighbors: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """On the host; None where rows cannot be seen there, or have NaN or infinity."""
    if a is None or b is None:
        return None
    rows, columns = Points.directions(a), Points.directions(b)
    if not (rows.are_finite() and columns.are_finite()):
        return None
    exact = a.dtype == np.float64
    search = Search(rows, columns, n_neighbors, directions=True, ordered=False, exact=exact)
    return neighbours.nearest(search)


def _nearest_by_products(
    xp: Namespace, a: Array, b: Array, n_neighbors: int, dtype: DType
) -> tuple[Array, Array]:
    """Without a look at values, as tracing wants it: by products in float64.

    Half the squared distances of what the rows are apart from their mean: at a distance r of the
    mean they are known up to about (D + 8) 2⁻⁵³ r², and then rounded to `dtype`. There are whole
    groups of rows, in whose products all columns are summed alike, so that equal rows tie.
    """
    m, n = a.shape[0], b.shape[0]
    step = min(_whole_groups(m), max(1, _xp.block_elements(xp) // (n * _GROUP)) * _GROUP)
    found = []
    with _xp.float64_inside(xp):
        wide = _xp.widest(xp, a)
        rows, columns = (_unit_rows(xp, _xp.cast(xp, x, wide)) for x in (a, b))
        finite = xp.where(xp.isnan(columns), xp.zeros_like(columns), columns)
        middle = xp.mean(finite, axis=0, keepdims=True)
        rows, columns = (_with_offset(xp, x, middle) for x in (rows, columns))
        ones = xp.ones_like(rows[:, :1])
        rows = _in_whole_groups(xp, xp.concat([rows, ones], axis=1), m)
        across = xp.concat(
            [-columns[:, :-1], xp.ones_like(columns[:, :1]), columns[:, -1:]], axis=1
        )
        across = xp.matrix_transpose(_in_whole_groups(xp, across, n))
        for start in range(0, rows.shape[0], step):
            distances = rows[start : min(start + step, rows.shape[0]), :] @ across
            distances = _xp.cast(xp, distances, dtype)[: max(m - start, 0), :n]
            distances = xp.maximum(distances, xp.zeros_like(distances))
            index = _xp.smallest(xp, distances, n_neighbors)
            found.append((index, xp.take_along_axis(distances, index, axis=-1)))
    index, kept = (xp.concat(part, axis=0) for part in zip(*found, strict=True))
    return index, kept


def _with_offset(xp: Namespace, x: Array, middle: Array) -> Array:
    """Unit rows (N, D) taken from `middle`, and half their squares (N, D + 1).

    A zero row has the spread 1 of the random unit vector that it is the mean of.
    """
    spread = xp.astype(xp.all(x == 0, axis=-1, keepdims=True), x.dtype)
    x = x - middle
    return xp.concat([x, (xp.sum(x * x, axis=-1, keepdims=True) + spread) / 2], axis=1)


def _whole_groups(n: int) -> int:
    return -(-n // _GROUP) * _GROUP


def _in_whole_groups(xp: Namespace, x: Array, n: int) -> Array:
    """`x` (N, D) with rows of zeros up to a whole number of groups."""
    more = _whole_groups(n) - n
    return (
        xp.concat(
            [x, xp.zeros_like(x[:1, :]) + xp.zeros((more, 1), dtype=x.dtype, **_xp.on_device(x))],
            axis=0,
        )
        if more
        else x
    )


def _unit_rows(xp: Namespace, x: Array) -> Array:
    """Rows of length 1; zero rows stay 0."""
    largest = xp.max(xp.abs(x), axis=-1, keepdims=True)
    x = x * safe_reciprocal(xp, largest)  # so that no square overflows or vanishes
    return x * safe_reciprocal(xp, safe_root(xp, xp.sum(x * x, axis=-1, keepdims=True)))


def _weights(near: Nearest, percentile: float, scale: str) -> Array:
    """W_ij of the kept entries."""
    xp = _xp.namespace(near.distance)
    ordered = near.distance
    if scale == "global":
        ordered = xp.sort(xp.reshape(ordered, (1, -1)), axis=-1)
    sigma = _percentile_of_sorted(xp, ordered, percentile)
    sigma = xp.maximum(sigma, _SMALLEST_SCALE * xp.ones_like(sigma))
    return xp.exp(-((near.distance / sigma) ** 2))


def _percentile_of_sorted(xp: Namespace, ordered: Array, percentile: float) -> Array:
    """Linearly interpolated percentile along the last axis, kept."""
    position = percentile / 100 * (ordered.shape[-1] - 1)
    low = min(int(position), ordered.shape[-1] - 1)
    high = min(low + 1, ordered.shape[-1] - 1)
    fraction = position - low
    return ordered[:, low : low + 1] * (1 - fraction) + ordered[:, high : high + 1] * fraction


def _affinity(near: Nearest, weights: Array, symmetrize: bool) -> Array:
    """W, or (W + Wᵀ)/2, as a matrix."""
    affinity = _xp.add_last(_xp.namespace(weights), near.n, near.index, weights)
    return (affinity + affinity.T) / 2 if symmetrize else affinity


def needs_all_rows(scale: str, symmetrize: bool, n_steps: int) -> bool:
    """Whether a row's pair depends on other rows' neighbours."""
    return scale == "global" or symmetrize or n_steps > 1


def pairs_of_nearest(
    near: Nearest,
    percentile: float,
    *,
    scale: str,
    symmetrize: bool,
    n_steps: int,
    seed: Scalar,
    step: Scalar,
    first: int = 0,
) -> tuple[Array, Array]:
    """`random_walk_pairs` of all rows; unless `needs_all_rows`, of those from `first` on."""
    xp = _xp.namespace(near.distance)
    weights = _weights(near, percentile, scale)
    if symmetrize:
        mass, index = _affinity(near, weights, symmetrize), None
    else:  # in the order of a matrix's columns, on which the draw depends
        order = xp.argsort(near.index, axis=-1)
        mass, index = (xp.take_along_axis(x, order, axis=-1) for x in (weights, near.index))
    at = _walk(xp, mass, index, first=first, seed=seed, step=step, n_steps=n_steps)
    if index is None:
        return at, xp.take_along_axis(mass, at[:, None], axis=-1)[:, 0]
    return at, xp.sum(xp.where(index == at[:, None], mass, xp.zeros_like(mass)), axis=-1)


# --- the walk -------------------------------------------------------------------------------------


def transition_matrix(affinity: Array) -> Array:
    """Row-stochastic matrix P = D⁻¹ W of a random walk.

    Parameters
    ----------
    affinity : array of shape (N, N)
        Non-negative weights W; every row has mass, as `random_walk_affinity`'s have.

    Returns
    -------
    array of shape (N, N)
        Rows sum to 1.

    Raises
    ------
    ValueError
        For a shape that is not square.
    TypeError
        For a dtype that is not floating.

    Notes
    -----
    Source: SAG-VICReg Appendix G.2.

    Examples
    --------
    >>> import numpy as np
    >>> transition_matrix(np.array([[1.0, 3.0], [2.0, 2.0]])).tolist()
    [[0.25, 0.75], [0.5, 0.5]]
    """
    xp = _xp.namespace(affinity)
    _check_square("affinity", affinity)
    wide = _xp.cast(xp, affinity, _xp.compute_dtype(xp, affinity))
    return _xp.cast(xp, wide / xp.sum(wide, axis=-1, keepdims=True), affinity.dtype)


def sample_random_walk(
    transition: Array, *, seed: Scalar = 0, step: Scalar = 0, n_steps: int = 1
) -> Array:
    """Where a walker from each row is after `n_steps` steps.

    Parameters
    ----------
    transition : array of shape (N, N)
        Row-stochastic matrix, from `transition_matrix`.
    seed, step : int or 0-d integer array
        0 … 2³² − 1, as in `random_slices`; the draws use their own domain of the stream.
    n_steps : int
        Steps of the walk.

    Returns
    -------
    integer array of shape (N,)
        One index for each row, by inverse CDF; entries of probability 0 are never drawn.

    Raises
    ------
    ValueError
        For a shape that is not square or ``n_steps < 1``.
    TypeError
        For a dtype that is not floating.

    Notes
    -----
    Source: SAG-VICReg Appendix G.2. The uniform of walker i at step t depends on (seed, step, i,
    t) alone.

    Examples
    --------
    >>> import numpy as np
    >>> sample_random_walk(np.array([[0.0, 1.0], [1.0, 0.0]]), n_steps=3).tolist()
    [1, 0]
    """
    xp = _xp.namespace(transition)
    _check_square("transition", transition)
    checks.positive_int("n_steps", n_steps)
    mass = _xp.cast(xp, _xp.stop_gradient(transition), _xp.compute_dtype(xp, transition))
    return _walk(xp, mass, None, first=0, seed=seed, step=step, n_steps=n_steps)


def _walk(
    xp: Namespace,
    mass: Array,
    index: Array | None,
    *,
    first: int,
    seed: Scalar,
    step: Scalar,
    n_steps: int,
) -> Array:
    """Where walkers `first`, `first` + 1, … from the rows of `mass` (M, C) end, (M,).

    They go to the `index` (M, C) of the entry that is drawn, or to its column where `index` is
    None. Several steps need all rows.
    """
    where = _xp.on_device(mass)
    # Parallel sums are not monotone: an entry of no mass can move them, and must not be reached.
    sums = _xp.cumulative_sum(xp, mass)
    cumulative = xp.where(mass > 0, sums, xp.zeros_like(sums))
    total = xp.max(cumulative, axis=-1, keepdims=True)
    size = mass.shape[0]
    walker = xp.arange(size, dtype=xp.int32, **where)[:, None] + first
    counter = xp.zeros((1, 1), dtype=xp.int32, **where) + (DOMAIN_WALKS << 28)
    at = xp.arange(size, **where)
    for t in range(n_steps):
        u, _ = uniforms(xp, seed, step, walker, counter + t, dtype=mass.dtype)
        reached = xp.take(cumulative, at, axis=0) >= u * xp.take(total, at, axis=0)
        # The first entry whose cumulative mass reaches u · total > 0: argmax takes the first True.
        entry = xp.argmax(xp.astype(reached, xp.int32), axis=-1)
        if index is not None:
            entry = xp.take_along_axis(xp.take(index, at, axis=0), entry[:, None], axis=-1)[:, 0]
        at = xp.astype(entry, at.dtype)
    return at


def _check_square(argument: str, x: Array) -> None:
    checks.plain(argument, x)
    checks.floating(argument, x)
    if x.ndim != 2 or x.shape[0] != x.shape[1]:
        raise ValueError(f"expected {argument} of shape (N, N); found {tuple(x.shape)}")
