"""What `visreg report` and `visreg compare` compute.

Every number is that of the public function of its name with its defaults, on all rows as one batch;
`_streaming` computes them without all rows in memory. Measures of pairs of rows are those of a
sample (`_trees`, `_geometry`) or of rows classified one by one (`_labelled`), and say so.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from visreg_core import checks, threads
from visreg_core._xp import as_namespace, works_in_tiles
from visreg_core.embeddings import Embeddings, EmbeddingsError
from visreg_core.report._dask import Cluster, cluster
from visreg_core.report._drift import drift_rows
from visreg_core.report._ids import join, with_ids
from visreg_core.report._labelled import Levels
from visreg_core.report._model import DEFAULT_TREE, Comparison, Report, TreeOptions
from visreg_core.report._one_file import File, Plan, report_of
from visreg_core.report._pairs import pair_of
from visreg_core.report._streaming import (
    Counted,
    First,
    Place,
    Tick,
    first_pass,
    first_pass_together,
    is_exact,
    second_pass,
    second_pass_together,
)
from visreg_core.report._taken import embeddings_of, labels_of
from visreg_core.statistics import CrossScatter

ENGINES = ("local", "dask")
PROBES = ("discriminant", "logistic", "none")


def _silent(doing: str, done: int, total: int) -> None:
    pass


@threads.blas_on_one_thread()
def report(
    data: Any,
    *,
    labels: Any = None,
    ids: Any = None,
    texts: Any = None,
    queries: Any = None,
    neighbors: Any = None,
    rows: int | None = None,
    seed: int = 0,
    n_slices: int = 256,
    tree: TreeOptions = DEFAULT_TREE,
    label_rows: int | None = None,
    probe: str = "discriminant",
    drop_bad_rows: bool = False,
    place: Place | None = None,
    engine: str = "local",
    scheduler: str | None = None,
    tick: Tick = _silent,
) -> Report:
    """Findings and measures of saved embeddings, taken as one batch.

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
    texts : sequence or path, optional
        One text for each row, which the map of the HTML shows.
    queries : array, path, table or Embeddings, optional
        What is searched for among the rows (Q, D): adds which are far from all rows, and rows that
        answer too many.
    neighbors : array or path, optional
        What an index returns for each row, row numbers (N, k), −1 for none: adds its recall, on
        1,000 rows whose neighbours among all, by the tree's metric, are found exactly.
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
    engine : {"local", "dask"}
        Whether this process reads the rows, or the workers of a dask cluster, of processes on this
        machine unless a `scheduler` is given. There the data are files that every worker can open,
        and all rows; labels, pairs of items and a `place` are for this process.
    scheduler : str, optional
        Address of a running cluster's scheduler, such as ``tcp://host:8786``.
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
    stored = stored if ids is None else with_ids(stored, ids)
    levels = None if labels is None else _levels(labels, stored)
    plan = _plan(
        levels, False, rows, seed, n_slices, tree, label_rows, probe, drop_bad_rows, place, tick
    )
    plan = plan._replace(
        texts=None if texts is None else labels_of(texts, stored.shape[0], stored.name)[:, 0],
        queries=None if queries is None else _queries(queries, stored),
        neighbors=None if neighbors is None else _neighbors(neighbors, stored, rows),
    )
    with _engine(plan, engine, scheduler) as plan:
        (file,), _ = _read([stored], plan)
    return report_of(file, plan)


def _queries(queries: Any, stored: Embeddings) -> Embeddings:
    found = embeddings_of(queries)
    if found.shape[1] != stored.shape[1]:
        expected = f"queries of {stored.shape[1]:,} dimensions, as {stored.name}"
        raise EmbeddingsError(found.name, f"{found.shape[1]:,}", expected)
    if not all(np.isfinite(block).all() for block in found.blocks()):
        raise EmbeddingsError(found.name, "NaN or Inf", "finite queries")
    return found


def _neighbors(neighbors: Any, stored: Embeddings, rows: int | None) -> np.ndarray:
    if rows is not None:
        raise ValueError("expected all rows beside neighbours of an index; found rows drawn")
    n = stored.shape[0]
    found = labels_of(neighbors, n, stored.name)
    if found.dtype.kind not in "iu" or found.min() < -1 or found.max() >= n:
        kind = "no integers" if found.dtype.kind not in "iu" else f"{found.min()} … {found.max()}"
        raise EmbeddingsError("neighbors", kind, f"row numbers from 0 to {n - 1:,}, −1 for none")
    return found


