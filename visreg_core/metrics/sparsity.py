"""How sparse embeddings are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from visreg_core import _xp
from visreg_core.metrics._inputs import matrix
from visreg_core.typing import Array, Namespace


class Sparsity(NamedTuple):
    """nonzero : share of entries that are not 0; participation : mean of ‖x‖₁²/(D ‖x‖₂²)."""

    nonzero: float
    participation: float


def sparsity(x: Array) -> Sparsity:
    """Share of nonzero entries, and how evenly a row's length is spread over them.

    Parameters
    ----------
    x : array (N, D)
        Embeddings, any namespace; N ≥ 1.

    Returns
    -------
    Sparsity
        ``(nonzero, participation)``, each between 0 and 1. A row with one entry has participation
        1/D, one of equal magnitudes 1; rows of zeros are left out, and NaN where there are no
        others.

    Notes
    -----
    Source: the ℓ₀ and ℓ₁ sparsity that Rectified LpJEPA reports (Kuang et al. 2026); the second is
    Treves and Rolls' (1991) of a row.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.metrics import sparsity
    >>> sparsity(np.asarray([[3.0, 0.0], [-2.0, 2.0]]))
    Sparsity(nonzero=0.75, participation=0.75)
    """
    xp, x = matrix("x", x, min_rows=1)
    size, nonzero = _xp.compiled(xp, _relative_sizes, "xp")(xp, x)
    size = _xp.to_numpy(size).astype(np.float64)
    kept = size[size.max(axis=1) > 0]
    evenly = kept.sum(axis=1) ** 2 / (x.shape[1] * np.sum(kept * kept, axis=1))
    participation = float(evenly.mean()) if len(kept) else float("nan")
    return Sparsity(float(nonzero), participation)


def _relative_sizes(xp: Namespace, x: Array) -> tuple[Array, Array]:
    """|x| by the largest of its row, and the share of elements that are not 0."""
    size = xp.abs(x)
    largest = xp.max(size, axis=1)
    relative = size / xp.where(largest > 0, largest, 1.0)[:, None]
    return relative, xp.mean(xp.astype(x != 0, x.dtype))
