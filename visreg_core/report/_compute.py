"""What `visreg report` and `visreg compare` compute, in the order in which a file is read.

Every number is that of the public function of its name with its defaults, on all rows as one
batch; `_streaming` says how they come about without the rows in memory. What needs pairs of rows
is of a sample (`_trees`, `_geometry`) or has its rows asked one by one (`_labelled`), and says so.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from visreg_core import _checks
from visreg_core._xp import as_namespace
from visreg_core.embeddings import Embeddings, EmbeddingsError
from visreg_core.gaussian import normal_quantiles
from visreg_core.losses import center_loss, covariance_loss, scale_loss, variance_loss
from visreg_core.metrics import (
    PowerLaw,
    condition_number_from_singular_values,
    hierarchical_linear_accuracy,
    linear_cka_from_covariances,
    mutual_knn,
    participation_ratio_from_singular_values,
    power_law_fit,
    rankme_from_singular_values,
    stable_rank_from_singular_values,
)
from visreg_core.metrics._discriminant import SHRINKAGE
from visreg_core.metrics.gaussianity import mean_p_value, mean_z_scores
from visreg_core.report import _findings, _labelled
from visreg_core.report._drift import drift_test
from visreg_core.report._geometry import Direction, direction, geometry
from visreg_core.report._labelled import Levels
from visreg_core.report._model import (
    DEFAULT_TREE,
    GAUSSIANITY,
    LABELLED,
    LOSSES,
    Comparison,
    Estimate,
    Finding,
    Hierarchy,
    Interval,
    Labelled,
    Pair,
    Pictures,
    Report,
    TreeOptions,
)
from visreg_core.report._streaming import (
    Moments,
    Place,
    SliceValues,
    Tick,
    bad_rows,
    cross_scatter,
    moments,
    ordered_projections,
    slice_values,
    two_sample_values,
)
from visreg_core.report._survey import Survey
from visreg_core.report._taken import embeddings_of, labels_of
from visreg_core.report._trees import (
    Rows,
    hierarchy,
    rand_indices,
    rows_of,
    tree_pair,
)
from visreg_core.slices import random_slices

PROBES = ("discriminant", "logistic", "none")
# Points of a quantile plot, and dimensions of a correlation picture.
_QUANTILES = 400
_DIMENSIONS = 256
_NEIGHBORS = 10
_FOLDS = 5


def _silent(doing: str, done: int, total: int) -> None:
    pass


class _File:
    """One file, what was read of it once, and what pairs of files need of it again."""

    def __init__(
        self, stored: Embeddings, chosen: Embeddings, dropped: np.ndarray, tree: TreeOptions,
        seed: int, tick: Tick,
    ) -> None:  # fmt: skip
        self.stored, self.chosen, self.dropped = stored, chosen, dropped
        self.survey = Survey(chosen.shape[1])
        self.moments = moments(chosen, tick, self.survey)
        tick("dendrogram", 0, 1)
        self.rows = Rows(chosen, tree, seed)

    def drawn(self) -> np.ndarray:
        """Places of the dendrogram's rows among those read."""
        places = rows_of(self.chosen, self.rows.selection)
        return np.arange(self.chosen.shape[0]) if isinstance(places, slice) else places


