"""What the metrics accept: one matrix of embeddings, or two whose rows are the same items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from visreg_core import _checks, _xp
from visreg_core._typing import Array, Namespace


def matrix(argument: str, x: Array, *, min_rows: int = 2) -> tuple[Namespace, Array]:
    """Namespace of `x` (N, D), and `x` without gradient in float32, or float64 if it is that.

    Values are looked at: a metric of rows with NaN or infinity is a ValueError.
    """
    xp = _xp.namespace(x)
    _checks.embeddings(argument, x, min_rows=min_rows, shape="(N, D)")
    if x.ndim != 2:
        raise ValueError(f"expected {argument} of shape (N, D); found shape {tuple(x.shape)}")
    x = _xp.cast(xp, _xp.stop_gradient(x), _xp.compute_dtype(xp, x))
    finite = xp.all(xp.isfinite(x), axis=1)
    if not bool(xp.all(finite)):
        bad = np.flatnonzero(~_xp.to_numpy(finite)).tolist()
        some = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        rows = "row" if len(bad) == 1 else "rows"
        raise ValueError(
            f"expected finite {argument}; found NaN or infinity in {len(bad)} {rows} ({some})"
        )
    return xp, x


def paired(x: Array, y: Array, *, min_rows: int = 2) -> tuple[Namespace, Array, Array]:
    """`matrix` for two sets with the same number of rows, in one namespace and on one device.

    Both come out in float64 if one of them is.
    """
    _xp.namespace(x, y)
    xp, x = matrix("x", x, min_rows=min_rows)
    _, y = matrix("y", y, min_rows=min_rows)
    if x.dtype != y.dtype:
        x, y = _xp.cast(xp, x, xp.float64), _xp.cast(xp, y, xp.float64)
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            "expected x and y with one row per item in the same order; "
            f"found {x.shape[0]} and {y.shape[0]} rows"
        )
    return xp, x, y


def centred(xp: Namespace, x: Array) -> Array:
    """`x` minus its column means; exactly 0 for a constant column, whatever its mean rounds to."""
    x = x - x[:1, :]
    return x - _xp.sum_rows(xp, x) / x.shape[0]


def unit_rows(xp: Namespace, x: Array) -> Array:
    """Rows of `x` divided by their Euclidean norms, at any scale; zero rows stay zero."""
    largest = xp.max(xp.abs(x), axis=1, keepdims=True)
    x = x / xp.where(largest > 0, largest, 1.0)
    norm = xp.sqrt(xp.sum(x * x, axis=1, keepdims=True))
    return x / xp.where(norm > 0, norm, 1.0)


def power_of_two(*arrays: np.ndarray) -> float:
    """A power of two about as large as the largest magnitude, so that dividing by it is exact."""
    largest = max(float(np.abs(a).max()) for a in arrays)
    return 2.0 ** (np.frexp(largest)[1] - 1) if largest > 0 else 1.0


def same_ids(ids_x: Sequence[Any] | None, ids_y: Sequence[Any] | None, n: int) -> None:
    """ValueError unless both lists of item ids are absent, or equal and of length `n`."""
    if ids_x is None and ids_y is None:
        return
    if ids_x is None or ids_y is None:
        raise ValueError("expected ids of both sets or of neither; found those of one")
    a, b = np.asarray(ids_x), np.asarray(ids_y)
    if a.shape != (n,) or b.shape != (n,):
        raise ValueError(f"expected {n} ids for each set; found shapes {a.shape} and {b.shape}")
    differing = np.flatnonzero(a != b)
    if differing.size:
        i = int(differing[0])
        raise ValueError(
            "expected the same item in row i of both sets; found different ids in "
            f"{differing.size} rows, the first at {i}: {ids_x[i]!r} and {ids_y[i]!r}"
        )


def spectrum(argument: str, s: Any) -> np.ndarray:
    """Singular values as a float64 vector in descending order."""
    values = np.asarray(s, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(
            f"expected {argument} to be a vector of singular values; found shape {values.shape}"
        )
    if not np.all(values >= 0):  # also refuses NaN
        raise ValueError(f"expected non-negative {argument}; found {values.min()}")
    return np.sort(values)[::-1]
