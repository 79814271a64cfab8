"""Findings: judgements of one file, each with its normal range, likely cause and next step.

The ranges are rules of thumb, one constant each; they are not tests. Those of collapse, cones and
hubs hold what trained encoders have (`encoders.json`). Where a judgement rests on a test, its
p-value has Bonferroni's correction for the directions tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from visreg_core.embeddings import Embeddings
from visreg_core.report._geometry import Direction, Geometry, Searched, varies
from visreg_core.report._labelled import Answers, Levels, confused, sure_of_another
from visreg_core.report._model import Finding, Interval, Labelled
from visreg_core.report._survey import Survey

_VERDICTS = ("bad", "look", "good")
_SHOWN = 5

# Shares of the dimensions (participation ratio), and mean cosines.
_COLLAPSED, _FEW = 0.01, 0.02
_NARROW, _CONE = 0.4, 0.7
_ROGUE = 0.5  # of all variance, where D > 3
_UNEVEN = 100.0  # largest over smallest standard deviation
_NORMS = 0.5
_ANTI_HUBS, _HUB = 0.2, 10.0
_OVERLAP = 0.2
_CONTRAST = 1.1  # distance of two rows over that of the nearest
_FAR_QUERIES, _FOREIGN = 0.05, 0.2  # shares of the queries, of which 1 % is expected
_FEW_QUERIES = 5  # that one row may be near to
_RECALL, _LOST_RECALL = 0.95, 0.85
_REPEATED = 0.01
_P = 0.01
_UNIT = 0.1  # median distance of the standard deviations from 1, of embeddings meant to be N(0, I)
_RARE = 2  # rows of a class
_CONFUSED = 0.5  # of a class
_LOST = 0.5  # of the way from chance to 1


def findings(
    chosen: Embeddings,
    sigma: np.ndarray,
    dimensions: dict[str, float],
    survey: Survey,
    geometry: Geometry,
    drawn: np.ndarray,
    direction: Direction | None,
) -> list[Finding]:
    """Judgements of rows and dimensions; `drawn` are the places of the rows that pairs are of."""
    of_file = chosen.names
    found = [
        *_dimensions(sigma, dimensions),
        _collapse(dimensions, min(survey.rows, chosen.shape[1])),
        _anisotropy(survey),
        *_rows(survey, of_file),
        *_pairs(geometry, of_file(drawn)),
        *_shape(direction, sigma),
    ]
    return ordered(found)


def ordered(found: list[Finding]) -> list[Finding]:
    """The worst first."""
    return sorted(found, key=lambda f: _VERDICTS.index(f.verdict))


Numbers = Callable[[np.ndarray], np.ndarray]


def _shown(rows: np.ndarray) -> tuple[int | str, ...]:
    return tuple(rows[:_SHOWN].tolist())


def _some(numbers: np.ndarray) -> str:
    more = ", …" if len(numbers) > _SHOWN else ""
    return ", ".join(map(str, numbers[:_SHOWN].tolist())) + more


# --- dimensions -----------------------------------------------------------------------------------


def _dimensions(sigma: np.ndarray, dimensions: dict[str, float]) -> Iterator[Finding]:
    d = len(sigma)
    live = varies(sigma)
    dead = np.flatnonzero(~live)
    if len(dead):
        yield Finding(
            "bad" if len(dead) > 0.05 * d else "look",
            "dead dimensions",
            f"{len(dead):,} of {d:,} do not vary ({_some(dead)})",
            "none",
            "a unit that died, padding, or an index stored as a column",
            "drop them: they add nothing but a condition number of infinity",
        )
    else:
        yield Finding("good", "dead dimensions", f"none of {d:,}", "none")
    if not live.any():
        return
    share = sigma**2 / np.sum(sigma**2)
    top = int(np.argmax(share))
    if d > 3 and share[top] > _ROGUE:
        yield Finding(
            "look",
            "rogue dimension",
            f"dimension {top} has {share[top]:.0%} of all variance",
            f"at most {_ROGUE:.0%} in one",
            "one unit grew without bound; distances and cosines are those of this dimension",
            "standardise the dimensions, or leave it out, and see whether neighbours change",
        )
    ratio = float(sigma[live].max() / sigma[live].min())
    verdict = "look" if ratio > _UNEVEN else "good"
    yield Finding(
        verdict,
        "scale of dimensions",
        f"largest standard deviation {ratio:.3g} times the smallest of those that vary",
        f"up to {_UNEVEN:g}",
        *(
            (
                "dimensions of different units, or whitening that was left out",
                "standardise before distances are taken",
            )
            if verdict == "look"
            else ()
        ),
    )


def _collapse(dimensions: dict[str, float], rank: int) -> Finding:
    used = dimensions["participation_ratio"]
    share = used / rank
    value = f"variance in some {used:.3g} of {rank:,} possible (participation ratio)"
    good = f"above {_FEW:.0%} of them"
    if used == 0:
        return Finding(
            "bad",
            "collapse",
            "all rows are equal",
            good,
            "complete collapse of the training, or a constant was saved",
            "look at the loss that should prevent it, and at how the file was written",
        )
    # A few dimensions out of few are not a collapse.
    if share >= _FEW or used >= 50:
        return Finding("good", "dimensional collapse", value, good)
    return Finding(
        "bad" if share < _COLLAPSED else "look",
        "dimensional collapse",
        value,
        good,
        "variance or covariance is not maintained in training, or the data have few factors",
        "compare with an earlier checkpoint; raise the weight of the variance or scale term",
    )


# --- rows -----------------------------------------------------------------------------------------


def _anisotropy(survey: Survey) -> Finding:
    cosine = survey.mean_cosine()
    value = f"mean cosine of two rows {cosine:.3g}"
    good = f"below {_NARROW:g}"
    if not cosine > _NARROW:
        return Finding("good", "anisotropy", value, good)
    return Finding(
        "bad" if cosine > _CONE else "look",
        "anisotropy",
        value,
        good,
        "rows lie in a cone about their mean",
        "subtract the mean before cosines are taken, and see whether neighbours change",
    )


def _rows(survey: Survey, of_file: Numbers) -> Iterator[Finding]:
    n = survey.rows
    if survey.n_zero:
        yield Finding(
            "bad" if survey.n_zero > _REPEATED * n else "look",
            "zero rows",
            f"{survey.n_zero:,} of {n:,} rows are all zeros",
            "none",
            "items that failed to be embedded, or rows allocated and never written",
            "embed them again or leave them out: a zero vector has no cosine",
            _shown(of_file(np.array(survey.zero_rows, np.int64))),
        )
    repeats = survey.repeats()
    among = "" if repeats.counted == n else f" of the first {repeats.counted:,}"
    if repeats.extra:
        share = repeats.extra / repeats.counted
        yield Finding(
            "bad" if share > 0.5 else "look" if share > _REPEATED else "good",
            "repeated rows",
            f"{repeats.extra:,} rows{among} equal an earlier one ({share:.1%}); "
            f"one occurs {repeats.most:,} times",
            f"at most {_REPEATED:.0%}",
            "items given twice, or an encoder that does not distinguish them",
            "keep one of each: neighbours and accuracies are flattered by copies",
            _shown(of_file(np.array(repeats.rows, np.int64))),
        )
    else:
        yield Finding("good", "repeated rows", f"none{among}", f"at most {_REPEATED:.0%}")
    variation = survey.norm_variation()
    if variation > _NORMS:
        yield Finding(
            "look",
            "mixed norms",
            f"norms vary by {variation:.0%} of their mean",
            f"up to {_NORMS:.0%}",
            "rows of several models or poolings in one file, or a norm that means something",
            "normalise the rows, or take the Euclidean distance knowingly",
            _shown(of_file(survey.largest)),
        )


def _pairs(geometry: Geometry, rows: np.ndarray) -> Iterator[Finding]:
    n = len(rows)
    counts = geometry.occurrences
    top = int(np.argmax(counts))
    k = counts.sum() / n
    hub = counts[top] / k if k else 0.0
    value = (
        f"{geometry.anti_hubs:.0%} of {n:,} rows are nobody's neighbour; "
        f"the greatest hub is a neighbour of {int(counts[top]):,}"
    )
    good = f"below {_ANTI_HUBS:.0%}; hubs below {_HUB:g} times the mean of {k:.0f}"
    if geometry.anti_hubs > _ANTI_HUBS or hub > _HUB:
        yield Finding(
            "look",
            "hubs",
            value,
            good,
            "many dimensions, or a mean far from 0",
            "subtract the mean, or rank neighbours mutually",
            _shown(rows[np.argsort(-counts, kind="stable")]),
        )
    else:
        yield Finding("good", "hubs", value, good)
    if len(geometry.outliers):
        yield Finding(
            "look" if len(geometry.outliers) > _REPEATED * n else "good",
            "outliers",
            f"{len(geometry.outliers):,} of {n:,} rows are far from all others",
            f"at most {_REPEATED:.0%}",
            "broken or foreign items",
            "look at these rows",
            _shown(rows[geometry.outliers]),
        )
    if geometry.islands:
        sizes = [len(island) for island in geometry.islands]
        ends = f"{sizes[0]:,}" + (f" to {sizes[-1]:,}" if sizes[-1] > sizes[0] else "")
        groups = "group" if len(sizes) == 1 else "groups"
        yield Finding(
            "look",
            "isolated islands",
            f"{sum(sizes):,} of {n:,} rows in {len(sizes):,} {groups} of {ends} whose neighbours "
            "are all among themselves",
            "none",
            "another source, language or modality in one file, a class pulled together to a point, "
            "or copies",
            "look at rows of each: a search by neighbours never leads from one to another",
            _shown(rows[[island[0] for island in geometry.islands]]),
        )
    if len(geometry.near_duplicates):
        yield Finding(
            "look" if len(geometry.near_duplicates) > _REPEATED * n else "good",
            "near duplicates",
            f"{len(geometry.near_duplicates):,} of {n:,} rows all but equal another",
            f"at most {_REPEATED:.0%}",
            "the same item in two versions",
            "look at these rows before data are split",
            _shown(rows[geometry.near_duplicates]),
        )
    if geometry.contrast < _CONTRAST:
        yield Finding(
            "look",
            "concentrated distances",
            f"two rows are {geometry.contrast:.3g} times as far from each other as nearest ones",
            f"at least {_CONTRAST:g} times",
            "many dimensions of noise, or rows that differ in nothing that was learned",
            "neighbours say little here: use fewer dimensions, or another layer",
        )
    if geometry.overlap < _OVERLAP:
        yield Finding(
            "look",
            "cosine against Euclidean distance",
            f"{geometry.overlap:.0%} of neighbours are the same by both",
            f"at least {_OVERLAP:.0%}",
            "norms or a mean decide which rows are near",
            "know which distance the embeddings were trained for, and use that",
        )


def _shape(direction: Direction | None, sigma: np.ndarray) -> Iterator[Finding]:
    if direction is None:
        return
    searched = "of rows it was not searched on"
    if direction.p >= _P:
        yield Finding(
            "good",
            "Gaussian in every direction",
            f"p = {direction.p:.2g} in the least Gaussian direction found, {searched}",
            f"p at least {_P:g}",
        )
        return
    # All but embeddings trained to be Gaussian have such a direction.
    meant = float(np.median(np.abs(sigma - 1))) < _UNIT
    yield Finding(
        "look" if meant else "good",
        "non-Gaussian direction",
        f"z = {direction.z:.3g}, p = {direction.p:.2g} in the least Gaussian direction found, "
        f"{searched}; dimension {direction.column} has the most weight in it",
        f"p at least {_P:g}, where training is for N(0, I)",
        *(
            (
                "the term of shape is weak, has few slices, or the training is short",
                "compare shape_loss and sigreg_loss with those at the end of the training",
            )
            if meant
            else ()
        ),
    )


# --- searches -----------------------------------------------------------------------------------


def of_queries(found: Searched, queries: Numbers, rows: np.ndarray) -> Iterator[Finding]:
    """Judgements of queries by the rows drawn, whose names are `rows`."""
    far, n = len(found.far) / found.queries, len(rows)
    yield Finding(
        "bad" if far > _FOREIGN else "look" if far > _FAR_QUERIES else "good",
        "queries far from all rows",
        f"{far:.1%} of {found.queries:,} queries are farther from the nearest of {n:,} rows than "
        "99 % of these are from theirs",
        f"at most {_FAR_QUERIES:.0%}",
        *(
            (
                "another model, prefix or pooling than the rows', or subjects that they lack",
                "embed some rows the way queries are, and look whether they find themselves",
                _shown(queries(found.far)),
            )
            if far > _FAR_QUERIES
            else ()
        ),
    )
    top = int(np.argmax(found.occurrences))
    most, mean = int(found.occurrences[top]), found.occurrences.mean()
    is_hub = most > max(_HUB * mean, _FEW_QUERIES)
    reached = np.mean(found.occurrences > 0)
    yield Finding(
        "look" if is_hub else "good",
        "hubs among answers",
        f"one of {n:,} rows is among the nearest of {most:,} of {found.queries:,} queries; "
        f"{reached:.0%} of the rows are near to any",
        f"below {_HUB:g} times the mean of {mean:.2g}",
        *(
            (
                "a row near the mean of the queries",
                "subtract the mean of rows and queries, or rank neighbours mutually",
                _shown(rows[np.argsort(-found.occurrences, kind="stable")]),
            )
            if is_hub
            else ()
        ),
    )


def of_index(given: np.ndarray, true: np.ndarray, names: np.ndarray) -> Finding:
    """Judgement of an index: what is `given` for rows of these names, and the truth, (M, k)."""
    right = (given[:, :, None] == true[:, None, :]).any(axis=2)
    recall = right.sum(axis=1) / true.shape[1]
    mean = float(recall.mean())
    least = np.argsort(recall, kind="stable")
    return Finding(
        "bad" if mean < _LOST_RECALL else "look" if mean < _RECALL else "good",
        "recall of the index",
        f"{mean:.1%} of the {true.shape[1]} nearest of {len(true):,} rows are among what it "
        f"returns; of {np.mean(recall < _RECALL):.0%} of the rows less than {_RECALL:.0%}",
        f"at least {_RECALL:.0%}",
        *(
            (
                "an index that searches too little, or by another distance (--metric)",
                "let it search more (efSearch, nprobe), or give it more links or lists",
                _shown(names[least]),
            )
            if mean < _RECALL
            else ()
        ),
    )


# --- labels ---------------------------------------------------------------------------------------


def of_labels(
    levels: Levels, labelled: Labelled, answers: Answers, chosen: Embeddings
) -> list[Finding]:
    """Judgements of the labels and of how rows agree with them."""
    found: list[Finding] = []
    for level in range(len(levels.codes)):
        found += _classes(levels, level)
        if level:
            found += _nested(levels, level)
    if labelled.n_classes:
        found += _levels(levels, labelled)
        found += _tree_of_labels(levels, labelled)
        found += _wrong(levels, answers, chosen.names)
    return found


def _name(levels: Levels, level: int) -> str:
    return "labels" if len(levels.codes) == 1 else f"labels, level {level + 1}"


def _classes(levels: Levels, level: int) -> Iterator[Finding]:
    sizes = levels.sizes(level)
    n, classes = len(levels.codes[level]), int(np.count_nonzero(sizes))
    subject = _name(levels, level)
    if classes == 1:
        yield Finding(
            "bad",
            subject,
            f"all {n:,} rows are of one class",
            "two classes or more",
            "a constant column, or a file of one class",
            "this level is left out: give another column",
        )
    elif classes == n:
        yield Finding(
            "bad",
            subject,
            f"{n:,} rows of {n:,} classes: no two have one label",
            "classes of several rows",
            "ids or names in place of classes, or numbers of a regression",
            "this level is left out: give another column",
        )
    else:
        rare = np.flatnonzero(sizes < _RARE)
        if len(rare) > 0.1 * classes:
            yield Finding(
                "look",
                subject,
                f"{len(rare):,} of {classes:,} classes have a single row",
                "a few",
                "a level finer than the data allow",
                "their rows count as errors: no other row has their class",
            )


def _nested(levels: Levels, level: int) -> Iterator[Finding]:
    coarse, fine = levels.codes[level - 1], levels.codes[level]
    pairs = np.unique(np.stack([coarse, fine]), axis=1)
    parents = np.bincount(pairs[1])
    children = np.bincount(pairs[0])
    split = np.flatnonzero(parents > 1)
    if not len(split):
        return
    subject = f"labels, levels {level} and {level + 1}"
    if np.all(children[children > 0] == 1):
        yield Finding(
            "bad",
            subject,
            "the columns are in the order from fine to coarse",
            "the coarsest first",
            "columns in the other order",
            "reverse the columns: hierarchical measures read them coarse to fine",
        )
        return
    first = levels.names[level][int(split[0])]
    yield Finding(
        "look",
        subject,
        f"{len(split):,} of {int(np.count_nonzero(parents)):,} classes of the finer level are in "
        f"several of the coarser, such as {first[:40]!r}",
        "each in one",
        "columns that are no hierarchy, or one name for classes of different parents",
        "levels are then independent; --class-tree gives paths for names",
    )


def _levels(levels: Levels, labelled: Labelled) -> Iterator[Finding]:
    knn = labelled.measures["hierarchical_knn_accuracy"]
    for level, found in enumerate(knn):
        if found is None:
            continue
        sizes = levels.sizes(level)
        chance = float(sizes.max() / sizes.sum())
        way = (found.value - chance) / (1 - chance)
        subject = (
            "neighbours' classes" if len(knn) == 1 else f"neighbours' classes, level {level + 1}"
        )
        value = f"{_interval(found)} correct; {chance:.3g} by the most frequent class"
        good = f"above {chance + _LOST * (1 - chance):.3g}, half of the way to 1"
        if way >= _LOST:
            yield Finding("good", subject, value, good)
        else:
            yield Finding(
                "bad" if way < 0.1 else "look",
                subject,
                value,
                good,
                "the embeddings have lost this level, or have it in few directions",
                "compare with the linear rule: where that is far better, the level is there, "
                "beneath variance that dominates the distances",
            )


def _tree_of_labels(levels: Levels, labelled: Labelled) -> Iterator[Finding]:
    """The coarsest level that the dendrogram has lost."""
    shares = [
        (level, found.value)
        for level, found in enumerate(labelled.measures["triplet_accuracy"], 1)
        if found is not None
    ]
    if len(levels.codes) == 1 or not shares:
        return
    least = (1 + _LOST) / 2
    said = ", ".join(f"{share:.3g} on level {level}" for level, share in shares)
    value = f"a class's rows joined before other rows of the class above it: {said}; 0.5 by chance"
    good = f"at least {least:.3g} on every level"
    lost = next((level for level, share in shares if share < least), None)
    if lost is None:
        yield Finding("good", "hierarchy of the labels", value, good)
    else:
        yield Finding(
            "look",
            "hierarchy of the labels",
            value,
            good,
            f"the dendrogram loses the structure at level {lost}: "
            + ("no level is kept" if lost == shares[0][0] else "the coarser ones are kept"),
            "what a coarser level holds together is not divided as the labels divide it: see the "
            "strips of classes below the dendrogram",
        )


def _interval(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:.3f}"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _wrong(levels: Levels, answers: Answers, of_file: Numbers) -> Iterator[Finding]:
    level = len(levels.codes) - 1
    pair = confused(answers, level)
    if pair is not None and pair[2] >= _CONFUSED:
        first, second = (levels.names[level][c][:40] for c in pair[:2])
        yield Finding(
            "look",
            "confused classes",
            f"{pair[2]:.0%} of {first!r} are taken for {second!r}",
            f"below {_CONFUSED:.0%}",
            "similar classes, or two names of one",
            "look at rows of both",
        )
    wrong = sure_of_another(answers, level)
    if len(wrong):
        yield Finding(
            "look",
            "labels likely wrong",
            f"{len(wrong):,} of {len(answers.rows):,} rows classified: nine in ten neighbours and "
            "the linear rule give one other class",
            "none",
            "mislabelled rows, or classes that overlap",
            "look at these rows",
            _shown(of_file(answers.rows[wrong])),
        )
