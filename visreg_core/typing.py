"""Names for the types of the array API, which has no common base class to import."""

from __future__ import annotations

from typing import Any, TypeAlias

Array: TypeAlias = Any
Namespace: TypeAlias = Any
DType: TypeAlias = Any
Device: TypeAlias = Any
Scalar: TypeAlias = Any  # a Python number or a zero-dimensional array
