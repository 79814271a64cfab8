"""SIGReg with infinitely many slices."""

from __future__ import annotations

import math

import numpy as np

from visreg_core import _xp, checks
from visreg_core.losses import rows as _rows
from visreg_core.losses.declaration import declare_loss
from visreg_core.losses.execution import Execution
from visreg_core.losses.gaussian_mmd import PairsSaved, pairs_backward, squared_distances
from visreg_core.losses.pairs import mean_over_pairs
from visreg_core.losses.radial import mean_over_directions
from visreg_core.typing import Array

_BOTH = math.sqrt(2 * math.pi / 3)


def _magnitude(z: np.ndarray, *, scale_by_n: bool = True) -> tuple[float, ...]:
    """The same with plus signs."""
    n, d = z.shape
    (between,) = mean_over_directions(np, d, squared_distances(z) / 2, False)
    (to_prior,) = mean_over_directions(np, d, np.sum(z * z, axis=1) / 4, False)
    size = math.sqrt(2 * math.pi) * between.mean() + 2 * math.sqrt(math.pi) * to_prior.mean()
    return (float(size + _BOTH) * (n if scale_by_n else 1),)


@declare_loss(
    differentiated=("z",),
    row_axes={"z": -2, "row_mask": -1},
    saved=PairsSaved,
    magnitude=_magnitude,
)
def sigreg_limit(
    execution: Execution, z: Array, *, scale_by_n: bool = True, row_mask: Array | None = None
) -> tuple[Array, PairsSaved]:
    """SIGReg of infinitely many slices: what `sigreg_loss` tends to, and is on average.

    √(2π)/N Σ_ij M(−‖z_i − z_j‖²/2) − 2√π Σ_i M(−‖z_i‖²/4) + N √(2π/3), where M(−s) is Kummer's
    function M(1/2, D/2, −s), the mean over unit w of e^{−s (w·u)²}, ‖u‖ = 1.

    Parameters
    ----------
    z : array of shape (..., N, D)
        Embeddings; the loss is the mean over the leading axes.
    scale_by_n : bool
        True (LeJEPA's default) keeps the factor N of the statistic, False divides it out.
    row_mask : boolean array of shape (N,), optional
        Rows to keep.

    Returns
    -------
    0-d array
        float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit or N < 2.
    TypeError
        For a dtype that is not floating.

    Notes
    -----
    Source: KerJEPA (Zimmermann et al. 2025), the high-dimensional limit of sliced MMD; here for any
    D. The integral of Epps and Pulley's statistic is the whole one: `sigreg_loss` cuts it at
    `t_max` and has `n_knots` knots. Its gradient has no noise of slices, and costs O(N² D) where K
    slices cost O(N D K). As embeddings collapse it vanishes as `sigreg_loss`'s does.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core import random_slices, sigreg_loss
    >>> z = np.random.default_rng(0).standard_normal((64, 8))
    >>> sliced = sigreg_loss(z, random_slices(8, 4000), t_max=6.0, n_knots=49)
    >>> bool(abs(sliced - sigreg_limit(z)) < 0.05 * sliced)
    True
    """
    checks.embeddings("z", z)
    checks.row_mask(row_mask, z)
    checks.flag("scale_by_n", scale_by_n)
    xp, dim = execution.namespace(z, row_mask), _xp.fixed_size(z.shape[-1])
    scale = _rows.count(xp, z, row_mask, execution.shards) if scale_by_n else 1.0

    def of_pair(rho: Array, s: Array, need_slopes: bool) -> tuple[Array, ...]:
        found = mean_over_directions(xp, dim, rho / 2, need_slopes)
        units = (math.sqrt(2 * math.pi), math.sqrt(math.pi / 2))
        slopes = (None,) if need_slopes else ()
        return (*(u * f for u, f in zip(units, found, strict=False)), *slopes)

    def of_row(q: Array, need_slope: bool) -> tuple[Array, ...]:
        found = mean_over_directions(xp, dim, q / 4, need_slope)
        units = (-2 * math.sqrt(math.pi), -0.5 * math.sqrt(math.pi))
        return tuple(u * f for u, f in zip(units, found, strict=False))

    value, gradient = mean_over_pairs(execution, z, row_mask, of_pair, of_row)
    if gradient is not None:
        gradient = gradient * scale
    return (value + _BOTH) * scale, PairsSaved(gradient)


sigreg_limit.backward(pairs_backward)
