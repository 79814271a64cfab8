"""Time and memory of the losses' kernels on a GPU, beside eager and compiled torch.

    python -m tests.benchmarks.bench_torch_cuda [--only CASE ...] [--json FILE] [--figure FILE]
    python -m tests.benchmarks.bench_torch_cuda --tiny     # on the CPU, to see that it runs

Forward and backward. Candidates of a case must agree in value and gradient before they are timed,
and one that runs out of memory is told so. The floor of a sliced loss is its two matrix products.
"""

import argparse
import os
import statistics
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

import visreg_core as vc
from tests.benchmarks import eager
from tests.benchmarks.bench_losses import print_table, write_json
from tests.benchmarks.cost_figure import draw_cost
from tests.benchmarks.measure import interleaved_times, machine
from visreg_torch.kernels import dispatch, fused

COLUMNS = (
    "case", "candidate", "ms", "of the two products", "times faster than eager",
    "than compiled", "aim", "peak, of z and its gradient", "aim",
)  # fmt: skip
ABOUT = (
    "Forward and backward on {device}. Times are medians of {rounds} interleaved rounds. Memory is "
    "the peak allocated by a candidate, z itself included, divided by z and its gradient."
)
SWEEP = (1000, 2000, 5000, 10_000, 20_000, 50_000)


@dataclass(frozen=True)
class Case:
    """A size, what it is measured with, and what is aimed at."""

    v: int
    n: int
    d: int
    k: int
    dtype: torch.dtype
    losses: tuple[str, ...]
    aims: dict[str, str]
    memory_aims: dict[str, str]

    def arrays(self, device):
        """Embeddings off centre and of uneven scales, and slices in their dtype."""
        generator = torch.Generator(device).manual_seed(0)
        z = torch.empty((self.v, self.n, self.d), dtype=self.dtype, device=device)
        scale = torch.empty(self.d, device=device).normal_(0, 0.3, generator=generator).exp_()
        for view in z:
            view.normal_(0, 1, generator=generator).mul_(scale).add_(scale / 2)
        slices = vc.random_slices(self.d, self.k, xp=torch, dtype=torch.float32, device=device)
        return z, slices.to(self.dtype)


ALL = ("visreg", "sigreg", "swd", "vicreg", "barlow")
_SMALL = {"v": 2, "n": 64, "d": 16, "k": 32}
_SLICED_AIMS = {"visreg": "≥ 5, ≥ 2", "sigreg": "≥ 10, ≥ 3"}


def cases(tiny):
    """Cases by name; with `tiny` the same at a size that a CPU does at once."""
    sizes = {
        "heading": ({"v": 8, "n": 50_000, "d": 10_000, "k": 2500}, torch.bfloat16),
        "step": ({"v": 10, "n": 512, "d": 256, "k": 4096}, torch.bfloat16),
        "step in float32": ({"v": 10, "n": 512, "d": 256, "k": 4096}, torch.float32),
    }
    aims = {"heading": {"visreg": "≥ 4, ≥ 2; ≤ 1.3 products"}}
    out = {}
    for name, (size, dtype) in sizes.items():
        losses = ("visreg",) if name == "heading" else ("visreg", "sigreg")
        memory = {"visreg": "≤ 1.1"} if name == "heading" else {"sigreg": "≤ 5 % of eager's"}
        size = _SMALL if tiny else size
        aim = aims.get(name, _SLICED_AIMS)
        out[name] = Case(**size, dtype=dtype, losses=losses, aims=aim, memory_aims=memory)
    for n in (64, 96) if tiny else SWEEP:
        size = {**(_SMALL if tiny else {"v": 2, "d": 2048, "k": 1024}), "n": n}
        out[f"N = {n}"] = Case(**size, dtype=torch.bfloat16, losses=ALL, aims={}, memory_aims={})
    return out


# --- candidates ----------------------------------------------------------------------------------


