"""What triton's interpreter lacks for these kernels, mended.

In triton 3.9 it rounds float32 to bfloat16 toward zero, multiplies the bits of bfloat16 matrices
instead of their values, and reduces by xor, which every exchange of a sort does, one element at a
time; and it prepares the language anew for every function that a kernel calls. Each test here
would otherwise be a test of that.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


def _as_float32(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _as_bfloat16(x):
    rounded = torch.from_numpy(np.ascontiguousarray(x)).to(torch.bfloat16)
    return rounded.view(torch.uint16).numpy()


class _Builder(interpreter.InterpreterBuilder):
    def cast_impl(self, src, dst_type):
        kinds = src.dtype.scalar, dst_type.scalar
        if kinds == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(_as_bfloat16(src.data), tl.bfloat16)
        if kinds == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle(_as_float32(src.data), tl.float32)
        return super().cast_impl(src, dst_type)

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        if a.dtype.scalar == tl.bfloat16:
            a, b = (interpreter.TensorHandle(_as_float32(x.data), tl.float32) for x in (a, b))
        return super().create_dot(a, b, d, input_precision, max_num_imprecise_acc)


class _ReduceOps(interpreter.ReduceOps):
    def apply_impl(self, input):
        if self.combine_fn is tl.standard._xor_combine:
            data = input[0].handle.data
            reduced = np.bitwise_xor.reduce(data, axis=self.axis, keepdims=self.keep_dims)
            return self.to_tensor(reduced, input[0].dtype)
        return super().apply_impl(input)


_prepare = interpreter._patch_lang
_prepared = set()  # modules of the language, during a launch


def _prepare_once(function):
    of_function = {id(m) for m in function.__globals__.values() if m is tl or m is tl.core}
    if of_function <= _prepared:
        return None  # which only a launch, always the first, looks at
    _prepared.update(of_function)
    scope = _prepare(function)
    tl.tensor.__index__ = lambda self: self.handle.data.item()  # not NumPy's int(), before 3.9
    return scope


class _GridExecutor(interpreter.GridExecutor):
    def __call__(self, *args, **kwargs):
        _prepared.clear()
        return super().__call__(*args, **kwargs)


def mend():
    """Mend the interpreter of this process."""
    interpreter.interpreter_builder.__class__ = _Builder
    interpreter.ReduceOps = _ReduceOps
    interpreter._patch_lang = _prepare_once
    interpreter.GridExecutor = _GridExecutor
