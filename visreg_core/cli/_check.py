"""`visreg check`."""

from __future__ import annotations

import argparse
import importlib
import sys

from visreg_core import crosscheck
from visreg_core.cli import _outputs
from visreg_core.cli._command import Parser, UsageError, show, usage_errors, write
from visreg_core.cli._progress import ProgressBar
from visreg_core.embeddings import load


def add_check(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declare `visreg check`."""
    parser = commands.add_parser(
        "check",
        help="every loss, gradient and metric on the installed libraries against float64 NumPy",
        description="Every loss, gradient and metric on the installed array libraries against\n"
        "float64 NumPy: largest relative error, tolerance, verdict and time of each.",
        epilog="exit status: 0; 1 where a library disagrees; 2 for wrong input or arguments.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--backends", metavar="NAME", nargs="+", help="libraries (default: all installed)"
    )
    parser.add_argument(
        "--device", help="such as cpu or cuda:1 (default: each kind that a library has)"
    )
    parser.add_argument(
        "--dtype", metavar="NAME", nargs="+", help="dtypes (default: all that a library has)"
    )
    parser.add_argument("--only", metavar="NAME", nargs="+", help="functions (default: all)")
    parser.add_argument(
        "--with",
        dest="modules",
        metavar="MODULE",
        nargs="+",
        default=[],
        help="modules that declare losses of their own, to import first",
    )
    parser.add_argument(
        "--embeddings",
        metavar="FILE",
        help="check on these instead of the command's own: 256 evenly spread rows at most",
    )
    parser.add_argument("--json", metavar="FILE", help="write the records to FILE")
    parser.set_defaults(run=run_check)


def _import(module: str) -> None:
    """Import a module from where the command was given, as ``python -m`` would."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"--with {module}: {error}") from None


def run_check(arguments: argparse.Namespace) -> int:
    """Load embeddings if given, run the checks, print and write their records."""
    for module in arguments.modules:
        _import(module)
    file = arguments.embeddings
    stored = None if file is None else load(file)
    with usage_errors():
        inputs = [] if file is None else [file.split("::", 1)[0]]
        _outputs.check([] if arguments.json is None else [arguments.json], inputs)
        with ProgressBar() as bar:
            records: list[crosscheck.CheckRecord] = []

            def on_record(record: crosscheck.CheckRecord, total: int) -> None:
                records.append(record)
                bar(f"{record.backend} {record.dtype} {record.function}", len(records), total)

            crosscheck.crosscheck(
                arguments.backends,
                device=arguments.device,
                dtypes=arguments.dtype,
                only=arguments.only,
                embeddings=stored,
                on_record=on_record,
            )
    named = ("backends", "device", "dtype", "only", "embeddings")
    settings = {name: getattr(arguments, name) for name in named}
    if arguments.json is not None:
        write({arguments.json: crosscheck.to_json(records, settings)})
    show(lambda: crosscheck.print_tables(records))
    return 0 if all(r.agrees for r in records) else 1
