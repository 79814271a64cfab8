"""Epps-Pulley sums and gradients of projections that never reach memory.

A program takes a tile of rows and slices, projects it in registers and works on it there: the sums
over rows are added up in a fixed order (no atomics), and the gradient pass projects again. That
trades a product for three passes over the projections, which pays while D is small (see
`visreg_torch.kernels.dispatch`). Twin: `visreg_core.losses.epps_pulley.Multiples` on z @ slices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from visreg_torch.kernels import _launch
from visreg_torch.kernels.epps_pulley_rows import horner, rotate
from visreg_torch.kernels.projected import batched_slices, tile_product, tiling

# Four numbers a projection beside the product's tile: 32 projections a thread fit the registers.
_ROWS, _COLUMNS, _WARPS = 64, 64, 4


@triton.jit
def _sums(
    z_ptr,  # (B, N, D), strides (z_batch_stride, z_row_stride, z_column_stride)
    w_ptr,  # (B, D, K), strides (w_batch_stride, w_row_stride, w_column_stride)
    keep_ptr,  # (N,) bytes, or None
    out_ptr,  # (splits, 2, B, K, m) float32
    step,
    n,
    d,
    k,
    m,
    span,
    z_batch_stride,
    z_row_stride,
    z_column_stride,
    w_batch_stride,
    w_row_stride,
    w_column_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    PRECISION: tl.constexpr,
    KNOTS: tl.constexpr,
):
    batch = tl.program_id(2).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    knot = tl.arange(0, KNOTS)[:, None]
    cos_sums = tl.zeros([KNOTS, COLUMNS], tl.float32)
    sin_sums = tl.zeros([KNOTS, COLUMNS], tl.float32)
    begin = tl.program_id(1) * span
    for start in range(begin, tl.minimum(begin + span, n), ROWS):
        row = start + tl.arange(0, ROWS)
        inside = row < n
        if keep_ptr is not None:
            inside = inside & (tl.load(keep_ptr + row, mask=inside, other=0) != 0)
        angle = step * tile_product(
            z_ptr + batch * z_batch_stride,
            w_ptr + batch * w_batch_stride,
            keep_ptr,
            None,
            None,
            None,
            row,
            column,
            n,
            d,
            k,
            z_row_stride,
            z_column_stride,
            w_row_stride,
            w_column_stride,
            ROWS,
            COLUMNS,
            INNER,
            PRECISION,
        )
        first_cos, first_sin = tl.cos(angle), tl.sin(angle)
        # A vector of length 0 stays one however it is rotated.
        cos = tl.where(inside[:, None], first_cos, 0.0)
        sin = tl.where(inside[:, None], first_sin, 0.0)
        for j in range(m):
            cos_sums = tl.where(knot == j, cos_sums + tl.sum(cos, axis=0)[None, :], cos_sums)
            sin_sums = tl.where(knot == j, sin_sums + tl.sum(sin, axis=0)[None, :], sin_sums)
            cos, sin = rotate(cos, sin, first_cos, first_sin)
    batches = tl.num_programs(2)
    part = tl.program_id(1).to(tl.int64) * 2
    of_slice = column[None, :] * m + knot
    stored = (column < k)[None, :] & (knot < m)
    tl.store(out_ptr + (part * batches + batch) * k * m + of_slice, cos_sums, mask=stored)
    tl.store(out_ptr + ((part + 1) * batches + batch) * k * m + of_slice, sin_sums, mask=stored)


@triton.jit
def _polynomial(
    z_ptr,  # (B, N, D), strides (z_batch_stride, z_row_stride, z_column_stride)
    w_ptr,  # (B, D, K), strides (w_batch_stride, w_row_stride, w_column_stride)
    keep_ptr,  # (N,) bytes, or None
    of_cos_ptr,  # (B, K, m) float32
    of_sin_ptr,  # (B, K, m) float32
    out_ptr,  # (B, K, N) contiguous
    step,
    n,
    d,
    k,
    m,
    z_batch_stride,
    z_row_stride,
    z_column_stride,
    w_batch_stride,
    w_row_stride,
    w_column_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    batch = tl.program_id(2).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    angle = step * tile_product(
        z_ptr + batch * z_batch_stride,
        w_ptr + batch * w_batch_stride,
        keep_ptr,
        None,
        None,
        None,
        row,
        column,
        n,
        d,
        k,
        z_row_stride,
        z_column_stride,
        w_row_stride,
        w_column_stride,
        ROWS,
        COLUMNS,
        INNER,
        PRECISION,
    )
    first_cos, first_sin = tl.cos(angle), tl.sin(angle)
    re = tl.zeros([ROWS, COLUMNS], tl.float32)
    im = tl.zeros([ROWS, COLUMNS], tl.float32)
    coefficients = (batch * k + column) * m
    for i in range(m):
        at = coefficients + (m - 1 - i)
        of_cos = tl.load(of_cos_ptr + at, mask=column < k, other=0.0)[None, :]
        of_sin = tl.load(of_sin_ptr + at, mask=column < k, other=0.0)[None, :]
        re, im = horner(re, im, of_cos, of_sin, first_cos, first_sin)
    if keep_ptr is not None:
        keep = tl.load(keep_ptr + row, mask=row < n, other=0)
        re = tl.where((keep != 0)[:, None], re, 0.0)
    at = out_ptr + (batch * k + column)[:, None] * n + row[None, :]
    stored = (column < k)[:, None] & (row < n)[None, :]
    tl.store(at, tl.trans(re).to(out_ptr.dtype.element_ty), mask=stored)


def projected_epps_pulley_sums(
    z: torch.Tensor,
    slices: torch.Tensor,
    step: float,
    m: int,
    row_mask: torch.Tensor | None = None,
    *,
    precision: str = "ieee",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ_n cos jθ_n and Σ_n sin jθ_n, j = 1 … m, with θ = step · (z @ slices).

    Parameters
    ----------
    z : tensor of shape (B, N, D)
        float32, bfloat16 or float16, any strides.
    slices : tensor of shape (B, D, K) or (1, D, K)
        Its dtype is that of the product, whose sums are float32.
    step : float
        The distance of the knots.
    m : int
        Number of multiples, at least 1.
    row_mask : boolean tensor of shape (N,), optional
        Rows to keep.
    precision : {"ieee", "tf32", "tf32x3"}
        Of a float32 product.

    Returns
    -------
    two tensors of shape (B, K, m)
        In float32.

    Raises
    ------
    ValueError
        For shapes that do not fit, m < 1 or an unknown precision.
    TypeError
        For a dtype that kernels do not know.
    """
    w = batched_slices(z, slices)
    if m < 1:
        raise ValueError(f"expected m of at least 1; found {m}")
    batch, n, d = z.shape
    k = w.shape[-1]
    tile, options = _tiling(w, precision, n, k)
    blocks, programs = triton.cdiv(n, tile["ROWS"]), triton.cdiv(k, tile["COLUMNS"])
    parts = _launch.splits(programs * batch, blocks)
    out = torch.empty((parts, 2, batch, k, m), dtype=torch.float32, device=z.device)
    _launch.launch(
        _sums,
        (programs, parts, batch),
        z,
        w,
        _launch.mask_bytes(row_mask, n),
        out,
        step,
        n,
        d,
        k,
        m,
        triton.cdiv(blocks, parts) * tile["ROWS"],
        *z.stride(),
        *w.stride(),
        **tile,
        KNOTS=triton.next_power_of_2(m),
        **options,
    )
    cos_sums, sin_sums = out[0] if parts == 1 else torch.sum(out, dim=0)
    return cos_sums, sin_sums


