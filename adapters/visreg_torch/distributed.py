"""Losses of a batch whose rows lie on several processes: the only file with collectives.

Under ``scope="global"`` every process passes its own rows and gets the loss of all rows with all
slices. The core says what is reduced and moved, through `ProcessShards`; this file says how, and
makes the processes' rows fit each other beforehand (`global_batch`). Collectives run inside the
operator that autograd sees as a whole, so that none of them needs a derivative of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from visreg_core import _checks
from visreg_core.losses._execution import SORTING
from visreg_torch import _agreement

SCOPES = ("local", "global")

# The axis of an argument along which its rows lie.
ROW_AXES = {"z": -2, "a": -2, "b": -2, "pairs": -1, "pair_weights": -1, "row_mask": -1}

# torch 2.13 renamed it.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gradient_factor(size: int) -> int:
    """What gradients with ``scope="global"`` are multiplied by, of `size` processes: `size`.

    Data-parallel training averages the processes' gradients of the parameters, and the gradient
    of a loss of the whole batch is their sum. This factor makes the average the exact gradient.
    Training that adds gradients up must divide by it.
    """
    return size


# --- what is talked over --------------------------------------------------------------------------


class Sharding(NamedTuple):
    """How ``scope="global"`` communicates; may be passed wherever a group may.

    Parameters
    ----------
    group : ProcessGroup, optional
        Processes whose rows make the batch; the default group if not given.
    sorting : {"auto", "gather", "exchange"}
        How a loss that sorts meets all rows of a slice: every process gathers all embeddings and
        sorts a part of the slices, or projects its own rows and exchanges the projections.
        "auto" takes the way that moves fewer bytes, which `explain` shows.
    static_shapes : bool
        A promise that every process passes the same shapes, options and slices, and at least one
        row: nothing is checked and nothing padded. It saves one small collective a call and the
        wait of the host for the device, and is needed under ``torch.compile(fullgraph=True)``. A
        process that breaks the promise makes the others hang or compute nonsense.

    Examples
    --------
    >>> Sharding(sorting="exchange").static_shapes
    False
    """

    group: Any = None
    sorting: str = "auto"
    static_shapes: bool = False


def sharding_of(scope: str, group: Any = None) -> Sharding | None:
    """What to communicate over; None where this process has all rows of the loss's batch."""
    _checks.choice("scope", scope, SCOPES)
    sharding = group if isinstance(group, Sharding) else Sharding(group)
    _checks.choice("sorting", sharding.sorting, SORTING)
    return sharding if scope == "global" and n_processes(sharding.group) > 1 else None


def n_processes(group: Any = None) -> int:
    """Size of a group; 1 where no group was initialised."""
    if group is None and not (dist.is_available() and dist.is_initialized()):
        return 1
    size = dist.get_world_size(group)
    if size < 1:
        raise ValueError("expected a group that this process belongs to; found another one")
    return size


def rank_of(group: Any = None) -> int:
    """Place of this process in a group; 0 where no group was initialised."""
    return 0 if n_processes(group) == 1 else dist.get_rank(group)


# --- collectives ----------------------------------------------------------------------------------


@dataclass
class Traffic:
    """Calls of collectives, and the bytes that a process sends by them.

    Bytes are those of the algorithms that send the fewest: of W processes, 2 (W − 1)/W of an array
    that is reduced, (W − 1) times one that is gathered, (W − 1)/W of one that is exchanged or
    scattered. As many are received.
    """

    calls: dict[str, int] = field(default_factory=dict)
    sent: dict[str, float] = field(default_factory=dict)

    def count(self, operation: str, sent: float) -> None:
        """One more call."""
        self.calls[operation] = self.calls.get(operation, 0) + 1
        self.sent[operation] = self.sent.get(operation, 0.0) + sent

    @property
    def n_calls(self) -> int:
        """Calls of all kinds."""
        return sum(self.calls.values())

    @property
    def n_bytes(self) -> int:
        """Bytes sent by all kinds."""
        return round(sum(self.sent.values()))


