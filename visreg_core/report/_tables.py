"""The report as tables of text, in the order of what a reader decides; every output shows these."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from visreg_core.embeddings._source import one_line
from visreg_core.report import _encoders
from visreg_core.report._labelled import NEIGHBORS
from visreg_core.report._measures import best, trends
from visreg_core.report._model import (
    DIMENSIONS,
    GAUSSIANITY,
    GEOMETRY,
    LABELLED,
    LOSSES,
    PAIR,
    PAIR_OF_TREES,
    TREE,
    Comparison,
    Hierarchy,
    Interval,
    Measurement,
    Report,
)

MEANINGS: dict[str, str] = {
    "rankme": "exponential of the entropy of the singular values; at most D",
    "participation_ratio": "(Σλ)² / Σλ² of the covariance's eigenvalues; at most D",
    "stable_rank": "sum of squared singular values over the largest",
    "alpha_req": "exponent of a power law through the eigenvalues; 0 is a flat spectrum",
    "alpha_req_r_squared": "how well that law fits; below 0.9 the exponent says little",
    "condition_number": "largest over smallest singular value",
    "mean_cosine": "of two different rows; 0 where directions are spread evenly",
    "norm_variation": "standard deviation of the norms over their mean",
    "uniformity": "log mean exp(−2‖u − v‖²) of unit rows; −4 where spread evenly, 0 collapse",
    "anti_hubs": "share of rows among nobody's 10 nearest",
    "hierarchical_knn_accuracy": f"class of each row by its {NEIGHBORS} nearest others",
    "hierarchical_linear_accuracy": "class of each row by a linear rule",
    "lidar": "LiDAR with classes as sources: directions that separate them; at most classes − 1",
    "hierarchical_rand_index": "with as many clusters as classes; 1 where they agree",
    "hierarchical_adjusted_rand_index": "the same, 0 for clusters by chance",
    "triplet_accuracy": "two rows of a class joined before one of another; 0.5 by chance",
    "cophenetic_correlation": "of the dendrogram's distances with those of the rows",
    "visreg_loss": "scale + shape + center",
    "scale_loss": "mean squared distance of the standard deviations from 1",
    "shape_loss": "squared distance from Gaussian quantiles, of normalised projections",
    "center_loss": "mean squared batch mean",
    "gaussian_sliced_wasserstein": "the same as shape_loss of the projections as they are",
    "sigreg_loss": "Epps-Pulley statistic of the projections, times the number of rows",
    "variance_loss": "VICReg: how far standard deviations fall below 1",
    "covariance_loss": "VICReg: squared covariances of different dimensions",
    "gaussianity_epps_pulley_z": "sigreg_loss in standard deviations above its mean for N(0, I)",
    "gaussianity_epps_pulley_p": "its p-value, at least 0.005",
    "gaussianity_wasserstein_z": "the same of gaussian_sliced_wasserstein",
    "gaussianity_wasserstein_p": "its p-value, at least 0.005",
    "worst_direction_z": "Epps-Pulley of standardised columns, least Gaussian direction found",
    "worst_direction_p": "its p-value on rows that it was not searched on",
    "sliced_wasserstein": "2-Wasserstein distance of projections, root mean square over slices",
    "drift_p": "p-value of that distance: rows of one distribution have a small one by chance",
    "linear_cka": "similarity of the two geometries, row by row; 1 up to rotation and scale",
    "mutual_knn": "share of the 10 nearest others that a row has in both files",
    "lca_similarity_pearson": "of the heights at which the two trees join each pair of rows",
    "lca_similarity_spearman": "the same of their ranks",
    "lca_similarity_kendall": "the same by concordant pairs, tau-b",
    "cophenetic_similarity_d1_to_p2": "of the first tree's heights with the second's distances",
    "cophenetic_similarity_d2_to_p1": "of the second tree's heights with the first's distances",
    "entanglement": "of the tanglegram: 0 level, 1 upside down",
}
_CHANCE = "by_chance"
MEANINGS[_CHANCE] = "that distance of two files of these sizes from one distribution"
_ENCODERS_NOTE = (
    "where the file stands among embeddings of text, images and a graph by public encoders, which "
    "report/encoders.json lists: some 2,000 rows each"
)
_NAME = 24  # letters of a file's name in a table
_ROWS_NAMED = 5  # rows and classes of a branch that are named
_CLASSES_NAMED = 3


class Row(NamedTuple):
    """One line of a table: a name, one text for each column, and what it means."""

    name: str
    cells: list[str]
    meaning: str = ""


class Table(NamedTuple):
    """A table with a line that says what it is of."""

    title: str
    note: str
    heads: list[str]
    rows: list[Row]


def tables(comparison: Comparison) -> list[Table]:
    """Every table of a report."""
    reports = comparison.reports
    heads = ["value"] if len(reports) == 1 else short_names([r.name for r in reports])
    drawn = _same([f"{r.hierarchy.rows:,}" for r in reports])

    def one(title: str, note: str, rows: list[Row]) -> Table:
        return Table(title, note, heads, rows)

    made = _pairs(comparison, heads) if comparison.pairs else []
    if comparison.steps:
        made.append(_trend_table(comparison))
    if reports[0].labelled is not None:
        made.append(one("Labels", _labels_note(comparison, drawn), _label_rows(reports)))
    made += [
        _beside_gaussian(
            one(
                "Dimensions in use",
                "* is the best of each row, here and below" if len(reports) > 1 else "",
                [_row(n, [r.dimensions[n] for r in reports]) for n in DIMENSIONS],
            ),
            reports,
        ),
        _beside_gaussian(
            one(
                "Geometry",
                f"uniformity and anti_hubs of {drawn} rows drawn",
                [_row(n, [r.geometry[n] for r in reports]) for n in GEOMETRY],
            ),
            reports,
        ),
        one(
            "Beside public encoders",
            _ENCODERS_NOTE + ("; of how many the value is lower" if len(reports) > 1 else ""),
            _encoder_rows(reports),
        ),
        one(
            "Hierarchy",
            f"dendrogram of {drawn} rows drawn; {comparison.tree}",
            [_row(n, [r.hierarchy.measures[n] for r in reports]) for n in TREE],
        ),
        one(
            "Distance from N(0, I)",
            "what VISReg, SIGReg and VICReg bring to 0; embeddings trained for anything else are "
            "far from it. ± is the error over random slices" + _counted_note(reports),
            [_row(n, [r.losses[n] for r in reports]) for n in LOSSES]
            + [_row(n, [r.gaussianity[n] for r in reports]) for n in GAUSSIANITY],
        ),
    ]
    return made


def _encoder_rows(reports: Sequence[Report]) -> list[Row]:
    rows = []
    each = [_encoders.standings(r) for r in reports]
    for name, is_share in _encoders.MEASURES.items():
        found = [standings.get(name) for standings in each]
        cells = [
            "–" if s is None
            else str(s) if len(reports) == 1
            else f"{s.value:.3g} ({s.n_lower}/{s.n})"
            for s in found
        ]  # fmt: skip
        rows.append(Row(name, cells, "as a share of min(N, D)" if is_share else ""))
    return rows


def _beside_gaussian(table: Table, reports: Sequence[Report]) -> Table:
    """The table with what Gaussian rows have, where files have as many of one width."""
    null = reports[0].gaussian
    if not null or any(r.gaussian != null for r in reports):
        return table
    note = f"N(0, I): as many rows of that distribution{'; ' if table.note else ''}{table.note}"
    rows = [row._replace(cells=[*row.cells, number(null[row.name])]) for row in table.rows]
    return table._replace(note=note, heads=[*table.heads, "N(0, I)"], rows=rows)


def _row(name: str, found: Sequence[float | Measurement | Interval | None]) -> Row:
    """A measure of each file, the best of several marked."""
    measured = [Measurement(f) if isinstance(f, float) else f for f in found]
    marked = best(name, [None if m is None else m.value for m in measured])
    cells = [estimate(m) + (" *" if b else "") for m, b in zip(measured, marked, strict=True)]
    return Row(name, cells, MEANINGS[name])


def _trend_table(comparison: Comparison) -> Table:
    rows = []
    for measure, first, last, rho in trends(comparison):
        level = "" if measure.level is None else f", level {measure.level}"
        cells = [number(first), number(last), number(rho)]
        rows.append(Row(measure.name + level, cells, MEANINGS[measure.name]))
    steps = comparison.steps
    note = f"rank correlation (Spearman) with the step over {len(steps)} files"
    heads = [f"step {steps[0]}", f"step {steps[-1]}", "correlation"]
    return Table("Trend", note, heads, rows)


def _counted_note(reports: Sequence[Report]) -> str:
    """Of distances that come from histograms."""
    bounds = [e.bound for r in reports for e in r.losses.values() if e.bound]
    if not bounds:
        return ""
    return (
        "; sliced distances of so many rows are counted in histograms: exact ones are larger by "
        f"at most {max(bounds):.2g}"
    )


def facts(r: Report) -> str:
    """Shape, dtype and what was not read, in one line."""
    parts = [f"{r.shape[0]:,} × {r.shape[1]:,} {r.dtype}"]
    if r.rows_read + len(r.dropped) != r.shape[0]:
        parts.append(f"{r.rows_read + len(r.dropped):,} rows drawn")
    if len(r.dropped):
        some = ", ".join(map(str, r.dropped[:5].tolist())) + (", …" if len(r.dropped) > 5 else "")
        rows = "row" if len(r.dropped) == 1 else "rows"
        parts.append(f"{len(r.dropped):,} {rows} with NaN or Inf left out ({some})")
    return ", ".join(parts)


def short_names(names: Sequence[str]) -> list[str]:
    """Names for columns: without the folders and suffix that all share, cut in the middle."""
    lines = [one_line(n) for n in names]
    parts = [PurePath(line).parts for line in lines]
    folders = zip(*(p[:-1] for p in parts), strict=False)
    common = next((i for i, same in enumerate(folders) if len(set(same)) > 1), None)
    if common is None:
        common = min(len(p) - 1 for p in parts)
    short = [
        str(PurePath(*p[common:])) if p else line for p, line in zip(parts, lines, strict=True)
    ]
    suffixes = {PurePath(s).suffix for s in short}
    if len(suffixes) == 1 and len({PurePath(s).with_suffix("") for s in short}) == len(short):
        short = [str(PurePath(s).with_suffix("")) for s in short]
    cut = [s if len(s) <= _NAME else f"{s[: _NAME // 2 - 1]}…{s[-_NAME // 2 :]}" for s in short]
    if len(set(cut)) < len(cut):
        return [f"{i}: {c}" for i, c in enumerate(cut, 1)]
    return cut


def number(value: float | None) -> str:
    """Four significant digits; a dash for what is not defined."""
    return "–" if value is None or value != value else f"{value:.4g}"


def estimate(e: Measurement | Interval | None) -> str:
    """A value and its standard error over slices, or its interval."""
    if e is None:
        return number(None)
    if isinstance(e, Interval):
        if e.low is None or e.high is None:
            return number(e.value)
        return f"{e.value:.4g} [{e.low:.3f}, {e.high:.3f}]"
    if e.standard_error is None:
        return number(e.value)
    return f"{e.value:.4g} ± {e.standard_error:.2g}"


def sample_of(name: str, r: Report) -> str:
    """The number of rows that a measure is of, as text; empty where that is all of them."""
    read, tree = r.rows_read, r.hierarchy.rows
    known = read
    if name in (
        "uniformity",
        "anti_hubs",
        *TREE,
        *LABELLED,
        "worst_direction_z",
        "worst_direction_p",
    ):
        known = tree
    if r.labelled is not None and name == "hierarchical_knn_accuracy":
        known = r.labelled.asked
    if r.labelled is not None and name == "hierarchical_linear_accuracy":
        known = tree if "logistic" in r.labelled.probe else r.labelled.asked
    return "" if known + len(r.dropped) == r.shape[0] else f"{known:,} of {r.shape[0]:,} rows"


def _same(texts: list[str]) -> str:
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


# --- labels ---------------------------------------------------------------------------------------


def _label_rows(reports: Sequence[Report]) -> list[Row]:
    rows = []
    labelled = [r.labelled for r in reports if r.labelled is not None]
    levels = len(labelled[0].n_classes)
    for name in LABELLED:
        for level in range(levels):
            row = _row(name, [one.measures[name][level] for one in labelled])
            which = f", level {level + 1}" if levels > 1 else ""
            rows.append(row._replace(name=f"{name}{which}"))
    return rows


def _labels_note(comparison: Comparison, drawn: str) -> str:
    first = comparison.reports[0].labelled
    assert first is not None
    classes = " and ".join(f"{c:,}" for c in first.n_classes)
    asked = f"{first.asked:,} of {first.among:,} rows classified"
    if first.asked == first.among:
        asked = f"all {first.among:,} rows classified"
    return (
        f"{classes} classes; {asked}, each by all others; linear: {first.probe}; "
        f"lidar and Rand indices of {drawn} rows drawn, clusters by {comparison.tree.clustering}"
        + ("" if first.asked == first.among else "; [95 % interval]")
    )


# --- pairs ----------------------------------------------------------------------------------------


def _pairs(comparison: Comparison, heads: list[str]) -> list[Table]:
    """Distances and item by item, then trees: rows are measures of one pair, or else pairs."""
    made: list[Table] = []
    pairs, count = comparison.pairs, len(comparison.reports)
    named = [f"{heads[i]} – {heads[j]}" for i in range(count) for j in range(i + 1, count)]
    for title, note, names in (
        ("Pairs of files", _pairs_note(comparison), PAIR[: -len(PAIR_OF_TREES)]),
        ("Hierarchies of pairs", _trees_note(comparison), PAIR_OF_TREES),
    ):
        known = [n for n in names if any(p.measure(n) is not None for p in pairs)]
        if not known and (made or comparison.paired):
            continue
        if count == 2:
            rows = [Row(n, [estimate(pairs[0].measure(n))], MEANINGS[n]) for n in known]
            if pairs[0].drift is not None and PAIR[0] in known:
                chance = (
                    f"{pairs[0].drift.by_chance:.4g} (95 % below {pairs[0].drift.by_chance_95:.4g})"
                )
                rows.insert(1, Row(_CHANCE, [chance], MEANINGS[_CHANCE]))
            made.append(Table(title, note, named if rows else [], rows))
            continue
        columns = [[estimate(p.measure(n)) for p in pairs] for n in known]
        if PAIR[0] in known:
            chances = [number(None if p.drift is None else p.drift.by_chance) for p in pairs]
            columns.insert(1, chances)
            known.insert(1, _CHANCE)
        rows = [
            Row(name, [column[i] for column in columns]) for i, name in enumerate(named) if columns
        ]
        made.append(Table(title, note, known, rows))
    more = (_changed(comparison, named), _branches(comparison, named))
    return [*made, *(table for table in more if table.rows)]


def _changed(comparison: Comparison, named: Sequence[str]) -> Table:
    """Rows whose nearest others differ most between two files."""
    rows = []
    for name, pair in zip(named, comparison.pairs, strict=True):
        if pair.changed is None:
            continue
        found = pair.changed
        shares = dict.fromkeys(f"{share:.0%}" for share in (found.kept[0], found.kept[-1]))
        kept = " to ".join(shares)
        rows.append(Row(name, [f"{found.n_lost:,}", kept, ", ".join(map(str, found.rows))]))
    k = next((p.changed.k for p in comparison.pairs if p.changed is not None), 0)
    note = (
        f"of the rows drawn: how many keep none of their {k} nearest others in the second file, "
        "and the rows that keep least, with what they keep"
    )
    return Table("Neighbours that changed", note, ["keep none", "kept", "by rows"], rows)


def _branches(comparison: Comparison, named: Sequence[str]) -> Table:
    """Branches that two trees arrange differently: how many rows, which, and of which classes."""
    rows = []
    trees = [r.hierarchy for r in comparison.reports]
    heads = ["correlation", "rows", "such as"]
    if trees[0].labels is not None:
        heads.append("classes")
    for name, pair, (i, _) in zip(
        named, comparison.pairs, itertools.combinations(range(len(trees)), 2), strict=True
    ):
        if pair.trees is None:
            continue
        for branch in pair.trees.branches:
            some = ", ".join(map(str, pair.trees.rows[branch.leaves[:_ROWS_NAMED]].tolist()))
            cells = [number(branch.correlation), f"{branch.leaves.size:,}", some]
            rows.append(Row(name, [*cells, *_classes(trees[i], branch.leaves)]))
    note = (
        "of the first file's tree, arranged most differently in the second's: Pearson's "
        "correlation of the heights at which both join each pair of rows of the branch; "
        "row numbers of the file"
    )
    return Table("Branches that differ", note, heads, rows)


def _classes(tree: Hierarchy, leaves: np.ndarray) -> list[str]:
    """The commonest classes of leaves on the finest level, in one cell."""
    if tree.labels is None:
        return []
    count = np.bincount(tree.labels[leaves, -1], minlength=len(tree.classes[-1]))
    order = np.argsort(-count, kind="stable")[:_CLASSES_NAMED]
    return [
        ", ".join(f"{one_line(tree.classes[-1][c], _NAME)} {count[c]}" for c in order if count[c])
    ]


def _trees_note(comparison: Comparison) -> str:
    drawn = _same([f"{r.hierarchy.rows:,}" for r in comparison.reports])
    return f"{comparison.tree}, {drawn} rows drawn, [95 % interval for as many others]"


def _pairs_note(comparison: Comparison) -> str:
    parts = []
    tests = [p.drift for p in comparison.pairs if p.drift is not None]
    if tests:
        rows = " and ".join(f"{r:,}" for r in tests[0].rows)
        kind = "rows changing sides with their partners" if tests[0].paired else "rows dealt anew"
        parts.append(
            "± is the error over random slices alone: by_chance is the mean distance of two files "
            "of these sizes from one distribution; drift_p by "
            f"{tests[0].n_permutations} permutations, {kind}, of {rows} rows, "
            f"{tests[0].n_slices} slices"
        )
    else:
        parts.append("distances: none, the files are of different widths")
    distances = [p.sliced_wasserstein for p in comparison.pairs]
    bounds = [d.bound for d in distances if d is not None and d.bound]
    if bounds:
        parts.append(
            f"distances of so many rows are counted in histograms, to {max(bounds):.2g} at worst"
        )
    if comparison.by_ids:
        parts.append("the same items, joined by ids")
    elif comparison.paired:
        parts.append(
            "by position: row i the same item in every file, as said; files without ids do not say"
        )
    elif len({r.shape[0] for r in comparison.reports}) == 1:
        parts.append(
            "files of one length: with --paired, for files in which row i is the same item, CKA, "
            "common neighbours and the similarity of the hierarchies"
        )
    return "; ".join(parts)
