"""Maximum mean discrepancy of normalised embeddings to the uniform law on the sphere."""

from __future__ import annotations

import math

import numpy as np

from visreg_core import _xp, checks
from visreg_core.losses import radial
from visreg_core.losses import rows as _rows
from visreg_core.losses.declaration import declare_loss
from visreg_core.losses.execution import Execution
from visreg_core.losses.gaussian_mmd import PairsSaved, pairs_backward, squared_distances
from visreg_core.losses.pairs import mean_over_pairs
from visreg_core.typing import Array


@_xp.host_constants
def _mean_to_uniform(t: float, dim: int) -> float:
    """E e^{−t‖x − U‖²}: ‖x − U‖²/4 is Beta distributed, both parameters (D − 1)/2."""
    if dim == 1:
        return (1 + math.exp(-4 * t)) / 2
    v = np.arange(-640, 641) * (0.25 / math.sqrt(dim))  # the density's width falls with D
    u = 1 / (1 + np.exp(-v))
    density = (u * (1 / (1 + np.exp(v)))) ** ((dim - 1) / 2)
    return float(np.exp(-4 * t * u) @ (density / density.sum()))


def _magnitude(z: np.ndarray, t: float = 2.0) -> tuple[float, ...]:
    """The same with a plus sign."""
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    unit = z / np.where(norm > 0, norm, 1)
    return (float(np.mean(np.exp(-t * squared_distances(unit)))) + _mean_to_uniform(t, z.shape[1]),)


@declare_loss(
    differentiated=("z",),
    row_axes={"z": -2, "row_mask": -1},
    saved=PairsSaved,
    magnitude=_magnitude,
)
def spherical_mmd(
    execution: Execution, z: Array, t: float = 2.0, *, row_mask: Array | None = None
) -> tuple[Array, PairsSaved]:
    """Squared maximum mean discrepancy of normalised rows to the uniform law on the sphere.

    mean_ij e^{−t‖u_i − u_j‖²} − E e^{−t‖x − U‖²} with u = z/‖z‖, U uniform on the sphere and any x
    on it.

    Parameters
    ----------
    z : array of shape (..., N, D)
        Embeddings; the loss is the mean over the leading axes. Rows of zeros stay where they are,
        without a gradient.
    t : float
        Inverse width of the kernel, positive.
    row_mask : boolean array of shape (N,), optional
        Rows to keep.

    Returns
    -------
    0-d array
        float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit, N < 2, or a t that is not positive.
    TypeError
        For a dtype that is not floating.

    Notes
    -----
    Source: Wang & Isola 2020, whose uniformity is the logarithm of the first mean: their gradients
    point the same way. Less the constant, the loss is at least 0 and tends to 0 for uniform rows
    alone. O(N² D) in blocks of rows.

    Examples
    --------
    >>> import numpy as np
    >>> z = np.random.default_rng(0).standard_normal((256, 8))
    >>> bool(spherical_mmd(z) < 0.01 < spherical_mmd(z + 1))
    True
    """
    checks.embeddings("z", z)
    checks.row_mask(row_mask, z)
    t = _xp.fixed_number(t)
    checks.positive("t", t)
    xp, dim = execution.namespace(z, row_mask), _xp.fixed_size(z.shape[-1])
    wide = _rows.kept(xp, _rows.keep_column(row_mask), execution.widened(z))
    largest = xp.max(xp.abs(_xp.stop_gradient(wide)), axis=-1, keepdims=True)
    inverse = _rows.safe_reciprocal(xp, largest)  # squares of 1e-30 or 1e30 leave float32
    scaled = wide * inverse
    norm = _rows.safe_root(xp, xp.sum(scaled * scaled, axis=-1, keepdims=True))
    over_norm = _rows.safe_reciprocal(xp, norm)
    unit = scaled * over_norm

    def of_pair(rho: Array, s: Array, need_slopes: bool) -> tuple[Array, ...]:
        found = radial.kernel(xp, "gaussian", 1 / math.sqrt(2 * t), rho, need_slopes)
        return (*found, None) if need_slopes else found

    value, gradient = mean_over_pairs(execution, unit, row_mask, of_pair, None)
    if gradient is not None:
        across = gradient - unit * xp.sum(unit * gradient, axis=-1, keepdims=True)
        gradient = across * over_norm * inverse
    return value - _mean_to_uniform(t, dim), PairsSaved(gradient)


spherical_mmd.backward(pairs_backward)
