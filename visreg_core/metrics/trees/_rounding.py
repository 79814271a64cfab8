"""What rounding does to distances: those within it of each other are equal."""

from __future__ import annotations

import math

import numpy as np


class Rounding:
    """Which heights are equal but for the rounding of the distances that they are made of.

    Distances of D terms err by about D ε of themselves; and by the rounding of the rows' own
    coordinates, as unit vectors or from the mean of all, times the square root of half of them.
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
        """Ascending heights, those that equal a lower one set to it, unless that is 0."""
        apart = np.diff(heights) > self.of(heights[1:])
        new = np.concatenate([[True], apart | ((heights[:-1] == 0) & (heights[1:] > 0))])
        return heights[new][np.cumsum(new) - 1]
