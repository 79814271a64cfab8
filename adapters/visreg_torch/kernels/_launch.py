"""Shared by the launchers: launching, checks, masks as bytes, numbers of programs."""

from __future__ import annotations

from typing import Any

import torch

from visreg_torch.kernels import _tape

# A product and a sum that follow it are rounded once. Asked for by name: triton's default changes
# between versions, and warns.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Programs that keep a large GPU busy, for kernels that may split a row.
PROGRAMS = 1024


# Compiled kernels, by everything that triton specialises on. Looking them up takes a tenth of the
# time of triton's own dispatch, which is longer than most kernels of a step run. () where triton's
# own way must be taken.
_COMPILED: dict[tuple[Any, ...], Any] = {}
# Kernel -> positions of the integer parameters that triton does not specialise on.
_WORDS: dict[int, frozenset[int]] = {}


def launch(
    kernel: Any, grid: tuple[int, ...], first: torch.Tensor, *others: Any, **options: Any
) -> None:
    """Start a kernel on the device of `first`, if there are programs to start.

    On the meta device none is started, so that launchers return outputs of the right shapes.
    `others` are tensors, numbers and None in the order of the kernel's parameters; `options` are
    its constants, in the same order, and triton's options.
    """
    if not all(grid):
        return
    args = (first, *others)
    start = LAUNCHERS[first.device.type]
    made = _tape.recording()
    if made is None:
        start(kernel, grid, args, options)
        return
    with made.step():
        again = start(kernel, grid, args, options)
    made.launched(again, args)


def empty(shape: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
    """`torch.empty`, of whose memory a recorded pass gets its own each time."""
    x = torch.empty(shape, dtype=dtype, device=device)
    made = _tape.recording()
    if made is not None:
        made.allocated(x)
    return x


def constant(x: Any) -> Any:
    """A tensor that depends on sizes alone, as a recorded pass may be told."""
    made = _tape.recording()
    if made is not None and x is not None:
        made.constant(x)
    return x


def _on_cuda(
    kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    device: int = args[0].device.index
    if device == torch.cuda.current_device():
        return _launch_here(kernel, grid, device, args, options)
    with torch.cuda.device(device):  # triton starts kernels on the current device
        return _launch_here(kernel, grid, device, args, options)


def _nowhere(*_: Any) -> None:
    return None


def _interpreted(
    kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    def again(stream: int, *args: Any) -> None:
        kernel[grid](*args, **OPTIONS, **options)

    again(0, *args)
    return again


LAUNCHERS = {"cuda": _on_cuda, "meta": _nowhere, "cpu": _interpreted}
"""How to start a kernel on a device of each kind; what is returned starts it again."""


def _launch_here(
    kernel: Any, grid: tuple[int, ...], device: int, args: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    name = id(kernel)  # kernels are functions of modules, which live on
    words = _WORDS.get(name)
    if words is None:
        words = _WORDS[name] = frozenset(
            kernel.arg_names.index(word) for word in kernel.do_not_specialize
        )
    key: list[Any] = [name, device, *options.values()]
    given: list[Any] = []
    for at, x in enumerate(args):
        if isinstance(x, torch.Tensor):
            pointer = x.data_ptr()
            given.append(pointer)
            key.append((x.dtype, pointer & 15 == 0))
        else:
            given.append(x)
            # Triton does not specialise on floats and words, but on other integers, which are
            # sizes, of which there are few.
            key.append(x.__class__ if x.__class__ is float or at in words else x)
    compiled = _COMPILED.get(tuple(key))
    if not compiled:
        made = kernel[grid](*args, **OPTIONS, **options)
        if compiled is None:
            constants = [options[constant] for constant in kernel.arg_names[len(args) :]]
            _COMPILED[tuple(key)] = (made.run, made.function, made.packed_metadata, constants)
        return None
    run, function, metadata, constants = compiled
    x, y, z = (*grid, 1, 1)[:3]

    def again(stream: int, *args: Any) -> None:
        run(x, y, z, stream, function, metadata, None, None, None, *args, *constants)

    try:
        again(stream_of(device), *given)
    except TypeError:  # a version of triton whose launchers take other arguments
        _COMPILED[tuple(key)] = ()
        kernel[grid](*args, **OPTIONS, **options)
        return None
    return again


def stream_of(device: int) -> int:
    """The stream that work on a CUDA device is queued on."""
    stream: int = torch._C._cuda_getCurrentRawStream(device)
    return stream


def check_rows(name: str, x: torch.Tensor) -> None:
    """ValueError unless `x` is a matrix with columns, TypeError unless kernels know its dtype."""
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"expected {name} of shape (R, N); found {tuple(x.shape)}")
    check_dtype(name, x)


def check_dtype(name: str, x: torch.Tensor) -> None:
    """TypeError unless kernels know the dtype of `x`."""
    if x.dtype not in DTYPES:
        known = ", ".join(str(d) for d in DTYPES)
        raise TypeError(f"expected {name} of dtype {known}; found {x.dtype}")


def check_shape(name: str, x: torch.Tensor, *shape: int) -> None:
    """ValueError unless `x` has exactly this shape."""
    if tuple(x.shape) != shape:
        raise ValueError(f"expected {name} of shape {shape}; found {tuple(x.shape)}")


def mask_bytes(row_mask: torch.Tensor | None, n: int) -> torch.Tensor | None:
    """The row mask (N,) as bytes for a kernel to load."""
    if row_mask is None:
        return None
    check_shape("row_mask", row_mask, n)
    return row_mask.contiguous().view(torch.uint8)


def gradient_rows(p: torch.Tensor, need_grad: bool) -> torch.Tensor:
    """A float32 matrix for the rows' gradient; empty if none is needed."""
    return torch.empty(p.shape if need_grad else (0, 1), dtype=torch.float32, device=p.device)


def splits(programs: int, blocks: int) -> int:
    """Into how many parts to cut `blocks` blocks, for each of `programs` independent programs."""
    return max(1, min(blocks, PROGRAMS // max(programs, 1)))
