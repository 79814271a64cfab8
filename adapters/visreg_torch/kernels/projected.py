"""Projections of standardised embeddings, without standardised embeddings; and the way back.

The mean comes off and the scale goes on while a tile of z is loaded, and the result is rounded
once to the product's dtype, as a stored z̃ would be. (Taking the mean off the projections instead
is wrong by multiples in bfloat16, and by 1/ε where a column is constant.) Projections come out
slice-major, (B, K, N), the layout of everything that works on rows. Where a product is long, a
block of standardised rows at a time and the vendor's product does the same.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from visreg_torch.kernels import _launch, columns

# Tiles (N, K or D, inner, warps, stages) by the product's dtype: 16-bit on tensor cores, float32 on
# them (TF32), and float32 on the ordinary cores.
_TILES = {"16-bit": (128, 128, 64, 8, 3), "tf32": (128, 64, 32, 4, 3), "ieee": (64, 64, 16, 4, 2)}
_GROUP = 8  # rows of tiles that run together, so that they share what they read
PRECISIONS = ("ieee", "tf32", "tf32x3")
_BLOCK_BYTES = 1 << 27  # of standardised rows at a time


@triton.jit
def tile_of(pid, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Tile of a program: down `GROUP` rows of tiles, then on to the next column of them."""
    group = pid // (GROUP * tiles_n)
    height = tl.minimum(tiles_m - group * GROUP, GROUP)
    within = pid % (GROUP * tiles_n)
    return group * GROUP + within % height, within // height


