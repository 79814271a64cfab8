"""Inputs of the metrics: one matrix of embeddings, or two whose rows are the same items."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from visreg_core import _xp, checks
from visreg_core.typing import Array, Namespace


def plain(argument: str, x: Array) -> Array:
    """`x` as a dense array of its library; an error where that would lose something.

    NumPy's subclasses become plain arrays: products of a matrix differ, and sums of a masked array
    skip masked values, which its length counts.
    """
    _xp.namespace(x)
    if isinstance(x, np.ndarray):
        masked = int(np.ma.getmaskarray(x).sum()) if isinstance(x, np.ma.MaskedArray) else 0
        if masked:
            raise ValueError(
                f"expected {argument} without a mask; found {masked} of {x.size} values masked"
            )
        if type(x) is not np.ndarray and (hasattr(x, "unit") or hasattr(x, "units")):
            raise TypeError(
                f"expected {argument} of plain numbers; found {type(x).__qualname__} with units"
            )
        return np.asarray(x, dtype=None if x.dtype.isnative else x.dtype.newbyteorder("="))
    if not hasattr(x, "resolve_neg"):
        return x
    # Torch is the only library with several layouts.
    if x.is_nested or not str(x.layout).endswith(".strided"):
        layout = "nested" if x.is_nested else str(x.layout)
        raise TypeError(f"expected {argument} as a dense array; found layout {layout}")
    if x.is_meta:
        raise TypeError(f"expected {argument} with values; found an array of the meta device")
    # A lazy sign, which NumPy does not know.
    return x.resolve_conj().resolve_neg()


def matrix(argument: str, x: Array, *, min_rows: int = 2) -> tuple[Namespace, Array]:
    """Namespace of `x` (N, D), and `x` without gradient in float32, or float64 if it is that.

    ValueError for NaN or infinity: metrics check values.
    """
    xp, x = _xp.namespace(x), plain(argument, x)
    checks.embeddings(argument, x, min_rows=min_rows, shape="(N, D)")
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
    return _xp.compiled(xp, _centred, "xp")(xp, x)


def _centred(xp: Namespace, x: Array) -> Array:
    x = x - x[:1, :]
    return x - _xp.sum_rows(xp, x) / x.shape[0]


def unit_rows(xp: Namespace, x: Array) -> Array:
    """Rows of `x` divided by their Euclidean norms, at any scale; zero rows stay zero."""
    return _xp.compiled(xp, _unit_rows, "xp")(xp, x)


def _unit_rows(xp: Namespace, x: Array) -> Array:
    largest = xp.max(xp.abs(x), axis=1, keepdims=True)
    x = x / xp.where(largest > 0, largest, 1.0)
    norm = xp.sqrt(xp.sum(x * x, axis=1, keepdims=True))
    return x / xp.where(norm > 0, norm, 1.0)


def power_of_two(*arrays: np.ndarray) -> float:
    """A power of two about as large as the largest magnitude, so that dividing by it is exact."""
    largest = max(float(np.abs(a).max()) for a in arrays)
    return 2.0 ** (np.frexp(largest)[1] - 1) if largest > 0 else 1.0


def numbers(argument: str, values: Any) -> np.ndarray:
    """Real numbers, an array or array_like, on the host in float64."""
    given = _on_host(argument, values)
    if given.dtype.kind not in "biuf" and _xp.dtype_name(given) not in _xp.FLOATING:
        raise TypeError(f"expected {argument} of real numbers; found dtype {given.dtype}")
    return given.astype(np.float64)


def labels(argument: str, values: Any) -> np.ndarray:
    """Labels of any shape on the host, compared as they are: never rounded, never made strings.

    Each column holds one sort: numbers, strings or bytes. ValueError where one is NaN, TypeError
    for other sorts, a missing label among them.
    """
    if _is_array(values):
        given = _on_host(argument, values)
    else:  # NumPy's common dtype would change values: 1 with "a" to "1", 2^53 + 1 with 0.5 to 2^53
        given = np.asarray(values, dtype=object)
    if given.dtype.kind in "OT":  # T: strings of any width, some of which may be missing
        given = given.astype(object)
        given = _of_one_sort(argument, given)
    elif given.dtype.kind not in "biufUS":
        raise TypeError(f"expected {argument} of integers or strings; found dtype {given.dtype}")
    if given.dtype.kind == "f" and np.isnan(given).any():
        bad = np.flatnonzero(np.isnan(given.reshape(len(given), -1)).any(axis=1))
        raise ValueError(f"expected {argument} without NaN; found it in {bad.size} of them")
    return given


def _is_array(values: Any) -> bool:
    """Whether it is an array with one dtype; data frames have one for each column."""
    try:
        return bool(_xp.library(values))
    except TypeError:
        return False


def _on_host(argument: str, values: Any) -> np.ndarray:
    return _xp.to_numpy(plain(argument, values)) if _is_array(values) else np.asarray(values)


_SORTS = (("number", Integral | np.bool_ | float | np.floating), ("string", str), ("bytes", bytes))


def _of_one_sort(argument: str, values: np.ndarray) -> np.ndarray:
    """An array of Python's objects in the dtype of all of them, if one holds them exactly."""
    columns = values.reshape(len(values), -1).T if values.ndim else values[None]
    for column in columns:
        found = {_sort(kind) for kind in set(map(type, column.tolist()))}
        if len(found) > 1 or not found <= {name for name, _ in _SORTS}:
            raise TypeError(
                f"expected {argument} of one sort, integers or strings; "
                f"found {', '.join(sorted(found))}"
            )
    kinds = set(map(type, values.ravel().tolist()))
    if any(v != v for v in values.ravel().tolist()):
        return values.astype(np.float64)  # numbers with NaN, which the caller counts
    for sort, dtype in ((Integral, np.int64), (float, np.float64), (str, np.str_)):
        if all(issubclass(kind, sort) for kind in kinds):
            try:
                return values.astype(dtype)
            except OverflowError:  # an integer beyond 64 bits
                return values
    return values


