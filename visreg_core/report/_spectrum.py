"""Measures of the singular values, of a file's rows and of Gaussian ones."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from visreg_core.metrics import (
    PowerLaw,
    condition_number_from_singular_values,
    participation_ratio_from_singular_values,
    power_law_fit,
    rankme_from_singular_values,
    stable_rank_from_singular_values,
)
from visreg_core.report._geometry import geometry
from visreg_core.statistics import Moments

# Wider rows' singular values take longer than the rest of the report.
_WIDEST = 1536


class Spectrum(NamedTuple):
    """Singular values about the mean, the power law through them, and measures (`DIMENSIONS`)."""

    centred: np.ndarray
    fit: PowerLaw
    measures: dict[str, float]


def spectrum(of: Moments, dtype: np.dtype) -> Spectrum:
    """Of rows of this dtype with these moments."""
    centred, plain = of.singular_values(center=True), of.singular_values(center=False)
    # Singular values of float32 embeddings are known to float32's rounding only.
    unit = 2.0**-52 if dtype == np.float64 else 2.0**-23
    fit = power_law_fit(centred / math.sqrt(of.n - 1), rtol=min(of.n, len(of.mean)) * unit)
    # Which of them centre is their public functions' default.
    measures = {
        "rankme": rankme_from_singular_values(plain),
        "participation_ratio": participation_ratio_from_singular_values(centred),
        "stable_rank": stable_rank_from_singular_values(plain),
        "alpha_req": fit.alpha,
        "alpha_req_r_squared": fit.r_squared,
        "condition_number": condition_number_from_singular_values(plain),
    }
    return Spectrum(centred, fit, measures)


@functools.lru_cache(maxsize=32)
def gaussian_null(n: int, d: int, drawn: int, seed: int) -> dict[str, float]:
    """The measures of `DIMENSIONS` and `GEOMETRY` of n rows of N(0, I), one draw of them.

    The scatter matrix is drawn instead of the rows (Bartlett 1933, "On the theory of statistical
    regression"): its factor is a triangle of normal numbers with roots of χ² on the diagonal.
    Measures of pairs are those of `drawn` rows. Empty where d > 1,536.
    """
    if d > _WIDEST:
        return {}
    rng = np.random.default_rng([seed, n, d])
    factor = rng.standard_normal((min(n - 1, d), d))
    if n > d:
        factor = np.triu(factor)
        np.fill_diagonal(factor, np.sqrt(rng.chisquare(n - 1 - np.arange(d))))
    mean = rng.standard_normal(d) / math.sqrt(n)
    points = rng.standard_normal((drawn, d), dtype=np.float32)
    norms = np.linalg.norm(points, axis=1)
    pairs = geometry(points)
    return {
        **spectrum(Moments(n, mean, factor), np.dtype(np.float32)).measures,
        "mean_cosine": 0.0,
        "norm_variation": float(norms.std() / norms.mean()),
        "uniformity": pairs.uniformity,
        "anti_hubs": pairs.anti_hubs,
    }
