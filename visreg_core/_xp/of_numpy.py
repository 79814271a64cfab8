"""What NumPy does differently from the standard."""

from __future__ import annotations

import numpy as np

from visreg_core._xp import selection, sorting_numpy
from visreg_core._xp.standard import Standard, counted_sums
from visreg_core.typing import Array, Device, Namespace


class NumPyRoom(Standard):
    """Everything is on the host already."""

    name = "numpy"
    module = "array_api_compat.numpy"
    array = ("numpy", "ndarray")  # and its scalars
    numpy_dtypes = True
    one_device = True
    works_in_tiles = True
    writes_in_place = True

    def device(self, x: Array) -> Device:
        return None if isinstance(x, np.generic) else x.device

    def is_on_host(self) -> bool:
        return True

    def to_numpy(self, x: Array) -> np.ndarray:
        return np.asarray(x)

    def seen(self, x: Array) -> np.ndarray | None:
        return np.asarray(x)

    def special(self, xp: Namespace, function: str, x: Array) -> Array:
        import scipy.special  # which takes a while

        return getattr(scipy.special, function)(x)

    def sorted_values(self, xp: Namespace, p: Array) -> Array:
        return xp.sort(p, axis=-1, stable=False)

    def sorted_rows(self, xp: Namespace, p: Array) -> tuple[Array, Array]:
        return sorting_numpy.sorted_rows(p)

    def targets_by_rank(self, xp: Namespace, p: Array, targets: Array) -> Array:
        return sorting_numpy.targets_by_rank(p, targets)

    def smallest(self, xp: Namespace, x: Array, k: int) -> Array:
        return selection.smallest_of_rows(x, k)

    def sum_rows(self, xp: Namespace, x: Array) -> Array:
        if x.shape[-2] < 128:  # as in the standard's, without two functions around the sum
            return np.add.reduce(x, axis=-2, keepdims=True, dtype=x.dtype)
        return super().sum_rows(xp, x)

    def inverse_cholesky(self, xp: Namespace, c: Array) -> Array:
        try:
            return super().inverse_cholesky(xp, c)
        except np.linalg.LinAlgError:
            return np.full_like(c, np.nan)

    def put_last(self, xp: Namespace, index: Array, values: Array) -> Array:
        rows, size = values.shape
        out = np.empty(values.size, values.dtype)
        out[(index + size * np.arange(rows)[:, None]).reshape(-1)] = values.reshape(-1)
        return out.reshape(values.shape)

    def add_last(self, xp: Namespace, size: int, index: Array, values: Array) -> Array:
        return counted_sums(np, size, index, values).astype(values.dtype)

    def add_rows(self, xp: Namespace, size: int, index: Array, x: Array) -> Array:
        out = np.zeros((*x.shape[:-2], size, x.shape[-1]), dtype=x.dtype)
        order = np.argsort(index, kind="stable")
        ordered = index[order]
        starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
        out[..., ordered[starts], :] = np.add.reduceat(np.take(x, order, -2), starts, axis=-2)
        return out

    def beside(self, x: Array, other: Array) -> Array:
        return x

    def add_to(self, total: Array, more: Array) -> Array:
        total += more  # in place
        return total


NUMPY = NumPyRoom()
