"""What the standard lacks, or a library does better: each function asks the library's room."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from visreg_core._xp.dtypes import cast, dtype_name
from visreg_core._xp.rooms import room, room_of
from visreg_core.typing import Array, DType, Namespace

# --- automatic differentiation and tracing --------------------------------------------------------


def stop_gradient(x: Array) -> Array:
    """`x` as a constant for the library's automatic differentiation."""
    return room_of(x).stop_gradient(x)


def requires_grad(x: Array) -> bool:
    """Whether `x` is a torch tensor that autograd follows (False for other libraries)."""
    return room_of(x).requires_grad(x)


def is_compiling(xp: Namespace) -> bool:
    """Whether torch is tracing a graph, in which host code would break it."""
    return room(xp).is_compiling()


def works_in_tiles(xp: Namespace) -> bool:
    """Whether each operation passes over memory by itself, so that tiles in the cache pay."""
    return room(xp).works_in_tiles


def writes_in_place(xp: Namespace) -> bool:
    """Whether elements of an array can be assigned at arrays of indices."""
    return room(xp).writes_in_place


def block_elements(xp: Namespace) -> int:
    """Elements of a block of a large matrix: fewer for a CPU's caches than in compiled programs."""
    return room(xp).block_elements


# --- float64 --------------------------------------------------------------------------------------


def float64_inside(xp: Namespace) -> AbstractContextManager[None]:
    """Context in which float64 arrays exist."""
    return room(xp).float64_inside()


def widest(xp: Namespace, x: Array) -> DType:
    """float64, or float32 where the device of `x` has no other."""
    return room(xp).widest(xp, x)


# --- elementwise ----------------------------------------------------------------------------------


def ndtri(xp: Namespace, p: Array) -> Array:
    """Gaussian quantile Φ⁻¹(p), elementwise, on the device of `p`."""
    return room(xp).special(xp, "ndtri", p)


def erf(xp: Namespace, x: Array) -> Array:
    """The error function, elementwise, on the device of `x`."""
    return room(xp).special(xp, "erf", x)


def log_ndtr(xp: Namespace, x: Array) -> Array:
    """log Φ(x), elementwise, on the device of `x`; accurate in both tails."""
    return room(xp).special(xp, "log_ndtr", x)


def sign(xp: Namespace, x: Array) -> Array:
    """−1, 0 or 1."""
    return room(xp).sign(xp, x)


def cast_finite(xp: Namespace, x: Array, dtype: DType) -> Array:
    """`x` in `dtype`; finite values beyond the range of float16 become its largest."""
    if dtype_name(dtype) != "float16":
        return cast(xp, x, dtype)
    largest = 65504.0
    return cast(xp, xp.where(xp.abs(x) > largest, largest * sign(xp, x), x), dtype)


# --- order and indices ----------------------------------------------------------------------------


def stable_order(xp: Namespace, p: Array) -> Array:
    """Indices that sort each row of p (R, N), ties in index order."""
    return room(xp).stable_order(xp, p)


def sorted_values(xp: Namespace, p: Array) -> Array:
    """Each row of p (R, N) sorted.

    Stable where automatic differentiation may follow, so that ties take targets in index order.
    """
    return room(xp).sorted_values(xp, p)


def sorted_rows(xp: Namespace, p: Array) -> tuple[Array, Array]:
    """Each row of p (R, N) sorted, and the stable order that sorts it."""
    return room(xp).sorted_rows(xp, p)


def targets_by_rank(xp: Namespace, p: Array, targets: Array) -> Array:
    """t[r, n] = targets[r, rank of p[r, n] in its row]; ties take ranks in index order.

    p : (R, N); targets : (N,) or (R, N), in the order of ranks.
    """
    return room(xp).targets_by_rank(xp, p, xp.broadcast_to(targets, p.shape))


def smallest(xp: Namespace, x: Array, k: int) -> Array:
    """Indices (R, k) of the k smallest of each row of x (R, N), least first, ties by index.

    NaN counts as infinite.
    """
    return room(xp).smallest(xp, x, k)


def put_last(xp: Namespace, index: Array, values: Array) -> Array:
    """out[r, index[r, i]] = values[r, i] for rows (R, N) of permutations `index`."""
    return room(xp).put_last(xp, index, values)


