"""The one door to array libraries: which namespace, device and dtype, and the few shims.

This is the only module of the package that names a framework. Nothing here imports one that the
caller has not imported already: an array of a library can only exist once the library is loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from visreg_core._typing import Array, Device, DType, Namespace

FLOATING = ("float16", "bfloat16", "float32", "float64")

_NUMPY_NAMES = {np.dtype(name): name for name in ("float16", "float32", "float64", "bool", "int64")}

_COMPAT_MODULE = {
    "numpy": "array_api_compat.numpy",
    "torch": "array_api_compat.torch",
    "cupy": "array_api_compat.cupy",
    "jax": "jax.numpy",
    "array_api_strict": "array_api_strict",
}


def _module(full_name: str) -> Any:
    """An imported module; looked up first, because torch cannot trace `import_module`."""
    if full_name == "array_api_compat.torch":
        import array_api_compat.torch  # it traces the statement: the first call may be a traced one

        return array_api_compat.torch
    found = sys.modules.get(full_name)
    return importlib.import_module(full_name) if found is None else found


# --- which library, which device, which dtype ---------------------------------------------------


def library(x: object) -> str:
    """Name of the library that `x` is an array of; TypeError if it is not an array we know."""
    if isinstance(x, (np.ndarray, np.generic)):
        return "numpy"
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return "torch"
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(x, jax.Array):
        return "jax"
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, cupy.ndarray):
        return "cupy"
    if type(x).__module__.split(".")[0] == "array_api_strict":
        return "array_api_strict"
    raise TypeError(
        f"expected an array of {', '.join(_COMPAT_MODULE)}; found {type(x).__module__}."
        f"{type(x).__qualname__}"
    )


def is_array(x: object) -> bool:
    """Whether `x` is an array or tracer, not a Python number."""
    # Numbers first: one that torch traces cannot be asked for an attribute.
    return not isinstance(x, (int, float)) and hasattr(x, "shape")


def namespace(*arrays: Array | None) -> Namespace:
    """Array-API namespace shared by `arrays` (None is skipped after the first).

    Raises TypeError where two libraries meet and ValueError where two devices do, naming both.
    """
    if arrays[0] is None:
        raise TypeError("expected an array; found None")
    given = [x for x in arrays if x is not None]
    libraries = [library(x) for x in given]
    for other in libraries[1:]:
        if other != libraries[0]:
            raise TypeError(
                "expected all arrays from one library; found "
                f"{libraries[0]} and {other}: convert one of them explicitly"
            )
    if libraries[0] == "numpy":  # which has one device
        return _module(_COMPAT_MODULE["numpy"])
    devices = [str(d) for d in map(device, given) if d is not None]
    for other in devices[1:]:
        if other != devices[0]:
            raise ValueError(
                f"expected all arrays on one device; found {devices[0]} and {other}: "
                "move one of them explicitly"
            )
    return _module(_COMPAT_MODULE[libraries[0]])


def as_namespace(xp: Any) -> Namespace:
    """The namespace this package uses for a library named by any of its namespaces.

    `numpy`, `torch`, `jax.numpy`, `jax`, `cupy`, `array_api_strict` and array-api-compat's
    wrappers are all understood; None is NumPy.
    """
    full = "numpy" if xp is None else getattr(xp, "__name__", type(xp).__name__)
    parts = full.split(".")
    root = parts[1] if parts[0] == "array_api_compat" and len(parts) > 1 else parts[0]
    if root not in _COMPAT_MODULE:
        raise TypeError(
            f"expected xp to be a namespace of {', '.join(_COMPAT_MODULE)}; found {full}"
        )
    return _module(_COMPAT_MODULE[root])


def name(xp: Namespace) -> str:
    """Library's name of a namespace returned by `namespace` or `as_namespace`."""
    parts = xp.__name__.split(".")
    return parts[1] if parts[0] == "array_api_compat" else parts[0]


def device(x: Array) -> Device:
    """Device of `x`; None where it has no single one (a traced or sharded JAX array)."""
    if isinstance(x, np.generic):
        return None
    if library(x) == "jax":
        jax = sys.modules["jax"]
        if isinstance(x, jax.core.Tracer):
            return None
        devices = x.devices()
        return next(iter(devices)) if len(devices) == 1 else None
    return x.device


