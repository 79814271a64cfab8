"""Functions of the private room of array libraries that adapters need, by name."""

from visreg_core._xp import as_namespace, cast_finite, dtype_name, namespace
from visreg_core._xp.slices_numpy import normals

__all__ = ["as_namespace", "cast_finite", "dtype_name", "namespace", "normals"]
