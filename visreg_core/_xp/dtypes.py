"""Names of dtypes, the same for every library."""

from __future__ import annotations

from typing import Any

import numpy as np

from visreg_core.typing import Array, DType, Namespace

FLOATING = ("float16", "bfloat16", "float32", "float64")

_NUMPY_NAMES = {np.dtype(name): name for name in ("float16", "float32", "float64", "bool", "int64")}


def dtype_name(x_or_dtype: Any) -> str:
    """ "float32", "bfloat16", … for an array or a dtype of any library."""
    dtype = x_or_dtype
    if isinstance(dtype, type):
        dtype = np.dtype(dtype)
    dtype = getattr(dtype, "dtype", dtype)
    if isinstance(dtype, np.dtype):  # whose str() is slow
        return _NUMPY_NAMES.get(dtype) or str(dtype)
    # str(torch.float32) is 'torch.float32', str(np.dtype("float32")) is 'float32'
    return str(dtype).rsplit(".", 1)[-1]


def compute_dtype(xp: Namespace, x: Array) -> DType:
    """float64 for float64 input, float32 for everything narrower."""
    return xp.float64 if dtype_name(x) == "float64" else xp.float32


def cast(xp: Namespace, x: Array, dtype: DType) -> Array:
    """`x` in `dtype`, without a copy where it has it already."""
    return x if x.dtype == dtype else xp.astype(x, dtype)
