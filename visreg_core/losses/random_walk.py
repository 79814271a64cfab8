"""Random-walk pairing of two views (SAG-VICReg, Appendices G.2 and I)."""

from __future__ import annotations

from visreg_core import _checks, _xp
from visreg_core._typing import Array, Namespace, Scalar
from visreg_core.losses._rows import safe_reciprocal, safe_root
from visreg_core.slices import DOMAIN_WALKS, uniforms

SCALES = ("local", "global")
_SMALLEST_SCALE = 1e-7


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
        In the inputs' dtype, float32 at least. It carries no gradient.

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

    Examples
    --------
    >>> import numpy as np
    >>> a, b = np.random.default_rng(0).standard_normal((2, 20, 4))
    >>> w = random_walk_affinity(a, b, n_neighbors=3)
    >>> w.shape, float(w.max())  # a row's nearest neighbour has weight 1
    ((20, 20), 1.0)
    """
    xp = _xp.namespace(a, b)
    for argument, x in (("a", a), ("b", b)):
        _checks.embeddings(argument, x, min_rows=1, shape="(N, D)")
        if x.ndim != 2:
            raise ValueError(f"expected {argument} of shape (N, D); found {tuple(x.shape)}")
    _checks.same_shape("a", a, "b", b)
    _checks.positive_int("n_neighbors", n_neighbors)
    _checks.choice("scale", scale, SCALES)
    _checks.flag("symmetrize", symmetrize)
    size = a.shape[0]
    if n_neighbors > size:
        raise ValueError(f"expected n_neighbors <= N = {size}; found {n_neighbors}")
    check_percentile(percentile)
    unit_a, unit_b = (_unit_rows(xp, _xp.stop_gradient(x)) for x in (a, b))
    distances = 1 - unit_a @ xp.matrix_transpose(unit_b)
    neighbors = xp.argsort(distances, axis=-1, stable=True)[:, :n_neighbors]
    kept = xp.take_along_axis(distances, neighbors, axis=-1)
    adjusted = kept - kept[:, :1]  # sorted, so that the first is the smallest
    if scale == "local":
        sigma = _percentile_of_sorted(xp, adjusted, percentile)
    else:
        sigma = _percentile_of_sorted(
            xp, xp.sort(xp.reshape(adjusted, (1, -1)), axis=-1), percentile
        )
    sigma = xp.maximum(sigma, _SMALLEST_SCALE * xp.ones_like(sigma))
    weights = xp.exp(-((adjusted / sigma) ** 2))
    affinity = _xp.add_last(xp, size, neighbors, weights)
    return (affinity + affinity.T) / 2 if symmetrize else affinity


def check_percentile(percentile: float) -> None:
    """ValueError unless it is in 0 … 100, TypeError if it is no number."""
    _checks.number("percentile", percentile, static=True)
    if not 0 <= percentile <= 100:
        raise ValueError(f"expected percentile in 0 ... 100; found {percentile!r}")


def _unit_rows(xp: Namespace, x: Array) -> Array:
    """Rows of length 1 in the compute dtype; zero rows stay 0."""
    x = _xp.cast(xp, x, _xp.compute_dtype(xp, x))
    largest = xp.max(xp.abs(x), axis=-1, keepdims=True)
    x = x * safe_reciprocal(xp, largest)  # so that no square overflows or vanishes
    return x * safe_reciprocal(xp, safe_root(xp, xp.sum(x * x, axis=-1, keepdims=True)))


def _percentile_of_sorted(xp: Namespace, ordered: Array, percentile: float) -> Array:
    """Linearly interpolated percentile along the last axis, kept."""
    position = percentile / 100 * (ordered.shape[-1] - 1)
    low = min(int(position), ordered.shape[-1] - 1)
    high = min(low + 1, ordered.shape[-1] - 1)
    fraction = position - low
    return ordered[:, low : low + 1] * (1 - fraction) + ordered[:, high : high + 1] * fraction


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
    seed, step : int or integer array of no axes
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
    _checks.positive_int("n_steps", n_steps)
    where = _xp.on_device(transition)
    size = transition.shape[0]
    dtype = _xp.compute_dtype(xp, transition)
    mass = _xp.cast(xp, _xp.stop_gradient(transition), dtype)
    # Parallel sums are not monotone: an entry of no mass can move them, and must not be reached.
    sums = _xp.cumulative_sum(xp, mass)
    cumulative = xp.where(mass > 0, sums, xp.zeros_like(sums))
    total = xp.max(cumulative, axis=-1, keepdims=True)
    walker = xp.arange(size, dtype=xp.int32, **where)[:, None]
    counter = xp.zeros((1, 1), dtype=xp.int32, **where) + (DOMAIN_WALKS << 28)
    at = xp.arange(size, **where)
    for t in range(n_steps):
        u, _ = uniforms(xp, seed, step, walker, counter + t, dtype=dtype)
        reached = xp.take(cumulative, at, axis=0) >= u * xp.take(total, at, axis=0)
        # The first entry whose cumulative mass reaches u · total > 0: argmax takes the first True.
        at = xp.astype(xp.argmax(xp.astype(reached, xp.int32), axis=-1), at.dtype)
    return at


def _check_square(argument: str, x: Array) -> None:
    _checks.floating(argument, x)
    if x.ndim != 2 or x.shape[0] != x.shape[1]:
        raise ValueError(f"expected {argument} of shape (N, N); found {tuple(x.shape)}")
