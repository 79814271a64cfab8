"""Many files as one input: what a pattern or a folder names, in the order of their numbers."""

from __future__ import annotations

import glob
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from visreg_core import _xp
from visreg_core.embeddings._source import (
    Embeddings,
    EmbeddingsError,
    EmbeddingsWarning,
    embeddings,
    listing,
    one_line,
)

INDEX = ".safetensors.index.json"
_PATTERN = re.compile(r"[*?\[]")


def is_pattern(spec: str) -> bool:
    """Whether this names no file but a pattern of names."""
    return bool(_PATTERN.search(spec)) and not Path(spec).exists()


def matching(spec: str, suffixes: Sequence[str]) -> list[str]:
    """Files that a pattern matches, in the order of the numbers in their names."""
    found = [f for f in glob.glob(spec, recursive=True) if _suffix(f) in suffixes]
    if not found:
        known = ", ".join(suffixes)
        raise EmbeddingsError(spec, "no file of that pattern", f"files of one of {known}")
    return in_order(found)


def in_folder(folder: Path, label: str, suffixes: Sequence[str]) -> list[str]:
    """The shards in a folder: all its files of the one known suffix that there is."""
    files = [f for f in folder.iterdir() if f.is_file() and f.suffix.lower() in suffixes]
    kinds = {f.suffix.lower() for f in files}
    if len(kinds) != 1:
        found = f"files {listing(sorted(kinds))}" if kinds else "no file of embeddings"
        raise EmbeddingsError(label, found, "a folder of shards of one format")
    return in_order([str(f) for f in files])


def in_index(path: Path, name: str | None, label: str) -> list[str]:
    """``FILE::TENSOR`` of the tensors that an index of .safetensors files lists."""
    listed = json.loads(path.read_text("utf-8")).get("weight_map")
    if not isinstance(listed, dict) or not all(
        isinstance(f, str) and Path(f).name == f for f in listed.values()
    ):
        raise EmbeddingsError(label, "a malformed index", "a weight_map of files beside it")
    names = [t for t in listed if name is None or re.sub(r"[._/-]?\d+$", "", t) == name]
    names = [name] if name in listed else names
    stems = {re.sub(r"\d+$", "", t) for t in names}
    if len(stems) != 1:
        raise EmbeddingsError(
            label, f"tensors {listing(listed)}", "one, or one divided into numbered parts"
        )
    return [f"{path.parent / listed[t]}::{t}" for t in in_order(names)]


def in_order(names: Sequence[str]) -> list[str]:
    """Sorted, shard-2 before shard-10."""
    return sorted(
        names, key=lambda n: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", n)]
    )


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def joined(label: str, parts: Sequence[Embeddings]) -> Embeddings:
    """The rows of all parts, one after the other."""
    widths = {p.shape[1] for p in parts}
    if len(widths) > 1:
        odd = next(p for p in parts if p.shape[1] != parts[0].shape[1])
        found = f"{odd.shape[1]} dimensions in {one_line(odd.name)}"
        raise EmbeddingsError(label, found, f"{parts[0].shape[1]}, as in {one_line(parts[0].name)}")
    dtypes = {_xp.dtype_name(p.dtype) for p in parts}
    dtype = parts[0].dtype if len(dtypes) == 1 else np.result_type(*(p.dtype for p in parts))

    def pieces(rows: int) -> Iterator[np.ndarray]:
        for p in parts:
            for block in p.blocks(rows):
                yield block.astype(dtype, copy=False)

    notes = [f"{len(parts):,} files, {parts[0].name} to {parts[-1].name}"]
    if len(dtypes) > 1:
        notes.append(f"{listing(sorted(dtypes))} read as {dtype}")
    notes += dict.fromkeys(n for p in parts for n in p.notes)
    shape = sum(p.shape[0] for p in parts), parts[0].shape[1]
    whole = embeddings(label, shape, dtype, pieces, tuple(notes))
    ids = [p.ids for p in parts]
    if all(i is not None for i in ids):
        whole = replace(whole, ids=np.concatenate([i for i in ids if i is not None]))
    return whole


def open_all(label: str, names: Sequence[str], opened: Callable[[str], Embeddings]) -> Embeddings:
    """What these names hold, as one; its notes are those of all, each once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmbeddingsWarning)
        return joined(label, [opened(n) for n in names])
