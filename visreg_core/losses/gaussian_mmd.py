"""Maximum mean discrepancy of one sample to the standard Gaussian."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core.losses import radial
from visreg_core.losses.declaration import Example, Inputs, declare_loss, times
from visreg_core.losses.execution import Execution
from visreg_core.losses.pairs import mean_over_pairs
from visreg_core.losses.radial import KERNELS, check_bandwidth, prior_mean, prior_means
from visreg_core.typing import Array, Scalar


class PairsSaved(NamedTuple):
    """gradient : of the sum over the leading axes, (..., N, D)."""

    gradient: Array | None


def squared_distances(z: np.ndarray) -> np.ndarray:
    """‖z_i − z_j‖² of rows (N, D), for magnitudes."""
    return np.sum((z[:, None, :] - z[None, :, :]) ** 2, axis=2)


def _magnitude(
    z: np.ndarray, *, kernel: str = "gaussian", bandwidth: float | None = None
) -> tuple[float, ...]:
    """The same with plus signs."""
    h = check_bandwidth(bandwidth, z.shape[1])
    means = prior_means(kernel, h, z.shape[1])
    (between,) = radial.kernel(np, kernel, h, squared_distances(z), False)
    (to_prior,) = prior_mean(np, means, np.sum(z * z, axis=1), False)
    return (float(between.mean() + 2 * to_prior.mean() + means.both),)


@declare_loss(
    differentiated=("z",),
    row_axes={"z": -2, "row_mask": -1},
    saved=PairsSaved,
    magnitude=_magnitude,
    examples=tuple(Example("" if k == "gaussian" else k, options={"kernel": k}) for k in KERNELS),
)
def gaussian_mmd(
    execution: Execution,
    z: Array,
    *,
    kernel: str = "gaussian",
    bandwidth: float | None = None,
    row_mask: Array | None = None,
) -> tuple[Array, PairsSaved]:
    """Squared maximum mean discrepancy to the standard Gaussian.

    mean_ij k(z_i, z_j) − 2 mean_i E k(z_i, X) + E k(X, X'), with X, X' ~ N(0, I): the squared
    distance of the empirical measure from the Gaussian in the kernel's space, without sampling X.

    Parameters
    ----------
    z : array of shape (..., N, D)
        Embeddings; the loss is the mean over the leading axes.
    kernel : {"gaussian", "imq", "laplace"}
        e^{−r²/2h²}, (1 + r²/h²)^{−1/2} (inverse multiquadric) or e^{−r/h} of the distance r.
    bandwidth : float, optional
        h > 0; √D if not given, where independent draws of N(0, I) are √(2D) apart.
    row_mask : boolean array of shape (N,), optional
        Rows to keep.

    Returns
    -------
    0-d array
        float64 for float64 embeddings, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit, N < 2, an unknown kernel, or a bandwidth that is not positive.
    TypeError
        For a dtype that is not floating.

    Notes
    -----
    Source: Gretton et al. 2012, eq. 3, between the embeddings and N(0, I); KerJEPA (Zimmermann et
    al. 2025). O(N² D) in blocks of rows. E k(z, X) of the Gaussian kernel is
    (1 + 1/h²)^{−D/2} e^{−‖z‖²/(2h² + 2)}; the others are mixtures of Gaussian kernels, and so are
    their means. Laplace's kernel has a tip: its gradient there is taken as 0.

    Examples
    --------
    >>> import numpy as np
    >>> z = np.random.default_rng(0).standard_normal((256, 16))
    >>> bool(gaussian_mmd(z) < 0.01 < gaussian_mmd(0.1 * z))
    True
    """
    checks.embeddings("z", z)
    checks.row_mask(row_mask, z)
    checks.choice("kernel", kernel, KERNELS)
    xp, dim = execution.namespace(z, row_mask), _xp.fixed_size(z.shape[-1])
    h = check_bandwidth(bandwidth, dim)
    means = prior_means(kernel, h, dim)

    def of_pair(rho: Array, s: Array, need_slopes: bool) -> tuple[Array, ...]:
        found = radial.kernel(xp, kernel, h, rho, need_slopes)
        return (*found, None) if need_slopes else found

    def of_row(q: Array, need_slope: bool) -> tuple[Array, ...]:
        return tuple(-2 * x for x in prior_mean(xp, means, q, need_slope))

    value, gradient = mean_over_pairs(execution, z, row_mask, of_pair, of_row)
    return value + means.both, PairsSaved(gradient)


@gaussian_mmd.backward
def pairs_backward(
    execution: Execution, inputs: Inputs, saved: PairsSaved, cotangent: Scalar
) -> Array:
    """Gradient of a mean over pairs, of which all is saved but the mean over leading axes."""
    share = cotangent / math.prod(inputs["z"].shape[:-2])
    return times(saved.gradient, share, execution.donated)
