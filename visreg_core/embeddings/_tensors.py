"""`.safetensors`, by its published layout, and `.pt` through torch's weights-only loader."""

from __future__ import annotations

import json
import math
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from visreg_core import _xp
from visreg_core.embeddings._source import (
    Embeddings,
    EmbeddingsError,
    bfloat16,
    check_dtype,
    check_shape,
    embeddings,
    listing,
    map_array,
    no_name,
    pick,
)
from visreg_core.typing import Array

_SAFETENSORS_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": None}
_HEADER_BYTES = 100_000_000  # the format's own limit


def read_safetensors(path: Path, name: str | None, label: str) -> Embeddings:
    """One tensor of a .safetensors file, mapped.

    Layout: the header's length (8 bytes, little-endian), a JSON object of tensors, their bytes.
    """
    size = path.stat().st_size

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):  # of which Python would keep the later
            raise EmbeddingsError(label, "two entries of one name", "different names")
        return dict(pairs)

    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(_HEADER_BYTES, size - 8):
            raise EmbeddingsError(
                label, f"a header of {length} bytes in a file of {size}", "a header that fits"
            )
        header = json.loads(stream.read(length), object_pairs_hook=unique)
    if not isinstance(header, dict):
        raise EmbeddingsError(label, "a malformed header", "a JSON object of tensors")
    header.pop("__metadata__", None)
    tensor = header[pick(label, list(header), name)]
    shape, (first, last), kind = tensor["shape"], tensor["data_offsets"], tensor["dtype"]
    if not all(type(n) is int and n >= 0 for n in (*shape, first, last)):
        raise EmbeddingsError(label, "a malformed shape or offset", "non-negative integers")
    if kind not in _SAFETENSORS_DTYPES:
        check_dtype(label, str(kind))
    descr = _SAFETENSORS_DTYPES[kind]
    dtype = bfloat16(label) if descr is None else np.dtype(descr)
    check_shape(label, shape)
    needed = math.prod(shape) * dtype.itemsize
    if last - first != needed or 8 + length + last > size:
        raise EmbeddingsError(
            label,
            f"bytes {first} to {last} of {size - 8 - length}",
            f"{needed} bytes for {dtype} of shape {tuple(shape)}",
        )
    array = map_array(path, dtype, tuple(shape), 8 + length + first)
    return embeddings(label, shape, dtype, lambda rows: [array])


# What torch.save writes for tensors, parameters and dictionaries or lists of them. The loader's
# own list is longer and has constructors that allocate whatever size the file asks for.
_TORCH_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
}
_PICKLE_BYTES = 1 << 26


def read_torch(path: Path, name: str | None, label: str) -> Embeddings:
    """One tensor of a .pt file: a tensor, or a (nested) dictionary or list of tensors."""
    if not zipfile.is_zipfile(path):
        raise EmbeddingsError(label, "no zip archive", "what torch.save has written since 1.6")
    _check_archive(path, label)
    loaded = _xp.load_torch_file(str(path))
    if _xp.is_array(loaded):
        no_name(label, name, "single-tensor .pt")
        tensor = loaded
    else:
        tensors = _tensors("", loaded)
        tensor = dict(tensors)[pick(label, [key for key, _ in tensors], name)]
    check_dtype(label, _xp.dtype_name(tensor))
    check_shape(label, tuple(tensor.shape))
    if tensor.nbytes > path.stat().st_size:
        found = f"shape {tuple(tensor.shape)} by repeating values"
        raise EmbeddingsError(label, found, "a tensor with values of its own")
    array = _host_view(tensor, label)
    return embeddings(label, array.shape, array.dtype, lambda rows: [array])


def _check_archive(path: Path, label: str) -> None:
    """Refuse compressed members and pickles that name anything but tensors' own parts."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len({m.filename for m in members}) != len(members):
            raise EmbeddingsError(label, "two members of one name", "different names")
        if any(m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1 for m in members):
            raise EmbeddingsError(label, "compressed members", "members stored as torch.save does")
        pickles = [m for m in members if m.filename.split("/")[-1] == "data.pkl"]
        if len(pickles) != 1 or pickles[0].file_size > _PICKLE_BYTES:
            raise EmbeddingsError(label, f"{len(pickles)} pickles of tensors", "a small one")
        program = archive.read(pickles[0])
    named = set()
    # genops reads the instructions and runs none of them.
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name == "GLOBAL":
            named.add(str(argument))
        elif opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            named.add(opcode.name)
    strange = {
        g for g in named - _TORCH_GLOBALS if not (g.startswith("torch ") and g.endswith("Storage"))
    }
    if strange:
        raise EmbeddingsError(
            label, f"a pickle that names {listing(sorted(strange))}", "tensors in containers only"
        )


def _tensors(prefix: str, tree: Any) -> list[tuple[str, Array]]:
    """Tensors of nested dictionaries and lists, named by their keys joined with '/'."""
    if _xp.is_array(tree):
        return [(prefix, tree)]
    if isinstance(tree, Mapping):
        children = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list | tuple):
        children = [(str(i), value) for i, value in enumerate(tree)]
    else:
        return []
    join = f"{prefix}/" if prefix else ""
    return [leaf for key, value in children for leaf in _tensors(join + key, value)]


def _host_view(tensor: Array, label: str) -> np.ndarray:
    """The tensor's values as a NumPy array over the same memory, bfloat16 as bfloat16.

    Lazy signs (of a view of a conjugate's imaginary part), which NumPy does not know, are resolved.
    """
    tensor = tensor.resolve_neg()
    if _xp.dtype_name(tensor) != "bfloat16":
        return _xp.to_numpy(tensor)
    return _xp.to_numpy(_xp.bits(tensor)).view(bfloat16(label))