def by_autograd(function, z, slices):
    """One step: value and gradient."""

    def run():
        leaf = z.detach().requires_grad_()
        value = function(leaf, slices)
        value.backward()
        return value.detach(), leaf.grad

    return run


PLAIN = {
    "visreg": eager.visreg_of_views,
    "sigreg": eager.sigreg,
    "swd": eager.gaussian_sliced_wasserstein,
    "vicreg": lambda z, slices: eager.vicreg(z[0], z[1]),
    "barlow": lambda z, slices: eager.barlow_twins(z[0], z[1]),
}
OURS = {
    "visreg": vc.visreg_loss,
    "sigreg": vc.sigreg_loss,
    "swd": vc.gaussian_sliced_wasserstein,
}


def by_kernels(loss, z, slices, kernel):
    """One step of this package's with a kernel forced, or of the core's with "slow"."""

    def run():
        options = {"projection_dtype": z.dtype, "need_grad": True}
        donated = {}
        with dispatch.forced(kernel):
            if fused.takes(loss.__name__, z.device, z.dtype, **options):
                result, vjp = fused.run(loss, z, slices, **options)
                donated = {"donated": True}
            else:
                result, vjp = vc.value_and_vjp(loss)(z, slices, projection_dtype=z.dtype)
        several = isinstance(result, tuple)
        cotangents = (1.0, *[0.0] * (len(result) - 1)) if several else (1.0,)
        return (result[0] if several else result), vjp(*cotangents, **donated)

    return run


def two_products(z, slices):
    """Projections, slice-major, and their like times the slices: what no sliced loss can avoid."""
    gradient = torch.empty_like(z)

    def run():
        for view, out in zip(z, gradient, strict=True):
            p = torch.mm(slices.mT, view.mT)
            torch.mm(p.mT, slices.mT, out=out)
        return None, gradient

    return run


def candidates(loss, z, slices, *, tiny):
    """Steps by name; the products' is the floor."""
    compiled = torch.compile(PLAIN[loss], backend="eager" if tiny else "inductor", dynamic=False)
    found = {
        "eager": by_autograd(PLAIN[loss], z, slices),
        "compiled": by_autograd(compiled, z, slices),
    }
    if loss in OURS:
        if dispatch.choose("gaussian", z.device, z.dtype, z.shape[-2]).kernel is None:
            found["core"] = by_kernels(OURS[loss], z, slices, dispatch.SLOW)
        else:
            for kernel in ("project", "project_in_blocks"):
                found[f"kernels, {kernel}"] = by_kernels(OURS[loss], z, slices, kernel)
        found["two products"] = two_products(z, slices)
    return found


# --- measuring -----------------------------------------------------------------------------------


def assert_agree(outcomes, dtype):
    """Values, and gradients in norm; 16-bit projections leave eager little of the gradient."""
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    reference = next((o for o in outcomes.values() if o[0] is not None), None)
    for name, (value, gradient) in outcomes.items():
        if value is None:
            continue
        if not abs(value - reference[0]) <= tolerance * abs(reference[0]):
            raise AssertionError(f"expected value {reference[0]}; found {value} by {name}")
        # Not of the difference of two arrays as large as the memory: view by view.
        pairs = list(zip(gradient, reference[1], strict=True))
        error = sum(float((g.float() - h.float()).norm()) ** 2 for g, h in pairs) ** 0.5
        norm = sum(float(h.float().norm()) ** 2 for _, h in pairs) ** 0.5
        if not error <= max(tolerance, 0.5 if dtype != torch.float32 else 0.01) * norm:
            raise AssertionError(f"gradients differ by {error / norm:.1e} of their norm: {name}")


