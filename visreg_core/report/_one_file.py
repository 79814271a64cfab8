"""What a report says of one file, computed in the order in which the file is read."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np

from visreg_core.embeddings import Embeddings
from visreg_core.gaussian import normal_quantiles
from visreg_core.losses import center_loss, covariance_loss, scale_loss, variance_loss
from visreg_core.metrics import (
    PowerLaw,
    condition_number_from_singular_values,
    hierarchical_linear_accuracy,
    participation_ratio_from_singular_values,
    power_law_fit,
    rankme_from_singular_values,
    stable_rank_from_singular_values,
)
from visreg_core.metrics._discriminant import SHRINKAGE
from visreg_core.metrics.gaussianity import mean_p_value, mean_z_scores
from visreg_core.report import _findings, _labelled
from visreg_core.report._geometry import Direction, direction, geometry
from visreg_core.report._labelled import Levels
from visreg_core.report._model import (
    GAUSSIANITY,
    LABELLED,
    LOSSES,
    Finding,
    Hierarchy,
    Interval,
    Labelled,
    Measurement,
    Pictures,
    Report,
    TreeOptions,
)
from visreg_core.report._streaming import (
    Moments,
    Place,
    SliceValues,
    Tick,
    moments,
    ordered_projections,
    slice_values,
)
from visreg_core.report._survey import Survey
from visreg_core.report._trees import TreeRows, hierarchy, rand_indices, rows_of
from visreg_core.slices import random_slices

# Points of a quantile plot, and dimensions of a correlation picture.
_QUANTILES = 400


_DIMENSIONS = 256


_FOLDS = 5


class File:
    """One file, what was read of it once, and what pairs of files need of it again."""

    def __init__(
        self, stored: Embeddings, chosen: Embeddings, dropped: np.ndarray, tree: TreeOptions,
        seed: int, tick: Tick,
    ) -> None:  # fmt: skip
        self.stored, self.chosen, self.dropped = stored, chosen, dropped
        self.survey = Survey(chosen.shape[1])
        self.moments = moments(chosen, tick, self.survey)
        tick("dendrogram", 0, 1)
        self.rows = TreeRows(chosen, tree, seed)

    def drawn(self) -> np.ndarray:
        """Places of the dendrogram's rows among those read."""
        places = rows_of(self.chosen, self.rows.selection)
        return np.arange(self.chosen.shape[0]) if isinstance(places, slice) else places


def report_of(
    file: File,
    levels: Levels | None,
    seed: int,
    n_slices: int,
    label_rows: int | None,
    probe: str,
    place: Place,
    tick: Tick,
) -> Report:
    stored, chosen, of = file.stored, file.chosen, file.moments
    slices = random_slices(chosen.shape[1], n_slices, seed=seed)
    values = slice_values(chosen, of, slices, place, tick)
    centred = of.singular_values(center=True)
    # Singular values of float32 embeddings are known to float32's rounding only.
    unit = 2.0**-52 if chosen.dtype == np.float64 else 2.0**-23
    rtol = min(chosen.shape) * unit
    fit = power_law_fit(centred / math.sqrt(of.n - 1), rtol=rtol)
    dimensions = _dimensions(of.singular_values(center=False), centred, fit)
    tick("neighbours of the rows drawn", 0, 1)
    pairs = geometry(file.rows.points)
    line = direction(file.rows.points, of.mean, of.sigma, slices, seed)
    findings = _findings.findings(
        chosen, of.sigma, dimensions, file.survey, pairs, file.drawn(), line
    )
    if levels is not None and stored.shape[0] != chosen.shape[0]:
        levels = levels.at(rows_of(stored, chosen.selection))
    found = hierarchy(file.rows, None if levels is None else levels.at(file.drawn()))
    labelled = None
    if levels is not None:
        labelled, judged = _agreement(file, levels, found, label_rows, probe, seed, tick)
        findings = _findings.ordered(findings + judged)
    return Report(
        name=stored.name,
        shape=stored.shape,
        dtype=stored.dtype.name,
        rows_read=chosen.shape[0],
        dropped=file.dropped,
        dimensions=dimensions,
        geometry={
            "mean_cosine": file.survey.mean_cosine(),
            "norm_variation": file.survey.norm_variation(),
            "uniformity": pairs.uniformity,
            "anti_hubs": pairs.anti_hubs,
        },
        losses=_losses(of, values),
        gaussianity=_gaussianity(values, of.n, slices, line),
        hierarchy=found,
        labelled=labelled,
        findings=findings,
        notes=stored.notes,
        pictures=_pictures(chosen, of, values, slices, centred, fit, place),
    )


