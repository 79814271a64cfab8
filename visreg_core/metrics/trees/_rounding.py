"""Which distances are equal up to rounding."""

from __future__ import annotations

import math

import numpy as np


class Rounding:
    """Which heights are equal up to the rounding of the distances that they come from.

    A distance of D terms has a relative error of about D ε, and an absolute one from the rounding
    of the rows' own coordinates (unit vectors, or differences from the mean) times its square root.
    """

    def __init__(self, points: np.ndarray, metric: str) -> None:
        self.terms = points.shape[1] + 16
        self.squared = metric != "euclidean"
        centred = points - points.mean(axis=0)
        spread = math.sqrt(float(np.einsum("nd,nd->n", centred, centred).max()))
        self.radius = 1.0 if metric == "cosine" else spread

    def of(self, distance: np.ndarray) -> np.ndarray:
        """Bound of the rounding error of distances, or heights."""
        eps = float(np.finfo(np.float64).eps)
        if not self.squared:
            return eps * (self.terms * distance + 4 * self.radius)
        return eps * (self.terms * distance + 4 * self.radius * np.sqrt(distance))

    def levelled(self, heights: np.ndarray) -> np.ndarray:
        """Ascending heights; equal ones are set to the lowest, unless that is 0."""
        apart = np.diff(heights) > self.of(heights[1:])
        new = np.concatenate([[True], apart | ((heights[:-1] == 0) & (heights[1:] > 0))])
        return heights[new][np.cumsum(new) - 1]