def projected_epps_pulley_polynomial(
    z: torch.Tensor,
    slices: torch.Tensor,
    step: float,
    of_cos: torch.Tensor,
    of_sin: torch.Tensor,
    row_mask: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype = torch.float32,
    precision: str = "ieee",
) -> torch.Tensor:
    """Σ_j of_cos_j cos jθ_n + of_sin_j sin jθ_n with θ = step · (z @ slices), slice-major.

    Parameters
    ----------
    z, slices, step, row_mask, precision
        As in `projected_epps_pulley_sums`.
    of_cos, of_sin : tensors of shape (B, K, m)
        Coefficients of j = 1 … m.
    out_dtype : dtype
        Of the result.

    Returns
    -------
    tensor of shape (B, K, N)
        Masked rows 0.

    Raises
    ------
    ValueError
        For shapes that do not fit, or an unknown precision.
    TypeError
        For a dtype that kernels do not know.
    """
    w = batched_slices(z, slices)
    batch, n, d = z.shape
    k, m = w.shape[-1], of_cos.shape[-1]
    _launch.check_shape("of_cos", of_cos, batch, k, m)
    _launch.check_shape("of_sin", of_sin, batch, k, m)
    tile, options = _tiling(w, precision, n, k)
    out = torch.empty((batch, k, n), dtype=out_dtype, device=z.device)
    _launch.launch(
        _polynomial,
        (triton.cdiv(k, tile["COLUMNS"]), triton.cdiv(n, tile["ROWS"]), batch),
        z,
        w,
        _launch.mask_bytes(row_mask, n),
        of_cos.float().contiguous(),
        of_sin.float().contiguous(),
        out,
        step,
        n,
        d,
        k,
        m,
        *z.stride(),
        *w.stride(),
        **tile,
        **options,
    )
    return out


def _tiling(w: torch.Tensor, precision: str, n: int, k: int) -> tuple[dict, dict]:
    tile, options = tiling(w, precision, n, k)
    tile["ROWS"], tile["COLUMNS"] = min(tile["ROWS"], _ROWS), min(tile["COLUMNS"], _COLUMNS)
    return tile, {**options, "num_warps": _WARPS}
