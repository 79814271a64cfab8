"""What errors of functions other than losses are relative to; a loss declares its own magnitude."""

from __future__ import annotations

import numpy as np


def affinity(a: np.ndarray, b: np.ndarray, n_neighbors: int = 10) -> float:
    """1 + 2/min σ_i: the effect of a distance's rounding on exp(−(d̃/σ_i)²).

    d̃ is a difference of distances 1 − cos, so that a relative error ε of the cosines moves a
    weight by up to 2 ε/σ_i.
    """
    kept = np.sort(1 - _unit(a, axis=1) @ _unit(b, axis=1).T, axis=1)[:, :n_neighbors]
    sigma = np.maximum(np.percentile(kept - kept[:, :1], 20, axis=1), 1e-7)
    return float(1 + np.max(2 / sigma))


def column_condition(y: np.ndarray) -> float:
    """Condition number of `y` with unit columns, which is what its QR factors depend on."""
    s = np.linalg.svd(_unit(y, axis=0), compute_uv=False)
    return float(s[0] / s[-1]) if s[-1] > 0 else float("inf")


def _unit(x: np.ndarray, axis: int) -> np.ndarray:
    norm = np.linalg.norm(x, axis=axis, keepdims=True)
    return x / np.where(norm > 0, norm, 1.0)
