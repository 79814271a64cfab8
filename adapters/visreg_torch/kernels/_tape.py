"""A pass of kernels, recorded once and repeated: its steps, without the decisions behind them.

What a pass allocates, launches and multiplies depends on shapes, strides, dtypes and options alone,
so that a second call with the same ones is the first one's list of steps at other addresses. The
host walks the list in a fraction of the time that deciding takes: no tensor is cut into views,
kernels are given addresses, and nothing is checked again.

A recording notes what `_launch.empty`, `_launch.launch` and `products.product` do, and where their
tensors lie: in an input, in an allocation of the pass, or in a declared constant. A tensor from
elsewhere (a masked count, a copy of strided rows), or any other operation of torch than a view,
makes a pass that cannot be repeated; it then runs as it is written each time.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Kept tapes. A call whose weights are numbers that change at each step is another each time.
MAX_TAPES = 128


class Place(NamedTuple):
    """Where a tensor lies: in which buffer, and from which byte on."""

    buffer: int
    byte: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    whole: bool

    def tensor(self, buffers: Sequence[Any]) -> Tensor:
        """The tensor in these buffers."""
        x: Tensor = buffers[self.buffer]
        if self.whole:
            return x
        start = x.storage_offset() + self.byte // x.itemsize
        return x.as_strided(self.shape, self.strides, start)


class _Local(threading.local):
    """The recording of this thread: autograd runs backward passes on threads of its own."""

    recording: Recording | None = None


_LOCAL = _Local()


def recording() -> Recording | None:
    """What this thread records, if it does."""
    return _LOCAL.recording


class Recording(TorchDispatchMode):
    """Steps of a pass while it runs, in the context of this object."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        # They are held, so that no other tensor is given their memory.
        self.buffers: list[Tensor] = []
        self.of_storage: dict[int, list[int]] = {}
        self.steps: list[tuple[Any, ...]] = []
        self.constants: dict[int, Tensor] = {}
        self.possible = True
        self.complete = True
        self.in_step = False
        for x in inputs:
            self._add(x)
        self.n_inputs = len(self.buffers)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Perform an operation of torch, which only a step, a view or an allocation may be."""
        allocates = func is torch.ops.aten.empty.memory_format
        if not (self.in_step or func.is_view or allocates):
            self.possible = False
        return func(*args, **kwargs or {})

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Context of what is noted as one step."""
        self.in_step = True
        try:
            yield
        finally:
            self.in_step = False

    def _add(self, x: Tensor) -> int:
        self.buffers.append(x)
        buffer = len(self.buffers) - 1
        self.of_storage.setdefault(x.untyped_storage()._cdata, []).append(buffer)
        return buffer

    def place(self, x: Tensor) -> Place | None:
        """Where a tensor lies; without one such place the pass cannot be repeated.

        Inputs may be parts of one storage, of which the next call's need not be the same parts.
        """
        start, end = _span(x)
        found = [
            buffer
            for buffer in self.of_storage.get(x.untyped_storage()._cdata, [])
            if _span(self.buffers[buffer])[0] <= start and end <= _span(self.buffers[buffer])[1]
        ]
        if len(found) != 1 or self.buffers[found[0]].dtype != x.dtype:
            self.possible = False
            return None
        own = self.buffers[found[0]]
        whole = x.shape == own.shape and x.stride() == own.stride()
        byte = start - _span(own)[0]
        return Place(found[0], byte, tuple(x.shape), x.stride(), whole and byte == 0)

    def constant(self, x: Tensor) -> None:
        """Note a tensor that is the same in each call."""
        if x.untyped_storage()._cdata not in self.of_storage:
            self.constants[self._add(x)] = x

    def allocated(self, x: Tensor) -> None:
        """Note an allocation."""
        self.steps.append((_ALLOCATE, self._add(x), tuple(x.shape), x.dtype))

    def launched(self, start: Callable[..., None] | None, args: Sequence[Any]) -> None:
        """Note a launch; ``start(stream, *args)`` repeats it, by addresses in place of tensors.

        It is None where a kernel was compiled just now: the next call may be recorded.
        """
        if start is None:
            self.complete = False
            return
        self._noted(_LAUNCH, start, args)

    def multiplied(self, multiply: Callable[..., Any], *args: Any) -> None:
        """Note a product, ``multiply(*args)``, which takes tensors."""
        self._noted(_MULTIPLY, multiply, args)

    def _noted(self, kind: int, what: Callable[..., Any], args: Sequence[Any]) -> None:
        places = [(i, self.place(x)) for i, x in enumerate(args) if isinstance(x, Tensor)]
        plain = [None if isinstance(x, Tensor) else x for x in args]
        self.steps.append((kind, what, plain, places))

    def finished(self, results: Sequence[Tensor | None]) -> Tape | bool:
        """The tape of a pass that returned these tensors; whether there may be one, if not now."""
        places = [None if x is None else self.place(x) for x in results]
        return Tape(self, places) if self.possible and self.complete else self.possible


