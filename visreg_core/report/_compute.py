"""What `visreg report` and `visreg compare` compute, in the order in which a file is read.

Every number is that of the public function of its name with its defaults, on all rows as one
batch; `_streaming` says how they come about without the rows in memory. What needs pairs of rows
is of a sample (`_trees`, `_geometry`) or has its rows asked one by one (`_labelled`), and says so.
"""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from visreg_core import _checks
from visreg_core._xp import as_namespace
from visreg_core.embeddings import Embeddings
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
from visreg_core.report._drift import drift_rows, drift_test
from visreg_core.report._geometry import Direction, direction, geometry
from visreg_core.report._ids import join, with_ids
from visreg_core.report._labelled import Asking, Levels
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
    Counted,
    Exact,
    First,
    Place,
    SliceValues,
    Tick,
    Visit,
    check_rows,
    first_pass,
    first_pass_together,
    is_exact,
    second_pass,
    second_pass_together,
    shown_ranks,
    two_sample_values,
)
from visreg_core.report._taken import embeddings_of, labels_of
from visreg_core.report._trees import Rows, hierarchy, rand_indices, tree_pair
from visreg_core.statistics import CrossScatter, Moments

PROBES = ("discriminant", "logistic", "none")
# Points of a quantile plot, and dimensions of a correlation picture.
_QUANTILES = 400
_DIMENSIONS = 256
_NEIGHBORS = 10
_FOLDS = 5


def _silent(doing: str, done: int, total: int) -> None:
    pass


class _Plan(NamedTuple):
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

    def asked(self, n: int, d: int) -> int:
        """How many rows are asked for their class."""
        if self.levels is None:
            return 0
        return _labelled.asked_rows(n, d) if self.label_rows is None else max(2, self.label_rows)


class _File:
    """One file, and what its two passes know."""

    def __init__(self, stored: Embeddings, source: Embeddings, first: First, plan: _Plan) -> None:
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
        self.rows = Rows(points, plan.tree, plan.seed)
        self.projected: Exact | Counted | None = None
        self.asking: Asking | None = None
        if plan.levels is not None:
            numbers, queries = first.sample.result(plan.asked(*source.shape))
            self.asking = Asking(
                self.chosen.shape[0], self.moments, self.levels(plan.levels),
                numbers - np.searchsorted(first.bad, numbers), queries,
                "cosine" if plan.tree.metric == "cosine" else "euclidean",
                linear=plan.probe == "discriminant",
            )  # fmt: skip

    def levels(self, of_stored: Levels) -> Levels:
        """Labels of the rows kept, of those of all rows."""
        kept, within = self.chosen.selection, self.stored.selection
        if kept is None or kept is within:
            return of_stored
        return of_stored.at(kept if within is None else np.searchsorted(within, kept))

    def second(self, plan: _Plan, *, exact: bool) -> list[Visit]:
        """What the second pass shows the rows to."""
        made: Exact | Counted
        if exact:
            made = Exact(self.chosen, self.moments, self.first.slices, plan.place)
        else:
            made = Counted(self.moments, self.first.slices)
        self.projected = made
        visits: list[Visit] = [lambda _, block: made.update(block)]
        return visits if self.asking is None else [*visits, self.asking.update]


def _read(stored: Sequence[Embeddings], plan: _Plan) -> tuple[list[_File], list[CrossScatter]]:
    """Both passes over all files, and the cross-scatter of pairs of the same items."""
    tick = plan.tick
    chosen = [s if plan.rows is None else s.sample(plan.rows, seed=plan.seed) for s in stored]
    firsts = [
        First(
            c.shape[1], n_slices=plan.n_slices, seed=plan.seed,
            sample=max(
                plan.tree.rows, plan.asked(*c.shape), drift_rows(c, chosen[:i] + chosen[i + 1 :])
            ),
        )
        for i, c in enumerate(chosen)
    ]  # fmt: skip
    if plan.paired and plan.drop_bad_rows:
        first_pass_together(chosen, firsts, tick)
    else:
        for c, first in zip(chosen, firsts, strict=True):
            first_pass(c, first, plan.place, tick)
    files = [_File(*x, plan) for x in zip(stored, chosen, firsts, strict=True)]
    kept = [f.chosen for f in files]
    exact = is_exact(kept, plan.n_slices, plan.place)
    visits = [f.second(plan, exact=exact) for f in files]
    doing = "slices" if plan.levels is None else "slices and neighbours"
    if not plan.paired:
        for k, visit in zip(kept, visits, strict=True):
            second_pass(k, visit, doing, tick)
        return files, []
    pairs = list(itertools.combinations(range(len(files)), 2))
    crosses = [CrossScatter(kept[i].shape[1], kept[j].shape[1]) for i, j in pairs]

    def together(blocks: Sequence[np.ndarray]) -> None:
        for (i, j), cross in zip(pairs, crosses, strict=True):
            cross.update(blocks[i], blocks[j])

    second_pass_together(kept, visits, together, doing, tick)
    return files, crosses