def report(
    data: Any,
    *,
    labels: Any = None,
    rows: int | None = None,
    seed: int = 0,
    n_slices: int = 256,
    tree: TreeOptions = DEFAULT_TREE,
    label_rows: int | None = None,
    probe: str = "discriminant",
    drop_bad_rows: bool = False,
    place: Place | None = None,
    tick: Tick = _silent,
) -> Report:
    """What there is to say of saved embeddings, taken as one batch.

    Parameters
    ----------
    data : array, path, table or Embeddings
        Embeddings (N, D): an array of any namespace, nested lists, a pandas or polars frame of
        numbers, a file as `visreg_core.embeddings.load` reads it, or what that returns.
    labels : array, list, Series, frame or path, optional
        Of all rows, (N,) or (N, L), column 0 the coarsest level: adds what is said of labels.
    rows : int, optional
        Draw this many rows (`Embeddings.sample`) instead of reading all.
    seed : int
        Of the slices and of every draw of rows.
    n_slices : int
        Random directions of the sliced losses, at least 2.
    tree : TreeOptions
        ``(rows, method, metric, clustering)``: how many rows the dendrogram and all that needs
        pairs of rows is made of, drawn by `seed` (all, where there are fewer), how `linkage`
        makes it, and the clustering of `hierarchical_rand_index`.
    label_rows : int, optional
        How many rows are asked for their class, each told from all other rows; by default as many
        as some ten seconds allow. Where that is not all, shares come with an interval.
    probe : str
        Rule of `hierarchical_linear_accuracy`: "discriminant", in closed form, each row left out;
        "logistic", scikit-learn's, by cross-validation on the dendrogram's rows, which takes long
        for many classes; or "none".
    drop_bad_rows : bool
        Leave out rows with NaN or Inf instead of refusing the file; their numbers are kept.
    place : Place, optional
        Namespace and device of the sliced terms; NumPy by default, and in place of any other
        library on the CPU. Everything else is computed on the host.
    tick : callable, optional
        Told what is being done, how far it is and how far it goes.

    Returns
    -------
    Report

    Raises
    ------
    EmbeddingsError
        Where rows hold NaN or Inf (how many, and the first few), or a file is truncated.
    ValueError
        Labels of another number of rows, or options that there are not.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core.report import report
    >>> r = report(np.random.default_rng(0).standard_normal((1000, 8)), n_slices=32)
    >>> 7.9 < r.dimensions["rankme"] <= 8.0
    True
    >>> [f.subject for f in r.findings if f.verdict != "good"]
    []
    """
    stored = embeddings_of(data)
    place = Place(as_namespace(None)) if place is None else place.fastest()
    _check(tree, n_slices, probe)
    levels = _levels(labels, stored)
    chosen = stored if rows is None else stored.sample(rows, seed=seed)
    chosen, dropped = _without_bad_rows([chosen], tick)[0] if drop_bad_rows else (chosen, _NONE)
    file = _File(stored, chosen, dropped, tree, seed, tick)
    return _report(file, levels, seed, n_slices, label_rows, probe, place, tick)


def compare(
    data: Sequence[Any],
    *,
    paired: bool = False,
    labels: Any = None,
    rows: int | None = None,
    seed: int = 0,
    n_slices: int = 256,
    tree: TreeOptions = DEFAULT_TREE,
    label_rows: int | None = None,
    probe: str = "discriminant",
    drop_bad_rows: bool = False,
    place: Place | None = None,
    tick: Tick = _silent,
) -> Comparison:
    """Reports of several files, and what each pair of them has in common.

    The sliced Wasserstein distance (p = 2) and the test of drift need files of one width; CKA,
    common neighbours and the similarity of the dendrograms need `paired` files.

    Parameters
    ----------
    data : sequence
        Two or more, each as `report` takes it.
    paired : bool
        Whether row i is the same item in files of one length. Nothing in a file without ids says
        so, and so nothing is taken for granted.
    labels
        As for `report`, of the rows of every file: files are then of one length.
    rows, seed, n_slices, tree, label_rows, probe, place, tick
        As for `report`; files of one length keep the same rows.
    drop_bad_rows : bool
        As for `report`; what is left out of one of `paired` files is left out of all.

    Returns
    -------
    Comparison

    Raises
    ------
    EmbeddingsError
        As `report`.
    """
    stored = [embeddings_of(d) for d in data]
    if len(stored) < 2:
        raise ValueError(f"expected two files or more; found {len(stored)}")
    place = Place(as_namespace(None)) if place is None else place.fastest()
    _check(tree, n_slices, probe)
    lengths = {s.shape[0] for s in stored}
    if len(lengths) > 1 and (paired or labels is not None):
        found = " and ".join(f"{s.shape[0]:,} in {s.name}" for s in stored[:3])
        why = "--paired" if paired else "labels of all files"
        raise ValueError(f"expected files of one number of rows for {why}; found {found}")
    levels = _levels(labels, stored[0])
    chosen = [s if rows is None else s.sample(rows, seed=seed) for s in stored]
    kept = [(c, _NONE) for c in chosen]
    if drop_bad_rows:
        kept = _without_bad_rows(chosen, tick, together=paired)
    files = [_File(s, c, d, tree, seed, tick) for s, (c, d) in zip(stored, kept, strict=True)]
    reports = [_report(f, levels, seed, n_slices, label_rows, probe, place, tick) for f in files]
    pairs = [
        _pair(a, b, paired, seed, n_slices, place, tick)
        for a, b in itertools.combinations(files, 2)
    ]
    return Comparison(reports, pairs, tree, paired)


