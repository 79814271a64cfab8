"""URLs, through fsspec: fetched once, by ranges that are asked for again where they break off."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from visreg_core.embeddings._many import in_order
from visreg_core.embeddings._source import EmbeddingsError, one_line
from visreg_core.optional import require

_RANGE = 1 << 23  # bytes that are asked for at once
_TRIES = 5
_PAUSE = 0.2  # seconds before the second try, doubled before each further one


def is_url(spec: str) -> bool:
    """Whether this has a protocol."""
    return "://" in spec


def matching_urls(spec: str) -> list[str]:
    """URLs that a pattern matches, where the protocol can list."""
    fs, path = _system(spec)
    if not any(c in path for c in "*["):  # a question mark begins a query
        return [spec]
    found = _tried(spec, lambda: fs.glob(path))
    if not found:
        raise EmbeddingsError(spec, "no file of that pattern", "files that it matches")
    return in_order([str(fs.unstrip_protocol(f)) for f in found])


def fetch(url: str) -> Path:
    """The file of a URL, in a temporary folder that lasts as long as the process."""
    fs, path = _system(url)
    info = _tried(url, lambda: fs.info(path))
    size = info.get("size")
    name = Path(urlsplit(url).path or path).name or "file"
    target = Path(tempfile.mkdtemp(dir=_folder())) / name
    with target.open("wb") as out:
        if size is None:  # a server that does not say how long it is
            out.write(_tried(url, lambda: fs.cat_file(path)))
            return target
        while (start := out.tell()) < size:
            stop = min(start + _RANGE, size)
            out.write(_tried(url, functools.partial(_range, fs, path, start, stop, size)))
    return target


def _range(fs: Any, path: str, start: int, stop: int, size: int) -> bytes:
    data: bytes = fs.cat_file(path, start=start, end=stop)
    if len(data) == size != stop - start:  # a server without ranges sends all of it
        data = data[start:stop]
    if len(data) != stop - start:
        raise OSError(f"{len(data)} bytes of {stop - start}")
    return data


def _system(url: str) -> tuple[Any, str]:
    purpose = f"{one_line(url)}: reading URLs"
    fsspec = require("fsspec", extra="io", purpose=purpose)
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise EmbeddingsError(url, one_line(error, 200), "what fsspec needs for it") from None
    except ValueError as error:
        raise EmbeddingsError(url, one_line(error, 200), "a protocol that fsspec knows") from None
    return fs, path


def _tried(url: str, work: Any) -> Any:
    """What `work` returns at one of five tries; EmbeddingsError where it fails at all of them."""
    for attempt in range(_TRIES):
        try:
            return work()
        except FileNotFoundError:
            raise EmbeddingsError(url, "no such file", "an existing one") from None
        except Exception as error:  # each protocol has exceptions of its own
            failed = error
        if attempt + 1 < _TRIES:
            time.sleep(_PAUSE * 2**attempt)
    found = f"{type(failed).__name__}: {failed} at {_TRIES} tries"
    raise EmbeddingsError(url, one_line(found, 200), "a connection that lasts") from failed


@functools.cache
def _folder() -> str:
    folder = tempfile.mkdtemp(prefix="visreg-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
