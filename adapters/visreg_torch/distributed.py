"""Losses of a batch whose rows lie on several processes: the only file with collectives.

Under ``scope="global"`` every process passes its own rows and gets the loss of all rows with all
slices. The core decides what is reduced and moved; `ProcessShards` does it. Collectives run inside
the passes of a loss, which autograd does not record, so that none of them needs a derivative.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from visreg_core import checks
from visreg_core.losses.execution import SORTING
from visreg_torch import _agreement

__all__ = ["Sharding", "Traffic", "gradient_factor"]

SCOPES = ("local", "global")

_NOT_A_MEMBER = -100  # what dist.new_group returns to the processes outside

# torch 2.13 renamed it.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gradient_factor(size: int) -> int:
    """Factor of the gradients of `size` processes with ``scope="global"``: `size`.

    Data-parallel training averages the processes' gradients of the parameters, and the gradient
    of a loss of the whole batch is their sum. This factor makes the average the exact gradient.
    Training that adds gradients up must divide by it.
    """
    return size


# --- groups ---------------------------------------------------------------------------------------


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
        A promise that every process passes the same shapes, options and slices, at least one row,
        and embeddings that all require a gradient or none: nothing is checked and nothing padded.
        It saves one small collective a call and the wait of the host for the device, and is needed
        under ``torch.compile(fullgraph=True)``. A process that breaks the promise makes the others
        hang or compute nonsense.

    Examples
    --------
    >>> Sharding(sorting="exchange").static_shapes
    False
    """

    group: Any = None
    sorting: str = "auto"
    static_shapes: bool = False


def sharding_of(scope: str, group: Any = None) -> Sharding | None:
    """How to communicate; None where this process has all rows of the batch."""
    checks.choice("scope", scope, SCOPES)
    sharding = group if isinstance(group, Sharding) else Sharding(group)
    checks.choice("sorting", sharding.sorting, SORTING)
    return sharding if scope == "global" and n_processes(sharding.group) > 1 else None


def n_processes(group: Any = None) -> int:
    """Size of a group; 1 without an initialised group."""
    if group is None and not (dist.is_available() and dist.is_initialized()):
        return 1
    if not (isinstance(group, dist.ProcessGroup) or group in (None, _NOT_A_MEMBER)):
        found = type(group).__name__
        raise TypeError(f"expected group to be a ProcessGroup or a Sharding; found {found}")
    size = dist.get_world_size(group)
    if size < 1:
        raise ValueError("expected a group that this process belongs to; found another one")
    return size


def rank_of(group: Any = None) -> int:
    """Rank of this process in a group or sharding; 0 without an initialised group."""
    group = group.group if isinstance(group, Sharding) else group
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

    Arrays that are only moved are sent as bytes, so that every dtype works. A failure of the
    backend, such as a lost process, is raised again in one line that says where it happened.

    group : ProcessGroup; the default group if not given
    loss : whose collectives these are, for messages
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
        """Part s goes to process s; the parts received, stacked in order of rank."""
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
        """Run a collective on `x` that sends `weight` times its bytes."""
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
    """Shards that count traffic without sending anything: for meta tensors."""

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
    # Torch refuses negative strides, and warns of read-only memory.
    return torch.from_numpy(np.require(x, requirements=["C", "W"]))


def _as_bytes(x: Tensor) -> Tensor:
    return x.view(-1).view(torch.uint8)


# --- names for operators --------------------------------------------------------------------------


def name_of(sharding: Sharding | None) -> str | None:
    """A sharding as text, which operators take as an argument; None for None."""
    return None if sharding is None else _named(sharding.group, sharding.sorting)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _named(group: Any, sorting: str) -> str:
    chosen: Any = dist.group.WORLD if group is None else group
    return f"{sorting} {chosen.group_name}"


def shards_of(
    name: str, loss: str, device: torch.device, on_numpy: bool
) -> tuple[ProcessShards | NumpyShards, str]:
    """The shards of a sharding's name, and how to sort on them."""
    sorting, group_name = name.split(" ", 1)
    c10d: Any = dist.distributed_c10d
    group = c10d._resolve_process_group(group_name)
    if device.type == "meta":
        return DryShards(n_processes(group), loss), sorting
    shards = ProcessShards(group, loss)
    return NumpyShards(shards) if on_numpy else shards, sorting