def _span(x: Tensor) -> tuple[int, int]:
    """First byte of a tensor in its storage, and the one after the last."""
    start = int(x.storage_offset())
    length = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)) + 1
    return start * x.itemsize, (start + int(length)) * x.itemsize


_ALLOCATE, _LAUNCH, _MULTIPLY, _FREE = range(4)


class Tape:
    """The steps of a pass, and where its results lie."""

    def __init__(self, made: Recording, results: list[Place | None]) -> None:
        self.n_inputs, self.results = made.n_inputs, results
        self.device = made.buffers[0].device
        self.constants = made.constants
        self.n_buffers = len(made.buffers)
        kept = {place.buffer for place in results if place is not None}
        self.steps = _with_frees(made.steps, kept)

    def play(self, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """The results of the pass on other inputs of the same shapes, strides and dtypes."""
        if self.device.type == "cuda" and self.device.index != torch.cuda.current_device():
            with torch.cuda.device(self.device):  # triton starts kernels on the current device
                return self.play(inputs)
        buffers: list[Any] = [*inputs, *[None] * (self.n_buffers - self.n_inputs)]
        for i, x in self.constants.items():
            buffers[i] = x
        device, by_address = self.device, takes_addresses(self.device)
        stream = torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else 0
        starts = [0 if x is None else x.data_ptr() for x in buffers]
        for kind, what, plain, more in self.steps:
            if kind == _LAUNCH:
                args = plain.copy()
                for i, place in more:
                    if by_address:
                        args[i] = starts[place.buffer] + place.byte
                    else:
                        args[i] = place.tensor(buffers)
                what(stream, *args)
            elif kind == _ALLOCATE:
                x = buffers[what] = torch.empty(plain, dtype=more, device=device)
                starts[what] = x.data_ptr()
            elif kind == _MULTIPLY:
                args = plain.copy()
                for i, place in more:
                    args[i] = place.tensor(buffers)
                what(*args)
            else:
                buffers[what] = None
        return [None if place is None else place.tensor(buffers) for place in self.results]


def _with_frees(steps: list[tuple[Any, ...]], kept: set[int]) -> list[tuple[Any, ...]]:
    """The steps, and after the last one that uses an allocation its release."""
    allocated = {what for kind, what, *_ in steps if kind == _ALLOCATE} - kept
    out: list[tuple[Any, ...]] = []
    for step in reversed(steps):
        used = {step[1]} if step[0] == _ALLOCATE else {place.buffer for _, place in step[3]}
        for buffer in used & allocated:
            allocated.remove(buffer)
            out.append((_FREE, buffer, None, None))
        out.append(step)
    return out[::-1]


def takes_addresses(device: torch.device) -> bool:
    """Whether launches are given addresses: triton's interpreter, on the CPU, wants tensors."""
    return device.type != "cpu"


# Where passes are worth a tape, or tested with one.
DEVICES = {"cuda", "cpu"}

_TAPES: dict[Hashable, Tape | bool] = {}  # False: no tape can be made


def clear() -> None:
    """Forget all tapes: for tests that change how a pass is cut."""
    _TAPES.clear()


def signature(values: Iterable[Any]) -> tuple[list[Any], list[Tensor]]:
    """What a pass's steps depend on of its arguments, and the tensors among them."""
    key: list[Any] = []
    tensors: list[Tensor] = []
    for x in values:
        if isinstance(x, Tensor):
            tensors.append(x)
            # Kernels for addresses that 16 divides are others than for any address.
            key += (x.shape, x.stride(), x.dtype, x.device, x.data_ptr() & 15)
        elif isinstance(x, tuple):
            of_parts, parts = signature(x)
            key += of_parts
            tensors += parts
        else:
            key += (x.__class__, x)
    return key, tensors


def played(
    key: Hashable, inputs: Sequence[Tensor], run: Callable[[], Sequence[Tensor | None]]
) -> Sequence[Tensor | None]:
    """Results of a pass on its inputs: by the tape of `key`, or by `run`, which is recorded.

    The key must hold whatever the pass's steps depend on. A pass is recorded when it is seen for
    the second time, so that what never comes again is not.
    """
    tape = _TAPES.get(key)
    if isinstance(tape, Tape):
        return tape.play(inputs)
    if tape is None:
        if len(_TAPES) >= MAX_TAPES:
            _TAPES.pop(next(iter(_TAPES)), None)
        _TAPES[key] = True
    if not tape:
        return run()
    made = _LOCAL.recording = Recording(inputs)
    try:
        with made:
            results = run()
    finally:
        _LOCAL.recording = None
    _TAPES[key] = made.finished(results)
    return results
