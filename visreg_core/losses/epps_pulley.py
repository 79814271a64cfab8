"""Epps-Pulley test of normality and SIGReg, its average over random directions (LeJEPA)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core._xp import tiles
from visreg_core.gaussian import epps_pulley_knots
from visreg_core.losses import rows as _rows
from visreg_core.losses.declaration import Example, Inputs, declare_loss, times
from visreg_core.losses.execution import Execution
from visreg_core.losses.sliced import flat_batch, flat_slices, projection_dtype_for, sliced
from visreg_core.typing import Array, DType, Namespace, Scalar

# Arrays of the samples' size that a row works with: cosine, sine, and the multiples in turn.
_SCRATCH = 8


class EppsPulleySaved(NamedTuple):
    """What a statistic of slices saves.

    gradient : of the sum over slices or leading axes, of the embeddings' shape; n : kept rows, ()
    or None.
    """

    gradient: Array | None
    n: Array | None


class Knots(NamedTuple):
    """Knots 1 … m of the integral (knot 0 adds nothing), as arrays (1, m)."""

    first: float
    knots: Array
    weights: Array
    targets: Array


def knots_like(xp: Namespace, x: Array, t_max: float, n_knots: int) -> Knots:
    """The integral's constants in x's dtype and on its device."""
    constants = epps_pulley_knots(t_max, n_knots)
    arrays = [xp.asarray([c[1:]], dtype=x.dtype, **_xp.on_device(x)) for c in constants]
    return Knots(constants[0][1], *arrays)


class Multiples:
    """Cosines and sines of j θ, j = 1 … m, for the angles θ (R, N): one rotation a knot.

    Rotations, unlike Chebyshev's three-term recurrence, keep their accuracy at small angles.
    """

    def __init__(self, xp: Namespace, angle: Array, m: int) -> None:
        self.xp, self.m = xp, m
        self.cos, self.sin = xp.cos(angle), xp.sin(angle)

    def sums(self, keep: Array | None) -> tuple[Array, Array]:
        """Σ_n cos jθ_n and Σ_n sin jθ_n over the kept samples, each (R, m)."""
        xp, c, s = self.xp, self.cos, self.sin
        cos_sums, sin_sums = [], []
        for j in range(self.m):
            if j:
                c, s = c * self.cos - s * self.sin, s * self.cos + c * self.sin
            cos_sums.append(xp.sum(_rows.kept(xp, keep, c), axis=-1, keepdims=True))
            sin_sums.append(xp.sum(_rows.kept(xp, keep, s), axis=-1, keepdims=True))
        return xp.concat(cos_sums, axis=-1), xp.concat(sin_sums, axis=-1)

    def polynomial(self, of_cos: Array, of_sin: Array) -> Array:
        """Σ_j of_cos_j cos jθ_n + of_sin_j sin jθ_n for coefficients (R, m): (R, N).

        It is the real part of Σ_j (of_cos_j − i of_sin_j) e^{ijθ}, by Horner's rule.
        """
        re, im = 0.0, 0.0
        for j in reversed(range(self.m)):
            re, im = re + of_cos[:, j : j + 1], im - of_sin[:, j : j + 1]
            re, im = re * self.cos - im * self.sin, re * self.sin + im * self.cos
        return re


def value_from_moments(xp: Namespace, real: Array, imaginary: Array, n: Scalar, k: Knots) -> Array:
    """N ∫ |φ̂(t) − e^{−t²/2}|² e^{−t²/2} dt from φ̂'s parts at the knots (R, m): (R,)."""
    off = real - k.targets
    return n * xp.sum(k.weights * (off * off + imaginary * imaginary), axis=-1)


def term(
    xp: Namespace,
    x: Array,
    n: Scalar,
    k: Knots,
    mask: Array | None,
    execution: Execution,
) -> tuple[Array, ...]:
    """Statistic of each row of x (R, N) and, if one is needed, its gradient (R, N).

    dT/dx_n = Σ_j 2 w_j t_j [S_j cos(t_j x_n) − (C_j − e_j) sin(t_j x_n)] with C, S the parts of φ̂:
    a trigonometric polynomial.
    """
    keep = None if mask is None else mask[None, :]
    angle = k.first * _rows.kept(xp, keep, x)
    m, sharded = k.knots.shape[-1], execution.shards.size > 1
    make: Any = execution.kernels.get("multiples", multiples)
    of_angle = make(xp, angle, m, sharded=sharded)
    sums = xp.concat(of_angle.sums(keep), axis=-1)
    moments = execution.shards.sum(sums) / n
    real, imaginary = moments[:, :m], moments[:, m:]
    value = value_from_moments(xp, real, imaginary, n, k)
    if not execution.need_gradient:
        return (value,)
    slope = 2 * k.weights * k.knots
    gradient = of_angle.polynomial(slope * imaginary, -slope * (real - k.targets))
    return value, _rows.kept(xp, keep, gradient)


def multiples(xp: Namespace, angle: Array, m: int, *, sharded: bool) -> Any:
    """The `Multiples` of angles; kernels need to know whether shards reduce the sums."""
    return Multiples(xp, angle, m)


def _scratch(execution: Execution, n_knots: int) -> int:
    of_kernel = execution.kernels.get("multiples_scratch")
    return _SCRATCH if of_kernel is None else of_kernel(n_knots)