def is_on_host(xp: Namespace) -> bool:
    """Whether arrays of NumPy, or of a JAX without accelerators."""
    return name(xp) == "numpy" or (
        name(xp) == "jax" and sys.modules["jax"].default_backend() == "cpu"
    )


def on_device(x: Array) -> dict[str, Any]:
    """Keyword argument that creates an array beside `x`; empty where the library decides."""
    where = device(x)
    return {} if where is None else {"device": where}


def dtype_name(x_or_dtype: Any) -> str:
    """ "float32", "bfloat16", … for an array or a dtype of any library."""
    dtype = x_or_dtype
    if isinstance(dtype, type):
        dtype = np.dtype(dtype)
    dtype = getattr(dtype, "dtype", dtype)
    if isinstance(dtype, np.dtype):  # which would put its name together each time
        return _NUMPY_NAMES.get(dtype) or dtype.name
    # str(torch.float32) is 'torch.float32', str(np.dtype("float32")) is 'float32'
    return str(dtype).rsplit(".", 1)[-1]


def compute_dtype(xp: Namespace, x: Array) -> DType:
    """float64 for float64 input, float32 for everything narrower."""
    return xp.float64 if dtype_name(x) == "float64" else xp.float32


def _is_dtype(x: object) -> bool:
    return isinstance(x, (type, np.dtype))  # which, like arrays, have a shape


def is_dtype_of(xp: Namespace, dtype: Any) -> bool:
    """Whether `dtype` is a floating dtype that this package knows, of the library `xp`."""
    if isinstance(dtype, (str, np.generic)) or (is_array(dtype) and not _is_dtype(dtype)):
        return False
    try:
        found = dtype_name(dtype)
    except TypeError:
        return False
    if found not in FLOATING:
        return False
    # NumPy, CuPy and JAX share NumPy's dtypes.
    shared = name(xp) in ("numpy", "cupy", "jax")
    return shared or getattr(xp, found, None) == dtype


def default_float(xp: Namespace) -> DType:
    """The library's own default floating dtype (NumPy float64, Torch float32, …)."""
    if name(xp) == "torch":
        return xp.get_default_dtype()
    if name(xp) == "jax":
        return xp.zeros(0).dtype
    return xp.float64


def cast(xp: Namespace, x: Array, dtype: DType) -> Array:
    """`x` in `dtype`, without a copy where it has it already."""
    return x if x.dtype == dtype else xp.astype(x, dtype)


def cast_finite(xp: Namespace, x: Array, dtype: DType) -> Array:
    """`x` in `dtype`; finite values beyond the range of float16 become its largest."""
    if dtype_name(dtype) != "float16":
        return cast(xp, x, dtype)
    largest = 65504.0
    return cast(xp, xp.where(xp.abs(x) > largest, largest * sign(xp, x), x), dtype)


# --- crossing to the host ------------------------------------------------------------------------


def to_numpy(x: Array) -> np.ndarray:
    """Host NumPy array with the values of `x` (detached; a view where the library allows)."""
    which = library(x)
    if which == "torch":
        x = x.detach().cpu()
        return (x.float() if dtype_name(x) == "bfloat16" else x).numpy()
    if which == "cupy":
        return x.get()
    if which == "array_api_strict":
        x = x.to_device(sys.modules[which].Device("CPU_DEVICE"))
    return np.asarray(x)


def from_numpy(
    xp: Namespace, a: np.ndarray, *, device: Device = None, dtype: DType = None
) -> Array:
    """Copy of a host array as an array of `xp` (a copy: some libraries would share its memory)."""
    where = {} if device is None else {"device": device}
    return xp.asarray(a, dtype=dtype, copy=True, **where)


# --- for programs: a library chosen by name, a file written by torch -----------------------------


def installed() -> tuple[str, ...]:
    """Names of the libraries that can be imported."""
    return tuple(which for which in _COMPAT_MODULE if importlib.util.find_spec(which) is not None)