def _sort(kind: type) -> str:
    return next((name for name, kinds in _SORTS if issubclass(kind, kinds)), kind.__name__)


def same_ids(ids_x: Sequence[Any] | None, ids_y: Sequence[Any] | None, n: int) -> None:
    """ValueError unless both lists of item ids are absent, or equal and of length `n`."""
    if ids_x is None and ids_y is None:
        return
    if ids_x is None or ids_y is None:
        raise ValueError("expected ids of both sets or of neither; found those of one")
    a, b = (
        _on_host("ids", ids) if _is_array(ids) else np.asarray(ids, dtype=object)
        for ids in (ids_x, ids_y)
    )
    if a.shape != (n,) or b.shape != (n,):
        raise ValueError(f"expected {n} ids for each set; found shapes {a.shape} and {b.shape}")
    if a.dtype.kind != b.dtype.kind:  # 1 is not "1", and 2^53 + 1 is not 2^53
        a, b = a.astype(object), b.astype(object)
    differing = np.flatnonzero(a != b)
    if differing.size:
        i = int(differing[0])
        first, second = a[i : i + 1].tolist()[0], b[i : i + 1].tolist()[0]
        raise ValueError(
            "expected the same item in row i of both sets; found different ids in "
            f"{differing.size} rows, the first at {i}: {first!r} and {second!r}"
        )


def spectrum(argument: str, s: Any) -> np.ndarray:
    """Singular values as a float64 vector in descending order."""
    values = numbers(argument, s)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(
            f"expected {argument} to be a vector of singular values; found shape {values.shape}"
        )
    if not np.all(values >= 0):  # also refuses NaN
        raise ValueError(f"expected non-negative {argument}; found {values.min()}")
    if np.isinf(values).any():
        raise ValueError(f"expected finite {argument}; found infinity")
    return np.sort(values)[::-1]
