"""Assertions on arrays of any namespace.

``assert_close`` compares values, and also what a plain comparison of values lets through: a result
that came back as another library's array, in another dtype, or on another device.
"""

import math
from typing import Any

import numpy as np

from visreg_core import _xp

__all__ = ["assert_close"]

# Units of the dtype's own epsilon that two correct evaluations may differ by, by default.
_DEFAULT_ULPS = 32


def assert_close(
    actual: Any,
    desired: Any,
    *,
    rtol: float | None = None,
    atol: float = 0.0,
    measure: str = "elementwise",
    check_namespace: bool = True,
    check_dtype: bool = True,
    check_device: bool = True,
    label: str = "result",
) -> None:
    """Assert that two arrays, or two tuples of arrays, agree in value and in kind.

    Parameters
    ----------
    actual, desired : array, Python number, or (named) tuple of them
        What was computed and what was expected. Tuples are compared field by field. A Python
        number as ``desired`` stands for any namespace, dtype and device.
    rtol : float, optional
        Relative tolerance; by default 32 times the machine epsilon of ``actual``'s dtype.
    atol : float
        Absolute tolerance, added to the relative one.
    measure : {"elementwise", "l2"}
        "elementwise" bounds every element by ``atol + rtol * |desired|``; "l2" bounds the norm of
        the difference by ``atol + rtol * norm(desired)``, which is the right measure for gradients
        of sorting losses in float32: a swap of two nearly equal projections moves single elements.
    check_namespace, check_dtype, check_device : bool
        Compare the array library, the dtype, the device; all True by default.
    label : str
        Name of the quantity in the message.

    Raises
    ------
    AssertionError
        Naming what differs: namespace, dtype, device, shape, or the largest error and where.
    ValueError
        If ``measure`` is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.testing import assert_close
    >>> assert_close(np.asarray([1.0, 2.0]), np.asarray([1.0, 2.0 + 1e-15]))
    >>> assert_close(np.float32(1.0), np.float64(1.0))
    Traceback (most recent call last):
        ...
    AssertionError: result: dtype is float32, expected float64
    """
    if measure not in ("elementwise", "l2"):
        raise ValueError(f"unknown measure {measure!r}; known: 'elementwise', 'l2'")
    if isinstance(desired, tuple):
        _assert_same_tuple(actual, desired, label)
        names = getattr(desired, "_fields", range(len(desired)))
        for name, got, wanted in zip(names, actual, desired, strict=True):
            assert_close(
                got,
                wanted,
                rtol=rtol,
                atol=atol,
                measure=measure,
                check_namespace=check_namespace,
                check_dtype=check_dtype,
                check_device=check_device,
                label=f"{label}.{name}",
            )
        return

    if not _is_python_number(desired):
        if check_namespace:
            _assert_equal(_namespace_of(actual), _namespace_of(desired), "namespace", label)
        if check_dtype:
            _assert_equal(_dtype_of(actual), _dtype_of(desired), "dtype", label)
        if check_device and not _is_number(actual) and not _is_number(desired):
            _assert_equal(_xp.device(actual), _xp.device(desired), "device", label)

    got, wanted = _host(actual), _host(desired)
    _assert_equal(got.shape, wanted.shape, "shape", label)
    if got.dtype.kind in "biu" and wanted.dtype.kind in "biu" and rtol is None:
        rtol = 0.0
    if rtol is None:
        rtol = _DEFAULT_ULPS * _epsilon_of(actual)
    got, wanted = _wide(got), _wide(wanted)
    if measure == "l2":
        _assert_close_in_norm(got, wanted, rtol, atol, label)
    else:
        _assert_close_elementwise(got, wanted, rtol, atol, label)


def _assert_same_tuple(actual: Any, desired: Any, label: str) -> None:
    if not isinstance(actual, tuple):
        raise AssertionError(f"{label}: is {type(actual).__name__}, expected a tuple")
    fields = getattr(actual, "_fields", len(actual))
    _assert_equal(fields, getattr(desired, "_fields", len(desired)), "fields", label)


def _assert_equal(found: object, expected: object, what: str, label: str) -> None:
    if found != expected:
        raise AssertionError(f"{label}: {what} is {found}, expected {expected}")


def _assert_close_elementwise(
    got: np.ndarray, wanted: np.ndarray, rtol: float, atol: float, label: str
) -> None:
    same = got == wanted  # equal infinities
    # Where an infinity is on one side only the difference is infinite and the bound finite.
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(got - wanted))
        bound = atol + rtol * np.where(np.isinf(wanted), 0.0, np.abs(wanted))
    bad = ~(error <= bound)
    if np.any(bad):
        worst = np.unravel_index(np.argmax(np.where(bad, error / (bound + 1e-300), -1)), got.shape)
        where = f" at {tuple(int(i) for i in worst)}" if got.ndim else ""
        raise AssertionError(
            f"{label}: {int(bad.sum())} of {bad.size} elements differ; worst{where}: found "
            f"{got[worst]!s}, expected {wanted[worst]!s}, "
            f"error {error[worst]:.3g} above {bound[worst]:.3g} (rtol {rtol:.3g}, atol {atol:.3g})"
        )


def _assert_close_in_norm(
    got: np.ndarray, wanted: np.ndarray, rtol: float, atol: float, label: str
) -> None:
    if not (np.all(np.isfinite(got)) and np.all(np.isfinite(wanted))):
        raise AssertionError(f"{label}: not finite, so no norm of the difference exists")
    # Divided by the largest entry first, so that squares neither overflow nor vanish.
    unit = max(float(np.max(np.abs(wanted), initial=0.0)), float(np.max(np.abs(got), initial=0.0)))
    if unit == 0.0:
        return
    error = unit * math.sqrt(float(np.sum(((got - wanted) / unit) ** 2)))
    norm = unit * math.sqrt(float(np.sum((wanted / unit) ** 2)))
    if not error <= atol + rtol * norm:
        raise AssertionError(
            f"{label}: norm of the difference {error:.3g} above {atol + rtol * norm:.3g} "
            f"(rtol {rtol:.3g} of norm {norm:.6g}, atol {atol:.3g})"
        )


def _is_python_number(x: object) -> bool:
    """Whether `x` has no dtype of its own (np.float64 is a float, but has one)."""
    return isinstance(x, (bool, int, float)) and not isinstance(x, np.generic)


def _is_number(x: Any) -> bool:
    return isinstance(x, (bool, int, float, np.generic))


def _namespace_of(x: Any) -> str:
    if _is_python_number(x):
        return "python"
    return _xp.name(_xp.namespace(x))


def _dtype_of(x: Any) -> str:
    if _is_python_number(x):
        return type(x).__name__
    return _xp.dtype_name(x)


def _epsilon_of(x: Any) -> float:
    if _is_number(x) and not isinstance(x, np.floating):
        return float(np.finfo(np.float64).eps)
    name = _dtype_of(x)
    if name == "bfloat16":
        return 2.0**-7
    return float(np.finfo(name).eps) if name.startswith("float") else 0.0


def _host(x: Any) -> np.ndarray:
    if _is_python_number(x):
        return np.asarray(x)
    return np.asarray(x) if isinstance(x, np.generic) else _xp.to_numpy(x)


def _wide(a: np.ndarray) -> np.ndarray:
    return a.astype(np.complex128 if a.dtype.kind == "c" else np.float64)