def import_namespace(which: str) -> Namespace:
    """Import a library by its name.

    ValueError for an unknown name, ModuleNotFoundError where it is not installed.
    """
    if which not in _COMPAT_MODULE:
        raise ValueError(f"expected a backend of {', '.join(_COMPAT_MODULE)}; found {which!r}")
    importlib.import_module(which)
    return importlib.import_module(_COMPAT_MODULE[which])


def device_names(xp: Namespace) -> tuple[str, ...]:
    """One device of each kind that a library can compute on, as `find_device` takes them."""
    which = name(xp)
    if which == "torch":
        return ("cpu", "cuda") if xp.cuda.is_available() else ("cpu",)
    if which == "jax":
        jax = sys.modules["jax"]
        return tuple(dict.fromkeys(d.platform for d in (*jax.devices("cpu"), *jax.devices())))
    if which == "cupy":
        return ("cuda",) if xp.is_available() else ()
    return ("cpu",)


def find_device(xp: Namespace, device_name: str) -> Device:
    """The library's device of this name ("cpu", "cuda:1", "gpu"); ValueError without one."""
    which = name(xp)
    try:
        if which == "torch":
            found = xp.device(device_name)
        elif which == "jax":
            platform, _, index = device_name.partition(":")
            found = sys.modules["jax"].devices(platform)[int(index or 0)]
        elif which == "cupy":
            found = xp.cuda.Device(int(device_name.removeprefix("cuda").removeprefix(":") or 0))
        elif device_name == "cpu":
            found = None
        else:
            raise ValueError("there is only cpu")
        xp.zeros(1, device=found)
    except Exception as error:  # each library has its own for a device it does not have
        said = str(error).strip().split("\n")[0]
        raise ValueError(f"expected a device of {which}; found {device_name!r}: {said}") from error
    return found


def open_backend(which: str, device_name: str | None = None) -> tuple[Namespace, Device]:
    """Import a library by its name; returns its namespace and the device (None: its default).

    For commands, not for libraries: JAX's 64-bit types are switched on, so that float64 stays.
    ValueError for an unknown name or device, ModuleNotFoundError where it is not installed.
    """
    xp = import_namespace(which)
    if which == "jax":
        sys.modules["jax"].config.update("jax_enable_x64", True)
    return xp, None if device_name is None else find_device(xp, device_name)


@contextlib.contextmanager
def pinned_precision(xp: Namespace, *, x64: bool) -> Iterator[None]:
    """Matrix products in full precision (no TF32), JAX's 64-bit types as told; then as before."""
    which = name(xp)
    if which == "jax":
        jax = sys.modules["jax"]
        with jax.enable_x64(x64), jax.default_matmul_precision("highest"):
            yield
    elif which == "torch" and hasattr(xp.backends.cuda.matmul, "fp32_precision"):
        # One setting a backend; torch < 2.9 has a single one, which a mix of both makes unreadable.
        products = (xp.backends.cuda.matmul, xp.backends.mkldnn.matmul)
        before = [p.fp32_precision for p in products]
        try:
            for p in products:
                p.fp32_precision = "ieee"
            yield
        finally:
            for p, precision in zip(products, before, strict=True):
                p.fp32_precision = precision
    elif which == "torch":
        before = xp.get_float32_matmul_precision()
        try:
            xp.set_float32_matmul_precision("highest")
            yield
        finally:
            xp.set_float32_matmul_precision(before)
    else:
        yield


def load_torch_file(path: str) -> Any:
    """What torch.save wrote to `path`: tensors on the host, mapped, and nothing unpickled."""
    torch = importlib.import_module("torch")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def bits(x: Array) -> Array:
    """The bits of a 16-bit torch tensor as int16, over the same memory."""
    return x.detach().view(sys.modules["torch"].int16)


# --- automatic differentiation and tracing -------------------------------------------------------


def stop_gradient(x: Array) -> Array:
    """`x` as a constant for the library's automatic differentiation."""
    which = library(x)
    if which == "torch":
        return x.detach()
    if which == "jax":
        return sys.modules["jax"].lax.stop_gradient(x)
    return x


