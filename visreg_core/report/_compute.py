"""What `visreg report` and `visreg compare` compute.

Every number is that of the public function of its name with its defaults, on all rows as one batch;
`_streaming` computes them without all rows in memory. Measures of pairs of rows are those of a
sample (`_trees`, `_geometry`) or of rows classified one by one (`_labelled`), and say so.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from visreg_core import checks
from visreg_core._xp import as_namespace
from visreg_core.embeddings import Embeddings, EmbeddingsError
from visreg_core.report._labelled import Levels
from visreg_core.report._model import DEFAULT_TREE, Comparison, Report, TreeOptions
from visreg_core.report._one_file import File, report_of
from visreg_core.report._pairs import pair_of
from visreg_core.report._streaming import Place, Tick, bad_rows
from visreg_core.report._taken import embeddings_of, labels_of

PROBES = ("discriminant", "logistic", "none")


def _silent(doing: str, done: int, total: int) -> None:
    pass


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
    """Findings and measures of saved embeddings, taken as one batch.

    Parameters
    ----------
    data : array, path, table or Embeddings
        Embeddings (N, D): an array of any namespace, nested lists, a pandas or polars frame of
        numbers, a file as `visreg_core.embeddings.load` reads it, or what that returns.
    labels : array, list, Series, frame or path, optional
        Of all rows, (N,) or (N, L), column 0 the coarsest level: adds measures of labels.
    rows : int, optional
        Draw this many rows (`Embeddings.sample`) instead of reading all.
    seed : int
        Of the slices and of every draw of rows.
    n_slices : int
        Random directions of the sliced losses, at least 2.
    tree : TreeOptions
        ``(rows, method, metric, clustering)``: the number of rows, drawn by `seed`, of the
        dendrogram and of other measures of pairs of rows (all rows, if there are fewer); method and
        metric of `linkage`; and the clustering of `hierarchical_rand_index`.
    label_rows : int, optional
        How many rows are classified, each by all other rows; by default as many as some ten seconds
        allow. Where that is not all, accuracies have intervals.
    probe : str
        Rule of `hierarchical_linear_accuracy`: "discriminant", in closed form, each row left out;
        "logistic", scikit-learn's, by cross-validation on the dendrogram's rows, which takes long
        for many classes; or "none".
    drop_bad_rows : bool
        Leave out rows with NaN or Inf instead of refusing the file; the report has their numbers.
    place : Place, optional
        Namespace and device of the sliced terms; NumPy by default, and in place of any other
        library on the CPU. Everything else is computed on the host.
    tick : callable, optional
        Called with what is being done, how far it is and how far it goes.

    Returns
    -------
    Report

    Raises
    ------
    EmbeddingsError
        Where rows hold NaN or Inf (how many, and the first few), or a file is truncated.
    ValueError
        For labels of another number of rows, or unknown options.

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
    file = File(stored, chosen, dropped, tree, seed, tick)
    return report_of(file, levels, seed, n_slices, label_rows, probe, place, tick)


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
        Whether row i is the same item in all files, which then have one length. Files without ids
        do not say so, and it is not assumed.
    labels
        As for `report`, of the rows of every file: files are then of one length.
    rows, seed, n_slices, tree, label_rows, probe, place, tick
        As for `report`; of files of one length the same rows are drawn.
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
    if isinstance(data, str | os.PathLike):
        raise ValueError(f"expected a sequence of two files or more; found {os.fspath(data)!r}")
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
    files = [File(s, c, d, tree, seed, tick) for s, (c, d) in zip(stored, kept, strict=True)]
    reports = [report_of(f, levels, seed, n_slices, label_rows, probe, place, tick) for f in files]
    pairs = [
        pair_of(a, b, paired, seed, n_slices, place, tick)
        for a, b in itertools.combinations(files, 2)
    ]
    return Comparison(reports, pairs, tree, paired)


_NONE = np.empty(0, np.int64)


def _check(tree: TreeOptions, n_slices: int, probe: str) -> None:
    tree.check()
    checks.positive_int("n_slices", n_slices, minimum=2)
    checks.choice("probe", probe, PROBES)


def _levels(labels: Any, stored: Embeddings) -> Levels | None:
    return None if labels is None else Levels.of(labels_of(labels, stored.shape[0], stored.name))


def _without_bad_rows(
    chosen: Sequence[Embeddings], tick: Tick, *, together: bool = False
) -> list[tuple[Embeddings, np.ndarray]]:
    """Each file without its bad rows, and their numbers; `together`: the same rows in all files."""
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
