"""What needs nothing but the array-API standard, and a host that has NumPy and SciPy.

array-api-strict, which is the standard and nothing else, runs all of it.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from visreg_core._xp.dtypes import cast
from visreg_core.typing import Array, Device, DType, Namespace

ChunkResults: TypeAlias = tuple[list[Array], list[Array]]


class Standard:
    """A library's room: one method for each thing in which libraries differ.

    `visreg_core._xp.shims` documents them. The room of a library derives from this one, and
    overrides what the library does differently.
    """

    name = "array_api_strict"  # of the library, by which it is imported
    module = "array_api_strict"  # of the namespace that this package uses
    array = ("array_api_strict._array_object", "Array")  # module and name of the arrays' class
    numpy_dtypes = False  # whether dtypes are NumPy's own
    one_device = False  # whether all arrays are on the same one
    compiles = False  # whether `compiled` makes one program of a function
    branches = True  # whether a program may branch on a value
    works_in_tiles = False  # whether each operation passes over memory separately
    writes_in_place = False  # whether elements can be assigned at arrays of indices
    block_elements = 1 << 26  # of a matrix that is made block by block

    # --- detection ---

    def namespace(self) -> Namespace:
        """The module of the name `module`; looked up first, which is faster."""
        found = sys.modules.get(self.module)
        return importlib.import_module(self.module) if found is None else found

    def device(self, x: Array) -> Device:
        return x.device

    def is_on_host(self) -> bool:
        return False

    def default_float(self, xp: Namespace) -> DType:
        return xp.float64

    def is_compiling(self) -> bool:
        return False

    # --- crossing to the host ---

    def from_numpy(self, xp: Namespace, a: np.ndarray, device: Device, dtype: DType) -> Array:
        where = {} if device is None else {"device": device}
        return xp.asarray(a, dtype=dtype, copy=True, **where)

    def to_numpy(self, x: Array) -> np.ndarray:
        # The standard has no name for the host: this is the one of array-api-strict.
        return np.asarray(x.to_device(sys.modules[self.name].Device("CPU_DEVICE")))

    def seen(self, x: Array) -> np.ndarray | None:
        return None

    # --- start-up ---

    def device_names(self, xp: Namespace) -> tuple[str, ...]:
        return ("cpu",)

    def find_device(self, xp: Namespace, device_name: str) -> Device:
        """The device, where there can be one of this name; any error where there cannot."""
        if device_name != "cpu":
            raise ValueError("there is only cpu")
        return None

    def keep_float64(self) -> None:
        """Let float64 stay what it is."""

    def pinned_precision(
        self, xp: Namespace, x64: bool
    ) -> contextlib.AbstractContextManager[None, bool | None]:
        return contextlib.nullcontext()

    def forget_programs(self) -> None:
        """Free the memory of what was compiled."""

    def compiled(self, function: Callable[..., Any], static: tuple[str, ...]) -> Any:
        return function

    def program(self, function: Callable[[Any], Any], given: Any, quickly: bool) -> Any:
        return function

    # --- float64 ---

    def float64_inside(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def widest(self, xp: Namespace, x: Array) -> DType:
        return xp.float64

    # --- automatic differentiation ---

    def stop_gradient(self, x: Array) -> Array:
        return x

    def requires_grad(self, x: Array) -> bool:
        return False

    # --- shims ---

    def special(self, xp: Namespace, function: str, x: Array) -> Array:
        """A function of `scipy.special`, which has one argument, by its name."""
        import scipy.special  # which takes a while

        found = getattr(scipy.special, function)(self.to_numpy(x))
        return xp.asarray(found, dtype=x.dtype, device=x.device, copy=True)

    def stable_order(self, xp: Namespace, p: Array) -> Array:
        return xp.argsort(p, axis=-1, stable=True)

    def sorted_values(self, xp: Namespace, p: Array) -> Array:
        return xp.sort(p, axis=-1, stable=True)

    def sorted_rows(self, xp: Namespace, p: Array) -> tuple[Array, Array]:
        order = self.stable_order(xp, p)
        return xp.take_along_axis(p, order, axis=-1), order

    def targets_by_rank(self, xp: Namespace, p: Array, targets: Array) -> Array:
        return self.put_last(xp, self.stable_order(xp, p), targets)

    def put_last(self, xp: Namespace, index: Array, values: Array) -> Array:
        return xp.take_along_axis(values, xp.argsort(index, axis=-1), axis=-1)

    def take_last(self, xp: Namespace, x: Array, index: Array) -> Array:
        return xp.take_along_axis(x, index, axis=-1)

    def add_last(self, xp: Namespace, size: int, index: Array, values: Array) -> Array:
        sums = counted_sums(np, size, self.to_numpy(index), self.to_numpy(values))
        return xp.asarray(sums, dtype=values.dtype, device=values.device, copy=True)

    def add_rows(self, xp: Namespace, size: int, index: Array, x: Array) -> Array:
        columns = xp.matrix_transpose(x)
        sums = self.add_last(xp, size, xp.broadcast_to(index, columns.shape), columns)
        return xp.matrix_transpose(sums)

    def smallest(self, xp: Namespace, x: Array, k: int) -> Array:
        x = xp.where(xp.isnan(x), xp.inf, x)
        return xp.argsort(x, axis=-1, stable=True)[..., :k]

    def cumulative_sum(self, xp: Namespace, x: Array) -> Array:
        return xp.cumulative_sum(x, axis=-1)

    def sign(self, xp: Namespace, x: Array) -> Array:
        return xp.sign(x)

    def beside(self, x: Array, other: Array) -> Array:
        return x.to_device(other.device) if x.device != other.device else x

    def sum_rows(self, xp: Namespace, x: Array) -> Array:
        n = x.shape[-2]
        if n < 128:
            return xp.sum(x, axis=-2, keepdims=True, dtype=x.dtype)
        block = 1 << (n.bit_length() // 2)
        whole = n - n % block
        blocks = xp.reshape(x[..., :whole, :], (*x.shape[:-2], whole // block, block, x.shape[-1]))
        total = xp.sum(
            xp.sum(blocks, axis=-2, dtype=x.dtype), axis=-2, keepdims=True, dtype=x.dtype
        )
        if whole == n:
            return total
        return total + xp.sum(x[..., whole:, :], axis=-2, keepdims=True, dtype=x.dtype)

    def matmul_accumulate(self, xp: Namespace, a: Array, b: Array, dtype: DType) -> Array:
        return cast(xp, a @ b, dtype)

    # --- control flow ---

    def inverse_cholesky(self, xp: Namespace, c: Array) -> Array:
        return xp.linalg.inv(xp.linalg.cholesky(c))

    def either(
        self, condition: Array, then: Callable[[], Any], otherwise: Callable[[], Any]
    ) -> Any:
        return then() if condition else otherwise()

    def accumulate(
        self, xp: Namespace, body: Callable[[Array], ChunkResults], columns: Array, chunk: int
    ) -> ChunkResults:
        size = columns.shape[-1]
        if chunk >= size:  # also where sizes are symbols
            return body(columns)
        done, (stacked, summed) = self.first_chunks(xp, body, columns, chunk)
        pieces = [[s] for s in stacked]
        summed = list(summed)
        for start in range(done, size, chunk):
            more, added = body(columns[..., start : min(start + chunk, size)])
            for piece, m in zip(pieces, more, strict=True):
                piece.append(m)
            for i, a in enumerate(added):
                summed[i] = self.add_to(summed[i], a)
            del more, added  # before the next chunk's are made
        joined = [p[0] if len(p) == 1 else xp.concat(p, axis=-1) for p in pieces]
        return joined, summed

    def first_chunks(
        self, xp: Namespace, body: Callable[[Array], ChunkResults], columns: Array, chunk: int
    ) -> tuple[int, ChunkResults]:
        """How many columns the first step of `accumulate` takes, and what comes of them."""
        return chunk, body(columns[..., :chunk])

    def add_to(self, total: Array, more: Array) -> Array:
        """total + more, where nobody else has `total`."""
        return total + more


def counted_sums(numpy: Any, size: int, index: Array, values: Array) -> Array:
    """`add_last` by the `bincount` of NumPy, or of what looks like it: sums in float64."""
    shape = (*values.shape[:-1], size)
    rows = numpy.arange(math.prod(shape[:-1]))[:, None] * size
    flat = (index.reshape(-1, index.shape[-1]) + rows).reshape(-1)
    sums = numpy.bincount(flat, values.reshape(-1), minlength=math.prod(shape))
    return sums.reshape(shape)


STANDARD = Standard()