@threads.blas_on_one_thread()
def compare(
    data: Sequence[Any],
    *,
    paired: bool = False,
    labels: Any = None,
    ids: Any = None,
    steps: Sequence[int] | None = None,
    rows: int | None = None,
    seed: int = 0,
    n_slices: int = 256,
    tree: TreeOptions = DEFAULT_TREE,
    label_rows: int | None = None,
    probe: str = "discriminant",
    drop_bad_rows: bool = False,
    place: Place | None = None,
    engine: str = "local",
    scheduler: str | None = None,
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
    steps : sequence of int, optional
        The training step of each file, all different: files are put in their order, and the trend
        of every measure over them is added.
    labels
        As for `report`, of the rows of the first file; without ids files are of one length.
    rows, seed, n_slices, tree, label_rows, probe, place, engine, scheduler, tick
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
    if isinstance(data, str | os.PathLike):
        raise ValueError(f"expected a sequence of two files or more; found {os.fspath(data)!r}")
    stored = [embeddings_of(d) for d in data]
    if len(stored) < 2:
        raise ValueError(f"expected two files or more; found {len(stored)}")
    if ids is not None:
        each = [ids] * len(stored) if isinstance(ids, str | os.PathLike) else list(ids)
        if len(each) != len(stored):
            raise ValueError(f"expected ids of {len(stored)} files; found {len(each)}")
        stored = [with_ids(s, i) for s, i in zip(stored, each, strict=True)]
        paired = True
    if steps is not None:
        if len(steps) != len(stored) or len(set(steps)) < len(steps):
            raise ValueError(f"expected {len(stored)} different steps; found {list(steps)}")
        steps, order = zip(*sorted(zip(steps, range(len(steps)), strict=True)), strict=True)
        stored = [stored[i] for i in order]
    levels = None if labels is None else _levels(labels, stored[0])
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
    with _engine(plan, engine, scheduler) as plan:
        files, crosses = _read(stored, plan)
    reports = [report_of(f, plan) for f in files]
    pairs = [
        pair_of(a, b, crosses[i] if paired else None, plan)
        for i, (a, b) in enumerate(itertools.combinations(files, 2))
    ]
    return Comparison(reports, pairs, tree, paired, by_ids, tuple(steps or ()))


def _levels(labels: Any, stored: Embeddings) -> Levels:
    return Levels.of(labels_of(labels, stored.shape[0], stored.name))


def _plan(
    levels: Levels | None, paired: bool, rows: int | None, seed: int, n_slices: int,
    tree: TreeOptions, label_rows: int | None, probe: str, drop_bad_rows: bool,
    place: Place | None, tick: Tick,
) -> Plan:  # fmt: skip
    tree.check()
    checks.positive_int("n_slices", n_slices, minimum=2)
    checks.choice("probe", probe, PROBES)
    place = Place(as_namespace(None)) if place is None else place.fastest()
    return Plan(
        levels, paired, rows, seed, n_slices, tree, label_rows, probe, drop_bad_rows, place, tick
    )


@contextlib.contextmanager
def _engine(plan: Plan, engine: str, scheduler: str | None) -> Iterator[Plan]:
    """The plan with what reads the rows."""
    checks.choice("engine", engine, ENGINES)
    if engine == "local":
        if scheduler is not None:
            raise ValueError(f"expected engine 'dask' beside a scheduler; found {engine!r}")
        yield plan
        return
    unfit = [
        name
        for name, given in (
            ("labels", plan.levels is not None),
            ("paired files", plan.paired),
            ("neighbours of an index", plan.neighbors is not None),
            ("rows drawn", plan.rows is not None),
            ("a backend", not works_in_tiles(plan.place.xp)),
        )
        if given
    ]
    if unfit:
        raise ValueError(f"expected engine 'local' for {unfit[0]}; found {engine!r}")
    with cluster(scheduler, plan.tick) as running:
        yield plan._replace(cluster=running)


def _read(stored: Sequence[Embeddings], plan: Plan) -> tuple[list[File], list[CrossScatter]]:
    """Both passes over all files, and the cross-scatter of pairs of the same items."""
    tick = plan.tick
    chosen = [s if plan.rows is None else s.sample(plan.rows, seed=plan.seed) for s in stored]
    options = [
        {
            "n_slices": plan.n_slices,
            "seed": plan.seed,
            "sample": max(
                plan.tree.rows, plan.asked(*c.shape), drift_rows(c, chosen[:i] + chosen[i + 1 :])
            ),
        }
        for i, c in enumerate(chosen)
    ]
    if plan.cluster is not None:
        return _read_elsewhere(stored, options, plan, plan.cluster), []
    firsts = [First(c.shape[1], **o) for c, o in zip(chosen, options, strict=True)]
    if plan.paired and plan.drop_bad_rows:
        first_pass_together(chosen, firsts, tick)
    else:
        for c, first in zip(chosen, firsts, strict=True):
            first_pass(c, first, plan.place, tick)
    files = [File(*x, plan) for x in zip(stored, chosen, firsts, strict=True)]
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


def _read_elsewhere(
    stored: Sequence[Embeddings], options: Sequence[dict[str, int]], plan: Plan, cluster: Cluster
) -> list[File]:
    """Both passes on a cluster, which counts projections and keeps none."""
    files = []
    for s, o in zip(stored, options, strict=True):
        first, known = cluster.first(s, o)
        file = File(s, s, first, plan)
        file.projected = Counted(cluster.second(s, known))
        files.append(file)
    return files
