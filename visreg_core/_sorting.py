"""Assign targets by rank: the step between a projection and its quantiles."""

from __future__ import annotations

from visreg_core import _xp
from visreg_core._typing import Array, Namespace


def targets_by_rank(xp: Namespace, p: Array, targets: Array) -> Array:
    """t[r, n] = targets[rank of p[r, n] in its row]; ties take ranks in index order.

    p : (R, N); targets : (N,) or (R, N), increasing along the last axis.
    """
    order = xp.argsort(p, axis=-1, stable=True)
    return _xp.put_last(xp, order, xp.broadcast_to(targets, p.shape))
