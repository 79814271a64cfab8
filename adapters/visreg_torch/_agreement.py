"""What processes tell each other before a loss of all their rows, and whether it fits.

A header is a line of JSON of fixed length, so that one collective carries it.
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
# By which random walks are drawn, of which no slices tell.
_WORDS = ("seed", "step")
# Slices are drawn alike everywhere, but another processor rounds a logarithm otherwise.
_TOLERANCE = 1e-3


def header(
    loss: str, arguments: Mapping[str, Any], row_axes: Mapping[str, int], wanted: bool
) -> bytes:
    """What a process passes to a loss, and whether it wants the gradient.

    `row_axes` names the arguments that have rows.
    """
    told: dict[str, Any] = {"loss": loss, "rows": 0, "arrays": {}, "options": "", "slices": []}
    told["masked"], told["gradient"] = arguments.get("row_mask") is not None, wanted
    try:
        told |= _told(arguments, row_axes)
        told["problem"] = None
    except (TypeError, ValueError) as error:  # the other processes must hear of it
        told["problem"] = str(error)[:_LONGEST_TEXT]
    told["options"] = _fitting(told["options"])
    told["arrays"] = {name: _fitting(text) for name, text in told["arrays"].items()}
    return json.dumps(told, ensure_ascii=False).encode().ljust(LENGTH)


def _fitting(text: str) -> str:
    """The text, or what stands for one that is too long."""
    return text if len(text) <= _LONGEST_TEXT else hashlib.sha256(text.encode()).hexdigest()


def _told(arguments: Mapping[str, Any], row_axes: Mapping[str, int]) -> dict[str, Any]:
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
        if name == "row_mask":  # a process may have one and another none
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
    """A key word by its number, whatever holds it; what is none as it is."""
    try:
        number = operator.index(value)
    except (TypeError, RuntimeError):  # the latter of tensors with more than one element
        return _option_text(value)
    return str(number & 0xFFFFFFFF if isinstance(value, Tensor) else number)


def _option_text(value: Any) -> str:
    if isinstance(value, Tensor):
        # A number that is held by a tensor counts by its value. Nobody waits longer for a device
        # than the exchange of headers does anyway.
        return f"{value.item():.9g}" if value.ndim == 0 else array_text(value)
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(_option_text, value)) + ")"
    return repr(value)


def read_headers(every: bytes) -> list[dict[str, Any]]:
    """Headers that were joined."""
    return [json.loads(every[i : i + LENGTH]) for i in range(0, len(every), LENGTH)]


def check(headers: Sequence[Mapping[str, Any]], ranks: Sequence[int], least: int = 2) -> None:
    """ValueError, the same from all headers on every process, where they do not fit.

    Parameters
    ----------
    headers : sequence of mappings
        One for each process.
    ranks : sequence of int
        The processes' ranks, as messages name them.
    least : int
        Rows that all together must have.
    """
    loss = headers[0]["loss"]
    for rank, told in zip(ranks, headers, strict=True):
        if told["problem"] is not None:
            raise ValueError(f"{told['loss']} on rank {rank}: {told['problem']}")
    _check_same("the same loss", [told["loss"] for told in headers], ranks)
    names = dict.fromkeys(name for told in headers for name in told["arrays"])
    for name in names:
        found = [f"{name} {told['arrays'].get(name, 'None')}" for told in headers]
        _check_same(f"{loss} with one shape of {name} but for its rows", found, ranks)
    _check_same(f"{loss} with the same options", [told["options"] for told in headers], ranks)
    first = headers[0]["slices"]
    near = [
        all(abs(a - b) < _TOLERANCE for a, b in zip(first, told["slices"], strict=True))
        for told in headers
    ]
    found = ["one set" if as_first else "another (seed or step?)" for as_first in near]
    _check_same(f"{loss} with the same slices", found, ranks)
    found = [f"requires_grad={told['gradient']}" for told in headers]
    _check_same(f"{loss} with one requires_grad of the embeddings", found, ranks)
    rows = [told["rows"] for told in headers]
    if sum(rows) < least:
        raise ValueError(
            f"expected {loss} of at least {least} rows on all ranks together; "
            f"found {sum(rows)} on ranks {_ranks_text(ranks)}"
        )


def _check_same(what: str, found: Sequence[str], ranks: Sequence[int]) -> None:
    """ValueError that lists who found what, the fewest first: they are the odd ones."""
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
    """0, 1, 2, 3 and up to eight of more."""
    shown = ", ".join(map(str, ranks[:8]))
    return shown if len(ranks) <= 8 else f"{shown} and {len(ranks) - 8} more"


def array_text(x: Tensor, rows: int | None = None) -> str:
    """Dtype and shape, with N for the length of the axis `rows`."""
    shape = [str(length) for length in x.shape]
    if rows is not None:
        shape[rows] = "N"
    return f"{str(x.dtype).removeprefix('torch.')} ({', '.join(shape)})"
