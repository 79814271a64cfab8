"""Steps to time on a GPU, and how: synchronised, back to back, on the host, in a graph."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from visreg_torch.kernels import dispatch

Step = Callable[[], Any]


class ByKernels(torch.autograd.Function):
    """A pair of kernels' functions as an operation, without a module's checks around it."""

    @staticmethod
    def forward(ctx, forward, backward, options, masks, n_embeddings, *tensors):
        fields, saved = forward(*tensors, **options, **masks)
        ctx.save_for_backward(*tensors, *saved)
        ctx.made = backward, type(saved), len(tensors), masks, n_embeddings
        ctx.set_materialize_grads(False)
        return tuple(fields)

    @staticmethod
    def backward(ctx, *cotangents):
        backward, kind, count, masks, n_embeddings = ctx.made
        tensors = ctx.saved_tensors
        found = backward(*tensors[:count], kind(*tensors[count:]), cotangents, **masks)
        found = found if isinstance(found, tuple) else (found,)
        rest = [None] * (count - n_embeddings)
        return None, None, None, None, None, *found, *rest


def by_kernels(name: str, *tensors: torch.Tensor, n_embeddings: int = 1, **options: Any) -> Any:
    """The first field of a loss of `kernels.sliced` or `kernels.pairs`."""
    module = "pairs" if n_embeddings > 1 else "sliced"
    forward = dispatch.load(module, f"{name}_forward")
    backward = dispatch.load(module, f"{name}_backward")
    return ByKernels.apply(forward, backward, options, {}, n_embeddings, *tensors)[0]


def wait() -> None:
    """Until the device has done what was issued; at once where there is none."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def synchronised(step: Step, rounds: int) -> float:
    """Median seconds of a step that is waited for."""
    times = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def back_to_back(step: Step, rounds: int) -> float:
    """Mean seconds of steps of which only the last is waited for."""
    wait()
    start = time.perf_counter()
    for _ in range(rounds):
        step()
    wait()
    return (time.perf_counter() - start) / rounds


def on_host(step: Step, rounds: int) -> float:
    """Median seconds until a step has been issued, on a device with nothing to do."""
    times = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    wait()
    return statistics.median(times)


def in_graph(step: Step, rounds: int) -> float:
    """Seconds of a step on the device alone: a captured graph's replays."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    start.record()
    for _ in range(rounds):
        graph.replay()
    end.record()
    wait()
    return start.elapsed_time(end) / rounds / 1e3


def peak_bytes(step: Step) -> int:
    """Peak allocated by a step above what is allocated before."""
    if not torch.cuda.is_available():
        return 0
    for leaf in getattr(step, "leaves", ()):
        leaf.grad = None  # of the step before
    wait()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    wait()
    return torch.cuda.max_memory_allocated() - before


def kernels_of(step: Step, rounds: int = 5) -> list[dict[str, Any]]:
    """Name, launches a step and microseconds a step of what runs on the device."""
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(rounds):
            step()
        wait()
    found = []
    for e in profile.key_averages():
        spent = e.self_device_time_total
        if spent > 0 and e.device_type == torch.autograd.DeviceType.CUDA:
            found.append({"kernel": e.key[:90], "launches": e.count / rounds, "us": spent / rounds})
    return sorted(found, key=lambda f: -f["us"])


def measured(step: Step, *, seconds: float = 1.0, graph: bool = True) -> dict[str, Any]:
    """All times of a step, within about so many seconds."""
    step()
    wait()
    start = time.perf_counter()
    step()
    wait()
    once = time.perf_counter() - start
    rounds = int(max(3, min(50, seconds / 3 / max(once, 1e-4))))
    out: dict[str, Any] = {
        "synchronised": synchronised(step, rounds),
        "back_to_back": back_to_back(step, rounds),
        "host": on_host(step, min(rounds, 20)),
        "peak_bytes": peak_bytes(step),
    }
    if graph and torch.cuda.is_available():
        try:
            out["graph"] = in_graph(step, rounds)
        except Exception as error:  # a peer that cannot be captured is told so
            wait()
            out["graph"] = None
            out["graph_error"] = str(error).split("\n", 1)[0][:200]
    return out
