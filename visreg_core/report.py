"""What `visreg report` and `visreg compare` compute: losses, spectrum, hierarchy, pictures.

Every number is that of the public function of its name with its defaults, on all rows as one
batch; `visreg_core._streaming` says how they come about without the rows in memory. Dendrograms
are of a sample of the rows; see `visreg_core._hierarchies`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from visreg_core import _checks
from visreg_core._hierarchies import (
    DEFAULT_TREE,
    PAIR_OF_TREES,
    Hierarchy,
    Interval,
    Rows,
    TreeOptions,
    TreePair,
    hierarchy,
    rows_of,
    tree_pair,
)
from visreg_core._streaming import (
    Moments,
    Place,
    SliceValues,
    Tick,
    cross_scatter,
    moments,
    ordered_projections,
    slice_values,
    two_sample_values,
)
from visreg_core._xp import as_namespace
from visreg_core.embeddings import Embeddings
from visreg_core.gaussian import normal_quantiles
from visreg_core.losses import center_loss, covariance_loss, scale_loss, variance_loss
from visreg_core.metrics import (
    PowerLaw,
    alpha_req_from_singular_values,
    condition_number_from_singular_values,
    effective_rank_from_singular_values,
    linear_cka_from_covariances,
    participation_ratio_from_singular_values,
    power_law_fit,
    rankme_from_singular_values,
    stable_rank_from_singular_values,
)
from visreg_core.metrics.gaussianity import mean_z_scores
from visreg_core.slices import random_slices

LOSSES: tuple[str, ...] = (
    "visreg_loss",
    "scale_loss",
    "shape_loss",
    "center_loss",
    "gaussian_sliced_wasserstein",
    "sigreg_loss",
    "variance_loss",
    "covariance_loss",
)
SPECTRUM: tuple[str, ...] = (
    "rankme",
    "effective_rank",
    "stable_rank",
    "participation_ratio",
    "alpha_req",
    "condition_number",
)
GAUSSIANITY: tuple[str, ...] = ("gaussianity_epps_pulley_z", "gaussianity_wasserstein_z")
PAIR: tuple[str, ...] = ("sliced_wasserstein", "linear_cka", *PAIR_OF_TREES)

# Points of a quantile plot, and dimensions of a correlation picture.
_QUANTILES = 400
_DIMENSIONS = 256


class Estimate(NamedTuple):
    """A value and, where it is a mean over random slices, the standard error of that mean."""

    value: float
    standard_error: float | None = None


@dataclass(frozen=True)
class Pictures:
    """Arrays behind the figures.

    eigenvalues (D,) of the covariance, descending, and the power law `fit` to them; `sigma` (D,);
    `quantiles` (Q,) of the Gaussian beside those of the projections on the worst and the median
    slice (by shape loss), with their indices and values; `correlation` of `dimensions`.
    """

    eigenvalues: np.ndarray
    fit: PowerLaw
    sigma: np.ndarray
    quantiles: np.ndarray
    worst: np.ndarray
    median: np.ndarray
    worst_slice: tuple[int, float]
    median_slice: tuple[int, float]
    correlation: np.ndarray
    dimensions: np.ndarray


@dataclass(frozen=True)
class Report:
    """Losses, spectrum and hierarchy of one file; see `report`."""

    name: str
    shape: tuple[int, int]
    dtype: str
    rows_read: int
    bad_rows: int
    losses: dict[str, Estimate]
    spectrum: dict[str, float]
    gaussianity: dict[str, float]
    hierarchy: Hierarchy
    pictures: Pictures


@dataclass(frozen=True)
class Pair:
    """Two files beside each other; a measure is None where the files' shapes do not allow it."""

    first: str
    second: str
    sliced_wasserstein: Estimate | None
    linear_cka: float | None
    trees: TreePair | None

    def measure(self, name: str) -> Estimate | Interval | None:
        """The measure of `PAIR` of this name, or None."""
        if name == "sliced_wasserstein":
            return self.sliced_wasserstein
        if name == "linear_cka":
            return None if self.linear_cka is None else Estimate(self.linear_cka)
        return None if self.trees is None else self.trees.measures[name]


@dataclass(frozen=True)
class Comparison:
    """Reports of several files and every pair of them; see `compare`."""

    reports: list[Report]
    pairs: list[Pair]
    tree: TreeOptions = DEFAULT_TREE


def _silent(doing: str, done: int, total: int) -> None:
    pass


