"""Statistics over the rows (samples) of embeddings (..., N, D), with an optional row mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from visreg_core import _xp
from visreg_core.losses.execution import PLAIN, Shards
from visreg_core.typing import Array, Namespace, Scalar


class Rows(NamedTuple):
    """Embeddings, with the statistics from which their centred rows are recomputed.

    z : embeddings (..., N, D) as passed; first, rest : (..., 1, D), the mean in two parts, the
    second the rounding error of the first; n : number of kept rows of all shards (a Python number,
    or a 0-d array under a row mask); keep : (N, 1) boolean or None; unit : (..., 1, D), a power of
    two of the size of the centred rows' largest entry (after `centre` only).
    """

    xp: Namespace
    z: Array
    first: Array
    rest: Array
    n: Scalar
    keep: Array | None
    shards: Shards
    unit: Array = None

    # Methods and no properties: Dynamo of torch 2.9 cannot trace a property of a named tuple.
    def mean(self) -> Array:
        """Batch mean (..., 1, D)."""
        return self.first + self.rest

    def masked_n(self) -> Array | None:
        """`n` where it is an array, which the backward pass cannot recompute from shapes."""
        return None if self.keep is None else self.n

    def shifted(self) -> Array:
        """Rows less the first part of the mean, in the compute dtype; masked rows 0."""
        return kept(self.xp, self.keep, _xp.cast(self.xp, self.z, self.first.dtype) - self.first)

    def centred(self) -> Array:
        """Centred rows (..., N, D) in the compute dtype; masked rows 0."""
        return kept(self.xp, self.keep, self.shifted() - self.rest)

    def sum(self, x: Array) -> Array:
        """Sum over the rows of all shards, (..., 1, D)."""
        return self.shards.sum(_xp.sum_rows(self.xp, x))


def count(xp: Namespace, z: Array, row_mask: Array | None, shards: Shards = PLAIN.shards) -> Scalar:
    """Number of kept rows of all shards in z's compute dtype; NaN below 2.

    The count of a mask is not known while tracing, so that NaN takes the place of an error.
    """
    if row_mask is None:
        size = z.shape[-2] * shards.size
        return float(size) if isinstance(size, int) else size  # torch's symbolic sizes stay
    n = shards.sum(xp.sum(xp.astype(row_mask, _xp.compute_dtype(xp, z))))
    return xp.where(n >= 2, n, xp.nan * xp.ones_like(n))


def again(
    xp: Namespace,
    z: Array,
    row_mask: Array | None,
    shards: Shards,
    first: Array,
    rest: Array,
    n: Array | None,
) -> Rows:
    """The `Rows` of a forward pass, from the `first`, `rest` and `masked_n` that it saved."""
    number = count(xp, z, None, shards) if n is None else n
    return Rows(xp, z, first, rest, number, keep_column(row_mask), shards)


def keep_column(row_mask: Array | None) -> Array | None:
    """The mask as a column (N, 1), to broadcast against (..., N, D)."""
    return None if row_mask is None else row_mask[:, None]


def kept(xp: Namespace, keep: Array | None, x: Array, other: Array | None = None) -> Array:
    """`x` with masked rows replaced by `other` (default zeros)."""
    if keep is None:
        return x
    keep = _xp.of_rank(xp, keep, x.ndim)
    return xp.where(keep, x, xp.zeros_like(x) if other is None else other)


def centre(
    xp: Namespace, z: Array, row_mask: Array | None, shards: Shards = PLAIN.shards
) -> tuple[Rows, Array]:
    """Mean and centred rows (..., N, D) in the compute dtype, exact zeros in constant columns.

    A rounded mean can fall outside the range of the data: the mean of N equal numbers may differ
    from them by a unit in the last place, which at 1e8 in float32 is 8. Clipping it to the range
    makes constant columns centre to exactly 0, and a second centring removes its rounding error.
    """
    keep = keep_column(row_mask)
    n = count(xp, z, row_mask, shards)
    wide = kept(xp, keep, _xp.cast(xp, z, _xp.compute_dtype(xp, z)))
    mean = shards.sum(_xp.sum_rows(xp, wide)) / n
    constant = _xp.stop_gradient(wide)
    beyond = None if keep is None else xp.inf * xp.ones_like(constant)
    lowest = xp.min(kept(xp, keep, constant, beyond), axis=-2, keepdims=True)
    highest = xp.max(
        kept(xp, keep, constant, None if beyond is None else -beyond), axis=-2, keepdims=True
    )
    low, high = _range(xp, lowest, highest, shards)
    rounded = _xp.stop_gradient(mean)
    first = mean + (xp.minimum(xp.maximum(rounded, low), high) - rounded)
    # Not Rows.shifted: a second cast would give automatic differentiation a second path through
    # z's dtype, and two overflows of float16 may cancel to NaN.
    shifted = kept(xp, keep, wide - first)
    rest = shards.sum(_xp.sum_rows(xp, shifted)) / n
    reach = xp.maximum(high - rounded, rounded - low)
    smallest = xp.finfo(reach.dtype).smallest_normal  # whose reciprocal is finite
    unit = power_of_two_below(xp, xp.where(reach < smallest, smallest * xp.ones_like(reach), reach))
    return Rows(xp, z, first, rest, n, keep, shards, unit), kept(xp, keep, shifted - rest)


def _range(xp: Namespace, low: Array, high: Array, shards: Shards) -> tuple[Array, Array]:
    """Minimum and maximum over all shards, by one reduction."""
    if shards.size == 1:
        return low, high
    both = shards.maximum(xp.concat([-low, high], axis=-2))
    return -both[..., :1, :], both[..., 1:, :]


def standard_deviation(rows: Rows, centred: Array, *, eps: float = 0.0, ddof: int = 0) -> Array:
    """sqrt(Σ ẑ² / (n − ddof) + eps), (..., 1, D); its derivative at 0 is 0, not NaN.

    Columns are multiplied by a power of two first: squares of 1e-25 vanish in float32, those of
    1e20 overflow.
    """
    xp = rows.xp
    scaled = centred * (1 / rows.unit)
    deviation = safe_root(xp, rows.sum(scaled * scaled) / (rows.n - ddof)) * rows.unit
    if eps == 0:
        return deviation
    root = math.sqrt(eps)
    larger = xp.maximum(_xp.stop_gradient(deviation), root * xp.ones_like(deviation))
    return larger * xp.sqrt((deviation / larger) ** 2 + (root / larger) ** 2)


class Moments(NamedTuple):
    """Rows, the centred rows (..., N, D), and their standard deviations (..., 1, D)."""

    rows: Rows
    centred: Array
    deviation: Array


def moments(
    xp: Namespace,
    views: Sequence[Array],
    row_mask: Array | None,
    shards: Shards = PLAIN.shards,
    *,
    eps: float = 0.0,
    ddof: int = 0,
) -> list[Moments]:
    """`centre` and `standard_deviation` of each view."""
    found = []
    for z in views:
        rows, centred = centre(xp, z, row_mask, shards)
        deviation = standard_deviation(rows, centred, eps=eps, ddof=ddof)
        found.append(Moments(rows, centred, deviation))
    return found


def mean_of(xp: Namespace, x: Array) -> Array:
    """Mean of all entries, by a sum: of a small array NumPy's `mean` takes three times as long.

    Divided before the sum, which would otherwise overflow where the mean does not.
    """
    return xp.sum(x / math.prod(x.shape))


def safe_root(xp: Namespace, x: Array) -> Array:
    """Square root of x >= 0 whose derivative at 0 is 0 for every automatic differentiation."""
    zero = x == 0  # not x > 0: NaN must stay NaN
    return xp.where(zero, xp.zeros_like(x), xp.sqrt(xp.where(zero, xp.ones_like(x), x)))


def safe_reciprocal(xp: Namespace, x: Array) -> Array:
    """1 / x, and 0 at x = 0."""
    return 1 / xp.where(x == 0, xp.inf * xp.ones_like(x), x)  # with a derivative of 0 there


def power_of_two_below(xp: Namespace, x: Array) -> Array:
    """A power of two within a factor 2 below x > 0; 1 at 0."""
    positive = x > 0
    exponent = xp.floor(xp.log2(xp.where(positive, x, xp.ones_like(x))))
    return xp.pow(2 * xp.ones_like(exponent), exponent)
