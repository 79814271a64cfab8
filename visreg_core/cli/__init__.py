"""The command `visreg`: its subcommands and exit statuses.

A subcommand is a pair of functions: `add_NAME` declares its arguments, `run_NAME` does the work and
returns the exit status. 0: done; 1: libraries disagree (`visreg check`); 2: wrong input or
arguments, reported in one line; 3: a condition of ``--fail-if`` is met.
"""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from collections.abc import Sequence

from visreg_core import __version__
from visreg_core.cli._check import add_check
from visreg_core.cli._command import Parser, UsageError, say
from visreg_core.cli._report import add_compare, add_report
from visreg_core.embeddings import EmbeddingsError, EmbeddingsWarning
from visreg_core.optional import MissingExtraError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (the process's by default); return its exit status."""
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII terminal has no ±
    try:
        # What overflows is shown as inf, in its place in the table.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            warnings.simplefilter("always", EmbeddingsWarning)
            warnings.showwarning = lambda message, *_, **__: say(message)
            status: int = arguments.run(arguments)
        return status
    except (EmbeddingsError, MissingExtraError, UsageError) as error:
        message = str(error)
    except MemoryError:
        message = "not enough memory: --rows COUNT reads a sample, fewer --slices take less"
    except KeyboardInterrupt:
        return 130
    say(message)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="visreg",
        description="Losses and metrics of self-supervised representations.",
    )
    parser.add_argument("--version", action="version", version=f"visreg-core {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_report(commands)
    add_compare(commands)
    add_check(commands)
    return parser
