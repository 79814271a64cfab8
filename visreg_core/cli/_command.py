"""What the subcommands share: wrong arguments in one line, warnings, standard output."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

from visreg_core.cli import _outputs
from visreg_core.embeddings import EmbeddingsError
from visreg_core.embeddings._source import one_line


def say(message: Warning | str) -> None:
    """One line on standard error, without the place in the code that a warning came from."""
    print(f"visreg: {one_line(message, 2000)}", file=sys.stderr)


class UsageError(ValueError):
    """Arguments that cannot be followed."""


class Parser(argparse.ArgumentParser):
    """Wrong arguments get one line, as wrong files do."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


@contextmanager
def usage_errors() -> Iterator[None]:
    """Report what the called functions refuse as wrong arguments; errors of files stay theirs."""
    try:
        yield
    except EmbeddingsError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None


def write(contents: Mapping[str, str | bytes]) -> None:
    """Write output files, as `_outputs.write`; UsageError where one cannot be written."""
    try:
        _outputs.write(contents)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None


def show(tables: Callable[[], None]) -> None:
    """Print tables. A reader that has closed the pipe does not change the exit status."""
    try:
        tables()
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich exits where its pipe is broken
        _forget_output()
    except OSError as error:
        _forget_output()
        raise UsageError(f"standard output: {error.strerror}") from None


def _forget_output() -> None:
    """Discard what could not be written, of which Python would complain again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
