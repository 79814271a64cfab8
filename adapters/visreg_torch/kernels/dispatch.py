"""Which kernel runs: decided here, and nowhere else.

`choose` decides for an operation, device, dtype and size, without a tensor; `explain` shows the
last decision for each operation; `forced` overrides decisions, for tests.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

# Operation -> kernels that can do it, as `forced` names them.
OPERATIONS = {
    "gaussian": ("gaussian_rows", "histogram_rows", "ordered_rows"),
    "epps_pulley": ("epps_pulley_rows",),
    "slices": ("gaussian_slices",),
}
SLOW = "slow"
_16_BIT = (torch.bfloat16, torch.float16)
# Samples of a row that registers sort.
MAX_SORTED = 8192

# Loss -> module and name of the two passes that compute it whole, and what is saved between them.
_WHOLE = {
    "visreg_loss": ("sliced", "visreg", "VISRegKernelSaved"),
    "shape_loss": ("sliced", "shape", "VISRegKernelSaved"),
    "gaussian_sliced_wasserstein": (
        "sliced",
        "gaussian_sliced_wasserstein",
        "SlicedSaved",
    ),
    "sigreg_loss": ("sliced", "sigreg", "SlicedSaved"),
    "vicreg_loss": ("pairs", "vicreg", "VICRegKernelSaved"),
    "sag_vicreg_loss": ("pairs", "sag_vicreg", "VICRegKernelSaved"),
    "barlow_twins_loss": ("pairs", "barlow_twins", "BarlowTwinsKernelSaved"),
}

_forced: ContextVar[str | None] = ContextVar("visreg_torch_kernel", default=None)
_last: dict[str, Choice] = {}


class Passes(NamedTuple):
    """The two passes of a loss: see `visreg_torch.kernels.sliced` and `pairs`.

    ``forward(*tensors, **options, need_grad) -> (fields, saved)``, ``backward(*tensors, saved,
    cotangents, **options, donated) -> gradients``, and the type of what is saved.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    saved: type


class Choice(NamedTuple):
    """A kernel's name, or None for the reference implementation, and why."""

    kernel: str | None
    reason: str


def choose(
    operation: str,
    device: torch.device | str,
    dtype: torch.dtype,
    n: int,
) -> Choice:
    """The kernel for an operation on rows of `n` samples, or why there is none.

    Parameters
    ----------
    operation : str
        A key of `OPERATIONS`.
    device : device
        Where the tensors are.
    dtype : dtype
        Of the rows or slices.
    n : int
        Samples; for "slices" dimensions.

    Returns
    -------
    Choice
        ``kernel`` is None where the reference implementation must run.

    Raises
    ------
    ValueError
        For an unknown operation.

    Examples
    --------
    >>> import torch
    >>> choose("gaussian", "cpu", torch.float64, 512).kernel is None
    True
    """
    if operation not in OPERATIONS:
        raise ValueError(f"expected an operation of {', '.join(OPERATIONS)}; found {operation!r}")
    choice = _chosen(operation, torch.device(device), dtype, n)
    _last[operation] = choice
    return choice


def _chosen(operation: str, device: torch.device, dtype: torch.dtype, n: int) -> Choice:
    lacking = _lacking(device, dtype)
    if lacking is not None:
        return Choice(None, lacking)
    wanted = _forced.get()
    if wanted in OPERATIONS[operation]:
        return Choice(wanted, "forced")
    if operation == "gaussian":
        from visreg_torch.kernels.gaussian_rows import MAX_SAMPLES

        if n <= MAX_SAMPLES:
            return Choice("gaussian_rows", f"{n} samples fit the registers")
        if dtype in _16_BIT:
            return Choice("histogram_rows", f"16-bit rows of {n} samples need no sort")
        return Choice("ordered_rows", f"float32 rows of {n} samples are sorted by torch")
    if operation == "epps_pulley":
        return Choice("epps_pulley_rows", "rotations in registers")
    return Choice("gaussian_slices", "drawn by one launch")