def _epps_pulley_magnitude(
    x: np.ndarray, t_max: float = 3.0, n_knots: int = 17
) -> tuple[float, ...]:
    """N Σ_t w_t (mean_n (1 + |t x_n|) + e^{−t²/2})²: the rounding of an angle t x grows with it."""
    n = x.shape[0]
    size = float(np.mean(np.abs(x)))
    knots = zip(*epps_pulley_knots(t_max, n_knots), strict=True)
    return (n * sum(weight * (1 + t * size + target) ** 2 for t, weight, target in knots),)


@declare_loss(
    differentiated=("x",),
    row_axes={"x": "axis", "row_mask": -1},
    saved=EppsPulleySaved,
    magnitude=_epps_pulley_magnitude,
    examples=(Example(arrays={"x": "line"}),),
)
def epps_pulley(
    execution: Execution,
    x: Array,
    t_max: float = 3.0,
    n_knots: int = 17,
    *,
    axis: int = -1,
    row_mask: Array | None = None,
) -> tuple[Array, EppsPulleySaved]:
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
    xp = _xp.namespace(x, row_mask)
    checks.floating("x", x)
    checks.choice("axis", axis, (-1, -2))
    if x.ndim < -axis or x.shape[axis] < 2 or 0 in x.shape:
        raise ValueError(
            f"expected x with at least 2 samples along axis {axis}; found shape {tuple(x.shape)}"
        )
    moved = x if axis == -1 else xp.matrix_transpose(x)
    checks.row_mask(row_mask, moved[..., None])
    rows = _xp.cast(xp, xp.reshape(moved, (-1, moved.shape[-1])), _xp.compute_dtype(xp, x))
    n = _rows.count(xp, rows[..., None], row_mask, execution.shards)
    knots = knots_like(xp, rows, t_max, n_knots)

    def of_rows(tile: Array) -> tuple[Array, ...]:
        return term(xp, tile, n, knots, row_mask, execution)

    if execution.shards.size > 1:  # one reduction of all rows' sums
        values, *gradients = of_rows(rows)
    else:
        scratch = _scratch(execution, n_knots)
        values, *gradients = tiles.map_rows(xp, of_rows, rows, scratch=scratch)
    gradient = None
    if gradients:
        gradient = xp.reshape(gradients[0], moved.shape)
        gradient = gradient if axis == -1 else xp.matrix_transpose(gradient)
    return xp.reshape(values, moved.shape[:-1]), EppsPulleySaved(gradient, None)


@epps_pulley.backward
def _epps_pulley_backward(
    execution: Execution, inputs: Inputs, saved: EppsPulleySaved, cotangent: Scalar
) -> Array:
    if _xp.is_array(cotangent) and cotangent.ndim:
        axis = inputs["axis"]
        cotangent = cotangent[..., None] if axis == -1 else cotangent[..., None, :]
    return times(saved.gradient, cotangent, execution.donated)


def _sigreg_magnitude(
    z: np.ndarray, slices: np.ndarray, *, scale_by_n: bool = True
) -> tuple[float, ...]:
    """`_epps_pulley_magnitude` of the projections."""
    (size,) = _epps_pulley_magnitude((z @ slices).reshape(-1))
    return (size / (slices.shape[1] if scale_by_n else slices.shape[1] * z.shape[0]),)


@declare_loss(
    differentiated=("z",),
    row_axes={"z": -2, "row_mask": -1},
    shape_only=("slices",),
    saved=EppsPulleySaved,
    magnitude=_sigreg_magnitude,
)
def sigreg_loss(
    execution: Execution,
    z: Array,
    slices: Array,
    t_max: float = 3.0,
    n_knots: int = 17,
    *,
    scale_by_n: bool = True,
    row_mask: Array | None = None,
    chunk_size: int | None = None,
    projection_dtype: DType = None,
) -> tuple[Array, EppsPulleySaved]:
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
    row_mask, chunk_size, projection_dtype
        As in `shape_loss`.

    Returns
    -------
    0-d array
        float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError, TypeError
        As `shape_loss`.

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
    xp = _xp.namespace(z, slices, row_mask)
    checks.embeddings("z", z)
    checks.slices(slices, z)
    checks.row_mask(row_mask, z)
    checks.flag("scale_by_n", scale_by_n)
    n = _rows.count(xp, z, row_mask, execution.shards)
    wide = _xp.cast(xp, flat_batch(xp, z), _xp.compute_dtype(xp, z))
    wide = _rows.kept(xp, _rows.keep_column(row_mask), wide)
    knots = knots_like(xp, wide, t_max, n_knots)
    values, gradients = sliced(
        xp,
        (wide,),
        flat_slices(xp, slices, z),
        lambda _, p: term(xp, p, n, knots, row_mask, execution),
        execution,
        # What shards reduce, they do once a chunk.
        scratch=_scratch(execution, n_knots) if execution.shards.size == 1 else None,
        chunk_size=chunk_size,
        projection_dtype=projection_dtype_for(xp, z, projection_dtype),
        shards=execution.shards,
    )
    value = _rows.mean_of(xp, values)
    gradient = xp.reshape(gradients[0], z.shape) if execution.need_gradient else None
    saved = EppsPulleySaved(gradient, None if row_mask is None else n)
    return (value if scale_by_n else value / n), saved


@sigreg_loss.backward
def _sigreg_backward(
    execution: Execution, inputs: Inputs, saved: EppsPulleySaved, cotangent: Scalar
) -> Array:
    z, slices = inputs["z"], inputs["slices"]
    divisor = math.prod(z.shape[:-2]) * slices.shape[-1]
    if not inputs["scale_by_n"]:
        divisor = divisor * (z.shape[-2] * execution.shards.size if saved.n is None else saved.n)
    return times(saved.gradient, cotangent / divisor, execution.donated)