def requires_grad(x: Array) -> bool:
    """Whether `x` is a torch tensor that autograd follows (other libraries cannot tell)."""
    return library(x) == "torch" and x.requires_grad


def is_compiling(xp: Namespace) -> bool:
    """Whether torch is tracing a graph, in which host code would break it."""
    return name(xp) == "torch" and sys.modules["torch"].compiler.is_compiling()


# --- shims: what the standard lacks --------------------------------------------------------------


def ndtri(xp: Namespace, p: Array) -> Array:
    """Gaussian quantile Φ⁻¹(p), elementwise, on the device of `p`."""
    return _special(xp, "ndtri", p)


def erf(xp: Namespace, x: Array) -> Array:
    """The error function, elementwise, on the device of `x`."""
    return _special(xp, "erf", x)


_SPECIAL = {"torch": "torch.special", "jax": "jax.scipy.special", "cupy": "cupyx.scipy.special"}


def _special(xp: Namespace, function: str, x: Array) -> Array:
    which = name(xp)
    of_library = getattr(_module(_SPECIAL.get(which, "scipy.special")), function)
    if which in _SPECIAL or which == "numpy":
        return of_library(x)
    return from_numpy(xp, of_library(to_numpy(x)), dtype=x.dtype, **on_device(x))


def stable_order(xp: Namespace, p: Array) -> Array:
    """Indices that sort each row of p (R, N), ties in index order."""
    if name(xp) != "jax":
        return xp.argsort(p, axis=-1, stable=True)
    lax = sys.modules["jax"].lax
    p = lax.stop_gradient(p)
    if dtype_name(p) != "float32":
        return _jax_order(p)
    return lax.platform_dependent(p, cpu=_jax_packed_order, default=_jax_order)


def _jax_order(p: Array) -> Array:
    """One sort of pairs. Unlike argsort's, its indices are known to vary with p on each device."""
    lax, jnp = sys.modules["jax"].lax, sys.modules["jax"].numpy
    index = lax.broadcasted_iota(jnp.int32, p.shape, 1) + jnp.zeros_like(p, dtype=jnp.int32)
    return lax.sort((p, index), num_keys=1, is_stable=True)[1]


def _jax_packed_order(p: Array) -> Array:
    """One sort of 64-bit words of the value's bits and the index.

    On the host XLA sorts single words several times faster than pairs. The words need no more than
    64-bit integers inside of this function.
    """
    jax = sys.modules["jax"]
    lax, jnp = jax.lax, jax.numpy
    p = jnp.where(p == 0, jnp.zeros_like(p), p)  # the two zeros tie,
    p = jnp.where(p != p, jnp.full_like(p, jnp.nan), p)  # and NaN comes last, whatever its bits
    bits = lax.bitcast_convert_type(p, jnp.int32)
    # Flipping the magnitude bits of negative floats makes integers order as the floats do.
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    with jax.enable_x64(True):
        index = lax.broadcasted_iota(jnp.int64, p.shape, 1)
        words = (keys.astype(jnp.int64) << 32) | index
        words = lax.sort(words, is_stable=False)
        return (words & 0xFFFFFFFF).astype(jnp.int32)


def put_last(xp: Namespace, index: Array, values: Array) -> Array:
    """out[r, index[r, i]] = values[r, i] for rows (R, N) of permutations `index`."""
    which = name(xp)
    if which == "numpy":
        rows, size = values.shape
        out = np.empty(values.size, values.dtype)
        out[(index + size * np.arange(rows)[:, None]).reshape(-1)] = values.reshape(-1)
        return out.reshape(values.shape)
    if which == "torch":
        return xp.empty_like(values).scatter(-1, index, values)
    if which == "jax":
        rows = xp.arange(index.shape[0], dtype=index.dtype)[:, None]
        out = xp.empty_like(values).at[rows, index]
        return out.set(values, unique_indices=True, mode="promise_in_bounds")
    if which == "cupy":
        out = xp.empty_like(values)
        xp.put_along_axis(out, index, values, axis=-1)
        return out
    return xp.take_along_axis(values, xp.argsort(index, axis=-1), axis=-1)


