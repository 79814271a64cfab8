"""Folders of images, as torchvision's ImageFolder reads them; what is left out is counted.

Class folders are sorted by name, and links to them followed; in each class, folders by path and
files by name. Unlike ImageFolder this leaves out hidden and system folders, and hidden files such
as AppleDouble's ``._0.png``.
"""

from __future__ import annotations

import os
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from reference_train.errors import TrainError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_SYSTEM = {
    "#recycle", "$RECYCLE.BIN", "@eaDir", "System Volume Information", "__MACOSX", "lost+found",
}  # fmt: skip
_SHOWN = 3


class Paths(Sequence[Path]):
    """Names of files below a folder, as the bytes of one array.

    Processes that load share it: there are no objects whose references they would count.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.folder = folder
        content, ends = bytearray(), array("q")
        for name in names:
            content += os.fsencode(name)
            ends.append(len(content))
        self._content = torch.frombuffer(content or bytearray(1), dtype=torch.uint8)
        self._ends = torch.frombuffer(ends or array("q", [0]), dtype=torch.int64)
        self._count = len(ends)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Path:
        if not 0 <= index < self._count:
            raise IndexError(index)
        begin, end = int(self._ends[index - 1]) if index else 0, int(self._ends[index])
        return self.folder / os.fsdecode(self._content[begin:end].numpy().tobytes())


class Found(NamedTuple):
    """The images below a folder."""

    classes: list[str]  # sorted; none where the images lie in the folder itself
    paths: Paths
    labels: np.ndarray  # int64, the place of their class, -1 without classes
    left_out: str | None  # a line that counts it


def images_below(folder: Path) -> Found:
    """The images of a folder of class folders, or of a folder without any."""
    if not folder.is_dir():
        raise TrainError(f"data.path: no folder {folder}")
    left_out = _LeftOut()
    names, files = _entries(str(folder), left_out)
    labels, empty, start = array("q"), [], len(str(folder / "x")) - 1

    def found() -> Iterable[str]:
        """A class at a time: a million strings would be too many."""
        for label, name in enumerate(names):
            below = _walk(str(folder / name), left_out)
            labels.extend([label] * len(below))
            yield from (path[start:] for path in below)
            if not below:
                empty.append(name)

    if names:
        for file in files:
            left_out.add("files beside the class folders", file)
        paths = Paths(folder, found())
    else:
        images = [file for file in files if left_out.is_image(file)]
        labels.extend([-1] * len(images))
        paths = Paths(folder, images)
    if empty:
        raise TrainError(
            f"{folder}: no image in {_listing(empty)}, {len(empty)} of {len(names)} class "
            f"folders (looked for {', '.join(SUFFIXES)})" + left_out.line("; left out ")
        )
    if not paths:
        raise TrainError(
            f"{folder}: no image ({', '.join(SUFFIXES)})" + left_out.line("; left out ")
        )
    return Found(names, paths, np.array(labels), left_out.line(f"{folder}: left out ") or None)


class _LeftOut:
    """What was left out, by kind."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, name: str) -> None:
        self._names[kind].append(name)

    def is_image(self, file: str) -> bool:
        """Whether a file is one by its suffix; counted if not."""
        if file.lower().endswith(SUFFIXES):
            return True
        self.add("files of other suffixes", file)
        return False

    def line(self, start: str) -> str:
        """``start 3 hidden files (...), 1 ...``; nothing where nothing was left out."""
        kinds = (f"{len(names)} {kind} ({_listing(names)})" for kind, names in self._names.items())
        return start + ", ".join(kinds) if self._names else ""


def _listing(names: list[str]) -> str:
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([repr(name) for name in names[:_SHOWN]] + more)


def _entries(folder: str, left_out: _LeftOut) -> tuple[list[str], list[str]]:
    """Names of the folders in a folder, and of its files, both sorted, without hidden ones."""
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            is_folder = entry.is_dir()  # also where it is a link to one
            if entry.name.startswith(".") or (is_folder and entry.name in _SYSTEM):
                kind = "hidden or system folders" if is_folder else "hidden files"
                left_out.add(kind, entry.name)
            else:
                (folders if is_folder else files).append(entry.name)
    return folders, files


def _walk(folder: str, left_out: _LeftOut) -> list[str]:
    """Paths of the images below a folder, in the order of ``sorted(os.walk(folder))``."""
    found: list[tuple[str, list[str]]] = []
    waiting: list[tuple[str, tuple[str, ...]]] = [(folder, ())]
    while waiting:
        here, above = waiting.pop()
        real = os.path.realpath(here)
        if real in above:
            left_out.add("links to a folder that they lie in", os.path.basename(here))
            continue
        folders, files = _entries(here, left_out)
        found.append((here, [file for file in files if left_out.is_image(file)]))
        waiting += [(os.path.join(here, name), (*above, real)) for name in folders]
    return [os.path.join(here, file) for here, files in sorted(found) for file in files]