def peak_bytes(run, device):
    """Peak of a step above what is allocated before; None where nothing counts it."""
    if device.type != "cuda":
        run()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def synchronised(run, device):
    def step():
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def bench(case, loss, device, *, tiny, rounds):
    """Seconds and bytes of each candidate of a loss, and which kernels ran."""
    z, slices = case.arrays(device)
    steps, memory, failed, reference = {}, {}, {}, {}
    for name, run in candidates(loss, z, slices, tiny=tiny).items():
        try:
            run()  # compiles
            memory[name] = peak_bytes(run, device)
            outcome = run()
        except torch.OutOfMemoryError:
            failed[name] = "out of memory"
            continue
        if outcome[0] is not None:
            reference = reference or {name: outcome}
            assert_agree({**reference, name: outcome}, case.dtype)
        del outcome
        steps[name] = synchronised(run, device)
    reference.clear()
    wall, _ = interleaved_times(steps, rounds)
    return {
        "name": loss,
        "size": {"v": case.v, "n": case.n, "d": case.d, "k": case.k},
        "dtype": str(case.dtype),
        "seconds": wall,
        "peak_bytes": memory,
        "of_z_and_gradient": 2 * z.numel() * z.element_size(),
        "z_bytes": z.numel() * z.element_size(),
        "failed": failed,
        "kernels": dispatch.explain().split("\n") if loss in OURS else [],
    }


def table_rows(title, case, result):
    """Rows of the printed table and of the manual's page."""
    seconds = {c: statistics.median(t) for c, t in result["seconds"].items()}
    size = " ".join(f"{key.upper()}={number}" for key, number in result["size"].items())
    work = f"{result['name']}, {title}: {size} {result['dtype'].removeprefix('torch.')}"

    def ratio(a, b):
        return f"{seconds[a] / seconds[b]:.2f}" if a in seconds and b in seconds else "–"

    for candidate in (*seconds, *result["failed"]):
        ours = candidate.startswith("kernels")
        peak = result["peak_bytes"].get(candidate)
        whole = None if peak is None else (peak + result["z_bytes"]) / result["of_z_and_gradient"]
        yield [
            work,
            candidate,
            f"{1e3 * seconds[candidate]:.3g}" if candidate in seconds else "out of memory",
            ratio(candidate, "two products"),
            ratio("eager", candidate),
            ratio("compiled", candidate),
            case.aims.get(result["name"], "–") if ours else "–",
            "–" if whole is None else f"{whole:.2f}",
            case.memory_aims.get(result["name"], "–") if ours else "–",
        ]


def hardware(device):
    """The machine, and the device."""
    found = machine()
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["CUDA"] = torch.version.cuda
        found["TF32"] = dispatch.product_precision()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", action="append", choices=list(cases(False)), help="repeatable")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--figure", metavar="FILE", help="draw the sweep over N")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: to see that it runs")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("expected a CUDA device; found none (--tiny runs on the CPU)")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rounds = 2 if arguments.tiny else arguments.rounds
    chosen = cases(arguments.tiny)
    if arguments.only:
        chosen = {name: case for name, case in chosen.items() if name in arguments.only}

    load_before = os.getloadavg()[0]
    rows, works, sweep = [], [], []
    for title, case in chosen.items():
        for loss in case.losses:
            print(f"{title}: {loss} …", file=sys.stderr, flush=True)
            result = bench(case, loss, device, tiny=arguments.tiny, rounds=rounds)
            works.append({"case": title, **result})
            rows += table_rows(title, case, result)
            if title.startswith("N = "):
                sweep.append(result)
            torch.compiler.reset()
    print_table(COLUMNS, rows)
    found = hardware(device)
    content = {
        "title": "Kernels on a GPU",
        "about": ABOUT.format(device=found.get("device", "the CPU"), rounds=rounds),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {**found, "load before": f"{load_before:.1f}"},
        "columns": COLUMNS,
        "rows": rows,
        "works": works,
    }
    if arguments.json:
        write_json(arguments.json, content)
    if arguments.figure:
        draw_cost(sweep, arguments.figure)


if __name__ == "__main__":
    main()