def take_last(xp: Namespace, x: Array, index: Array) -> Array:
    """out[..., i] = x[..., index[..., i]], the leading axes of both alike."""
    if name(xp) == "torch":  # `take_along_dim` makes constants of sizes that are symbols
        return x.gather(-1, index)
    return xp.take_along_axis(x, index, axis=-1)


def add_last(xp: Namespace, size: int, index: Array, values: Array) -> Array:
    """out[..., j] = Σ of values[..., i] over i with index[..., i] = j, for j < size."""
    which = name(xp)
    shape = (*values.shape[:-1], size)
    if which == "torch":
        zeros = xp.zeros(shape, dtype=values.dtype, device=values.device)
        return zeros.scatter_add(-1, index, values)
    if which == "jax":
        flat_index = xp.reshape(index, (-1, index.shape[-1]))
        rows = xp.arange(flat_index.shape[0])[:, None]
        zeros = xp.zeros((flat_index.shape[0], size), dtype=values.dtype)
        out = zeros.at[rows, flat_index].add(xp.reshape(values, flat_index.shape))
        return xp.reshape(out, shape)
    on_cupy = which == "cupy"
    flat_index, flat = (a if on_cupy else to_numpy(a) for a in (index, values))
    host = xp if on_cupy else np
    rows = host.arange(math.prod(shape[:-1]))[:, None] * size
    sums = host.bincount(
        (flat_index.reshape(-1, index.shape[-1]) + rows).reshape(-1),
        flat.reshape(-1),
        minlength=math.prod(shape),
    ).reshape(shape)
    where = on_device(values)
    return (
        sums.astype(values.dtype) if on_cupy else from_numpy(xp, sums, dtype=values.dtype, **where)
    )


def add_rows(xp: Namespace, size: int, index: Array, x: Array) -> Array:
    """out[..., j, :] = Σ of x[..., i, :] over i with index[i] = j, for j < size."""
    which = name(xp)
    if which not in ("numpy", "torch", "jax"):
        columns = xp.matrix_transpose(x)
        return xp.matrix_transpose(
            add_last(xp, size, xp.broadcast_to(index, columns.shape), columns)
        )
    shape = (*x.shape[:-2], size, x.shape[-1])
    if which == "torch":
        return xp.zeros(shape, dtype=x.dtype, device=x.device).index_add(-2, index, x)
    zeros = xp.zeros(shape, dtype=x.dtype)
    if which == "jax":
        return zeros.at[..., index, :].add(x)
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    zeros[..., ordered[starts], :] = np.add.reduceat(np.take(x, order, -2), starts, axis=-2)
    return zeros


def smallest(xp: Namespace, x: Array, k: int) -> Array:
    """Indices of the k smallest along the last axis, least first, ties by index; NaN as infinite.

    Not for NumPy, which `visreg_core._selection` is for.
    """
    x = xp.where(xp.isnan(x), xp.inf, x)
    if name(xp) == "jax":
        # To which -0 is less than 0.
        return sys.modules["jax"].lax.top_k(xp.where(x == 0, xp.zeros_like(x), -x), k)[1]
    if name(xp) != "torch":
        return xp.argsort(x, axis=-1, stable=True)[..., :k]
    torch = sys.modules["torch"]
    # torch.topk takes any of those that tie: with the k-th smallest, whose least indices are then
    # found by the same function, and with each other, which sorting few numbers mends.
    values, index = torch.topk(x, k, largest=False)
    last, column = values[..., -1:], torch.arange(x.shape[-1], device=x.device)
    below = values < last
    tied = torch.topk(torch.where(x == last, column, x.shape[-1]), k, largest=False).values
    place = torch.arange(k, device=x.device) - torch.sum(below, dim=-1, keepdim=True)
    index = torch.where(below, index, tied.gather(-1, place.clamp(min=0)))
    index = torch.sort(index).values
    return index.gather(-1, torch.argsort(x.gather(-1, index), stable=True))


def cumulative_sum(xp: Namespace, x: Array) -> Array:
    """Cumulative sum along the last axis."""
    if name(xp) == "torch":  # the wrapper of array-api-compat breaks torch's graph
        return xp.cumsum(x, dim=-1)
    return xp.cumulative_sum(x, axis=-1)