class ProcessShards:
    """The shards of `visreg_core`'s protocol of that name, one a process of a group.

    Whatever is only moved goes as bytes, so that every dtype can. A failure of the backend, such
    as a process that is gone, is raised again in one line that says where it happened.

    Parameters
    ----------
    group : ProcessGroup, optional
        The default group if not given.
    loss : str
        Whose collectives these are, for messages.
    """

    def __init__(self, group: Any = None, loss: str = "loss") -> None:
        self.group, self.loss = group, loss
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.traffic = Traffic()

    def sum(self, x: Tensor) -> Tensor:
        """Sum of the processes' arrays."""
        return self._reduced(x, dist.ReduceOp.SUM)

    def maximum(self, x: Tensor) -> Tensor:
        """Elementwise maximum of the processes' arrays."""
        return self._reduced(x, dist.ReduceOp.MAX)

    def gather(self, x: Tensor, axis: int) -> Tensor:
        """The processes' arrays joined along `axis`."""
        axis %= x.ndim
        every = x.new_empty((self.size, *x.shape))
        source = x.contiguous()

        def call() -> None:
            _all_gather(_as_bytes(every), _as_bytes(source), group=self.group)

        self._communicate("all_gather", x, self.size - 1, call)
        return every.movedim(0, axis).flatten(axis, axis + 1)

    def own(self, x: Tensor, axis: int) -> Tensor:
        """Own part, one of `size` equal ones, of an array that all have."""
        length = x.shape[axis] // self.size
        return x.narrow(axis, self.rank * length, length)

    def scatter_sum(self, x: Tensor, axis: int) -> Tensor:
        """Own part along `axis` of the sum of the processes' arrays."""
        parts = self._parts(x, axis)
        if parts.device.type == "cpu":
            # Gloo would reduce whole arrays; this sends half of that, and adds in order of rank.
            return self._exchanged(parts).sum(0)
        return self._reduce_scattered(parts)

    def exchange(self, x: Tensor, split: int, join: int) -> Tensor:
        """Part s of `x` along `split` goes to process s, which joins what it gets along `join`."""
        join %= x.ndim
        return self._exchanged(self._parts(x, split)).movedim(0, join).flatten(join, join + 1)

    def _reduced(self, x: Tensor, operation: Any) -> Tensor:
        out = x.clone(memory_format=torch.contiguous_format)
        weight = 2 * (self.size - 1) / self.size
        self._communicate(
            "all_reduce", x, weight, lambda: dist.all_reduce(out, operation, group=self.group)
        )
        return out

    def _parts(self, x: Tensor, axis: int) -> Tensor:
        """The `size` equal parts of `x` along `axis`, stacked."""
        axis %= x.ndim
        shape = (*x.shape[:axis], self.size, -1, *x.shape[axis + 1 :])
        return x.reshape(shape).movedim(axis, 0).contiguous()

    def _exchanged(self, parts: Tensor) -> Tensor:
        """Part s goes to process s; what came, stacked in order of rank."""
        out = torch.empty_like(parts)

        def call() -> None:
            dist.all_to_all_single(_as_bytes(out), _as_bytes(parts), group=self.group)

        self._communicate("all_to_all", parts, (self.size - 1) / self.size, call)
        return out

    def _reduce_scattered(self, parts: Tensor) -> Tensor:
        """Sum of the processes' part s on process s, in the backend's own way."""
        own = torch.empty_like(parts[0])

        def call() -> None:
            _reduce_scatter(own.view(-1), parts.view(-1), group=self.group)

        self._communicate("reduce_scatter", parts, (self.size - 1) / self.size, call)
        return own

    def _communicate(
        self, operation: str, x: Tensor, weight: float, call: Callable[[], Any]
    ) -> None:
        """Run a collective on `x`, of whose bytes it sends `weight` times as many."""
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"expected {operation} of {self.loss} to run without autograd, which would take "
                f"what it returns for a constant; found an array that requires a gradient"
            )
        self.traffic.count(operation, weight * x.nbytes)
        self._run(operation, x, call)

    def _run(self, operation: str, x: Tensor, call: Callable[[], Any]) -> None:
        start = time.monotonic()
        try:
            call()
        except RuntimeError as error:
            ranks = dist.get_process_group_ranks(self.group)
            cause = str(error).strip().splitlines() or [type(error).__name__]
            raise RuntimeError(
                f"{self.loss} on rank {ranks[self.rank]} of {self.size} ranks: "
                f"{operation} of {_agreement.array_text(x)} failed after "
                f"{time.monotonic() - start:.1f} s; another rank is gone or does not take part: "
                f"{cause[0]}"
            ) from error