def report(
    data: Any,
    *,
    labels: Any = None,
    ids: Any = None,
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
    ids : array, list or str, optional
        Names of the rows, each once, by which findings call them: integers or strings (N,), a file
        of them, or the column or array of this name in the file.
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
        Namespace and device of the sliced terms; NumPy by default. Everything else is computed on
        the host.
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
    stored = stored if ids is None else with_ids(stored, ids)
    levels = None if labels is None else _levels(labels, stored)
    plan = _plan(
        levels, False, rows, seed, n_slices, tree, label_rows, probe, drop_bad_rows, place, tick
    )
    (file,), _ = _read([stored], plan)
    return _report(file, plan)


def compare(
    data: Sequence[Any],
    *,
    paired: bool = False,
    labels: Any = None,
    ids: Any = None,
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
        Whether rows are the same items in every file: joined by ids where every file has them,
        else row i of files of one length. Nothing in a file without ids says so, and so nothing is
        taken for granted.
    ids : sequence or str, optional
        For each file as for `report`, or one for all; files are then `paired`, and the items that
        all of them have are compared.
    labels
        As for `report`, of the rows of the first file; without ids files are of one length.
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
    levels = None if labels is None else _levels(labels, stored[0])
    if ids is not None:
        each = [ids] * len(stored) if isinstance(ids, str | os.PathLike) else list(ids)
        if len(each) != len(stored):
            raise ValueError(f"expected ids of {len(stored)} files; found {len(each)}")
        stored = [with_ids(s, i) for s, i in zip(stored, each, strict=True)]
        paired = True
    by_ids = paired and all(s.ids is not None for s in stored)
    if by_ids:
        stored = join(stored)
        if levels is not None and stored[0].selection is not None:
            levels = levels.at(stored[0].selection)
    lengths = {s.shape[0] for s in stored}
    if len(lengths) > 1 and (paired or labels is not None):
        found = " and ".join(f"{s.shape[0]:,} in {s.name}" for s in stored[:3])
        why = "--paired" if paired else "labels of all files"
        raise ValueError(f"expected files of one number of rows for {why}; found {found}")
    plan = _plan(
        levels, paired, rows, seed, n_slices, tree, label_rows, probe, drop_bad_rows,
        place, tick,
    )  # fmt: skip
    files, crosses = _read(stored, plan)
    reports = [_report(f, plan) for f in files]
    pairs = [
        _pair(a, b, crosses[i] if paired else None, plan)
        for i, (a, b) in enumerate(itertools.combinations(files, 2))
    ]
    return Comparison(reports, pairs, tree, paired, by_ids)


def _levels(labels: Any, stored: Embeddings) -> Levels:
    return Levels.of(labels_of(labels, stored.shape[0], stored.name))


def _plan(
    levels: Levels | None, paired: bool, rows: int | None, seed: int, n_slices: int,
    tree: TreeOptions, label_rows: int | None, probe: str, drop_bad_rows: bool,
    place: Place | None, tick: Tick,
) -> _Plan:  # fmt: skip
    tree.check()
    _checks.positive_int("n_slices", n_slices, minimum=2)
    _checks.choice("probe", probe, PROBES)
    place = Place(as_namespace(None)) if place is None else place
    return _Plan(
        levels, paired, rows, seed, n_slices, tree, label_rows, probe, drop_bad_rows, place, tick
    )


# --- one file ------------------------------------------------------------------------------------


def _report(file: _File, plan: _Plan) -> Report:
    stored, chosen, of, projected = file.stored, file.chosen, file.moments, file.projected
    assert projected is not None
    projected.finish()
    values, slices = projected.values(), file.first.slices
    centred = of.singular_values(center=True)
    # Singular values of float32 embeddings are known to float32's rounding only.
    unit = 2.0**-52 if chosen.dtype == np.float64 else 2.0**-23
    rtol = min(chosen.shape) * unit
    fit = power_law_fit(centred / math.sqrt(of.n - 1), rtol=rtol)
    dimensions = _dimensions(of.singular_values(center=False), centred, fit)
    plan.tick("neighbours of the rows drawn", 0, 1)
    pairs = geometry(file.rows.points)
    line = direction(file.rows.points, of.mean, of.sigma, slices, plan.seed)
    survey = file.first.survey
    findings = _findings.findings(
        file.source, of.sigma, dimensions, survey, pairs, file.drawn, line
    )
    asking, labelled = file.asking, None
    drawn = file.drawn - np.searchsorted(file.summary.bad, file.drawn)
    found = hierarchy(file.rows, None if asking is None else asking.levels.at(drawn))
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
        losses=_losses(of, values, file.summary.sigreg),
        gaussianity=_gaussianity(values, file.summary.sigreg, of.n, slices, line),
        hierarchy=found,
        labelled=labelled,
        findings=findings,
        notes=stored.notes,
        pictures=_pictures(of, values, projected, centred, fit),
    )


def _agreement(
    file: _File, asking: Asking, found: Hierarchy, plan: _Plan
) -> tuple[Labelled, list[Finding]]:
    chosen, points, levels, probe = file.chosen, file.rows.points, asking.levels, plan.probe
    answers = asking.answers()
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


def _losses(of: Moments, values: SliceValues, sigreg: np.ndarray) -> dict[str, Estimate]:
    biased, unbiased = of.equivalent(ddof=0), of.equivalent(ddof=1)
    scale, center = float(scale_loss(biased)), float(center_loss(biased))
    shape = _mean(*values.shape)
    found = {
        "visreg_loss": shape._replace(value=scale + shape.value + center),
        "scale_loss": Estimate(scale),
        "shape_loss": shape,
        "center_loss": Estimate(center),
        "gaussian_sliced_wasserstein": _mean(*values.gaussian),
        "sigreg_loss": _mean(sigreg),
        "variance_loss": Estimate(float(variance_loss(unbiased))),
        "covariance_loss": Estimate(float(covariance_loss(unbiased))),
    }
    return {name: found[name] for name in LOSSES}


def _mean(values: np.ndarray, bounds: np.ndarray | None = None) -> Estimate:
    error = float(values.std(ddof=1) / math.sqrt(len(values)))
    bound = None if bounds is None or not bounds.any() else float(bounds.mean())
    return Estimate(float(values.mean()), error, bound)


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
    values: SliceValues, sigreg: np.ndarray, n: int, slices: np.ndarray, line: Direction | None
) -> dict[str, float]:
    z = mean_z_scores(sigreg, values.gaussian.value, n, slices)
    p = [mean_p_value(i, one, n, slices) for i, one in enumerate(z)]
    worst = (math.nan, math.nan) if line is None else (line.z, line.p)
    return dict(zip(GAUSSIANITY, (z[0], p[0], z[1], p[1], *worst), strict=True))


