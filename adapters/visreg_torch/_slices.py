"""Random slices: drawn by a kernel on CUDA devices, by NumPy on the CPU, else by the core on torch.

In torch a draw takes more than a hundred operations, each of them a launch on a device, and slower
than NumPy's on a CPU. A compiler fuses them, so that traced code stays with torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import visreg_core
from visreg_core import arrays, checks, threads
from visreg_core.slices import (
    DOMAIN_SLICES,
    check_range,
    key_word,
    orthogonal_columns,
    unit_columns_numpy,
)
from visreg_torch import _operators
from visreg_torch.kernels.dispatch import choose, load

Word = int | Tensor


def random_slices(
    dim: int,
    n_slices: int,
    *,
    seed: int | Tensor = 0,
    step: int | Tensor = 0,
    start: int = 0,
    sampler: str = "gaussian",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Unit directions (dim, n_slices) by a counter-based stream, as `visreg_core.random_slices`.

    Examples
    --------
    >>> from visreg_torch import random_slices
    >>> random_slices(8, 5, seed=1, step=3).shape
    torch.Size([8, 5])
    """
    options: dict[str, Any]
    if are_traced(seed, step):
        options = {"seed": seed, "step": step, "start": start, "sampler": sampler}
        return visreg_core.random_slices(
            dim, n_slices, **options, xp=torch, dtype=dtype, device=device
        )
    check_range(dim, n_slices, start, sampler)
    dim, n_slices = int(dim), int(n_slices)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    checks.dtype("dtype", dtype, arrays.as_namespace(torch))
    device = torch.get_default_device() if device is None else torch.device(device)
    options = {
        "seed": word_for("seed", seed, device),
        "step": word_for("step", step, device),
        "start": int(start),
    }
    if sampler == "gaussian":
        kernel = choose("slices", device, dtype, dim).kernel
        if kernel is not None:
            return load("slices", kernel)(dim, n_slices, **options, dtype=dtype, device=device)
    if device.type == "cpu":
        with threads.at_most_threads(torch.get_num_threads(), 8 * dim * n_slices):
            return _drawn_by_numpy(dim, n_slices, **options, sampler=sampler, dtype=dtype)
    return visreg_core.random_slices(
        dim, n_slices, **options, sampler=sampler, xp=torch, dtype=dtype, device=device
    )


def are_traced(*words: Word) -> bool:
    """Whether code is traced, or a word is batched by a transform."""
    tensors = [w for w in words if isinstance(w, Tensor)]
    return _operators.is_needed(tensors) or any(
        torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors
    )


def word_for(argument: str, value: Word, device: torch.device) -> Word:
    """A word as an integer where reading it does not synchronise with a device."""
    word = key_word(arrays.as_namespace(torch), argument, value)
    if isinstance(word, Tensor) and "cpu" in (word.device.type, device.type):
        return int(word) & 0xFFFFFFFF  # of a tensor, its low 32 bits
    return word


def _drawn_by_numpy(
    dim: int, n_slices: int, *, seed: int, step: int, start: int, sampler: str, dtype: torch.dtype
) -> Tensor:
    """Drawn in float32 or float64, rounded to 16 bits by torch, which also factors the blocks.

    NumPy's QR would run in float64 and take several times as long.
    """
    wide: Any = np.float64 if dtype == torch.float64 else np.float32
    if sampler == "gaussian":
        drawn = unit_columns_numpy(dim, n_slices, start, seed, step, wide)
        return torch.from_numpy(drawn).to(dtype)

    def normals(first: int, count: int) -> Tensor:
        return torch.from_numpy(
            arrays.normals(
                dim,
                count,
                first=first,
                domain=DOMAIN_SLICES << 28,
                seed=seed,
                step=step,
                dtype=wide,
            )
        )

    xp = arrays.as_namespace(torch)
    return orthogonal_columns(xp, dim, start, n_slices, normals).to(dtype)