class DryShards(ProcessShards):
    """Shards that only count what would be sent: for arrays that have a shape and no memory."""

    def __init__(self, size: int, loss: str = "loss") -> None:
        self.group, self.loss = None, loss
        self.rank, self.size = 0, size
        self.traffic = Traffic()

    def _run(self, operation: str, x: Tensor, call: Callable[[], Any]) -> None:
        pass


class NumpyShards:
    """The same shards for NumPy's path of the core, whose arrays lie in tensors' memory."""

    def __init__(self, shards: ProcessShards) -> None:
        self.shards, self.size = shards, shards.size

    def sum(self, x: np.ndarray) -> np.ndarray:
        """Sum of the processes' arrays."""
        return self.shards.sum(_as_tensor(x)).numpy()

    def maximum(self, x: np.ndarray) -> np.ndarray:
        """Elementwise maximum of the processes' arrays."""
        return self.shards.maximum(_as_tensor(x)).numpy()

    def gather(self, x: np.ndarray, axis: int) -> np.ndarray:
        """The processes' arrays joined along `axis`."""
        return self.shards.gather(_as_tensor(x), axis).numpy()

    def own(self, x: np.ndarray, axis: int) -> np.ndarray:
        """Own part of an array that all have."""
        return self.shards.own(_as_tensor(x), axis).numpy()

    def scatter_sum(self, x: np.ndarray, axis: int) -> np.ndarray:
        """Own part along `axis` of the sum of the processes' arrays."""
        return self.shards.scatter_sum(_as_tensor(x), axis).numpy()

    def exchange(self, x: np.ndarray, split: int, join: int) -> np.ndarray:
        """Part s of `x` along `split` goes to process s, which joins what it gets along `join`."""
        return self.shards.exchange(_as_tensor(x), split, join).numpy()


def _as_tensor(x: np.ndarray) -> Tensor:
    # Torch takes neither negative strides nor, without a warning, what may not be written.
    return torch.from_numpy(np.require(x, requirements=["C", "W"]))


def _as_bytes(x: Tensor) -> Tensor:
    return x.view(-1).view(torch.uint8)


# --- rows that fit each other ---------------------------------------------------------------------


def global_batch(loss: str, arguments: Mapping[str, Any], sharding: Sharding) -> dict[str, Any]:
    """The arguments of a loss, with as many rows on every process.

    Processes tell each other their shapes, options and a few of the slices' elements. Where
    something but the number of rows differs every one of them raises. Rows are padded to the most
    that a process has, at least two, and the padding is masked; ``pairs``, which count the rows of
    the whole batch, are renumbered. The padding is part of autograd's graph, which takes it away
    from the gradient again.

    Parameters
    ----------
    loss : str
        Name of the loss.
    arguments : mapping
        Its arguments by name.
    sharding : Sharding
        Over what to talk.

    Returns
    -------
    dict
        The arguments to compute with.

    Raises
    ------
    ValueError
        On every process, where the arguments do not fit, or where all together have too few rows.
    """
    if sharding.static_shapes:
        own = max(x.shape[ROW_AXES[name]] for name, x in _of_rows(arguments).items())
        size, masked = n_processes(sharding.group), arguments.get("row_mask") is not None
        return _padded(arguments, [own] * size, rank=0, masked=masked)
    headers = _exchange_headers(loss, arguments, sharding.group)
    ranks = dist.get_process_group_ranks(sharding.group)
    _agreement.check(headers, ranks, least=1 if loss == "invariance_loss" else 2)
    rows = [header["rows"] for header in headers]
    masked = any(header["masked"] for header in headers)
    return _padded(arguments, rows, dist.get_rank(sharding.group), masked)


