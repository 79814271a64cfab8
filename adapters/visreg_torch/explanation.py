"""What a loss of a batch on several processes sends, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import visreg_core
from visreg_core.losses.declaration import Declaration, declaration_of
from visreg_core.losses.execution import PLAIN
from visreg_core.losses.sliced import sorts_by_exchange
from visreg_torch.distributed import DryShards, Sharding, Traffic, n_processes

__all__ = ["Explanation", "explain"]


class Explanation(NamedTuple):
    """Communication of one step of a loss with ``scope="global"``; printed, a line or two.

    Parameters
    ----------
    loss : str
        Name of the loss.
    size : int
        Number of processes.
    way : {"alone", "moments", "rows", "gather", "exchange"}
        What is sent: nothing; sums over rows; sums and embeddings; or, by a loss that sorts,
        embeddings ("gather") or projections ("exchange").
    reason : str
        Why this way.
    traffic : Traffic
        Collectives of the forward and the backward pass, and the bytes that each process sends.
    """

    loss: str
    size: int
    way: str
    reason: str
    traffic: Traffic

    def __str__(self) -> str:
        if self.way == "alone":
            return f"{self.loss}: nothing is sent, {self.reason}"
        calls = ", ".join(f"{n} {name}" for name, n in sorted(self.traffic.calls.items()))
        return (
            f"{self.loss} on {self.size} processes: {self.way}, {self.reason}; each sends "
            f"{_bytes_text(self.traffic.n_bytes)} a step by {calls}"
        )


def explain(
    loss: str | Callable[..., Any],
    *arrays: Tensor,
    group: Any = None,
    size: int | None = None,
    **options: Any,
) -> Explanation:
    """What a step of a loss with ``scope="global"`` would send, without sending anything.

    The loss itself runs on meta tensors, and its collectives are counted, so that no cost model can
    be out of date. Not counted: the agreement on shapes (2 kB) that precedes it. Uneven numbers of
    rows send what ``row_mask=`` sends.

    Parameters
    ----------
    loss : str or callable
        A loss, from `visreg_torch.functional` or `visreg_core`, or its name.
    *arrays : Tensor
        Its arguments as one process passes them. Only shapes and dtypes count, so that meta tensors
        will do.
    group : ProcessGroup or Sharding, optional
        The processes that hold the batch.
    size : int, optional
        Number of processes; the group's if not given.
    **options
        The loss's other arguments.

    Returns
    -------
    Explanation

    Raises
    ------
    TypeError
        For anything but a loss of a batch's rows.

    Examples
    --------
    >>> z, slices = torch.empty(8, 512, 256, device="meta"), torch.empty(256, 4096, device="meta")
    >>> explain("visreg_loss", z, slices, size=2).way
    'gather'
    >>> explain("visreg_loss", z, slices, size=64).way
    'exchange'
    """
    declaration = declaration_of(
        getattr(visreg_core, loss, loss) if isinstance(loss, str) else loss
    )
    name = declaration.name
    if not declaration.sharded:
        raise TypeError(f"expected a loss of the rows of a batch; found {name}")
    sharding = group if isinstance(group, Sharding) else Sharding(group)
    size = n_processes(sharding.group) if size is None else size
    if size == 1:
        return Explanation(name, size, "alone", "all rows are here", Traffic())
    if not declaration.sorts:
        traffic = _traffic(declaration, arrays, options, size, "auto")
        if "all_gather" not in traffic.calls:
            return Explanation(name, size, "moments", "it needs sums over rows", traffic)
        pairs = "its pairs are rows of any process"
        gram = "its products of rows are smaller than those of dimensions"
        reason = pairs if "pairs" in declaration.row_axes else gram
        return Explanation(name, size, "rows", reason, traffic)
    both = {
        way: _traffic(declaration, arrays, options, size, way) for way in ("gather", "exchange")
    }
    dim, n_slices = arrays[0].shape[-1], arrays[1].shape[-1]
    execution = PLAIN._replace(shards=DryShards(size), sorting=sharding.sorting)
    exchange = sorts_by_exchange(execution, dim=dim, n_slices=n_slices)
    way, other = ("exchange", "gather") if exchange else ("gather", "exchange")
    reason = (
        f"since ⌈{n_slices} slices / {size}⌉ {'<' if exchange else '≥'} {dim} dimensions"
        if sharding.sorting == "auto"
        else "as requested"
    )
    reason += f" ({other} would send {_bytes_text(both[other].n_bytes)})"
    return Explanation(name, size, way, reason, both[way])


def _traffic(
    declaration: Declaration,
    arrays: tuple[Tensor, ...],
    options: dict[str, Any],
    size: int,
    sorting: str,
) -> Traffic:
    """Traffic of the forward and the backward pass."""
    shards = DryShards(size, declaration.name)
    execution = PLAIN._replace(shards=shards, sorting=sorting, need_gradient=True)
    bound = declaration.bind(arrays, options)
    inputs = {name: _without_memory(value) for name, value in bound.items()}
    _, saved = declaration.forward(execution, **inputs)
    declaration.gradients(execution, inputs, saved, [1.0] * len(declaration.fields))
    return shards.traffic


def _without_memory(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


def _bytes_text(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n = n / 1000
    return f"{n:.3g} GB"
