"""The rows of several processes as one batch: agreement on shapes, padding, renumbered pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from visreg_core.losses.declaration import Declaration
from visreg_torch import _agreement
from visreg_torch.distributed import (
    ProcessShards,
    Sharding,
    n_processes,
    name_of,
    rank_of,
    sharding_of,
    shards_of,
)

# Row axes of the arguments of functions that are not losses.
_OF_ROWS = {"z": -2, "a": -2, "b": -2}


def global_batch(
    declaration: Declaration, arguments: Mapping[str, Any], sharding: Sharding, wanted: bool
) -> dict[str, Any]:
    """The arguments of a loss, padded to the same number of rows on every process.

    Processes exchange their shapes, options and a few elements of the slices. Where anything but
    the number of rows differs, every process raises. Rows are padded to the largest number that a
    process has, at least two, and the padding is masked; ``pairs``, which index the rows of the
    whole batch, are renumbered. The padding is part of autograd's graph, which removes it from the
    gradient again.

    declaration : Declaration; of the loss
    arguments : mapping; its arguments by name
    sharding : Sharding; the processes that hold the batch
    wanted : whether this process requires a gradient. All processes must, or none, because its
        collectives need all of them
    Returns the arguments to compute with. ValueError on every process, where arguments differ or
    all processes together have too few rows.
    """
    axes = {
        name: declaration.row_axis(name, arguments)
        for name in declaration.row_axes
        if arguments[name] is not None
    }
    if sharding.static_shapes:
        lengths = [arguments[k].shape[a] for k, a in axes.items() if arguments[k].ndim >= -a]
        own = max(lengths, default=2)
        size, masked = n_processes(sharding.group), arguments.get("row_mask") is not None
        return _padded(arguments, axes, [own] * size, rank=0, masked=masked)
    compared = {**arguments, "sorting": sharding.sorting} if declaration.sorts else arguments
    headers = _exchange_headers(declaration.name, compared, axes, sharding.group, wanted)
    ranks = dist.get_process_group_ranks(sharding.group)
    _agreement.check(headers, ranks, least=declaration.min_rows)
    rows = [header["rows"] for header in headers]
    masked = any(header["masked"] for header in headers)
    return _padded(arguments, axes, rows, dist.get_rank(sharding.group), masked)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _exchange_headers(
    what: str,
    arguments: Mapping[str, Any],
    axes: Mapping[str, int],
    group: Any,
    wanted: bool = False,
) -> list[dict[str, Any]]:
    """Every process's header, in order of rank."""
    text = _agreement.header(what, arguments, axes, wanted)
    arrays = {name: arguments[name] for name in axes if isinstance(arguments[name], Tensor)}
    on_host = "cpu" in dist.get_backend_config(group)
    device = "cpu" if on_host else next((x.device for x in arrays.values()), "cuda")
    own = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)
    passed = ", ".join(f"{name} {_agreement.array_text(x)}" for name, x in arrays.items())
    every = ProcessShards(group, f"{what} of {passed}").gather(own, axis=0).cpu().numpy().tobytes()
    return _agreement.read_headers(every)


def _padded(
    arguments: Mapping[str, Any],
    axes: Mapping[str, int],
    rows: list[int],
    rank: int,
    masked: bool,
) -> dict[str, Any]:
    most = max(2, *rows)
    if not masked and min(rows) == most:
        return dict(arguments)
    of_rows = {name: arguments[name] for name in axes}
    out = dict(arguments)
    if out.get("row_mask") is None:
        some = next(iter(of_rows.values()))
        of_rows["row_mask"] = torch.ones(rows[rank], dtype=torch.bool, device=some.device)
        axes = {**axes, "row_mask": -1}
    if "pairs" in of_rows:
        of_rows["pairs"] = _renumbered(of_rows["pairs"], rows, most)
    for name, x in of_rows.items():
        out[name] = _with_rows(x, axes[name], most)
    return out


def _with_rows(x: Tensor, axis: int, length: int) -> Tensor:
    """`x` with zeros (False) added up to `length` along `axis`."""
    shape = list(x.shape)
    shape[axis] = length - shape[axis]
    if not shape[axis]:
        return x
    # Autocast refuses to mix its dtype with another 16-bit one, and would raise on those processes
    # only that pad.
    with torch.autocast(x.device.type, enabled=False):
        return torch.cat([x, x.new_zeros(shape)], axis)


def _renumbered(pairs: Tensor, rows: list[int], most: int) -> Tensor:
    """Indices of rows of the whole batch once every process is padded to `most` rows.

    An index beyond the batch stays beyond it, and a negative one stays negative.
    """
    starts = [sum(rows[:r]) for r in range(len(rows) + 1)]
    ends = torch.tensor(starts[1:], device=pairs.device, dtype=pairs.dtype)
    shift = torch.tensor(
        [r * most - start for r, start in enumerate(starts)],
        device=pairs.device,
        dtype=pairs.dtype,
    )
    return pairs + shift[torch.searchsorted(ends, pairs.contiguous(), right=True)]


def gather_rows(x: Tensor, group: Any = None) -> tuple[Tensor, int]:
    """The rows of all processes, in order of rank; their numbers may differ.

    For statistics of the whole batch without a gradient, such as the affinity of
    `visreg_core.random_walk_affinity`.

    Parameters
    ----------
    x : Tensor of shape (..., N, D)
        This process's rows.
    group : ProcessGroup or Sharding, optional
        The default group if not given. Without an initialised group, x is the whole batch.

    Returns
    -------
    rows : Tensor of shape (..., ΣN, D)
        Without gradient.
    start : int
        Where this process's rows start.

    Raises
    ------
    ValueError
        On every process, where shapes differ in more than the number of rows.
    """
    x = x.detach()
    sharding = sharding_of("global", group)
    if sharding is None:
        return x, 0
    rows = agreed_rows("gather_rows", {"z": x}, sharding)
    return gathered(sharding, "gather_rows", x, rows), sum(rows[: rank_of(sharding)])


def agreed_rows(
    what: str, arguments: Mapping[str, Any], sharding: Sharding, least: int = 0
) -> list[int]:
    """Each process's number of rows; ValueError on all where anything else differs."""
    axes = {name: axis for name, axis in _OF_ROWS.items() if name in arguments}
    if sharding.static_shapes:
        own = next(arguments[name].shape[axis] for name, axis in axes.items())
        return [own] * n_processes(sharding.group)
    headers = _exchange_headers(what, arguments, axes, sharding.group)
    _agreement.check(headers, dist.get_process_group_ranks(sharding.group), least=least)
    return [header["rows"] for header in headers]


def gathered(sharding: Sharding, what: str, x: Tensor, rows: list[int]) -> Tensor:
    """The rows (axis -2) of all processes, in order of rank, without gradient."""
    return _gathered(x.detach(), name_of(sharding), what, rows)


@torch.library.custom_op("visreg::gathered", mutates_args=())
def _gathered(x: Tensor, group: str, what: str, rows: list[int]) -> Tensor:
    """An operator, because compilers cannot trace collectives."""
    shards: Any = shards_of(group, what, x.device, on_numpy=False)[0]
    most = max(rows)
    every = shards.gather(_with_rows(x, -2, most), axis=-2)
    parts = [every[..., r * most : r * most + n, :] for r, n in enumerate(rows)]
    return torch.cat(parts, dim=-2).contiguous()


@_gathered.register_fake
def _gathered_shape(x: Tensor, group: str, what: str, rows: list[int]) -> Tensor:
    return x.new_empty((*x.shape[:-2], sum(rows), x.shape[-1]))