def _of_rows(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {k: x for k, x in arguments.items() if k in ROW_AXES and x is not None}


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _exchange_headers(loss: str, arguments: Mapping[str, Any], group: Any) -> list[dict[str, Any]]:
    """Every process's header, in order of rank."""
    text = _agreement.header(loss, arguments, ROW_AXES)
    arrays = {name: x for name, x in _of_rows(arguments).items() if isinstance(x, Tensor)}
    on_host = "cpu" in dist.get_backend_config(group)
    device = torch.device("cpu") if on_host else next(iter(arrays.values())).device
    own = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)
    passed = ", ".join(f"{name} {_agreement.array_text(x)}" for name, x in arrays.items())
    every = ProcessShards(group, f"{loss} of {passed}").gather(own, axis=0).cpu().numpy().tobytes()
    return _agreement.read_headers(every)


def _padded(
    arguments: Mapping[str, Any], rows: list[int], rank: int, masked: bool
) -> dict[str, Any]:
    most = max(2, *rows)
    if not masked and min(rows) == most:
        return dict(arguments)
    of_rows = _of_rows(arguments)
    out = dict(arguments)
    if out.get("row_mask") is None:
        some = next(iter(of_rows.values()))
        of_rows["row_mask"] = torch.ones(rows[rank], dtype=torch.bool, device=some.device)
    if "pairs" in of_rows:
        of_rows["pairs"] = _renumbered(of_rows["pairs"], rows, most)
    for name, x in of_rows.items():
        out[name] = _with_rows(x, ROW_AXES[name], most)
    return out


def _with_rows(x: Tensor, axis: int, length: int) -> Tensor:
    """`x` with zeros (False) added up to `length` along `axis`."""
    shape = list(x.shape)
    shape[axis] = length - shape[axis]
    return torch.cat([x, x.new_zeros(shape)], axis) if shape[axis] else x


def _renumbered(pairs: Tensor, rows: list[int], most: int) -> Tensor:
    """Indices of rows of the whole batch as they count with every process padded to `most`.

    An index beyond the batch stays beyond it, and a negative one negative.
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
    """The rows of all processes, in order of rank, of which each may pass another number.

    For statistics of the whole batch that carry no gradient, such as the affinity of
    `visreg_core.random_walk_affinity`.

    Parameters
    ----------
    x : Tensor of shape (..., N, D)
        This process's rows.
    group : ProcessGroup or Sharding, optional
        The default group if not given; where none was initialised x is all there is.

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
    rank = dist.get_rank(sharding.group)
    if sharding.static_shapes:
        rows = [x.shape[-2]] * n_processes(sharding.group)
    else:
        headers = _exchange_headers("gather_rows", {"z": x}, sharding.group)
        _agreement.check(headers, dist.get_process_group_ranks(sharding.group), least=0)
        rows = [header["rows"] for header in headers]
    shards = ProcessShards(sharding.group, "gather_rows")
    most = max(rows)
    every = shards.gather(_with_rows(x, -2, most), axis=-2)
    kept = [every[..., r * most : r * most + n, :] for r, n in enumerate(rows)]
    return torch.cat(kept, dim=-2), sum(rows[:rank])


# --- for the core ---------------------------------------------------------------------------------


def name_of(sharding: Sharding | None) -> str | None:
    """Text that operators which torch compiles can take for a sharding; None for None."""
    return None if sharding is None else _named(sharding.group, sharding.sorting)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _named(group: Any, sorting: str) -> str:
    chosen: Any = dist.group.WORLD if group is None else group
    return f"{sorting} {chosen.group_name}"


def shards_of(
    name: str, loss: str, device: torch.device, on_numpy: bool
) -> tuple[ProcessShards | NumpyShards, str]:
    """The shards that a loss runs on, and how it sorts on them."""
    sorting, group_name = name.split(" ", 1)
    c10d: Any = dist.distributed_c10d
    group = c10d._resolve_process_group(group_name)
    if device.type == "meta":
        return DryShards(n_processes(group), loss), sorting
    shards = ProcessShards(group, loss)
    return NumpyShards(shards) if on_numpy else shards, sorting