@triton.jit
def tile_product(
    z_ptr,  # one batch's (N, D), strides (z_row_stride, z_column_stride)
    w_ptr,  # its (D, K), strides (w_row_stride, w_column_stride)
    keep_ptr,  # (N,) bytes, or None
    first_ptr,  # (D,) float32, or None
    rest_ptr,  # (D,) float32, or None
    scale_ptr,  # (D,) float32, or None
    row,  # (ROWS,) of the tile
    column,  # (COLUMNS,) of the tile
    n,
    d,
    k,
    z_row_stride,
    z_column_stride,
    w_row_stride,
    w_column_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Tile (ROWS, COLUMNS) of ((z − first − rest) · scale) @ w in float32; masked rows 0."""
    dtype: tl.constexpr = w_ptr.dtype.element_ty
    inside_n = row < n
    if keep_ptr is not None:
        inside_n = inside_n & (tl.load(keep_ptr + row, mask=inside_n, other=0) != 0)
    inner = tl.arange(0, INNER)
    z_at = z_ptr + row.to(tl.int64)[:, None] * z_row_stride
    w_at = w_ptr + column.to(tl.int64)[None, :] * w_column_stride
    product = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, d, INNER):
        j = start + inner
        inside = inside_n[:, None] & (j < d)[None, :]
        z = tl.load(z_at + j.to(tl.int64)[None, :] * z_column_stride, mask=inside, other=0.0)
        inside_w = (j < d)[:, None] & (column < k)[None, :]
        w = tl.load(w_at + j.to(tl.int64)[:, None] * w_row_stride, mask=inside_w, other=0.0)
        if first_ptr is not None:
            z = z.to(tl.float32) - tl.load(first_ptr + j, mask=j < d, other=0.0)[None, :]
            z = z - tl.load(rest_ptr + j, mask=j < d, other=0.0)[None, :]
            if keep_ptr is not None:  # else such rows are not stored, and no sum sees them
                z = tl.where(inside, z, 0.0)
        if scale_ptr is not None:
            z = z.to(tl.float32) * tl.load(scale_ptr + j, mask=j < d, other=0.0)[None, :]
        product = tl.dot(z.to(dtype), w, product, input_precision=PRECISION)
    return product


@triton.jit
def _project(
    z_ptr,  # (B, N, D), strides (z_batch_stride, z_row_stride, z_column_stride)
    w_ptr,  # (B, D, K), strides (w_batch_stride, w_row_stride, w_column_stride)
    keep_ptr,  # (N,) bytes, or None
    first_ptr,  # (B, D) float32, or None
    rest_ptr,
    scale_ptr,
    out_ptr,  # (B, K, N), strides (out_batch_stride, out_slice_stride, 1)
    n,
    d,
    k,
    z_batch_stride,
    z_row_stride,
    z_column_stride,
    w_batch_stride,
    w_row_stride,
    w_column_stride,
    out_batch_stride,
    out_slice_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    tile = tile_of(tl.program_id(0), tl.cdiv(n, ROWS), tl.cdiv(k, COLUMNS), GROUP)
    row = tile[0] * ROWS + tl.arange(0, ROWS)
    column = tile[1] * COLUMNS + tl.arange(0, COLUMNS)
    product = tile_product(
        z_ptr + batch * z_batch_stride,
        w_ptr + batch * w_batch_stride,
        keep_ptr,
        None if first_ptr is None else first_ptr + batch * d,
        None if rest_ptr is None else rest_ptr + batch * d,
        None if scale_ptr is None else scale_ptr + batch * d,
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
    at = out_ptr + batch * out_batch_stride + column.to(tl.int64)[:, None] * out_slice_stride
    stored = (column < k)[:, None] & (row < n)[None, :]
    tl.store(at + row[None, :], tl.trans(product).to(out_ptr.dtype.element_ty), mask=stored)


@triton.jit
def _carry_back(
    g_ptr,  # (B, K, N), strides (g_batch_stride, g_slice_stride, g_row_stride)
    w_ptr,  # (B, D, K), strides (w_batch_stride, w_row_stride, w_column_stride)
    out_ptr,  # (B, N, D), strides (out_batch_stride, out_row_stride, out_column_stride)
    n,
    d,
    k,
    g_batch_stride,
    g_slice_stride,
    g_row_stride,
    w_batch_stride,
    w_row_stride,
    w_column_stride,
    out_batch_stride,
    out_row_stride,
    out_column_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    dtype: tl.constexpr = w_ptr.dtype.element_ty
    batch = tl.program_id(1).to(tl.int64)
    tile = tile_of(tl.program_id(0), tl.cdiv(n, ROWS), tl.cdiv(d, COLUMNS), GROUP)
    row = (tile[0] * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (tile[1] * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    inner = tl.arange(0, INNER)
    g_at = g_ptr + batch * g_batch_stride + row[:, None] * g_row_stride
    w_at = w_ptr + batch * w_batch_stride + column[None, :] * w_row_stride
    out_at = out_ptr + batch * out_batch_stride + row[:, None] * out_row_stride
    out_at += column[None, :] * out_column_stride
    stored = (row < n)[:, None] & (column < d)[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    if ACCUMULATE:
        total += tl.load(out_at, mask=stored, other=0.0).to(tl.float32)
    for start in range(0, k, INNER):
        j = start + inner
        inside_g = (row < n)[:, None] & (j < k)[None, :]
        g = tl.load(g_at + j.to(tl.int64)[None, :] * g_slice_stride, mask=inside_g, other=0.0)
        inside_w = (j < k)[:, None] & (column < d)[None, :]
        w = tl.load(w_at + j.to(tl.int64)[:, None] * w_column_stride, mask=inside_w, other=0.0)
        total = tl.dot(g.to(dtype), w, total, input_precision=PRECISION)
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=stored)


def project(
    z: torch.Tensor,
    slices: torch.Tensor,
    first: torch.Tensor | None = None,
    rest: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    row_mask: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    precision: str = "ieee",
) -> torch.Tensor:
    """Projections ((z − first − rest) · scale) @ slices, slice-major.

    Parameters
    ----------
    z : tensor of shape (B, N, D)
        float32, bfloat16 or float16, any strides.
    slices : tensor of shape (B, D, K) or (1, D, K)
        Its dtype is that of the product, whose sums are float32.
    first, rest, scale : tensors of shape (B, D), optional
        In float32; without `first` no mean is taken off, without `scale` nothing is multiplied.
    row_mask : boolean tensor of shape (N,), optional
        Rows to keep; the projections of the others are 0.
    out_dtype : dtype, optional
        Of the projections; that of the slices if not given.
    precision : {"ieee", "tf32", "tf32x3"}
        Of a float32 product.

    Returns
    -------
    tensor of shape (B, K, N)
        Contiguous.

    Raises
    ------
    ValueError
        For shapes that do not fit, or an unknown precision.
    TypeError
        For a dtype that kernels do not know.
    """
    w = batched_slices(z, slices)
    batch, n, d = z.shape
    k = w.shape[-1]
    vectors = batched_columns(z, first=first, rest=rest, scale=scale)
    out = torch.empty((batch, k, n), dtype=out_dtype or w.dtype, device=z.device)
    tile, options = tiling(w, precision, n, k)
    grid = (triton.cdiv(n, tile["ROWS"]) * triton.cdiv(k, tile["COLUMNS"]), batch)
    _launch.launch(
        _project,
        grid,
        z,
        w,
        _launch.mask_bytes(row_mask, n),
        *vectors,
        out,
        n,
        d,
        k,
        *z.stride(),
        *w.stride(),
        out.stride(0),
        out.stride(1),
        **tile,
        GROUP=_GROUP,
        **options,
    )
    return out


def project_in_blocks(
    z: torch.Tensor,
    slices: torch.Tensor,
    first: torch.Tensor | None = None,
    rest: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    row_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `project`, in the slices' dtype, by the vendor's product of blocks of standardised rows.

    Parameters
    ----------
    z, slices : tensors of shape (B, N, D) and (B or 1, D, K)
        As in `project`.
    first, rest, scale : tensors of shape (B, D), optional
        All three, or none.
    row_mask : boolean tensor of shape (N,), optional
        Rows to keep; what the others are projected to is not said.

    Returns
    -------
    tensor of shape (B, K, N)
        Contiguous, in the dtype of the slices; torch's own setting decides on TF32.

    Raises
    ------
    ValueError
        For shapes that do not fit.
    TypeError
        For a dtype that kernels do not know.
    """
    w = batched_slices(z, slices).mT
    batch, n, d = z.shape
    out = torch.empty((batch, w.shape[1], n), dtype=w.dtype, device=z.device)
    rows = max(1, _BLOCK_BYTES // (d * w.element_size()))
    together = max(1, rows // n)
    for b in range(0, batch, together):
        of = slice(b, b + together)
        for start in range(0, n, rows):
            part = slice(start, start + rows)
            block = z[of, part]
            if first is None or rest is None or scale is None:
                block = block.to(w.dtype)
            else:
                mask = None if row_mask is None else row_mask[part]
                vectors = first[of], rest[of], scale[of]
                block = columns.standardised(block, *vectors, mask, out_dtype=w.dtype)
            torch.bmm(w[of], block.mT, out=out[of, :, part])
    return out


def carry_back(
    g: torch.Tensor,
    slices: torch.Tensor,
    out: torch.Tensor,
    *,
    accumulate: bool,
    precision: str = "ieee",
) -> torch.Tensor:
    """Write, or add, the projections' gradient times the slices into embeddings' gradient.

    Parameters
    ----------
    g : tensor of shape (B, K, N)
        Gradient of the projections, any strides.
    slices : tensor of shape (B, D, K) or (1, D, K)
        Its dtype is that of the product, whose sums are float32.
    out : tensor of shape (B, N, D)
        Overwritten by g @ slicesᵀ, or increased by it.
    accumulate : bool
        Which of the two.
    precision : {"ieee", "tf32", "tf32x3"}
        Of a float32 product.

    Returns
    -------
    tensor
        `out`.

    Raises
    ------
    ValueError
        For shapes that do not fit, or an unknown precision.
    TypeError
        For a dtype that kernels do not know.
    """
    w = batched_slices(out, slices)
    batch, n, d = out.shape
    k = w.shape[-1]
    _launch.check_dtype("g", g)
    _launch.check_shape("g", g, batch, k, n)
    tile, options = tiling(w, precision, n, d)
    grid = (triton.cdiv(n, tile["ROWS"]) * triton.cdiv(d, tile["COLUMNS"]), batch)
    _launch.launch(
        _carry_back,
        grid,
        g,
        w,
        out,
        n,
        d,
        k,
        *g.stride(),
        *w.stride(),
        *out.stride(),
        **tile,
        GROUP=_GROUP,
        ACCUMULATE=accumulate,
        **options,
    )
    return out


def batched_slices(z: torch.Tensor, slices: torch.Tensor) -> torch.Tensor:
    """The slices as (B, D, K) beside z (B, N, D), by a stride of 0 where they are shared."""
    _launch.check_dtype("z", z)
    _launch.check_dtype("slices", slices)
    if z.ndim != 3 or 0 in z.shape:
        raise ValueError(f"expected embeddings of shape (B, N, D); found {tuple(z.shape)}")
    batch, d = z.shape[0], z.shape[2]
    shape = tuple(slices.shape)
    if len(shape) != 3 or shape[0] not in (1, batch) or shape[1] != d or shape[2] == 0:
        raise ValueError(f"expected slices of shape ({batch} or 1, {d}, K); found {shape}")
    return slices.expand(batch, -1, -1)


def batched_columns(
    z: torch.Tensor, **vectors: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    """Vectors (B, D) as a kernel loads them; a missing `rest` beside a mean is zeros."""
    if vectors["first"] is not None and vectors["rest"] is None:
        vectors["rest"] = torch.zeros_like(vectors["first"])
    for name, vector in vectors.items():
        if vector is not None:
            _launch.check_shape(name, vector, z.shape[0], z.shape[2])
    return tuple(None if v is None else v.float().contiguous() for v in vectors.values())


def tiling(w: torch.Tensor, precision: str, m: int, n: int) -> tuple[dict, dict]:
    """Tile of a product (m, n) in w's dtype, and the options it is compiled with."""
    if precision not in PRECISIONS:
        raise ValueError(f"expected precision of {', '.join(PRECISIONS)}; found {precision!r}")
    kind = "ieee" if precision == "ieee" else "tf32"
    rows, columns, inner, warps, stages = _TILES[kind if w.dtype == torch.float32 else "16-bit"]
    tile = {
        "ROWS": min(rows, max(16, triton.next_power_of_2(m))),
        "COLUMNS": min(columns, max(16, triton.next_power_of_2(n))),
        "INNER": inner,
        "PRECISION": precision,
    }
    return tile, {"num_warps": warps, "num_stages": stages}
