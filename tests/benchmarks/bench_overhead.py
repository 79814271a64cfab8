"""What a step costs the host: time, Python calls, framework operations, launches.

    python -m tests.benchmarks.bench_overhead --json docs/benchmarks/overhead.json

On the CPU a step is forward and backward through the public module, a fresh draw of slices and all
checks included, on one thread. The peers are the published formulas as modules: one batched
expression over all views, slices drawn by ``torch.randn``. Runs are interleaved; times are CPU
time, the tenth percentile, which other programs on the machine disturb least.

The path of CUDA's kernels is walked on tensors of the meta device, with triton's launcher and the
products stubbed: what is left is the host's own work, and what it would start.

Where a tiny step on the CPU goes, in µs of VISReg at V1 N8 D8 K8, each part repeated by itself: the
core's passes on arrays 63 and 18 (NumPy's calls, at 0.3 to 2 each, are most of that); slices 21; an
autograd function that does nothing 19; tensors to arrays and back and what is saved 14 and 11;
arguments by name, and whether anything traces, 9. In a step they take half as long again, since
none finds the caches as it left them. The first three are the floor.
"""

import argparse
import cProfile
import json
import pstats
import statistics
from pathlib import Path

from tests.benchmarks.measure import interleaved_times, machine

ABOUT = (
    "Forward and backward in float32 in torch on one thread, through the public modules, "
    "with a fresh draw of slices and all checks; beside them the published formulas as modules of "
    'eager torch, slices by `torch.randn`. Tenth percentiles of CPU time. "Kernels" is the host\'s '
    'part of a step on a CUDA device, with launches and products stubbed. "Before" is the version '
    "without recorded passes, shared draws and NumPy's kernels for moments."
)
KEYS = (
    "loss",
    "shape",
    "who",
    "ms",
    "python_calls",
    "torch_operations",
    "launches",
    "allocations",
    "ms_before",
    "calls_before",
)
COLUMNS = (
    "loss",
    "shape",
    "who",
    "ms",
    "Python calls",
    "torch operations",
    "launches",
    "allocations",
    "ms before",
    "calls before",
)
SHAPES = {"V1 N8 D8 K8": (1, 8, 8, 8), "V2 N64 D32 K64": (2, 64, 32, 64)}


def published_visreg(z, n_slices):
    """Algorithm 1 of VISReg over all views at once."""
    import torch

    slices = torch.nn.functional.normalize(torch.randn(z.shape[-1], n_slices), dim=0)
    mean = z.mean(1, keepdim=True)
    centred = z - mean
    sigma = centred.pow(2).mean(1, keepdim=True).sqrt()
    projections = (centred / (sigma.detach() + 1e-6)) @ slices
    n = z.shape[1]
    u = torch.arange(1, n + 1, dtype=z.dtype) / (n + 1)
    quantiles = torch.special.ndtri(u)[:, None]
    shape = (projections.sort(1).values - quantiles).pow(2).mean()
    return (1 - sigma).pow(2).mean() + shape + mean.pow(2).mean()


def published_sigreg(z, n_slices):
    """LeJEPA's statistic over all views at once."""
    import torch

    slices = torch.nn.functional.normalize(torch.randn(z.shape[-1], n_slices), dim=0)
    t = torch.linspace(0, 3, 17)
    weights = torch.full((17,), 2 * 3 / 16)
    weights[[0, -1]] = 3 / 16
    target = torch.exp(-t * t / 2)
    angle = (z @ slices)[..., None] * t
    off = (angle.cos().mean(1) - target).square() + angle.sin().mean(1).square()
    return (off @ (weights * target)).mean() * z.shape[1]


def works(v, n, d, k):
    """{name: step} of ours and, where one is known, {name: step} of the published module."""
    import torch

    import visreg_torch as vt
    from tests.benchmarks import eager

    torch.manual_seed(0)
    views = torch.randn(v, n, d, requires_grad=True)
    a, b = (torch.randn(n, d, requires_grad=True) for _ in range(2))
    visreg, sigreg, swd = vt.VISRegLoss(k), vt.SIGRegLoss(k), vt.SlicedWassersteinLoss(k)
    vicreg, barlow = vt.VICRegLoss(), vt.BarlowTwinsLoss()
    ours = {
        "VISReg": lambda: visreg(views).total,
        "SIGReg": lambda: sigreg(views),
        "SWD": lambda: swd(views),
        "VICReg": lambda: vicreg(a, b).total,
        "Barlow Twins": lambda: barlow(a, b).total,
    }
    published = {
        "VISReg": lambda: published_visreg(views, k),
        "SIGReg": lambda: published_sigreg(views, k),
        "VICReg": lambda: eager.vicreg(a, b),
        "Barlow Twins": lambda: eager.barlow_twins(a, b),
    }

    def step(loss):
        def run():
            views.grad = a.grad = b.grad = None
            loss().backward()

        return run

    return tuple({name: step(f) for name, f in of.items()} for of in (ours, published))


