"""Epps-Pulley test of normality and SIGReg, its average over random directions (LeJEPA)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from visreg_core import _checks, _xp
from visreg_core._typing import Array, DType, Namespace, Scalar
from visreg_core.gaussian import epps_pulley_knots
from visreg_core.losses import _rows
from visreg_core.losses._differentiable import differentiated_by, gradient_like
from visreg_core.losses._sliced import flat_batch, flat_slices, projection_dtype_for, sliced


def moments(
    xp: Namespace, cos: Array, sin: Array, n: Scalar, n_knots: int, keep: Array | None
) -> tuple[list[Array], list[Array]]:
    """Empirical characteristic function at the knots 1 … n_knots - 1: real and imaginary parts.

    cos, sin : cosine and sine of the first knot's angle (R, N); each mean is (R, 1). The angles
    are multiples of the first, so that each knot is one rotation from the one before; rotations,
    unlike Chebyshev's three-term recurrence, keep their accuracy at small angles.
    """
    real, imaginary = [], []
    c, s = cos, sin
    for j in range(1, n_knots):
        if j > 1:
            c, s = c * cos - s * sin, s * cos + c * sin
        real.append(xp.sum(_rows.kept(xp, keep, c), axis=-1, keepdims=True) / n)
        imaginary.append(xp.sum(_rows.kept(xp, keep, s), axis=-1, keepdims=True) / n)
    return real, imaginary


def value_from_moments(
    real: list[Array], imaginary: list[Array], n: Scalar, t_max: float
) -> Array:
    """N ∫ |φ̂(t) − e^{−t²/2}|² e^{−t²/2} dt by the doubled trapezoid rule; the knot 0 adds 0."""
    _, weights, targets = epps_pulley_knots(t_max, len(real) + 1)
    terms = [
        w * ((c - e) * (c - e) + s * s)
        for c, s, w, e in zip(real, imaginary, weights[1:], targets[1:], strict=True)
    ]
    return n * sum(terms[1:], terms[0])


def gradient_from_moments(
    cos: Array, sin: Array, real: list[Array], imaginary: list[Array], t_max: float
) -> Array:
    """Gradient with respect to the samples, (R, N): a trigonometric polynomial, by Horner's rule.

    dT/dx_n = Σ_j 2 w_j t_j [S_j cos(t_j x_n) − (C_j − e_j) sin(t_j x_n)] is the real part of
    Σ_j (a_j − i b_j) e^{i t_j x_n} with a_j = 2 w_j t_j S_j and b_j = −2 w_j t_j (C_j − e_j).
    """
    knots, weights, targets = epps_pulley_knots(t_max, len(real) + 1)
    a = [2 * w * t * s for w, t, s in zip(weights[1:], knots[1:], imaginary, strict=True)]
    minus_b = [
        2 * w * t * (c - e)
        for w, t, c, e in zip(weights[1:], knots[1:], real, targets[1:], strict=True)
    ]
    re, im = a[-1], minus_b[-1]
    for a_j, minus_b_j in zip(reversed(a[:-1]), reversed(minus_b[:-1]), strict=True):
        re, im = re * cos - im * sin + a_j, re * sin + im * cos + minus_b_j
    return re * cos - im * sin


def term(
    xp: Namespace,
    x: Array,
    n: Scalar,
    t_max: float,
    n_knots: int,
    mask: Array | None,
    need_grad: bool,
) -> tuple[Array, ...]:
    """Statistic of each row of x (R, N) and, if wanted, its gradient (R, N)."""
    step = float(t_max) / (n_knots - 1)
    keep = None if mask is None else mask[None, :]
    x = _rows.kept(xp, keep, x)
    cos, sin = xp.cos(step * x), xp.sin(step * x)
    real, imaginary = moments(xp, cos, sin, n, n_knots, keep)
    value = value_from_moments(real, imaginary, n, t_max)[:, 0]
    if not need_grad:
        return (value,)
    gradient = gradient_from_moments(cos, sin, real, imaginary, t_max)
    return value, _rows.kept(xp, keep, gradient)


def _epps_pulley(
    x: Array,
    t_max: float = 3.0,
    n_knots: int = 17,
    *,
    axis: int = -1,
    row_mask: Array | None = None,
    need_grad: bool,
) -> tuple[Array, Callable[..., Array]]:
    xp = _xp.namespace(x, row_mask)
    _checks.floating("x", x)
    _checks.choice("axis", axis, (-1, -2))
    if x.ndim < -axis or x.shape[axis] < 2 or 0 in x.shape:
        raise ValueError(
            f"expected x with at least 2 samples along axis {axis}; found shape {tuple(x.shape)}"
        )
    epps_pulley_knots(t_max, n_knots)
    moved = xp.moveaxis(x, axis, -1)
    _checks.row_mask(row_mask, moved[..., None])
    rows = _xp.cast(xp, xp.reshape(moved, (-1, moved.shape[-1])), _xp.compute_dtype(xp, x))
    n = _rows.count(xp, rows[..., None], row_mask)
    values, *gradient = _xp.map_rows(
        xp, lambda tile: term(xp, tile, n, t_max, n_knots, row_mask, need_grad), rows
    )
    shape = moved.shape[:-1]

    def vjp(cotangent: Scalar) -> Array:
        scaled = xp.reshape(gradient[0], moved.shape)
        if _xp.is_array(cotangent) and cotangent.ndim:
            cotangent = cotangent[..., None]
        return _xp.cast(xp, xp.moveaxis(scaled * cotangent, -1, axis), x.dtype)

    return xp.reshape(values, shape), vjp


@differentiated_by(_epps_pulley)
def epps_pulley(
    x: Array,
    t_max: float = 3.0,
    n_knots: int = 17,
    *,
    axis: int = -1,
    row_mask: Array | None = None,
) -> Array:
    """Epps-Pulley statistic of standard normality of one-dimensional samples.

    N ∫ |φ̂(t) − e^{−t²/2}|² e^{−t²/2} dt over [−t_max, t_max], with φ̂ the empirical
    characteristic function, by the trapezoid rule on `n_knots` equally spaced knots of [0, t_max],
    doubled.

    Parameters
    ----------
    x : array of shape (..., N), or (..., N, K) with ``axis=-2``
        Samples, of any floating dtype; computed in float32 or wider.
    t_max : float
        End of the integral.
    n_knots : int
        Knots on [0, t_max], both ends included; at least 2.
    axis : {-1, -2}
        Axis of the samples.
    row_mask : boolean array of shape (N,), optional
        Samples to keep; the result is the statistic of these.

    Returns
    -------
    array of x's shape without the sample axis
        One statistic for each leading index, float32 or float64.

    Raises
    ------
    ValueError
        For fewer than two samples, an unknown axis, or knots that make no integral.
    TypeError
        For a dtype that is not floating.

    Notes
    -----
    Source: Epps & Pulley 1983; constants of LeJEPA (17 knots on [0, 3]). As ``n_knots`` and
    ``t_max`` grow it tends to √(2π)/N Σ_ij e^{−(x_i−x_j)²/2} − 2√π Σ_i e^{−x_i²/4} + N √(2π/3).

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((3, 500))
    >>> epps_pulley(x).shape
    (3,)
    """
    return _epps_pulley(x, t_max, n_knots, axis=axis, row_mask=row_mask, need_grad=False)[0]


def _sigreg(
    z: Array,
    slices: Array,
    t_max: float = 3.0,
    n_knots: int = 17,
    *,
    scale_by_n: bool = True,
    row_mask: Array | None = None,
    chunk_size: int | None = None,
    projection_dtype: DType = None,
    need_grad: bool,
) -> tuple[Array, Callable[..., Array]]:
    xp = _xp.namespace(z, slices, row_mask)
    _checks.embeddings("z", z)
    _checks.slices(slices, z)
    _checks.row_mask(row_mask, z)
    epps_pulley_knots(t_max, n_knots)
    n = _rows.count(xp, z, row_mask)
    wide = _xp.cast(xp, flat_batch(xp, z), _xp.compute_dtype(xp, z))
    wide = _rows.kept(xp, _rows.keep_column(row_mask), wide)

    def evaluate(gradients: bool, p: Array) -> tuple[Array, ...]:
        return term(xp, p, n, t_max, n_knots, row_mask, gradients)

    values, gradients = sliced(
        xp,
        (wide,),
        flat_slices(xp, slices, z),
        evaluate,
        need_grad=need_grad,
        chunk_size=chunk_size,
        projection_dtype=projection_dtype_for(xp, z, projection_dtype),
    )
    divisor: Any = 1.0 if scale_by_n else n
    value = xp.mean(values) / divisor

    def vjp(cotangent: Scalar) -> Array:
        size = values.shape[0] * values.shape[1]
        return gradient_like(xp, gradients[0] * (cotangent / (size * divisor)), z)

    return value, vjp


@differentiated_by(_sigreg)
def sigreg_loss(
    z: Array,
    slices: Array,
    t_max: float = 3.0,
    n_knots: int = 17,
    *,
    scale_by_n: bool = True,
    row_mask: Array | None = None,
    chunk_size: int | None = None,
    projection_dtype: DType = None,
) -> Array:
    """SIGReg: mean over slices of the Epps-Pulley statistic of the projections.

    Parameters
    ----------
    z : array of shape (..., N, D)
        Embeddings; the loss is the mean over the leading axes.
    slices : array of shape (D, K) or (..., D, K)
        Unit directions, from `random_slices`.
    t_max, n_knots : float, int
        As in `epps_pulley`.
    scale_by_n : bool
        True (LeJEPA's default) keeps the factor N of the statistic, False divides it out.
    row_mask : boolean array of shape (N,), optional
        Rows to keep.
    chunk_size : int, optional
        Slices projected at once; bounds memory and changes nothing else.
    projection_dtype : dtype, optional
        Dtype of the product ``z @ slices``; z's own if not given (float32 at least on NumPy).

    Returns
    -------
    array of no axes
        float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit, N < 2, or slices that require a gradient.
    TypeError
        For dtypes that are not floating, or arrays of two libraries.

    Notes
    -----
    Source: LeJEPA (Balestriero & LeCun 2025), SIGReg. Its gradient vanishes as the embeddings
    collapse (VISReg, Figure "Embedding collapse prevention").

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core import random_slices
    >>> z = np.random.default_rng(0).standard_normal((256, 16))
    >>> bool(sigreg_loss(z, random_slices(16, 64)) < sigreg_loss(0.1 * z, random_slices(16, 64)))
    True
    """
    return _sigreg(
        z,
        slices,
        t_max,
        n_knots,
        scale_by_n=scale_by_n,
        row_mask=row_mask,
        chunk_size=chunk_size,
        projection_dtype=projection_dtype,
        need_grad=False,
    )[0]