def take_last(xp: Namespace, x: Array, index: Array) -> Array:
    """out[..., i] = x[..., index[..., i]], with equal leading axes."""
    return room(xp).take_last(xp, x, index)


def add_last(xp: Namespace, size: int, index: Array, values: Array) -> Array:
    """out[..., j] = Σ of values[..., i] over i with index[..., i] = j, for j < size."""
    return room(xp).add_last(xp, size, index, values)


def add_rows(xp: Namespace, size: int, index: Array, x: Array) -> Array:
    """out[..., j, :] = Σ of x[..., i, :] over i with index[i] = j, for j < size."""
    return room(xp).add_rows(xp, size, index, x)


# --- sums and products ----------------------------------------------------------------------------


def cumulative_sum(xp: Namespace, x: Array) -> Array:
    """Cumulative sum along the last axis."""
    return room(xp).cumulative_sum(xp, x)


def sum_rows(xp: Namespace, x: Array) -> Array:
    """Sum over axis -2, kept as a length-1 axis, accurate to √N rounding errors or better.

    NumPy and XLA's CPU backend add the rows of a non-contiguous axis one after the other, so that
    float32 loses half its digits by N = 1e6: blocks are summed first, as Torch and CuPy do anyway.
    """
    return room(xp).sum_rows(xp, x)


def matmul_accumulate(xp: Namespace, a: Array, b: Array, dtype: DType) -> Array:
    """a @ b returned in `dtype`, accumulated in the widest dtype that the library offers."""
    return room(xp).matmul_accumulate(xp, a, b, dtype)


def inverse_cholesky(xp: Namespace, c: Array) -> Array:
    """L⁻¹ with LLᵀ = c, positive definite (..., D, D); NaN where c is not, and no device waits."""
    return room(xp).inverse_cholesky(xp, c)


# --- place and shape ------------------------------------------------------------------------------


def beside(xp: Namespace, x: Array, other: Array) -> Array:
    """`x` on the device of `other`."""
    return room(xp).beside(x, other)


def of_rank(xp: Namespace, x: Array, ndim: int) -> Array:
    """`x` with leading axes of length 1 up to `ndim`.

    Broadcasting would add them, but JAX can be configured to refuse.
    """
    return xp.reshape(x, (1,) * (ndim - x.ndim) + tuple(x.shape)) if x.ndim < ndim else x


# --- control flow ---------------------------------------------------------------------------------


def branches(xp: Namespace) -> bool:
    """Whether a program may branch on a value: no device is waited for, no tracer stopped."""
    return room(xp).branches


def either(
    xp: Namespace, condition: Array, then: Callable[[], Any], otherwise: Callable[[], Any]
) -> Any:
    """`then()` if `condition`, of no axes, holds, else `otherwise()`; where xp `branches`."""
    return room(xp).either(condition, then, otherwise)


def accumulate(
    xp: Namespace,
    body: Callable[[Array], tuple[list[Array], list[Array]]],
    columns: Array,
    chunk: int,
) -> tuple[list[Array], list[Array]]:
    """Run `body` on successive chunks of the last axis of `columns`.

    `body` returns ``(stacked, summed)``, two lists of arrays: the first are concatenated along
    their last axis over the chunks, the second added up. On JAX whole chunks run in a scan, so
    that the compiled program holds one chunk's arrays at a time.
    """
    return room(xp).accumulate(xp, body, columns, chunk)


def compiled(xp: Namespace, function: Callable[..., Any], *static: str) -> Callable[..., Any]:
    """`function` as one program where the library compiles; its `static` arguments are no arrays.

    Programs are kept for the function, so that it should be one of a module.
    """
    return room(xp).compiled(function, static)


def program(
    xp: Namespace, function: Callable[[Any], Any], given: Any, *, quickly: bool
) -> Callable[[Any], Any]:
    """`function` as a program for arrays such as `given`, in any containers; it is not kept.

    `quickly`: for a CPU, and compiled without the optimisations that take most of the time.
    """
    found: Callable[[Any], Any] = room(xp).program(function, given, quickly)
    return found
