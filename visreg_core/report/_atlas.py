"""The rows drawn as a table for embedding-atlas, which maps and searches them."""

from __future__ import annotations

from typing import Any

import numpy as np

from visreg_core.optional import require
from visreg_core.report._map import plane
from visreg_core.report._model import Report


def to_parquet(r: Report) -> bytes:
    """A Parquet file of the rows drawn.

    Columns: ``row``, its number or id; ``projection_x`` and ``projection_y``, two principal
    components; ``text`` and ``level1`` and on, its text and classes; ``neighbors``, places in this
    table and cosine distances of its nearest others; ``neighbor_of``, how many it is near to;
    ``vector``.
    """
    pyarrow = require("pyarrow", extra="io", purpose="a table for embedding-atlas")
    parquet = require("pyarrow.parquet", extra="io", purpose="a table for embedding-atlas")
    drawn, found = r.pictures.drawn, r.hierarchy
    xy, _ = plane(drawn.points)
    columns: dict[str, Any] = {
        "row": drawn.names,
        "projection_x": xy[:, 0],
        "projection_y": xy[:, 1],
    }
    if drawn.texts is not None:
        columns["text"] = drawn.texts.astype(np.str_)
    if found.labels is not None:
        for k, (codes, classes) in enumerate(zip(found.labels.T, found.classes, strict=True)):
            columns[f"level{k + 1}"] = np.asarray(classes, np.str_)[codes]
    columns["neighbor_of"] = np.bincount(drawn.neighbors.ravel(), minlength=len(xy))
    table = pyarrow.table(columns)
    lists = [_lists(pyarrow, a) for a in (drawn.neighbors, drawn.distances)]
    near = pyarrow.StructArray.from_arrays(lists, ["ids", "distances"])
    table = table.append_column("neighbors", near)
    table = table.append_column("vector", _lists(pyarrow, drawn.points.astype(np.float32)))
    buffer = pyarrow.BufferOutputStream()
    parquet.write_table(table, buffer)
    return bytes(buffer.getvalue())


def _lists(pyarrow: Any, a: np.ndarray) -> Any:
    ends = np.arange(0, a.size + 1, a.shape[1], dtype=np.int32)
    return pyarrow.ListArray.from_arrays(ends, pyarrow.array(a.ravel()))
