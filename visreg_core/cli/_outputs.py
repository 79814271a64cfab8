"""Output files that are whole or absent: written to a temporary name, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


def check(outputs: Sequence[str], inputs: Sequence[str]) -> None:
    """ValueError, before any work, where an output cannot be written or would replace an input."""
    taken = {os.path.realpath(i) for i in inputs}
    for output in outputs:
        path = Path(output)
        try:
            path.stat()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ValueError(f"{output}: {error.strerror}") from None
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise ValueError(
                f"{output}: expected a folder that can be written; found {path.parent}"
            )
        if path.exists() and not path.is_file():
            raise ValueError(f"{output}: expected a file to write; found a folder or a device")
        if os.path.realpath(path) in taken:
            raise ValueError(f"{output}: expected a file of its own; found an input or output")
        taken.add(os.path.realpath(path))


def write(contents: Mapping[str, str | bytes]) -> None:
    """Write bytes, or text in UTF-8, to each path; where one fails, none is left half-done."""
    written: list[tuple[str, str]] = []
    try:
        for path, content in contents.items():
            if isinstance(content, str):
                content = content.encode("utf-8", "backslashreplace")
            target = os.path.realpath(path)  # a link stays one
            folder, name = os.path.split(target)
            with _naming(path):
                handle, temporary = tempfile.mkstemp(prefix=f".{name[:50]}.", dir=folder)
                written.append((temporary, target))
                with os.fdopen(handle, "wb") as stream:
                    stream.write(content)
                os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are their owner's alone
        for temporary, target in written:
            os.replace(temporary, target)
    finally:
        for temporary, _ in written:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Let an OSError name the output rather than its temporary file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