def counts(step):
    """Python calls (as the profiler counts them) and torch operations of a step."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Count.operations += 1
            return func(*args, **(kwargs or {}))

    step()
    python_calls = calls(step)
    with Count():
        step()
    return {"python_calls": python_calls, "torch_operations": Count.operations}


def undisturbed(seconds):
    """The tenth percentile: other programs on the machine only ever add."""
    return statistics.quantiles(seconds, n=10)[0]


def calls(step):
    """Python calls of a step, as the profiler counts them."""
    profile = cProfile.Profile()
    profile.enable()
    step()
    profile.disable()
    return pstats.Stats(profile).total_calls


# --- the path of kernels --------------------------------------------------------------------------


def kernels_works():
    """{(name, shape): step} on the meta device, in training mode but for the step's advance."""
    import torch

    import visreg_torch as vt

    def of(module, *leaves):
        one = torch.ones((), device="meta")

        def step():
            for leaf in leaves:
                leaf.grad = None
            result = module(*leaves)
            getattr(result, "total", result).backward(one)

        return step

    def empty(*shape, dtype):
        return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)

    steps = {}
    for dtype in (torch.bfloat16, torch.float32):
        label = str(dtype).removeprefix("torch.")
        z, (a, b) = empty(10, 512, 256, dtype=dtype), empty(2, 256, 1024, dtype=dtype).unbind()
        a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
        for name, kind in [
            ("VISReg", vt.VISRegLoss),
            ("SIGReg", vt.SIGRegLoss),
            ("SWD", vt.SlicedWassersteinLoss),
        ]:
            steps[name, f"V10 N512 D256 K4096 {label}"] = of(kind(4096).to("meta").eval(), z)
        shape = f"N256 D1024 {label}"
        steps["VICReg", shape] = of(vt.VICRegLoss(), a, b)
        steps["Barlow Twins", shape] = of(vt.BarlowTwinsLoss(), a, b)
        rows = torch.empty(256, dtype=torch.int64, device="meta")
        weights = torch.empty(256, device="meta")
        steps["SAG-VICReg, drawn pairs", shape] = of(
            lambda a, b, r=rows, w=weights: vt.sag_vicreg_loss(a, b, r, w), a, b
        )
    return steps


def measure_kernels(rounds):
    """The host's part of steps by kernels, and what they start."""
    from tests.torch_adapter.kernels.stubbed import stubbed

    results = []
    with stubbed() as counted:
        for (name, shape), step in kernels_works().items():
            for _ in range(20):
                step()
            _, cpu = interleaved_times({"kernels": step}, rounds)
            counted.clear()
            step()
            started = dict(counted)
            row = {"loss": name, "shape": shape, "who": "kernels"}
            row["ms"] = round(1e3 * undisturbed(cpu["kernels"]), 4)
            row["least_ms"] = round(1e3 * min(cpu["kernels"]), 4)
            row["python_calls"] = calls(step)
            row |= {key: started[key] for key in ("launches", "allocations")}
            results.append(row)
            print(row)
    return results


# --- the run --------------------------------------------------------------------------------------


def measure(rounds):
    results = []
    for label, shape in SHAPES.items():
        ours, published = works(*shape)
        for name in ours:
            both = {"ours": ours[name]} | (
                {"published": published[name]} if name in published else {}
            )
            for step in both.values():
                for _ in range(20):
                    step()
            _, cpu = interleaved_times(both, rounds)
            for who, seconds in cpu.items():
                row = {"loss": name, "shape": label, "who": who}
                row["ms"] = round(1e3 * undisturbed(seconds), 4)
                row["least_ms"] = round(1e3 * min(seconds), 4)
                results.append(row | counts(both[who]))
                print(row | {k: results[-1][k] for k in ("python_calls", "torch_operations")})
    return results


def add_before(results, before):
    """Another version's times and counts in the rows of the same works."""
    found = {tuple(r[key] for key in ("loss", "shape", "who")): r for r in before}
    for row in results:
        other = found.get(tuple(row[key] for key in ("loss", "shape", "who")))
        if other is not None and row["who"] != "published":
            row |= {"ms_before": other["ms"], "calls_before": other["python_calls"]}


def shown(x):
    """A cell of the table."""
    return "–" if x is None else f"{x:.2f}" if isinstance(x, float) else x


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--before", type=Path, help="another version's record, to stand beside")
    given = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    results = [*measure(given.rounds), *measure_kernels(given.rounds)]
    if given.before:
        add_before(results, json.loads(given.before.read_text())["works"])
    record = {
        "title": "What a step of a tiny loss costs",
        "about": ABOUT,
        "machine": machine(),
        "columns": COLUMNS,
        "rows": [[shown(r.get(key)) for key in KEYS] for r in results],
        "works": results,
    }
    if given.json:
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    return record


if __name__ == "__main__":
    main()
