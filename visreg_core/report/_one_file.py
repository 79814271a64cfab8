"""What a report says of one file, computed in the order in which the file is read."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from visreg_core.embeddings import Embeddings
from visreg_core.losses import center_loss, covariance_loss, scale_loss, variance_loss
from visreg_core.metrics import hierarchical_linear_accuracy, triplet_accuracy
from visreg_core.metrics._discriminant import SHRINKAGE
from visreg_core.metrics.gaussianity import mean_p_value, mean_z_scores
from visreg_core.report import _findings, _labelled
from visreg_core.report._dask import Cluster
from visreg_core.report._geometry import Direction, direction, geometry, searched
from visreg_core.report._labelled import Asking, Levels
from visreg_core.report._model import (
    GAUSSIANITY,
    LABELLED,
    LOSSES,
    Drawn,
    Finding,
    Hierarchy,
    Interval,
    Labelled,
    Measurement,
    Pictures,
    Report,
    TreeOptions,
)
from visreg_core.report._nearest import Nearest
from visreg_core.report._spectrum import Spectrum, gaussian_null, spectrum
from visreg_core.report._streaming import (
    Counted,
    Exact,
    First,
    Place,
    SliceValues,
    Tick,
    Visit,
    check_rows,
    shown_ranks,
)
from visreg_core.report._trees import TreeRows, hierarchy, rand_indices
from visreg_core.statistics import Moments

# Points of a quantile plot, and dimensions of a correlation picture.
_QUANTILES = 120
_DIMENSIONS = 256
_FOLDS = 5
# Rows of which an index's answers are checked, and queries that are looked at.
_CHECKED, _QUERIES = 1000, 2000


class Plan(NamedTuple):
    """What is to be computed of each file."""

    levels: Levels | None
    paired: bool
    rows: int | None
    seed: int
    n_slices: int
    tree: TreeOptions
    label_rows: int | None
    probe: str
    drop_bad_rows: bool
    place: Place
    tick: Tick
    cluster: Cluster | None = None
    queries: Embeddings | None = None
    neighbors: np.ndarray | None = None
    texts: np.ndarray | None = None

    def asked(self, n: int, d: int) -> int:
        """How many rows are asked for their class."""
        if self.levels is None:
            return 0
        return _labelled.asked_rows(n, d) if self.label_rows is None else max(2, self.label_rows)


class File:
    """One file, and what its two passes know."""

    def __init__(self, stored: Embeddings, source: Embeddings, first: First, plan: Plan) -> None:
        check_rows(source, first, drop=plan.drop_bad_rows)
        self.stored, self.source = stored, source
        self.chosen = source  # without the bad rows
        if first.n_bad:
            self.chosen = source.select(np.setdiff1d(np.arange(source.shape[0]), first.bad))
        self.dropped = first.bad if source.selection is None else source.selection[first.bad]
        self.first = first
        self.summary = first.result()
        self.moments = self.summary.moments
        self.drawn, points = first.sample.result(plan.tree.rows)
        # Places among the rows kept.
        self.kept = self.drawn - np.searchsorted(first.bad, self.drawn)
        self.rows = TreeRows(points, source.names(self.drawn), plan.tree, plan.seed)
        self.projected: Exact | Counted | None = None
        self.index: Nearest | None = None
        metric = "cosine" if plan.tree.metric == "cosine" else "euclidean"
        if plan.neighbors is not None:
            numbers, rows = first.sample.result(_CHECKED)
            places = numbers - np.searchsorted(first.bad, numbers)
            k = min(_answers(plan.neighbors, numbers).shape[1], self.chosen.shape[0] - 1)
            self.index = Nearest(places, rows, k, metric)
        self.asking: Asking | None = None
        if plan.levels is not None:
            numbers, queries = first.sample.result(plan.asked(*source.shape))
            self.asking = Asking(
                self.chosen.shape[0], self.moments, self.levels(plan.levels),
                numbers - np.searchsorted(first.bad, numbers), queries,
                metric,
                linear=plan.probe == "discriminant",
            )  # fmt: skip

    def levels(self, of_stored: Levels) -> Levels:
        """Labels of the rows kept, of those of all rows."""
        return of_stored.at(self.numbers(np.arange(self.chosen.shape[0])))

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """Numbers among all rows of these of the rows kept."""
        kept, within = self.chosen.selection, self.stored.selection
        if kept is None or kept is within:
            return places
        return kept[places] if within is None else np.searchsorted(within, kept[places])

    def second(self, plan: Plan, *, exact: bool) -> list[Visit]:
        """What the second pass shows the rows to."""
        made: Exact | Counted
        if exact:
            made = Exact(self.chosen, self.moments, self.first.slices, plan.place)
        else:
            made = Counted(self.first.distributions())
        self.projected = made
        visits: list[Visit] = [lambda _, block: made.update(block)]
        if self.index is not None:
            visits.append(self.index.update)
        return visits if self.asking is None else [*visits, self.asking.update]


def report_of(file: File, plan: Plan) -> Report:
    """The report of a file whose passes are done."""
    stored, chosen, of, projected = file.stored, file.chosen, file.moments, file.projected
    assert projected is not None
    projected.finish()
    values, slices = projected.values(), file.first.slices
    of_spectrum = spectrum(of, chosen.dtype)
    dimensions = of_spectrum.measures
    plan.tick("neighbours of the rows drawn", 0, 1)
    pairs = geometry(file.rows.points)
    line = direction(file.rows.points, of.mean, of.sigma, slices, plan.seed)
    texts = None if plan.texts is None else plan.texts[file.numbers(file.kept)]
    drawn_rows = Drawn(file.rows.points, file.rows.names, pairs.neighbors, pairs.distances, texts)
    survey = file.first.survey
    findings = _findings.findings(
        file.source, of.sigma, dimensions, survey, pairs, file.drawn, line
    )
    if plan.queries is not None:
        queries = plan.queries.sample(_QUERIES, seed=plan.seed)
        answered = searched(file.rows.points, pairs.distances, queries.to_numpy())
        findings += _findings.of_queries(answered, queries.names, file.rows.names)
    if file.index is not None and plan.neighbors is not None:
        findings.append(_of_index(file, file.index, plan.neighbors))
    findings = _findings.ordered(findings)
    asking, labelled = file.asking, None
    found = hierarchy(file.rows, None if asking is None else asking.levels.at(file.kept))
    if asking is not None:
        labelled, judged = _agreement(file, asking, found, plan)
        findings = _findings.ordered(findings + judged)
    return Report(
        name=stored.name,
        shape=stored.shape,
        dtype=stored.dtype.name,
        rows_read=chosen.shape[0],
        dropped=file.dropped,
        dimensions=dimensions,
        geometry={
            "mean_cosine": survey.mean_cosine(),
            "norm_variation": survey.norm_variation(),
            "uniformity": pairs.uniformity,
            "anti_hubs": pairs.anti_hubs,
        },
        gaussian=gaussian_null(
            *(chosen.shape[0], chosen.shape[1], len(file.rows.points)), seed=plan.seed
        ),
        losses=_losses(of, values, file.summary.sigreg),
        gaussianity=_gaussianity(values, file.summary.sigreg, of.n, slices, line),
        hierarchy=found,
        labelled=labelled,
        findings=findings,
        notes=stored.notes,
        pictures=_pictures(of, values, projected, of_spectrum, drawn_rows),
    )


def _of_index(file: File, index: Nearest, neighbors: np.ndarray) -> Finding:
    """What the index returns for some rows, beside their neighbours among all."""
    given, true = _answers(neighbors, file.numbers(index.rows)), file.numbers(index.places())
    return _findings.of_index(given, true, file.chosen.names(index.rows))


def _answers(neighbors: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """What an index returns for rows of these numbers, without the rows themselves."""
    given = neighbors[numbers].astype(np.int64)
    own = given == numbers[:, None]
    if not own.any():
        return given
    order = np.argsort(own, axis=1, kind="stable")  # own numbers last
    return np.take_along_axis(np.where(own, -1, given), order, axis=1)[:, :-1]


def _agreement(
    file: File, asking: Asking, found: Hierarchy, plan: Plan
) -> tuple[Labelled, list[Finding]]:
    chosen, points, levels, probe = file.chosen, file.rows.points, asking.levels, plan.probe
    answers = asking.answers()
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
        plan.tick("logistic regression", 0, 1)
        linear = tuple(_logistic(points, column, plan.seed) for column in found.labels.T)
    else:
        linear = accuracies(answers.linear)
    rand = rand_indices(file.rows, found)
    by_name = {
        "hierarchical_knn_accuracy": accuracies(answers.neighbors),
        "hierarchical_linear_accuracy": linear,
        "lidar": tuple(_labelled.lidar_of(points, c) for c in found.labels.T),
        "hierarchical_rand_index": tuple(r and Interval(r[0]) for r in rand),
        "hierarchical_adjusted_rand_index": tuple(r and Interval(r[1]) for r in rand),
        "triplet_accuracy": tuple(
            None if math.isnan(v) else Interval(v)
            for v in triplet_accuracy(found.linkage, found.labels)
        ),
    }
    labelled = Labelled(
        tuple(int(np.count_nonzero(levels.sizes(k))) for k in range(len(levels.codes))),
        {name: by_name[name] for name in LABELLED},
        len(answers.rows),
        n,
        rules[probe],
        tuple(
            _labelled.confusion(p, true, names)
            for p, true, names in zip(answers.neighbors, answers.true, levels.names, strict=True)
        ),
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


def _losses(of: Moments, values: SliceValues, sigreg: np.ndarray) -> dict[str, Measurement]:
    biased, unbiased = of.equivalent(ddof=0), of.equivalent(ddof=1)
    scale, center = float(scale_loss(biased)), float(center_loss(biased))
    shape = mean_of(*values.shape)
    found = {
        "visreg_loss": shape._replace(value=scale + shape.value + center),
        "scale_loss": Measurement(scale),
        "shape_loss": shape,
        "center_loss": Measurement(center),
        "gaussian_sliced_wasserstein": mean_of(*values.gaussian),
        "sigreg_loss": mean_of(sigreg),
        "variance_loss": Measurement(float(variance_loss(unbiased))),
        "covariance_loss": Measurement(float(covariance_loss(unbiased))),
    }
    return {name: found[name] for name in LOSSES}


def mean_of(values: np.ndarray, bounds: np.ndarray | None = None) -> Measurement:
    error = float(values.std(ddof=1) / math.sqrt(len(values)))
    bound = None if bounds is None or not bounds.any() else float(bounds.mean())
    return Measurement(float(values.mean()), error, bound)


def _gaussianity(
    values: SliceValues, sigreg: np.ndarray, n: int, slices: np.ndarray, line: Direction | None
) -> dict[str, float]:
    z = mean_z_scores(sigreg, values.gaussian.value, n, slices)
    p = [mean_p_value(i, one, n, slices) for i, one in enumerate(z)]
    worst = (math.nan, math.nan) if line is None else (line.z, line.p)
    return dict(zip(GAUSSIANITY, (z[0], p[0], z[1], p[1], *worst), strict=True))


def _pictures(
    of: Moments,
    values: SliceValues,
    projected: Exact | Counted,
    found: Spectrum,
    drawn: Drawn,
) -> Pictures:
    shape = values.shape.value
    order = np.argsort(shape, kind="stable")
    worst, median = int(order[-1]), int(order[len(order) // 2])
    ranks, quantiles = shown_ranks(of.n, _QUANTILES)
    d = len(of.mean)
    dimensions = np.unique(np.linspace(0, d - 1, _DIMENSIONS).round().astype(int))
    rows = of.factor[:, dimensions]
    norms = np.linalg.norm(rows, axis=0)
    rows = rows / np.where(norms > 0, norms, 1)  # a constant dimension correlates with none
    return Pictures(
        eigenvalues=found.centred**2 / (of.n - 1),
        fit=found.fit,
        sigma=of.sigma,
        quantiles=quantiles,
        worst=projected.ordered(worst, ranks),
        median=projected.ordered(median, ranks),
        worst_slice=(worst, float(shape[worst])),
        median_slice=(median, float(shape[median])),
        correlation=rows.T @ rows,
        dimensions=dimensions,
        drawn=drawn,
    )
