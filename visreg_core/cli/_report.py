"""`visreg report` and `visreg compare`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

import numpy as np

from visreg_core import _xp
from visreg_core.cli import _outputs
from visreg_core.cli._command import Parser, UsageError, say, show, usage_errors, write
from visreg_core.cli._progress import ProgressBar
from visreg_core.embeddings import Embeddings, EmbeddingsWarning
from visreg_core.embeddings._source import one_line
from visreg_core.metrics.trees.linkage import METHODS, METRICS
from visreg_core.optional import MissingExtraError
from visreg_core.report import Comparison, Place, TreeOptions, _conditions, compare, report
from visreg_core.report._atlas import to_parquet
from visreg_core.report._compute import ENGINES, PROBES
from visreg_core.report._files import KNOWN, open_embeddings
from visreg_core.report._html import to_html
from visreg_core.report._json import to_json
from visreg_core.report._labels import load_labels
from visreg_core.report._measures import step_of
from visreg_core.report._model import CLUSTERINGS, DEFAULT_TREE
from visreg_core.report._taken import labels_of
from visreg_core.report._terminal import print_tables

_BACKENDS = ("numpy", "torch", "jax", "cupy")


_FILES = f"""\
FILE holds floating numbers, one row for each item; FILE::NAME picks one array of several.
The suffix determines the format, and nothing is ever unpickled:
{" ".join(KNOWN)}
or a folder that Hugging Face's datasets saved. A pattern ('shards/*.npy'), a folder of shards and
an index of .safetensors files are one input; a URL (https://, s3://, hf://) is fetched by fsspec.

exit status: 0; 2 for wrong input or arguments; 3 where a condition of --fail-if is met.
"""


def add_report(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declare `visreg report`."""
    parser = commands.add_parser(
        "report",
        help="findings, measures and pictures of saved embeddings",
        description="Findings, measures and pictures of saved embeddings, taken as one batch;\n"
        "with labels, how well the embeddings agree with them, level by level.",
        epilog=_FILES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="embeddings, FILE or FILE::NAME")
    _add_common(parser, pairs=False)
    parser.add_argument(
        "--atlas",
        metavar="FILE",
        help="write the rows drawn (--tree-rows) to FILE, a .parquet for embedding-atlas",
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="one text for each row, as --labels reads classes: shown on the map",
    )
    parser.add_argument(
        "--queries",
        metavar="FILE",
        help="embeddings that are searched for: adds which are far from all rows, and which rows "
        "answer too many",
    )
    parser.add_argument(
        "--neighbors",
        metavar="FILE",
        help="what an index returns for each row, row numbers (N, k), -1 for none: adds its recall",
    )
    parser.set_defaults(run=run_report)


def run_report(arguments: argparse.Namespace) -> int:
    """Load a file, compute its report, print and write it."""
    return _run([arguments.file], arguments)


def add_compare(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declare `visreg compare`."""
    parser = commands.add_parser(
        "compare",
        help="reports side by side, with the distance of each pair",
        description="Reports of several files side by side; for each pair the sliced Wasserstein\n"
        "distance and a test of drift (files of one width); with --paired linear CKA,\n"
        "common neighbours and the similarity of the hierarchies.",
        epilog=_FILES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="embeddings, FILE or FILE::NAME")
    parser.add_argument("files", metavar="FILE", nargs="+", help="embeddings to compare with it")
    parser.add_argument(
        "--trend",
        action="store_true",
        help="files are checkpoints: order them by the last number in their names, and add the "
        "trend of every measure",
    )
    parser.add_argument(
        "--paired",
        action="store_true",
        help="rows are the same items in every file, by their ids if all files have them, else row "
        "by row: compares them item by item",
    )
    _add_common(parser, pairs=True)
    parser.set_defaults(run=run_compare)


def run_compare(arguments: argparse.Namespace) -> int:
    """Load files, compute their comparison, print and write it."""
    return _run([arguments.file, *arguments.files], arguments)


def _add_common(parser: argparse.ArgumentParser, *, pairs: bool) -> None:
    known = _conditions.known_names(pairs=pairs)

    def condition(text: str) -> _conditions.Condition:
        try:
            return _conditions.parse(text, known)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parser.add_argument(
        "--rows",
        metavar="COUNT",
        type=_integer(2),
        help="draw this many rows without replacement instead of reading all; the draw depends on "
        "the seed and the number of rows in the file",
    )
    parser.add_argument(
        "--drop-bad-rows",
        action="store_true",
        help="leave out rows with NaN or Inf, and say which, instead of refusing the file",
    )
    parser.add_argument(
        "--slices",
        metavar="COUNT",
        type=_integer(2, 2**20),
        default=256,
        help="random directions of the sliced losses (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=_integer(0, 2**32 - 1),
        default=0,
        help="of the directions and of the rows drawn (default: %(default)s)",
    )
    parser.add_argument(
        "--tree-rows",
        metavar="COUNT",
        type=_integer(2),
        default=DEFAULT_TREE.rows,
        help="draw this many rows, the same in files of one length, for the dendrogram and what "
        "else needs pairs of rows; exact for these rows (default: %(default)s)",
    )
    parser.add_argument(
        "--linkage",
        choices=METHODS,
        default=DEFAULT_TREE.method,
        help="of the dendrogram (default: %(default)s)",
    )
    parser.add_argument(
        "--metric",
        choices=METRICS,
        default=DEFAULT_TREE.metric,
        help="distance of the dendrogram; Ward's linkage needs euclidean (default: %(default)s)",
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help=".npy or .csv, one row for each row of the embeddings, one column for each level of "
        "the hierarchy, the coarsest first; or FILE::COLUMN[,COLUMN] of a table: adds "
        "hierarchical accuracies, LiDAR and Rand indices",
    )
    parser.add_argument(
        "--ids",
        metavar="COLUMN|FILE",
        action="append",
        help="names of the rows: a column or array in each file, or a file of them (.npy, or "
        "FILE::COLUMN); compare joins files by them, given once or once for each file",
    )
    parser.add_argument(
        "--label-rows",
        metavar="COUNT",
        type=_integer(2),
        help="rows that are classified, each by all other rows (default: all, "
        "or as many as some ten seconds allow, with an interval)",
    )
    parser.add_argument(
        "--probe",
        choices=PROBES,
        default="discriminant",
        help="linear rule: linear discriminants, each row left out; logistic regression on the "
        "dendrogram's rows, which takes long for many classes; none (default: %(default)s)",
    )
    parser.add_argument(
        "--class-tree",
        metavar="FILE",
        help=".csv, one path from coarse to fine for each class; --labels is then the finest level",
    )
    parser.add_argument(
        "--clustering",
        choices=CLUSTERINGS,
        default=DEFAULT_TREE.clustering,
        help="of the hierarchical Rand index: the dendrogram cut, or spectral clustering, which "
        "takes long (default: %(default)s)",
    )
    parser.add_argument(
        "--backend",
        choices=_BACKENDS,
        default="numpy",
        help="library that computes the sliced losses on a GPU; on a CPU numpy does. Moments and "
        "spectrum are computed on the host in float64 (default: %(default)s)",
    )
    parser.add_argument("--device", help="device of the backend, such as cuda:0 (default: its own)")
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="local",
        help="what reads the rows: this process, or the workers of a dask cluster, on this machine "
        "unless --scheduler says where (default: %(default)s)",
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="such as tcp://host:8786")
    parser.add_argument("--json", metavar="FILE", help="write the numbers to FILE")
    parser.add_argument("--html", metavar="FILE", help="write tables and pictures to FILE")
    parser.add_argument(
        "--fail-if",
        metavar="CONDITION",
        action="append",
        default=[],
        type=condition,
        help="such as 'rankme<50': end with status 3 if a file meets it, has no such value, or is "
        "known by a sample only whose interval meets it; may be repeated. Names: "
        f"{', '.join(known)}",
    )


def _integer(lowest: int, highest: int | None = None):  # type: ignore[no-untyped-def]
    """Argument type: an integer in a range."""

    def parse(text: str) -> int:
        expected = f"an integer >= {lowest}" + ("" if highest is None else f" and <= {highest}")
        try:
            value = int(text)
        except ValueError:
            value = lowest - 1
        if value < lowest or (highest is not None and value > highest):
            raise argparse.ArgumentTypeError(f"expected {expected}; found {text!r}")
        return value

    return parse


def _run(files: list[str], arguments: argparse.Namespace) -> int:
    atlas = getattr(arguments, "atlas", None)  # of `report` alone
    wanted = [path for path in (arguments.json, arguments.html, atlas) if path is not None]
    tree = TreeOptions(
        arguments.tree_rows, arguments.linkage, arguments.metric, arguments.clustering
    )
    if arguments.labels is None and arguments.class_tree is not None:
        raise UsageError("--class-tree: expected --labels, too; found none")
    inputs = ("labels", "class_tree", "text", "queries", "neighbors")  # some of `report` alone
    beside = [path for name in inputs if (path := getattr(arguments, name, None)) is not None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmbeddingsWarning)  # the report has them as notes
        stored = [open_embeddings(file) for file in files]
    place = _place(arguments.backend, arguments.device)
    options = {
        "rows": arguments.rows,
        "seed": arguments.seed,
        "n_slices": arguments.slices,
        "tree": tree,
        "labels": _labels(stored, arguments.labels, arguments.class_tree),
        "label_rows": arguments.label_rows,
        "ids": _ids(arguments.ids, len(files)),
        "probe": arguments.probe,
        "drop_bad_rows": arguments.drop_bad_rows,
        "place": place,
        "engine": arguments.engine,
        "scheduler": arguments.scheduler,
    }
    with usage_errors():
        tree.check()
        _outputs.check(wanted, [file.split("::", 1)[0] for file in files + beside])
        with ProgressBar() as bar:
            if len(stored) == 1:
                more = {name: getattr(arguments, name) for name in ("queries", "neighbors")}
                found = report(stored[0], texts=arguments.text, tick=bar, **options, **more)
                comparison = Comparison([found], [], tree)
            else:
                steps = [step_of(s.name) for s in stored] if arguments.trend else None
                comparison = compare(
                    stored, paired=arguments.paired, steps=steps, tick=bar, **options
                )
    settings = {
        name: getattr(arguments, name, False)  # "paired" and "trend" are `compare`'s alone
        for name in (
            "rows", "drop_bad_rows", "slices", "seed", "tree_rows", "linkage", "metric", "labels",
            "ids", "class_tree", "label_rows", "probe", "paired", "trend", "clustering", "backend",
            "device", "engine", "scheduler", "text", "queries", "neighbors",
        )
    }  # fmt: skip
    contents: dict[str, str | bytes] = {}
    if arguments.json is not None:
        contents[arguments.json] = to_json(comparison, settings)
    if arguments.html is not None:
        contents[arguments.html] = to_html(comparison, settings)
    if atlas is not None:
        contents[atlas] = to_parquet(comparison.reports[0])
    write(contents)
    show(lambda: print_tables(comparison))
    for line in _conditions.samples(arguments.fail_if, comparison):
        print(f"visreg: {one_line(line)}", file=sys.stderr)
    met = _conditions.met(arguments.fail_if, comparison)
    for line in met:
        print(f"visreg: {one_line(line)}", file=sys.stderr)
    return 3 if met else 0


def _ids(given: list[str] | None, files: int) -> str | list[str] | None:
    """One for all files, or one for each."""
    if given is None or len(given) == 1:
        return given and given[0]
    if len(given) != files:
        raise UsageError(f"--ids: expected it once, or once for each of {files} files")
    return given


def _labels(
    stored: Sequence[Embeddings], file: str | None, class_tree: str | None
) -> np.ndarray | None:
    if file is None:
        return None
    n = stored[0].shape[0]
    if class_tree is None:
        return labels_of(file, n, stored[0].name)
    return load_labels(file, n, class_tree)


def _place(backend: str, device: str | None) -> Place:
    try:
        place = Place(*_xp.open_backend(backend, device))
    except ModuleNotFoundError:
        raise MissingExtraError(
            f"--backend {backend} needs {backend}: pip install 'visreg-core[{backend}]'"
        ) from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    if backend != "numpy" and place.is_cpu:
        say(f"--backend {backend}: its device is the CPU, where numpy is faster and computes")
    return place
