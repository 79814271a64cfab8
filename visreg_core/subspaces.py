"""Directions inside fixed subspaces, for sliced losses that leave the rest of the space free."""

from __future__ import annotations

from typing import Any

from visreg_core import _xp, checks
from visreg_core.slices import random_slices
from visreg_core.typing import Array, Device, DType, Namespace, Scalar

# The step whose orthogonal slices are the subspaces' axes: no training gets there.
_FIXED_STEP = (1 << 32) - 1


def subspace_slices(
    dim: int,
    n_slices: int,
    *,
    n_subspaces: int,
    subspace_dim: int,
    seed: Scalar = 0,
    step: Scalar = 0,
    xp: Namespace = None,
    dtype: DType = None,
    device: Device = None,
) -> Array:
    """Random directions inside fixed random subspaces: equally many in each.

    Parameters
    ----------
    dim : int
        Dimension D of the embeddings.
    n_slices : int
        Number K of directions, a multiple of `n_subspaces`.
    n_subspaces, subspace_dim : int
        M subspaces of d ≤ D dimensions.
    seed, step : int or 0-d integer array
        As in `random_slices`. The subspaces are those of the seed at every step, the directions
        inside them others.
    xp, dtype, device
        As in `random_slices`.

    Returns
    -------
    array of shape (dim, n_slices)
        Unit columns, those of one subspace side by side.

    Raises
    ------
    ValueError
        Where a count is not positive, d > D, or K is no multiple of M.

    Notes
    -----
    Source: Sub-JEPA (2026). ``sigreg_loss(z, subspace_slices(...))`` is its regulariser: the mean
    over subspaces of SIGReg of the embeddings' coordinates there. Successive ⌊D/d⌋ subspaces are
    orthogonal to each other.

    Examples
    --------
    >>> import numpy as np
    >>> options = {"n_subspaces": 2, "subspace_dim": 3}
    >>> w = np.hstack([subspace_slices(8, 10, step=step, **options) for step in range(4)])
    >>> w.shape, int(np.linalg.matrix_rank(w))
    ((8, 40), 6)
    """
    for name, count in (("n_subspaces", n_subspaces), ("subspace_dim", subspace_dim)):
        checks.positive_int(name, count)
    if subspace_dim > dim:
        raise ValueError(f"expected subspace_dim <= dim = {dim}; found {subspace_dim}")
    if n_slices % n_subspaces:
        raise ValueError(
            f"expected n_slices to be a multiple of n_subspaces = {n_subspaces}; found {n_slices}"
        )
    xp = _xp.as_namespace(xp)
    dtype = _xp.default_float(xp) if dtype is None else dtype
    checks.dtype("dtype", dtype, xp)
    work = xp.float64 if _xp.dtype_name(dtype) == "float64" else xp.float32
    place: dict[str, Any] = {"seed": seed, "xp": xp, "dtype": work, "device": device}
    directions = random_slices(subspace_dim, n_slices, step=step, **place)
    in_each, in_block = n_slices // n_subspaces, dim // subspace_dim
    found = []
    for first in range(0, n_subspaces, in_block):
        here = range(first, min(first + in_block, n_subspaces))
        axes = random_slices(
            dim,
            len(here) * subspace_dim,
            start=first // in_block * dim,
            step=_FIXED_STEP,
            sampler="orthogonal",
            **place,
        )
        for i, m in enumerate(here):
            own = axes[:, i * subspace_dim : (i + 1) * subspace_dim]
            found.append(xp.matmul(own, directions[:, m * in_each : (m + 1) * in_each]))
    return _xp.cast(xp, xp.concat(found, axis=1), dtype)