def report(
    stored: Embeddings,
    *,
    rows: int | None = None,
    seed: int = 0,
    n_slices: int = 256,
    tree: TreeOptions = DEFAULT_TREE,
    labels: np.ndarray | None = None,
    place: Place | None = None,
    tick: Tick = _silent,
) -> Report:
    """Losses, spectrum and hierarchy of saved embeddings, taken as one batch.

    Parameters
    ----------
    stored : Embeddings
        From `visreg_core.embeddings.load`.
    rows : int, optional
        Draw this many rows (`Embeddings.sample`) instead of reading all.
    seed : int
        Of the slices and of the draw of rows.
    n_slices : int
        Random directions of the sliced losses, at least 2.
    tree : TreeOptions
        ``(rows, method, metric, clustering)``: how many rows the dendrogram and the measures of
        the hierarchy are made of, drawn by `seed` (all, where there are fewer), how `linkage`
        makes it, and the clustering of `hierarchical_rand_index`.
    labels : array (N,) or (N, L), optional
        Of all rows of the file, column 0 the coarsest level: adds the hierarchical accuracies and
        Rand indices.
    place : Place, optional
        Namespace and device of the sliced terms; NumPy by default. Moments and spectrum are
        computed on the host in float64.
    tick : callable, optional
        Told what is being done, rows done and rows in all.

    Returns
    -------
    Report

    Raises
    ------
    EmbeddingsError
        Where rows hold NaN or Inf (how many, and the first few), or the file is truncated.
    ValueError
        Labels of another number of rows, or a tree that there is not.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from visreg_core.embeddings import load
    >>> from visreg_core.report import report
    >>> path = os.path.join(tempfile.mkdtemp(), "z.npy")
    >>> np.save(path, np.random.default_rng(0).standard_normal((1000, 8)))
    >>> r = report(load(path), n_slices=32)
    >>> 7.9 < r.spectrum["rankme"] <= 8.0
    True
    """
    place = Place(as_namespace(None)) if place is None else place
    chosen = stored if rows is None else stored.sample(rows, seed=seed)
    tree.check()
    of = moments(chosen, tick)
    drawn = Rows(chosen, tree, seed)
    return _report(stored, chosen, of, drawn, labels, seed, n_slices, place, tick)


def compare(
    stored: Sequence[Embeddings],
    *,
    rows: int | None = None,
    seed: int = 0,
    n_slices: int = 256,
    tree: TreeOptions = DEFAULT_TREE,
    labels: np.ndarray | None = None,
    place: Place | None = None,
    tick: Tick = _silent,
) -> Comparison:
    """Reports of several files, and each pair's distance, linear CKA and similarity of hierarchies.

    The sliced Wasserstein distance (p = 2) needs files of one width; CKA and the similarity of the
    dendrograms need files of one length, and take row i to be the same item in both.

    Parameters
    ----------
    stored : sequence of Embeddings
        Two or more.
    rows, seed, n_slices, tree, labels, place, tick
        As for `report`; files of one length keep the same rows.

    Returns
    -------
    Comparison

    Raises
    ------
    EmbeddingsError
        As `report`.
    """
    if len(stored) < 2:
        raise ValueError(f"expected two files or more; found {len(stored)}")
    place = Place(as_namespace(None)) if place is None else place
    chosen = [s if rows is None else s.sample(rows, seed=seed) for s in stored]
    tree.check()
    every = [moments(c, tick) for c in chosen]
    drawn = [Rows(c, tree, seed) for c in chosen]
    reports = [
        _report(s, c, m, r, labels, seed, n_slices, place, tick)
        for s, c, m, r in zip(stored, chosen, every, drawn, strict=True)
    ]
    pairs = []
    for i, j in itertools.combinations(range(len(stored)), 2):
        a, b = chosen[i], chosen[j]
        distance = cka = trees = None
        if a.shape[1] == b.shape[1]:
            slices = random_slices(a.shape[1], n_slices, seed=seed)
            power = _mean(two_sample_values(a, b, slices, place, tick))
            distance = _root(power)
        if stored[i].shape[0] == stored[j].shape[0]:
            cross = cross_scatter(a, b, every[i], every[j], tick)
            cka = linear_cka_from_covariances(every[i].scatter(), every[j].scatter(), cross)
            tick("similarity of dendrograms", 0, 1)
            trees = tree_pair(drawn[i], drawn[j])
        pairs.append(Pair(a.name, b.name, distance, cka, trees))
    return Comparison(reports, pairs, tree)