def _agreement(
    file: File,
    levels: Levels,
    found: Hierarchy,
    count: int | None,
    probe: str,
    seed: int,
    tick: Tick,
) -> tuple[Labelled, list[Finding]]:
    chosen, points = file.chosen, file.rows.points
    metric = "cosine" if file.rows.options.metric == "cosine" else "euclidean"
    answers = _labelled.ask(
        chosen, file.moments, levels, count, metric,
        linear=probe == "discriminant", seed=seed, tick=tick,
    )  # fmt: skip
    n = chosen.shape[0]

    def accuracies(predicted: Sequence[np.ndarray | None]) -> tuple[Interval | None, ...]:
        return tuple(
            _labelled.accuracy(p, true, n) for p, true in zip(predicted, answers.true, strict=True)
        )

    assert found.labels is not None
    rules = {
        "discriminant": f"linear discriminant, shrunk by {SHRINKAGE:g}, each row left out",
        "logistic": f"logistic regression by {_FOLDS}-fold cross-validation on "
        f"{len(points):,} rows",
        "none": "not requested",
    }
    if probe == "logistic":
        tick("logistic regression", 0, 1)
        linear = tuple(_logistic(points, column, seed) for column in found.labels.T)
    else:
        linear = accuracies(answers.linear)
    rand = rand_indices(file.rows, found)
    by_name = {
        "hierarchical_knn_accuracy": accuracies(answers.neighbors),
        "hierarchical_linear_accuracy": linear,
        "lidar": tuple(_labelled.lidar_of(points, c) for c in found.labels.T),
        "hierarchical_rand_index": tuple(r and Interval(r[0]) for r in rand),
        "hierarchical_adjusted_rand_index": tuple(r and Interval(r[1]) for r in rand),
    }
    labelled = Labelled(
        tuple(int(np.count_nonzero(levels.sizes(k))) for k in range(len(levels.codes))),
        {name: by_name[name] for name in LABELLED},
        len(answers.rows),
        n,
        rules[probe],
    )
    return labelled, _findings.of_labels(levels, labelled, answers, chosen)


def _logistic(points: np.ndarray, column: np.ndarray, seed: int) -> Interval | None:
    """Cross-validated accuracy on one level; None where no class has an item for each fold."""
    sizes = np.bincount(column)
    if len(sizes) < 2 or sizes.max() < _FOLDS:
        return None
    with warnings.catch_warnings():
        # A class of fewer items than folds is missing from some, and counted all the same.
        warnings.filterwarnings("ignore", message="The least populated class")
        found = hierarchical_linear_accuracy(points, column, n_folds=_FOLDS, seed=seed)
    return Interval(found[0])


def _losses(of: Moments, values: SliceValues) -> dict[str, Measurement]:
    biased, unbiased = of.equivalent(ddof=0), of.equivalent(ddof=1)
    scale, center = float(scale_loss(biased)), float(center_loss(biased))
    shape = mean_of(values.shape)
    found = {
        "visreg_loss": Measurement(scale + shape.value + center, shape.standard_error),
        "scale_loss": Measurement(scale),
        "shape_loss": shape,
        "center_loss": Measurement(center),
        "gaussian_sliced_wasserstein": mean_of(values.gaussian),
        "sigreg_loss": mean_of(values.sigreg),
        "variance_loss": Measurement(float(variance_loss(unbiased))),
        "covariance_loss": Measurement(float(covariance_loss(unbiased))),
    }
    return {name: found[name] for name in LOSSES}


def mean_of(values: np.ndarray) -> Measurement:
    return Measurement(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))


def _dimensions(plain: np.ndarray, centred: np.ndarray, fit: PowerLaw) -> dict[str, float]:
    """The measures of `DIMENSIONS`: which of them centre is their public functions' default."""
    return {
        "rankme": rankme_from_singular_values(plain),
        "participation_ratio": participation_ratio_from_singular_values(centred),
        "stable_rank": stable_rank_from_singular_values(plain),
        "alpha_req": fit.alpha,
        "alpha_req_r_squared": fit.r_squared,
        "condition_number": condition_number_from_singular_values(plain),
    }


def _gaussianity(
    values: SliceValues, n: int, slices: np.ndarray, line: Direction | None
) -> dict[str, float]:
    z = mean_z_scores(values.sigreg, values.gaussian, n, slices)
    p = [mean_p_value(i, one, n, slices) for i, one in enumerate(z)]
    worst = (math.nan, math.nan) if line is None else (line.z, line.p)
    return dict(zip(GAUSSIANITY, (z[0], p[0], z[1], p[1], *worst), strict=True))


def _pictures(
    chosen: Embeddings,
    of: Moments,
    values: SliceValues,
    slices: np.ndarray,
    centred: np.ndarray,
    fit: PowerLaw,
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
        fit=fit,
        sigma=of.sigma,
        quantiles=quantiles[shown],
        worst=ordered[0, shown],
        median=ordered[1, shown],
        worst_slice=(worst, float(values.shape[worst])),
        median_slice=(median, float(values.shape[median])),
        correlation=rows.T @ rows,
        dimensions=dimensions,
    )
