"""Random subsets and resamples of items, and intervals from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from visreg_core import _checks, _xp
from visreg_core._threefry import threefry2x32
from visreg_core._typing import Array
from visreg_core.slices import DOMAIN_ROWS

# Parts of the domain of row sampling, beyond those that reading a sample of a file draws from.
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
    """Mean of `function` over random subsets of the rows, with Student's interval.

    The subsets are independent given the data, drawn without replacement each.
    """
    n = x.shape[0]
    _checks.positive_int("n_samples", n_samples, minimum=3)
    _checks.positive_int("n_repeats", n_repeats, minimum=2)
    probability("confidence", confidence)
    if n_samples > n:
        raise ValueError(f"expected n_samples <= N = {n}; found {n_samples}")
    values = []
    for repeat in range(n_repeats):
        rows = subset(n, n_samples, seed=seed, repeat=repeat)
        values.append(function(taken(x, rows), taken(y, rows)))
    return [student(np.asarray(v), confidence) for v in zip(*values, strict=True)]


def student(values: np.ndarray, confidence: float) -> Estimate:
    """Mean of independent values with Student's interval for their expectation."""
    from scipy.special import stdtrit

    mean = float(values.mean())
    deviation = float(values.std(ddof=1)) / math.sqrt(values.size)
    reach = float(stdtrit(values.size - 1, (1 + confidence) / 2)) * deviation
    return Estimate(mean, mean - reach, mean + reach)


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

    What goes by the order of rows where nothing else decides goes by chance in it.
    """
    high, low = _words(n, seed, draw, _ORDER)
    return np.lexsort((low, high))


def taken(x: Array, rows: np.ndarray) -> Array:
    """Rows of `x` by a host index."""
    xp = _xp.namespace(x)
    return xp.take(x, _xp.from_numpy(xp, rows.astype(np.int32), device=_xp.device(x)), axis=0)


def probability(argument: str, value: float) -> None:
    """ValueError unless 0 < value < 1."""
    _checks.number(argument, value, static=True)
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
