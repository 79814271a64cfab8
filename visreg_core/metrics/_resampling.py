"""Random subsets and resamples of items, and intervals from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from visreg_core import _xp, checks
from visreg_core._xp.threefry import threefry2x32
from visreg_core.slices import DOMAIN_ROWS
from visreg_core.typing import Array

# Parts of the domain of row sampling, apart from that of samples of files.
_SUBSET, _RESAMPLE, _ORDER = 1 << 20, (1 << 20) + 1, (1 << 20) + 2


class Estimate(NamedTuple):
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


def over_subsets(
    function: Callable[[Array, Array], tuple[float, ...]],
    x: Array,
    y: Array,
    n_samples: int,
    n_repeats: int,
    seed: int,
    confidence: float,
) -> list[Estimate]:
    """Mean of `function` over random subsets of the rows, with an interval.

    The subsets are independent given the data, drawn without replacement each.
    """
    n = x.shape[0]
    checks.positive_int("n_samples", n_samples, minimum=3)
    checks.positive_int("n_repeats", n_repeats, minimum=2)
    probability("confidence", confidence)
    if n_samples > n:
        raise ValueError(f"expected n_samples <= N = {n}; found {n_samples}")
    values = []
    for repeat in range(n_repeats):
        rows = subset(n, n_samples, seed=seed, repeat=repeat)
        values.append(function(taken(x, rows), taken(y, rows)))
    return [estimate(np.asarray(v), confidence) for v in zip(*values, strict=True)]


def estimate(values: np.ndarray, confidence: float) -> Estimate:
    """Mean of independent values, with an interval for their expectation.

    Student's, with a correction of t for the skewness of few values by an invertible cubic: without
    it the coverage is 0.86 instead of 0.9 for eight similarities of subsets.

    Source: Hall 1992, "On the removal of skewness by transformation".
    """
    from scipy.special import stdtrit

    n, mean = values.size, float(values.mean())
    deviation = float(values.std(ddof=1))
    if not deviation > 0:  # or NaN
        return Estimate(mean, mean - deviation, mean + deviation)
    t = float(stdtrit(n - 1, (1 + confidence) / 2))
    # Of the sample's skewness, by its unbiased moments, a sixth of what that of the mean is.
    third = n / ((n - 1) * max(n - 2, 1)) * float(np.sum((values - mean) ** 3))
    a = third / deviation**3 / (6 * math.sqrt(n)) if n > 2 else 0.0

    def without_skewness(t: float) -> float:
        return t if abs(a) < 1e-9 else (float(np.cbrt(1 + 6 * a * (t - a))) - 1) / (2 * a)

    error = deviation / math.sqrt(n)
    return Estimate(mean, mean - without_skewness(t) * error, mean - without_skewness(-t) * error)


def subset(n: int, size: int, *, seed: int, repeat: int) -> np.ndarray:
    """`size` of n row indices without replacement, ascending."""
    high, low = _words(n, seed, repeat, _SUBSET)
    return np.sort(np.lexsort((low, high))[:size])


def resample(n: int, *, seed: int, repeat: int) -> np.ndarray:
    """n row indices with replacement, ascending."""
    high, low = _words(n, seed, repeat, _RESAMPLE)
    uniform = (high.astype(np.float64) + low.astype(np.float64) / 2**32) / 2**32
    return np.sort((uniform * n).astype(np.intp).clip(max=n - 1))


def drawn_order(n: int, *, seed: int = 0, draw: int = 0) -> np.ndarray:
    """A random order of n rows, which `draw` numbers.

    Ties that are resolved by the order of rows are then resolved at random.
    """
    return np.argsort(drawn_words(n, draw, seed=seed), kind="stable")


def drawn_words(n: int, draw: int, *, seed: int = 0) -> np.ndarray:
    """64 random bits for each of n things."""
    high, low = _words(n, seed, draw, _ORDER)
    return (high.astype(np.uint64) << np.uint64(32)) | low


def taken(x: Array, rows: np.ndarray) -> Array:
    """Rows of `x` by a host index."""
    xp = _xp.namespace(x)
    return xp.take(x, _xp.from_numpy(xp, rows.astype(np.int32), device=_xp.device(x)), axis=0)


def probability(argument: str, value: float) -> None:
    """ValueError unless 0 < value < 1."""
    checks.number(argument, value, static=True)
    if not 0 < value < 1:
        raise ValueError(f"expected {argument} between 0 and 1; found {value!r}")


def _words(n: int, seed: int, repeat: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Two unsigned words per row from the counter-based stream of row sampling."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"expected seed to be an integer in 0 ... 2**32 - 1; found {seed!r}")
    rows = np.arange(n, dtype=np.int64).astype(np.int32)
    words = threefry2x32(
        np.full(1, seed, dtype=np.uint32).view(np.int32),
        np.full(1, repeat, dtype=np.int32),
        rows,
        np.full(1, (DOMAIN_ROWS << 28) + stream, dtype=np.int32),
    )
    return words[0].view(np.uint32), words[1].view(np.uint32)
