"""What the launchers share: how to start a kernel, checks, masks as bytes, numbers of programs."""

from __future__ import annotations

from typing import Any

import torch

# A product and a sum that follow it are rounded once. Asked for by name: triton's default changes
# between versions, and warns.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Programs that keep a large GPU busy, for kernels that may split a row.
PROGRAMS = 1024


def launch(
    kernel: Any, grid: tuple[int, ...], first: torch.Tensor, *others: Any, **options: Any
) -> None:
    """Start a kernel where `first` is, if there are programs to start.

    On the meta device there are none: launchers tell the shapes and dtypes of what they return.
    """
    device = first.device
    if not all(grid) or device.type == "meta":
        return
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):  # triton starts kernels on the current device
            kernel[grid](first, *others, **OPTIONS, **options)
    else:
        kernel[grid](first, *others, **OPTIONS, **options)


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


def gradient_rows(p: torch.Tensor, out: torch.Tensor | None, need_grad: bool) -> torch.Tensor:
    """Where the rows' gradient goes: `out`, or a new float32 matrix; empty if none is wanted."""
    if not need_grad:
        return p.new_empty((0, 1), dtype=torch.float32)
    if out is None:
        return torch.empty(p.shape, dtype=torch.float32, device=p.device)
    check_shape("out", out, *p.shape)
    check_dtype("out", out)
    return out


def splits(programs: int, blocks: int) -> int:
    """Parts to cut `blocks` consecutive blocks into, beside `programs` that are independent."""
    return max(1, min(blocks, PROGRAMS // max(programs, 1)))