_NONE = np.empty(0, np.int64)


def _check(tree: TreeOptions, n_slices: int, probe: str) -> None:
    tree.check()
    _checks.positive_int("n_slices", n_slices, minimum=2)
    _checks.choice("probe", probe, PROBES)


def _levels(labels: Any, stored: Embeddings) -> Levels | None:
    return None if labels is None else Levels.of(labels_of(labels, stored.shape[0], stored.name))


def _without_bad_rows(
    chosen: Sequence[Embeddings], tick: Tick, *, together: bool = False
) -> list[tuple[Embeddings, np.ndarray]]:
    """What is left of each file and the rows left out; `together`: the same in all."""
    bad = [bad_rows(c, tick) for c in chosen]
    if together:
        bad = [np.unique(np.concatenate(bad))] * len(bad)
    kept = []
    for c, b in zip(chosen, bad, strict=True):
        if c.shape[0] - len(b) < 2:
            found = f"NaN or Inf in {len(b)} of {c.shape[0]} rows"
            raise EmbeddingsError(c.name, found, "two finite rows or more")
        numbers = b if c.selection is None else c.selection[b]
        left = c.select(np.setdiff1d(np.arange(c.shape[0]), b)) if len(b) else c
        kept.append((left, numbers))
    return kept


# --- one file ------------------------------------------------------------------------------------


def _report(
    file: _File,
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
    file: _File,
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

    def accuracies(told: Sequence[np.ndarray | None]) -> tuple[Interval | None, ...]:
        return tuple(
            _labelled.accuracy(t, true, n) for t, true in zip(told, answers.true, strict=True)
        )

    assert found.labels is not None
    rules = {
        "discriminant": f"linear discriminant, shrunk by {SHRINKAGE:g}, each row left out",
        "logistic": f"logistic regression by {_FOLDS}-fold cross-validation on "
        f"{len(points):,} rows",
        "none": "not asked for",
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


# --- pairs ---------------------------------------------------------------------------------------


def _pair(
    first: _File, second: _File, paired: bool, seed: int, n_slices: int, place: Place, tick: Tick
) -> Pair:
    a, b = first.chosen, second.chosen
    distance = drift = cka = common = trees = None
    if a.shape[1] == b.shape[1]:
        slices = random_slices(a.shape[1], n_slices, seed=seed)
        distance = _root(_mean(two_sample_values(a, b, slices, place, tick)))
        drift = drift_test(a, b, slices, paired=paired, seed=seed, tick=tick)
    if paired:
        cross = cross_scatter(a, b, first.moments, second.moments, tick)
        cka = linear_cka_from_covariances(first.moments.scatter(), second.moments.scatter(), cross)
        x, y = first.rows.points, second.rows.points
        common = mutual_knn(x, y.astype(x.dtype, copy=False), min(_NEIGHBORS, len(x) - 1))
        tick("similarity of dendrograms", 0, 1)
        trees = tree_pair(first.rows, second.rows)
    return Pair(a.name, b.name, distance, drift, cka, common, trees)


def _root(power: Estimate) -> Estimate:
    """√ of an estimate, its error by the first-order expansion."""
    root = math.sqrt(power.value)
    return Estimate(
        root, power.standard_error / (2 * root) if root and power.standard_error else 0.0
    )


# --- pictures ------------------------------------------------------------------------------------


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
