"""What JAX does differently from the standard."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from visreg_core._xp.dtypes import dtype_name
from visreg_core._xp.standard import ChunkResults, Standard
from visreg_core.typing import Array, Device, DType, Namespace

# Options of XLA on a CPU that halve the time of compiling; the programs take longer.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


class JAXRoom(Standard):
    """Indexed updates, scans, and sorts that fit the platform."""

    name = "jax"
    module = "jax.numpy"
    array = ("jax", "Array")
    numpy_dtypes = True
    compiles = True

    def device(self, x: Array) -> Device:
        if isinstance(x, sys.modules["jax"].core.Tracer):
            return None
        devices = x.devices()
        return next(iter(devices)) if len(devices) == 1 else None

    def is_on_host(self) -> bool:
        return sys.modules["jax"].default_backend() == "cpu"

    def default_float(self, xp: Namespace) -> DType:
        return xp.zeros(0).dtype

    def from_numpy(self, xp: Namespace, a: np.ndarray, device: Device, dtype: DType) -> Array:
        # Converted on the host: `asarray` compiles two programs for each shape.
        return sys.modules["jax"].device_put(np.array(a, dtype=dtype), device)

    def to_numpy(self, x: Array) -> np.ndarray:
        return np.asarray(x)

    def seen(self, x: Array) -> np.ndarray | None:
        where = self.device(x)
        return None if where is None or where.platform != "cpu" else self.to_numpy(x)

    def device_names(self, xp: Namespace) -> tuple[str, ...]:
        jax = sys.modules["jax"]
        return tuple(dict.fromkeys(d.platform for d in (*jax.devices("cpu"), *jax.devices())))

    def find_device(self, xp: Namespace, device_name: str) -> Device:
        platform, _, index = device_name.partition(":")
        return sys.modules["jax"].devices(platform)[int(index or 0)]

    def keep_float64(self) -> None:
        sys.modules["jax"].config.update("jax_enable_x64", True)

    @contextlib.contextmanager
    def pinned_precision(self, xp: Namespace, x64: bool) -> Iterator[None]:
        jax = sys.modules["jax"]
        with jax.enable_x64(x64), jax.default_matmul_precision("highest"):
            yield

    def forget_programs(self) -> None:
        sys.modules["jax"].clear_caches()

    def compiled(self, function: Callable[..., Any], static: tuple[str, ...]) -> Any:
        return sys.modules["jax"].jit(function, static_argnames=static)

    def program(self, function: Callable[[Any], Any], given: Any, quickly: bool) -> Any:
        jax = sys.modules["jax"]
        lowered = jax.jit(function).lower(given)
        try:
            return lowered.compile(QUICKLY if quickly else None)
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" not in str(error):  # another version's
                raise
            return lowered.compile()

    def float64_inside(self) -> contextlib.AbstractContextManager[None]:
        return sys.modules["jax"].enable_x64(True)  # traced or not

    def stop_gradient(self, x: Array) -> Array:
        return sys.modules["jax"].lax.stop_gradient(x)

    def special(self, xp: Namespace, function: str, x: Array) -> Array:
        return getattr(importlib.import_module("jax.scipy.special"), function)(x)

    def stable_order(self, xp: Namespace, p: Array) -> Array:
        lax = sys.modules["jax"].lax
        p = lax.stop_gradient(p)
        if dtype_name(p) != "float32":
            return order_of_pairs(p)
        return lax.platform_dependent(p, cpu=order_of_words, default=order_of_pairs)

    def sorted_values(self, xp: Namespace, p: Array) -> Array:
        return xp.take_along_axis(p, self.stable_order(xp, p), axis=-1)

    def put_last(self, xp: Namespace, index: Array, values: Array) -> Array:
        rows = xp.arange(index.shape[0], dtype=index.dtype)[:, None]
        out = xp.empty_like(values).at[rows, index]
        return out.set(values, unique_indices=True, mode="promise_in_bounds")

    def add_last(self, xp: Namespace, size: int, index: Array, values: Array) -> Array:
        flat_index = xp.reshape(index, (-1, index.shape[-1]))
        rows = xp.arange(flat_index.shape[0])[:, None]
        zeros = xp.zeros((flat_index.shape[0], size), dtype=values.dtype)
        out = zeros.at[rows, flat_index].add(xp.reshape(values, flat_index.shape))
        return xp.reshape(out, (*values.shape[:-1], size))

    def add_rows(self, xp: Namespace, size: int, index: Array, x: Array) -> Array:
        zeros = xp.zeros((*x.shape[:-2], size, x.shape[-1]), dtype=x.dtype)
        return zeros.at[..., index, :].add(x)

    def smallest(self, xp: Namespace, x: Array, k: int) -> Array:
        x = xp.where(xp.isnan(x), xp.inf, x)
        # To `top_k` −0 is less than 0.
        return sys.modules["jax"].lax.top_k(xp.where(x == 0, xp.zeros_like(x), -x), k)[1]

    def either(
        self, condition: Array, then: Callable[[], Any], otherwise: Callable[[], Any]
    ) -> Any:
        return sys.modules["jax"].lax.cond(condition, then, otherwise)

    def beside(self, x: Array, other: Array) -> Array:
        return x

    def matmul_accumulate(self, xp: Namespace, a: Array, b: Array, dtype: DType) -> Array:
        return xp.matmul(a, b, preferred_element_type=dtype)

    def first_chunks(
        self, xp: Namespace, body: Callable[[Array], ChunkResults], columns: Array, chunk: int
    ) -> tuple[int, ChunkResults]:
        """All whole chunks, in a scan: the compiled program holds one chunk's arrays at a time."""
        lax = sys.modules["jax"].lax
        whole = columns.shape[-1] // chunk
        # The first chunk outside of the scan: its sums have the carry's shapes and shardings.
        first, carry = body(columns[..., :chunk])
        if whole == 1:
            return chunk, (first, carry)

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
        return whole * chunk, (stacked, summed)


def order_of_pairs(p: Array) -> Array:
    """One sort of pairs. Unlike argsort's, its indices are known to vary with p on each device."""
    lax, jnp = sys.modules["jax"].lax, sys.modules["jax"].numpy
    index = lax.broadcasted_iota(jnp.int32, p.shape, 1) + jnp.zeros_like(p, dtype=jnp.int32)
    return lax.sort((p, index), num_keys=1, is_stable=True)[1]


def order_of_words(p: Array) -> Array:
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


JAX = JAXRoom()
