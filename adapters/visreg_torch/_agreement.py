"""Headers that processes exchange before a loss of all their rows, and the check that they agree.

A header is JSON padded to a fixed length, so that one collective exchanges all of them.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from visreg_torch._call import check_tensor

LENGTH = 2048
_LONGEST_TEXT = 300

# Elements of the slices that are compared: another seed or step changes all of them.
_FINGERPRINT = 8
# Random walks have no slices to compare, so that what draws them is compared itself.
_WORDS = ("seed", "step")
# The same slices differ between processors that round a logarithm differently.
_TOLERANCE = 1e-3


def header(
    loss: str, arguments: Mapping[str, Any], row_axes: Mapping[str, int], wanted: bool
) -> bytes:
    """One process's arguments of a loss, and whether it needs the gradient.

    `row_axes` names the arguments that have rows.
    """
    fields: dict[str, Any] = {"loss": loss, "rows": 0, "arrays": {}, "options": "", "slices": []}
    fields["masked"], fields["gradient"] = arguments.get("row_mask") is not None, wanted
    try:
        fields |= _described(arguments, row_axes)
        fields["problem"] = None
    except (TypeError, ValueError) as error:  # raised on every process, by `check`
        fields["problem"] = str(error)[:_LONGEST_TEXT]
    fields["options"] = _fitting(fields["options"])
    fields["arrays"] = {name: _fitting(text) for name, text in fields["arrays"].items()}
    return json.dumps(fields, ensure_ascii=False).encode().ljust(LENGTH)


def _fitting(text: str) -> str:
    """The text, or its hash where it is too long."""
    return text if len(text) <= _LONGEST_TEXT else hashlib.sha256(text.encode()).hexdigest()


def _described(arguments: Mapping[str, Any], row_axes: Mapping[str, int]) -> dict[str, Any]:
    rows: dict[str, int] = {}
    arrays: dict[str, str] = {}
    options: list[str] = []
    slices: list[float] = []
    for name, value in arguments.items():
        axis = row_axes.get(name)
        if axis is not None and value is not None:
            check_tensor(name, value)
            if value.ndim < -axis:
                raise ValueError(
                    f"expected {name} of at least {-axis} axes; found shape {tuple(value.shape)}"
                )
            rows[name] = value.shape[axis]
        if name == "row_mask":  # may be given on some processes only
            if value is not None and (value.ndim > 1 or value.dtype != torch.bool):
                raise ValueError(f"expected row_mask bool (N); found {array_text(value)}")
            continue
        if name in _WORDS:
            options.append(f"{name}={_word_text(value)}")
        elif isinstance(value, Tensor):
            arrays[name] = array_text(value, axis)
        else:
            options.append(f"{name}={_option_text(value)}")
        if name == "slices" and isinstance(value, Tensor) and value.ndim > 1 and value.numel():
            row = value[(0,) * (value.ndim - 1)]
            some = row[:: max(1, row.numel() // _FINGERPRINT)][:_FINGERPRINT]
            slices = [round(w, 6) for w in some.tolist()]
    if len(set(rows.values())) > 1:
        found = ", ".join(f"{name} with {n}" for name, n in rows.items())
        raise ValueError(f"expected as many rows of all arguments; found {found}")
    return {
        "rows": next(iter(rows.values())),
        "arrays": arrays,
        "options": ", ".join(options),
        "slices": slices,
    }


def _word_text(value: Any) -> str:
    """A seed or step by its number, be it an int, a NumPy integer or a tensor."""
    try:
        number = operator.index(value)
    except (TypeError, RuntimeError):  # the latter of tensors with more than one element
        return _option_text(value)
    return str(number & 0xFFFFFFFF if isinstance(value, Tensor) else number)


def _option_text(value: Any) -> str:
    if isinstance(value, Tensor):
        # A 0-d tensor counts by its value. The exchange of headers waits for the device anyway.
        return f"{value.item():.9g}" if value.ndim == 0 else array_text(value)
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(_option_text, value)) + ")"
    return repr(value)


def read_headers(every: bytes) -> list[dict[str, Any]]:
    """The headers in their concatenation."""
    return [json.loads(every[i : i + LENGTH]) for i in range(0, len(every), LENGTH)]


def check(headers: Sequence[Mapping[str, Any]], ranks: Sequence[int], least: int = 2) -> None:
    """ValueError where the headers do not agree: the same error on every process.

    headers : sequence of mappings; one for each process
    ranks : sequence of int; the processes' ranks, as messages name them
    least : rows that all processes together must have
    """
    loss = headers[0]["loss"]
    for rank, header in zip(ranks, headers, strict=True):
        if header["problem"] is not None:
            raise ValueError(f"{header['loss']} on rank {rank}: {header['problem']}")
    _check_same("the same loss", [h["loss"] for h in headers], ranks)
    names = dict.fromkeys(name for h in headers for name in h["arrays"])
    for name in names:
        found = [f"{name} {h['arrays'].get(name, 'None')}" for h in headers]
        _check_same(f"{loss} with one shape of {name} but for its rows", found, ranks)
    _check_same(f"{loss} with the same options", [h["options"] for h in headers], ranks)
    first = headers[0]["slices"]
    near = [
        all(abs(a - b) < _TOLERANCE for a, b in zip(first, h["slices"], strict=True))
        for h in headers
    ]
    found = ["one set" if as_first else "another (seed or step?)" for as_first in near]
    _check_same(f"{loss} with the same slices", found, ranks)
    found = [f"requires_grad={h['gradient']}" for h in headers]
    _check_same(f"{loss} with one requires_grad of the embeddings", found, ranks)
    rows = [h["rows"] for h in headers]
    if sum(rows) < least:
        raise ValueError(
            f"expected {loss} of at least {least} rows on all ranks together; "
            f"found {sum(rows)} on ranks {_ranks_text(ranks)}"
        )


def _check_same(what: str, found: Sequence[str], ranks: Sequence[int]) -> None:
    """ValueError that lists the ranks of each finding, the rarest first: the likely culprits."""
    if len(set(found)) == 1:
        return
    of_each: dict[str, list[int]] = {}
    for rank, text in zip(ranks, found, strict=True):
        of_each.setdefault(text, []).append(rank)
    parts = [
        f"{text} on rank{'s' * (len(of) > 1)} {_ranks_text(of)}"
        for text, of in sorted(of_each.items(), key=lambda item: len(item[1]))
    ]
    raise ValueError(f"expected {what} on all ranks; found {'; '.join(parts)}")


def _ranks_text(ranks: Sequence[int]) -> str:
    """The first eight ranks, and the number of the others."""
    shown = ", ".join(map(str, ranks[:8]))
    return shown if len(ranks) <= 8 else f"{shown} and {len(ranks) - 8} more"


def array_text(x: Tensor, rows: int | None = None) -> str:
    """Dtype and shape, with N for the length of the axis `rows`."""
    shape = [str(length) for length in x.shape]
    if rows is not None:
        shape[rows] = "N"
    return f"{str(x.dtype).removeprefix('torch.')} ({', '.join(shape)})"
