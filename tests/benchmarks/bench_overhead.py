"""What a step of a tiny loss costs: time, Python calls, framework operations.

    python -m tests.benchmarks.bench_overhead --json docs/benchmarks/overhead.json

A step is forward and backward through the public module, a fresh draw of slices and all checks
included, on one thread. The peers are the published formulas as modules: one batched expression
over all views, slices drawn by ``torch.randn``. Medians of interleaved runs.
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
    "eager torch, slices by `torch.randn`. Medians of interleaved runs."
)
KEYS = ("loss", "shape", "who", "ms", "python_calls", "torch_operations")
COLUMNS = ("loss", "shape", "who", "ms", "Python calls", "torch operations")
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
    profile = cProfile.Profile()
    profile.enable()
    step()
    profile.disable()
    with Count():
        step()
    return {
        "python_calls": pstats.Stats(profile).total_calls,
        "torch_operations": Count.operations,
    }


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
            wall, _ = interleaved_times(both, rounds)
            for who, seconds in wall.items():
                row = {"loss": name, "shape": label, "who": who}
                row["ms"] = round(1e3 * statistics.median(seconds), 4)
                row["least_ms"] = round(1e3 * min(seconds), 4)
                results.append(row | counts(both[who]))
                print(row | {k: results[-1][k] for k in ("python_calls", "torch_operations")})
    return results


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=300)
    given = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    results = measure(given.rounds)
    record = {
        "title": "What a step of a tiny loss costs",
        "about": ABOUT,
        "machine": machine(),
        "columns": COLUMNS,
        "rows": [[f"{r[key]:.2f}" if key == "ms" else r[key] for key in KEYS] for r in results],
        "works": results,
    }
    if given.json:
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    return record


if __name__ == "__main__":
    main()