def _report(
    stored: Embeddings,
    chosen: Embeddings,
    of: Moments,
    drawn: Rows,
    labels: np.ndarray | None,
    seed: int,
    n_slices: int,
    place: Place,
    tick: Tick,
) -> Report:
    _checks.positive_int("n_slices", n_slices, minimum=2)
    if labels is not None:
        if len(labels) != stored.shape[0]:
            raise ValueError(
                f"expected labels of {stored.shape[0]} rows, those of {stored.name}; "
                f"found {len(labels)}"
            )
        labels = labels[rows_of(stored, drawn.selection)]
    slices = random_slices(chosen.shape[1], n_slices, seed=seed)
    values = slice_values(chosen, of, slices, place, tick)
    centred = of.singular_values(center=True)
    # Singular values of float32 embeddings are known to float32's rounding only.
    unit = 2.0**-52 if chosen.dtype == np.float64 else 2.0**-23
    rtol = min(chosen.shape) * unit
    z_scores = mean_z_scores(values.sigreg, values.gaussian, of.n, slices)
    return Report(
        name=stored.name,
        shape=stored.shape,
        dtype=stored.dtype.name,
        rows_read=chosen.shape[0],
        bad_rows=0,
        losses=_losses(of, values),
        spectrum=_spectrum(of.singular_values(center=False), centred, rtol),
        gaussianity=dict(zip(GAUSSIANITY, z_scores, strict=True)),
        hierarchy=hierarchy(drawn, labels, seed),
        pictures=_pictures(chosen, of, values, slices, centred, rtol, place),
    )


def _losses(of: Moments, values: SliceValues) -> dict[str, Estimate]:
    biased, unbiased = of.equivalent(ddof=0), of.equivalent(ddof=1)
    scale, center = float(scale_loss(biased)), float(center_loss(biased))
    shape = _mean(values.shape)
    found = {
        "visreg_loss": Estimate(scale + shape.value + center, shape.standard_error),
        "scale_loss": Estimate(scale),
        "shape_loss": shape,
        "center_loss": Estimate(center),
        "gaussian_sliced_wasserstein": _mean(values.gaussian),
        "sigreg_loss": _mean(values.sigreg),
        "variance_loss": Estimate(float(variance_loss(unbiased))),
        "covariance_loss": Estimate(float(covariance_loss(unbiased))),
    }
    return {name: found[name] for name in LOSSES}


def _mean(values: np.ndarray) -> Estimate:
    return Estimate(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))


def _root(power: Estimate) -> Estimate:
    """√ of an estimate, its error by the first-order expansion."""
    root = math.sqrt(power.value)
    return Estimate(
        root, power.standard_error / (2 * root) if root and power.standard_error else 0.0
    )


def _spectrum(plain: np.ndarray, centred: np.ndarray, rtol: float) -> dict[str, float]:
    """The measures of `SPECTRUM`: which of them centre is their public functions' default."""
    return {
        "rankme": rankme_from_singular_values(plain),
        "effective_rank": effective_rank_from_singular_values(plain),
        "stable_rank": stable_rank_from_singular_values(plain),
        "participation_ratio": participation_ratio_from_singular_values(centred),
        "alpha_req": alpha_req_from_singular_values(centred, rtol=rtol),
        "condition_number": condition_number_from_singular_values(plain),
    }


def _pictures(
    chosen: Embeddings,
    of: Moments,
    values: SliceValues,
    slices: np.ndarray,
    centred: np.ndarray,
    rtol: float,
    place: Place,
) -> Pictures:
    order = np.argsort(values.shape, kind="stable")
    worst, median = int(order[-1]), int(order[len(order) // 2])
    ordered = ordered_projections(chosen, of, slices[:, [worst, median]], place)
    quantiles = normal_quantiles(of.n)
    # Evenly spread over the plot's axis, so that the tails are seen.
    spread = np.linspace(quantiles[0], quantiles[-1], _QUANTILES)
    shown = np.unique(np.searchsorted(quantiles, spread).clip(max=of.n - 1))
    d = len(of.mean)
    dimensions = np.unique(np.linspace(0, d - 1, _DIMENSIONS).round().astype(int))
    rows = of.factor[:, dimensions]
    norms = np.linalg.norm(rows, axis=0)
    rows = rows / np.where(norms > 0, norms, 1)  # a constant dimension correlates with none
    return Pictures(
        eigenvalues=centred**2 / (of.n - 1),
        fit=power_law_fit(centred / math.sqrt(of.n - 1), rtol=rtol),
        sigma=of.sigma,
        quantiles=quantiles[shown],
        worst=ordered[0, shown],
        median=ordered[1, shown],
        worst_slice=(worst, float(values.shape[worst])),
        median_slice=(median, float(values.shape[median])),
        correlation=rows.T @ rows,
        dimensions=dimensions,
    )