# Dynamo cannot trace the search for a module. Compiled code keeps the answer of its compilation.
@torch.compiler.assume_constant_result
def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `choose` would find kernels on this device for this dtype."""
    return _lacking(device, dtype) is None


def _lacking(device: torch.device, dtype: torch.dtype) -> str | None:
    if _forced.get() == SLOW:
        return "forced"
    return (_missing_on_cuda if device.type == "cuda" else _missing)(device, dtype)


@functools.cache
def _missing_on_cuda(device: torch.device, dtype: torch.dtype) -> str | None:
    """`_missing`, cached: the search for a module takes as long as a kernel."""
    return _missing(device, dtype)


def _missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why kernels cannot run on this device with this dtype; None where they can."""
    if dtype not in (torch.float32, *_16_BIT):
        return f"kernels compute in float32, not for {dtype}"
    if device.type == "cpu" and "TRITON_INTERPRET" not in os.environ:
        return "kernels do not run on the CPU"  # nor is triton imported, which takes a while
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "meta":  # where launchers only make outputs of the right shapes
        return None
    import triton

    if device.type == "cpu":
        return None if triton.knobs.runtime.interpret else "kernels do not run on the CPU"
    if device.type != "cuda" or torch.version.cuda is None:
        return f"kernels are for CUDA, not for {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "kernels need compute capability 8.0"
    return None


def passes(loss: str, *embeddings: torch.Tensor | None, **options: Any) -> Passes | None:
    """The passes by kernels of a loss of these embeddings and options, or None: the core's.

    Parameters
    ----------
    loss : str
        Name of a loss of `visreg_core`.
    *embeddings : tensors, or None
        Its embeddings: z, or a and b.
    **options
        Its other arguments; some of their values are not supported by kernels.

    Returns
    -------
    Passes or None

    Examples
    --------
    >>> import torch
    >>> passes("visreg_loss", torch.zeros(4, 2)) is None  # on a CPU
    True
    """
    if loss not in _WHOLE or embeddings[0] is None:
        return None
    z = embeddings[0]
    if not available(z.device, z.dtype):
        return None
    module, name, saved = _WHOLE[loss]
    if not load(module, "takes")(*embeddings, **options):
        return None
    forward, backward = load(module, f"{name}_forward"), load(module, f"{name}_backward")
    kind: Any = load(module, saved)
    return Passes(forward, backward, kind)


@functools.cache
def load(module: str, name: str) -> Callable[..., Any]:
    """A launcher. Its module is imported when first needed: the adapter works without triton."""
    return getattr(importlib.import_module(f"visreg_torch.kernels.{module}"), name)


def explain(operation: str | None = None) -> str:
    """The last choice for an operation, or for each, and why, one line each.

    Examples
    --------
    >>> import torch
    >>> _ = choose("epps_pulley", "cpu", torch.float64, 512)
    >>> explain("epps_pulley")
    'epps_pulley: reference implementation (kernels compute in float32, not for torch.float64)'
    """
    if operation is not None and operation not in OPERATIONS:
        raise ValueError(f"expected an operation of {', '.join(OPERATIONS)}; found {operation!r}")
    asked = OPERATIONS if operation is None else (operation,)
    return "\n".join(
        f"{name}: {_last[name].kernel or 'reference implementation'} ({_last[name].reason})"
        if name in _last
        else f"{name}: not requested yet"
        for name in asked
    )


@contextlib.contextmanager
def forced(kernel: str) -> Iterator[None]:
    """Context in which every choice falls on this kernel where it can run, or on "slow", none.

    Operations that are not the kernel's are chosen as usual. A kernel that is forced on what it
    cannot compute raises.
    """
    known = [SLOW, *(name for names in OPERATIONS.values() for name in names)]
    if kernel not in known:
        raise ValueError(f"expected a kernel of {', '.join(known)}; found {kernel!r}")
    token = _forced.set(kernel)
    try:
        yield
    finally:
        _forced.reset(token)