# --- pairs ---------------------------------------------------------------------------------------


def _pair(first: _File, second: _File, cross: CrossScatter | None, plan: _Plan) -> Pair:
    a, b = first.chosen, second.chosen
    distance = drift = cka = common = trees = None
    if a.shape[1] == b.shape[1]:
        assert first.projected is not None and second.projected is not None
        plan.tick("two samples", 0, 1)
        values, bound = two_sample_values(first.projected, second.projected)
        distance = _root(_mean(values))._replace(bound=bound or None)
        count = drift_rows(a, [b]), drift_rows(b, [a])
        of_a, of_b = (
            f.first.sample.result(c)[1] for f, c in zip((first, second), count, strict=True)
        )
        drift = drift_test(
            of_a, of_b, (a.shape[0], b.shape[0]), first.first.slices,
            paired=plan.paired, seed=plan.seed, tick=plan.tick,
        )  # fmt: skip
    if cross is not None:
        cka = linear_cka_from_covariances(
            first.moments.scatter(), second.moments.scatter(), cross.result()
        )
        x, y = first.rows.points, second.rows.points
        common = mutual_knn(x, y.astype(x.dtype, copy=False), min(_NEIGHBORS, len(x) - 1))
        plan.tick("similarity of dendrograms", 0, 1)
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
    of: Moments,
    values: SliceValues,
    projected: Exact | Counted,
    centred: np.ndarray,
    fit: PowerLaw,
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
        eigenvalues=centred**2 / (of.n - 1),
        fit=fit,
        sigma=of.sigma,
        quantiles=quantiles,
        worst=projected.ordered(worst, ranks),
        median=projected.ordered(median, ranks),
        worst_slice=(worst, float(shape[worst])),
        median_slice=(median, float(shape[median])),
        correlation=rows.T @ rows,
        dimensions=dimensions,
    )
