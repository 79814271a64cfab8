"""What Torch does differently from the standard, all of it such that `torch.compile` traces it."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from visreg_core._xp.dtypes import dtype_name
from visreg_core._xp.standard import Standard
from visreg_core.typing import Array, Device, DType, Namespace


class TorchRoom(Standard):
    """Scatter and gather, and no wrapper of array-api-compat that `compile` or `vmap` refuse."""

    name = "torch"
    module = "array_api_compat.torch"
    array = ("torch", "Tensor")
    writes_in_place = True
    block_elements = 1 << 21  # for the caches of a CPU
    branches = False  # it would wait for a device, and no tracer follows it

    def namespace(self) -> Namespace:
        # The first call may be traced: `compile` traces an import statement, but no function that
        # imports, and no lookup of a module that is not loaded yet.
        import array_api_compat.torch

        return array_api_compat.torch

    def default_float(self, xp: Namespace) -> DType:
        return xp.get_default_dtype()

    def is_compiling(self) -> bool:
        return sys.modules["torch"].compiler.is_compiling()

    def to_numpy(self, x: Array) -> np.ndarray:
        x = x.detach().cpu()
        return (x.float() if dtype_name(x) == "bfloat16" else x).numpy()

    def seen(self, x: Array) -> np.ndarray | None:
        if self.is_compiling():
            return None
        c = sys.modules["torch"]._C
        traced = c._len_torch_dispatch_stack() > 0 or c._get_tracing_state() is not None
        if traced or not x.is_cpu or c._functorch.is_functorch_wrapped_tensor(x):
            return None
        return self.to_numpy(x.resolve_conj().resolve_neg())

    def device_names(self, xp: Namespace) -> tuple[str, ...]:
        return ("cpu", "cuda") if xp.cuda.is_available() else ("cpu",)

    def find_device(self, xp: Namespace, device_name: str) -> Device:
        return xp.device(device_name)

    @contextlib.contextmanager
    def pinned_precision(self, xp: Namespace, x64: bool) -> Iterator[None]:
        if hasattr(xp.backends.cuda.matmul, "fp32_precision"):
            # One setting for each backend. Older versions have a single setting, which raises when
            # it is read after a mix of both.
            products = (xp.backends.cuda.matmul, xp.backends.mkldnn.matmul)
            before = [p.fp32_precision for p in products]
            try:
                for p in products:
                    p.fp32_precision = "ieee"
                yield
            finally:
                for p, precision in zip(products, before, strict=True):
                    p.fp32_precision = precision
        else:
            before = xp.get_float32_matmul_precision()
            try:
                xp.set_float32_matmul_precision("highest")
                yield
            finally:
                xp.set_float32_matmul_precision(before)

    def widest(self, xp: Namespace, x: Array) -> DType:
        return xp.float32 if x.device.type == "mps" else xp.float64

    def stop_gradient(self, x: Array) -> Array:
        return x.detach()

    def requires_grad(self, x: Array) -> bool:
        return x.requires_grad

    def special(self, xp: Namespace, function: str, x: Array) -> Array:
        return getattr(sys.modules["torch"].special, function)(x)

    def put_last(self, xp: Namespace, index: Array, values: Array) -> Array:
        return xp.empty_like(values).scatter(-1, index, values)

    def take_last(self, xp: Namespace, x: Array, index: Array) -> Array:
        return x.gather(-1, index)  # `take_along_dim` makes constants of symbolic sizes

    def add_last(self, xp: Namespace, size: int, index: Array, values: Array) -> Array:
        zeros = xp.zeros((*values.shape[:-1], size), dtype=values.dtype, device=values.device)
        return zeros.scatter_add(-1, index, values)

    def add_rows(self, xp: Namespace, size: int, index: Array, x: Array) -> Array:
        zeros = xp.zeros((*x.shape[:-2], size, x.shape[-1]), dtype=x.dtype, device=x.device)
        return zeros.index_add(-2, index, x)

    def smallest(self, xp: Namespace, x: Array, k: int) -> Array:
        """By `topk`, whose choice among ties is arbitrary.

        Ties with the k-th smallest are resolved by a second `topk`, of their indices; ties among
        the k by sorting them.
        """
        torch = sys.modules["torch"]
        x = torch.where(torch.isnan(x), torch.inf, x)
        values, index = torch.topk(x, k, largest=False)
        last, column = values[..., -1:], torch.arange(x.shape[-1], device=x.device)
        below = values < last
        tied = torch.topk(torch.where(x == last, column, x.shape[-1]), k, largest=False).values
        place = torch.arange(k, device=x.device) - torch.sum(below, dim=-1, keepdim=True)
        index = torch.where(below, index, tied.gather(-1, place.clamp(min=0)))
        index = torch.sort(index).values
        return index.gather(-1, torch.argsort(x.gather(-1, index), stable=True))

    def cumulative_sum(self, xp: Namespace, x: Array) -> Array:
        return xp.cumsum(x, dim=-1)  # the wrapper of array-api-compat breaks the graph

    def sign(self, xp: Namespace, x: Array) -> Array:
        # The wrapper of array-api-compat writes by a mask, which vmap refuses.
        return sys.modules["torch"].sign(x)

    def beside(self, x: Array, other: Array) -> Array:
        return x.to(other.device) if x.device != other.device else x

    def inverse_cholesky(self, xp: Namespace, c: Array) -> Array:
        factor, failed = xp.linalg.cholesky_ex(c)  # without _ex they wait for the device
        inverse = xp.linalg.inv_ex(factor).inverse
        return xp.where(failed[..., None, None] > 0, xp.nan, inverse)

    def sum_rows(self, xp: Namespace, x: Array) -> Array:
        return xp.sum(x, axis=-2, keepdims=True, dtype=x.dtype)  # in blocks by itself


TORCH = TorchRoom()


def load_torch_file(path: str) -> Any:
    """What torch.save wrote to `path`: tensors on the host, mapped, and nothing unpickled."""
    torch = importlib.import_module("torch")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def bits(x: Array) -> Array:
    """The bits of a 16-bit torch tensor as int16, over the same memory."""
    return x.detach().view(sys.modules["torch"].int16)
