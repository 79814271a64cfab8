"""Checks of shapes, dtypes and arguments. They never look at values: losses run under tracing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np

from visreg_core import _xp
from visreg_core.typing import Array, Namespace


def choice(argument: str, value: object, known: Iterable[object]) -> None:
    """ValueError listing `known` unless `value` is one of them."""
    if type(value) not in (str, int) or value not in tuple(known):
        raise ValueError(f"expected {argument} to be one of {list(known)}; found {value!r}")


def plain(argument: str, x: object) -> None:
    """TypeError for arrays of a class that derives from NumPy's: masks, units, matrices.

    Their sums and products mean something else. Memory maps are plain.
    """
    if type(x) is not np.ndarray and isinstance(x, np.ndarray) and not isinstance(x, np.memmap):
        kind = f"{type(x).__module__}.{type(x).__qualname__}"
        raise TypeError(f"expected {argument} as a plain array; found {kind}")


def floating(argument: str, x: Array) -> None:
    """TypeError unless `x` has a real floating dtype."""
    found = _xp.dtype_name(x)
    if found not in _xp.FLOATING:
        raise TypeError(f"expected {argument} of dtype {', '.join(_xp.FLOATING)}; found {found}")


def dtype(argument: str, value: Any, xp: Namespace) -> None:
    """TypeError unless `value` is a floating dtype of the library `xp`."""
    if not _xp.is_dtype_of(xp, value):
        raise TypeError(
            f"expected {argument} to be {', '.join(_xp.FLOATING)} of {_xp.name(xp)}; "
            f"found {value!r}"
        )


def embeddings(argument: str, z: Array, *, min_rows: int = 2, shape: str = "(..., N, D)") -> None:
    """Floating array (..., N, D) with at least `min_rows` samples and one dimension."""
    floating(argument, z)
    if z.ndim < 2:
        raise ValueError(f"expected {argument} of shape {shape}; found shape {tuple(z.shape)}")
    if z.shape[-2] < min_rows:
        raise ValueError(
            f"expected {argument} with N >= {min_rows} samples (axis -2); "
            f"found shape {tuple(z.shape)}"
        )
    if 0 in z.shape:
        raise ValueError(f"expected {argument} without empty axes; found shape {tuple(z.shape)}")


def same_shape(first: str, a: Array, second: str, b: Array) -> None:
    """ValueError unless both arrays have one shape; TypeError unless they have one dtype."""
    if tuple(a.shape) != tuple(b.shape):
        raise ValueError(
            f"expected {first} and {second} of one shape; "
            f"found {tuple(a.shape)} and {tuple(b.shape)}"
        )
    same_dtype(first, a, second, b)


def same_dtype(first: str, a: Array, second: str, b: Array) -> None:
    """TypeError unless both arrays have one dtype."""
    if a.dtype != b.dtype:
        raise TypeError(
            f"expected {first} and {second} of one dtype; "
            f"found {_xp.dtype_name(a)} and {_xp.dtype_name(b)}"
        )


def slices(w: Array, z: Array) -> None:
    """Directions (D, K) or (..., D, K) that fit z (..., N, D) and ask for no gradient."""
    floating("slices", w)
    if w.ndim < 2 or w.shape[-2] != z.shape[-1] or w.shape[-1] < 1:
        raise ValueError(
            f"expected slices of shape (D, K) or (..., D, K) with D = {z.shape[-1]}; "
            f"found shape {tuple(w.shape)} beside embeddings of shape {tuple(z.shape)}"
        )
    lead, z_lead = tuple(w.shape[:-2]), tuple(z.shape[:-2])
    fits = len(lead) <= len(z_lead) and all(
        a in (1, b) for a, b in zip(reversed(lead), reversed(z_lead), strict=False)
    )
    if not fits:
        raise ValueError(
            f"expected the leading axes of slices to broadcast against {z_lead}; found {lead}"
        )
    if _xp.requires_grad(w):
        raise ValueError(
            "expected slices without gradient; found requires_grad=True: "
            "the losses are differentiated with respect to the embeddings only"
        )


def row_mask(mask: Array | None, z: Array) -> None:
    """Boolean (N,) beside z (..., N, D)."""
    if mask is None:
        return
    if tuple(mask.shape) != (z.shape[-2],) or _xp.dtype_name(mask) not in ("bool", "bool_"):
        raise ValueError(
            f"expected row_mask boolean of shape ({z.shape[-2]},); found "
            f"{_xp.dtype_name(mask)} of shape {tuple(mask.shape)}"
        )


def number(argument: str, value: Any, *, minimum: float = -math.inf, static: bool = False) -> None:
    """TypeError unless `value` is a number, ValueError below `minimum` or if it is not finite.

    A 0-d array, which may be traced, passes unless it must be `static`.
    """
    if type(value) in (int, float) and minimum <= value < math.inf and value > -math.inf:
        return
    if not static and _xp.is_array(value) and tuple(value.shape) == ():
        return
    least = "" if minimum == -math.inf else f" >= {minimum:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"expected {argument} to be a number{least}; found {value!r}")
    if not minimum <= float(value) < math.inf:
        raise ValueError(f"expected {argument} to be a finite number{least}; found {value!r}")


def not_negative(argument: str, value: Any) -> None:
    """As `number`, for Python numbers >= 0."""
    number(argument, value, minimum=0, static=True)


def positive(argument: str, value: Any) -> None:
    """As `number`, for Python numbers > 0."""
    number(argument, value, static=True)
    if value <= 0:
        raise ValueError(f"expected {argument} to be a finite number > 0; found {value!r}")


def flag(argument: str, value: object) -> None:
    """TypeError unless `value` is True or False: an array, even a traced one, cannot choose."""
    if not isinstance(value, bool):
        raise TypeError(f"expected {argument} to be True or False; found {value!r}")


def positive_int(argument: str, value: Any, *, minimum: int = 1) -> None:
    """Integer of at least `minimum` (bool and float are refused)."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ValueError(f"expected {argument} to be an integer >= {minimum}; found {value!r}")


def weights(argument: str, value: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """One weight per name, as a tuple."""
    countable = hasattr(value, "__len__") and getattr(value, "shape", None) != ()
    if isinstance(value, str) or not countable or len(value) != len(names):
        raise ValueError(
            f"expected {argument} to be {len(names)} numbers ({', '.join(names)}); found {value!r}"
        )
    for name, one in zip(names, value, strict=True):
        number(f"the weight of {name}", one)
    return tuple(value)
