"""The one list of tested backends.

A backend here is a namespace on a device. The required ones are imported without a guard: where
one is missing the tests fail, they are not skipped. The optional ones need hardware and carry a
marker; they are collected only where they are asked for (``--backend cupy``).
"""

import contextlib
import enum
import importlib

import numpy as np

JAX_64_BIT_DTYPES = ("float64", "int64", "uint64")


class Backend(enum.Enum):
    NUMPY = "numpy"
    TORCH = "torch"
    JAX = "jax"
    STRICT = "array_api_strict"
    CUPY = "cupy"
    TORCH_CUDA = "torch-cuda"

    def __str__(self):
        return self.value

    @property
    def required(self):
        return self in REQUIRED

    @property
    def library(self):
        """Name under which the array library is imported."""
        return {"jax": "jax.numpy", "torch-cuda": "torch"}.get(self.value, self.value)

    @property
    def namespace_name(self):
        """Name of the namespace in messages."""
        return self.library.removesuffix(".numpy")

    @property
    def xp(self):
        """The library's own namespace, as a user has it at hand."""
        return importlib.import_module(self.library)

    @property
    def device(self):
        return "cuda" if self is Backend.TORCH_CUDA else None

    def dtype(self, name):
        return getattr(self.xp, name)

    def supports(self, dtype):
        if dtype == "bfloat16":
            return self in (Backend.TORCH, Backend.JAX, Backend.TORCH_CUDA)
        if dtype == "float16":
            return self is not Backend.STRICT
        return True

    def precision(self, dtype):
        """Context in which arrays of ``dtype`` exist: JAX makes 64-bit ones only if told so."""
        if self is Backend.JAX:
            import jax

            return jax.enable_x64(dtype in JAX_64_BIT_DTYPES)
        return contextlib.nullcontext()

    def asarray(self, a, dtype=None):
        """A fresh array of this backend with the values of ``a``.

        NumPy's are read-only, so that every test also shows that inputs are left alone.
        ``dtype`` is a name; by default that of ``a``.
        """
        a = np.asarray(a)
        dtype = dtype or a.dtype.name
        if self is Backend.NUMPY:
            out = np.array(a, dtype=dtype)
            out.flags.writeable = False
            return out
        if self in (Backend.TORCH, Backend.TORCH_CUDA):
            return self.xp.tensor(a, dtype=self.dtype(dtype), device=self.device or "cpu")
        if self is Backend.STRICT:
            return self.xp.asarray(np.array(a, dtype=dtype))
        if self is Backend.JAX and dtype in ("int64", "uint64") and not _jax_has_64_bits():
            dtype = dtype.replace("64", "32")
        return self.xp.asarray(a, dtype=self.dtype(dtype))

    def to_numpy(self, x):
        """Host copy of ``x``; 16-bit floats come out as float32."""
        if self in (Backend.TORCH, Backend.TORCH_CUDA):
            x = x.detach().cpu()
            return (x.float() if x.dtype in (self.xp.bfloat16, self.xp.float16) else x).numpy()
        if self is Backend.CUPY:
            x = x.get()
        if self is Backend.STRICT and str(x.device) != "array_api_strict.Device('CPU_DEVICE')":
            x = x.to_device(self.xp.Device("CPU_DEVICE"))
        x = np.asarray(x)
        return x.astype(np.float32) if x.dtype.name in ("bfloat16", "float16") else x

    def owns(self, x):
        """Whether ``x`` is an array of this backend's library."""
        if self is Backend.NUMPY:
            return isinstance(x, (np.ndarray, np.generic))
        if self in (Backend.TORCH, Backend.TORCH_CUDA):
            return isinstance(x, self.xp.Tensor)
        if self is Backend.JAX:
            import jax

            return isinstance(x, jax.Array)
        if self is Backend.STRICT:
            return type(x).__module__.startswith("array_api_strict")
        return isinstance(x, self.xp.ndarray)

    @staticmethod
    def dtype_name(x):
        return str(x.dtype).removeprefix("torch.").removeprefix("array_api_strict.")


def _jax_has_64_bits():
    import jax

    return jax.config.jax_enable_x64


REQUIRED = (Backend.NUMPY, Backend.TORCH, Backend.JAX, Backend.STRICT)
OPTIONAL = (Backend.CUPY, Backend.TORCH_CUDA)