def sign(xp: Namespace, x: Array) -> Array:
    """−1, 0 or 1."""
    if name(xp) == "torch":  # the wrapper of array-api-compat writes by a mask, which vmap refuses
        return sys.modules["torch"].sign(x)
    return xp.sign(x)


def beside(xp: Namespace, x: Array, other: Array) -> Array:
    """`x` on the device of `other`."""
    if name(xp) in ("torch", "array_api_strict") and x.device != other.device:
        return x.to(other.device) if name(xp) == "torch" else x.to_device(other.device)
    return x


def of_rank(xp: Namespace, x: Array, ndim: int) -> Array:
    """`x` with leading axes of length 1 up to `ndim`.

    Broadcasting would add them, but users of JAX may have told it not to.
    """
    return xp.reshape(x, (1,) * (ndim - x.ndim) + tuple(x.shape)) if x.ndim < ndim else x


def sum_rows(xp: Namespace, x: Array) -> Array:
    """Sum over axis -2, kept as a length-1 axis, accurate to √N rounding errors or better.

    NumPy and XLA's CPU backend add the rows of a non-contiguous axis one after the other, so that
    float32 loses half its digits by N = 1e6: sum blocks first. Torch and CuPy do it by themselves.
    """
    n = x.shape[-2]
    if name(xp) in ("torch", "cupy") or n < 128:
        return xp.sum(x, axis=-2, keepdims=True, dtype=x.dtype)
    block = 1 << (n.bit_length() // 2)
    whole = n - n % block
    blocks = xp.reshape(x[..., :whole, :], (*x.shape[:-2], whole // block, block, x.shape[-1]))
    total = xp.sum(xp.sum(blocks, axis=-2, dtype=x.dtype), axis=-2, keepdims=True, dtype=x.dtype)
    if whole == n:
        return total
    return total + xp.sum(x[..., whole:, :], axis=-2, keepdims=True, dtype=x.dtype)


def matmul_accumulate(xp: Namespace, a: Array, b: Array, dtype: DType) -> Array:
    """a @ b returned in `dtype`, products of the operands' dtype accumulated as wide as can be."""
    if name(xp) == "jax":
        return xp.matmul(a, b, preferred_element_type=dtype)
    return cast(xp, a @ b, dtype)


# --- control flow over chunks --------------------------------------------------------------------


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
    size = columns.shape[-1]
    if chunk >= size:  # also where sizes are symbols
        return body(columns)
    starts = list(range(0, size, chunk))
    if name(xp) == "jax" and size // chunk > 1:
        lax = sys.modules["jax"].lax
        whole = size // chunk
        # The first chunk by itself: its sums are the carry, of the right shapes and shardings.
        first, carry = body(columns[..., :chunk])

        def step(carry: Any, start: Array) -> tuple[Any, Any]:
            part = lax.dynamic_slice_in_dim(columns, start, chunk, axis=-1)
            stacked, summed = body(part)
            return [c + s for c, s in zip(carry, summed, strict=True)], stacked

        summed, rest = lax.scan(step, list(carry), xp.arange(1, whole) * chunk)
        stacked = [xp.concat([f[None], r]) for f, r in zip(first, rest, strict=True)]
        # (chunks, ..., chunk) -> (..., chunks * chunk)
        stacked = [
            xp.reshape(xp.moveaxis(s, 0, -2), (*s.shape[1:-1], whole * s.shape[-1]))
            for s in stacked
        ]
        starts = starts[whole:]
    else:
        stacked, summed = body(columns[..., : min(chunk, size)])
        starts = starts[1:]
    pieces = [[s] for s in stacked]
    summed = list(summed)
    for start in starts:
        more, added = body(columns[..., start : min(start + chunk, size)])
        for piece, m in zip(pieces, more, strict=True):
            piece.append(m)
        for i, a in enumerate(added):
            if name(xp) == "numpy":
                summed[i] += a  # in place: the sum is this loop's own array
            else:
                summed[i] = summed[i] + a
        del more, added  # not beside the next chunk's
    joined = [p[0] if len(p) == 1 else xp.concat(p, axis=-1) for p in pieces]
    return joined, summed
