"""What a CUDA machine says about the kernels, in order of worth, within the minutes given.

    make bench-gpu MINUTES=8, or
    python -m tests.benchmarks.bench_gpu --minutes 8 --json gpu.json
    python -m tests.benchmarks.bench_gpu --tiny     # on a CPU, to see that it runs

Needs torch >= 2.9 and ``pip install '.[torch,report]'``; what else is installed (pytest, JAX, CuPy,
POT) is used. Every step writes the JSON file anew, so that a run cut short still says what it saw:

1. the card's two ceilings, in this run;
2. works of the losses through the public modules with their defaults, through the kernels alone,
   and their peers: the published formula with all views in one product, and the floor;
3. the kernels' tests, names of failures last;
4. `visreg check` on CUDA, torch, CuPy and JAX; JAX under jit; trees; the distance of two samples;
   a minute of the trainer;
5. the same peers compiled.

Times are of forward and backward with a fresh draw of slices: synchronised (median), back to back
(mean), issued (host), and replayed from a CUDA graph (the device alone). Memory is the peak above
the input. Errors are of the gradient, in norm, against the formula in float64.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import gpu_peers as peers
from tests.benchmarks import gpu_steps as steps
from visreg_torch.kernels import dispatch

ROOT = Path(__file__).parents[2]
BF16, F32 = torch.bfloat16, torch.float32
KERNEL_NAMES = {"visreg": "visreg", "sigreg": "sigreg", "swd": "gaussian_sliced_wasserstein"}
# Of the aims, synchronised milliseconds: a verdict's bound.
ERROR_AIMS = {BF16: 5e-3, F32: 1e-4}


@dataclass(frozen=True)
class Work:
    """A size of a loss, and what is aimed at on one Hopper GPU, in milliseconds."""

    name: str
    loss: str
    size: tuple[int, ...]  # V, N, D, K; of pairs N, D
    dtype: torch.dtype
    aim: float
    projection_dtype: torch.dtype | None = None

    @property
    def large(self) -> bool:
        """Whether nothing beside the kernels fits a graph's or a float64's memory."""
        return len(self.size) == 4 and self.size[0] * self.size[1] * self.size[2] > 1 << 30


STEP, SMALL = (10, 512, 256, 4096), (10, 64, 256, 2048)
MIDDLE, HEADING = (2, 4096, 512, 1024), (8, 50_000, 10_000, 2500)
WORKS = [
    Work("step", "visreg", STEP, BF16, 0.45),
    Work("step", "sigreg", STEP, BF16, 0.45),
    Work("step", "swd", STEP, BF16, 0.45),
    Work("step, float32", "visreg", STEP, F32, 0.7),
    Work("step, float32", "sigreg", STEP, F32, 0.7),
    Work("small", "visreg", SMALL, F32, 0.45),
    Work("small", "sigreg", SMALL, F32, 0.45),
    Work("middle", "visreg", MIDDLE, F32, 0.6),
    Work("middle", "sigreg", MIDDLE, F32, 0.6),
    Work("pair", "vicreg", (256, 8192), F32, 0.6),
    Work("pair", "barlow_twins", (256, 8192), F32, 0.6),
    Work("square pair", "vicreg", (2048, 2048), F32, 1.2),
    Work("square pair", "barlow_twins", (2048, 2048), F32, 1.2),
    Work("square pair", "sag_vicreg", (2048, 2048), F32, 1.3),
    Work("heading", "visreg", HEADING, BF16, 95),
    Work("heading", "visreg", HEADING, BF16, 70, BF16),
    Work("heading", "sigreg", HEADING, BF16, 100),
    Work("heading", "sigreg", HEADING, BF16, 75, BF16),
]


# --- candidates -----------------------------------------------------------------------------------


def embeddings(v: int, n: int, d: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Off centre and of uneven scales."""
    generator = torch.Generator(device).manual_seed(0)
    z = torch.empty((v, n, d), dtype=dtype, device=device)
    scale = torch.empty(d, device=device).normal_(0, 0.3, generator=generator).exp_()
    for view in z:
        view.normal_(0, 1, generator=generator).mul_(scale).add_(scale / 2)
    return z


def step_of(leaves: list[torch.Tensor], value: Callable[..., torch.Tensor]) -> steps.Step:
    """One forward and backward pass."""

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        value(*leaves).backward()

    run.leaves = leaves  # type: ignore[attr-defined]
    return run


def module_for(work: Work) -> torch.nn.Module:
    """The public module, with its defaults but for the number of slices."""
    import visreg_torch

    if len(work.size) == 2:
        names = {"vicreg": "VICRegLoss", "barlow_twins": "BarlowTwinsLoss"}
        return getattr(visreg_torch, names[work.loss])()
    names = {"visreg": "VISRegLoss", "sigreg": "SIGRegLoss", "swd": "SlicedWassersteinLoss"}
    module = getattr(visreg_torch, names[work.loss])
    return module(n_slices=work.size[3], projection_dtype=work.projection_dtype)


def first(result: Any) -> torch.Tensor:
    """A loss, or its total."""
    return result[0] if isinstance(result, tuple) else result


def sliced_candidates(work: Work, device: torch.device) -> Iterator[tuple[str, steps.Step, Any]]:
    """Name, step, and embeddings whose gradient it leaves."""
    from visreg_torch.kernels.slices import gaussian_slices

    v, n, d, k = work.size
    leaf = embeddings(v, n, d, work.dtype, device).requires_grad_()
    module = module_for(work)
    yield "module", step_of([leaf], lambda z: first(module(z))), leaf
    if dispatch.available(device, work.dtype):
        at = torch.zeros((), dtype=torch.int64, device=device)
        options = {"projection_dtype": work.projection_dtype}

        def by_kernels(z: torch.Tensor) -> torch.Tensor:
            w = gaussian_slices(d, k, step=at, device=device)
            return steps.by_kernels(KERNEL_NAMES[work.loss], z, w, **options)

        yield "kernels", step_of([leaf], by_kernels), leaf
    if work.projection_dtype is None:
        formula = peers.SLICED[work.loss]
        eager = step_of([leaf], lambda z: formula(z, peers.drawn(d, k, z.dtype, device)))
        yield "published", eager, leaf
    products = (2 if work.projection_dtype else 3) if work.dtype == BF16 else 6
    yield "floor", peers.sliced_floor(v, n, d, k, products, device), None


def pair_of(work: Work, device: torch.device) -> tuple[list[torch.Tensor], tuple[Any, ...]]:
    """Two views that agree in part, and drawn pairs."""
    n, d = work.size
    generator = torch.Generator(device).manual_seed(1)

    def normal() -> torch.Tensor:
        return torch.randn(n, d, device=device, generator=generator)

    common = normal()
    views = [(common + 0.3 * normal()).to(work.dtype).requires_grad_() for _ in range(2)]
    if work.loss != "sag_vicreg":
        return views, ()
    pairs = torch.randint(0, n, (n,), device=device, generator=generator)
    return views, (pairs, torch.rand(n, device=device, generator=generator))


def pair_candidates(work: Work, device: torch.device) -> Iterator[tuple[str, steps.Step, Any]]:
    """Name, step, and the first view, whose gradient it leaves."""
    views, more = pair_of(work, device)
    if work.loss == "sag_vicreg":
        from visreg_torch.functional import sag_vicreg_loss

        yield "module", step_of(views, lambda a, b: first(sag_vicreg_loss(a, b, *more))), views[0]
    else:
        module = module_for(work)
        yield "module", step_of(views, lambda a, b: first(module(a, b))), views[0]
    if dispatch.available(device, work.dtype):

        def by_kernels(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return steps.by_kernels(work.loss, a, b, *more, n_embeddings=2)

        yield "kernels", step_of(views, by_kernels), views[0]
    formula = getattr(peers, work.loss)
    yield "published", step_of(views, lambda a, b: formula(a, b, *more)), views[0]
    yield "floor", peers.pair_floor(*work.size, device), None


# --- errors ---------------------------------------------------------------------------------------


def sliced_error(work: Work, who: str, device: torch.device) -> float:
    """Of the gradient with slices in common; of a part of a view where it is large."""
    v, n, d, k = work.size
    if work.large:
        v, k = 1, min(k, 128)
    z = embeddings(v, n, d, work.dtype, device)
    generator = torch.Generator(device).manual_seed(2)
    w = torch.randn(d, k, device=device, generator=generator)
    w = w / w.norm(dim=0)
    leaf = z.detach().requires_grad_()
    if who == "published":
        peers.SLICED[work.loss](leaf, w.to(z.dtype)).backward()
    else:
        options = {"projection_dtype": work.projection_dtype}
        steps.by_kernels(KERNEL_NAMES[work.loss], leaf, w, **options).backward()
    expected = peers.oracle(work.loss, z, w, 16 if work.loss == "sigreg" else 128)
    return peers.relative_error(leaf.grad, expected)


def pair_error(work: Work, who: str, device: torch.device) -> float:
    """Of the first view's gradient."""
    views, more = pair_of(work, device)
    wide = [x.detach().double().requires_grad_() for x in views]
    formula = getattr(peers, work.loss)
    formula(*wide, *[x.double() if x.is_floating_point() else x for x in more]).backward()
    if who == "published":
        formula(*views, *more).backward()
    else:
        steps.by_kernels(work.loss, *views, *more, n_embeddings=2).backward()
    return peers.relative_error(views[0].grad, wide[0].grad)


# --- steps of the command -------------------------------------------------------------------------


class Report:
    """What was seen so far, in a file that is whole after every addition."""

    def __init__(self, path: str | None, minutes: float) -> None:
        self.path, self.until = path, time.monotonic() + 60 * minutes
        self.content: dict[str, Any] = {"works": [], "steps": []}

    def left(self) -> float:
        """Seconds left."""
        return self.until - time.monotonic()

    def add(self, where: str, record: dict[str, Any]) -> None:
        """Append a record, print it, and write the file."""
        self.content[where].append(record)
        print(json.dumps(record, default=str), flush=True)
        self.write()

    def write(self) -> None:
        """Write the file anew: under another name first."""
        if self.path:
            beside = f"{self.path}.part"
            content = tabulated(self.content) | self.content
            Path(beside).write_text(json.dumps(content, indent=1, default=str) + "\n")
            os.replace(beside, self.path)


ABOUT = (
    "Milliseconds of forward and backward with a fresh draw of slices, through the public modules "
    "with their defaults: synchronised, and on the device alone, the replay of a captured graph. "
    "Published is the formula in eager torch with all views in one product, floor the products "
    "alone, which nothing can save. The error is of the gradient, in norm, against float64. The "
    "second dtype is that of the projections. A dash is where memory did not suffice, or where "
    "nobody captures a graph."
)


def tabulated(content: dict[str, Any]) -> dict[str, Any]:
    """The works as the table that the documentation shows."""
    first = {"device": "", "torch": "", **(content["steps"] or [{}])[0]}
    rows: dict[str, list[str]] = {}
    for step in content["steps"]:
        if step["step"] == "verdict" and step["work"] not in rows:
            times = [step[f"{key}_ms"] for key in ("module", "on_device", "published", "floor")]
            numbers = ["–" if t is None else f"{t:.3g}" for t in [*times, step["error"]]]
            rows[step["work"]] = [
                step["work"].replace("torch.", "").replace(", default", ""),
                *numbers,
                f"{step['aim_ms']:g}",
            ]
    return {
        "title": "Losses on a GPU",
        "about": ABOUT,
        "machine": {key: first[key] for key in ("device", "torch")},
        "columns": ["work", "ms", "on the device", "published", "floor", "error", "aim, ms"],
        "rows": list(rows.values()),
    }


def ceilings(device: torch.device, tiny: bool) -> dict[str, Any]:
    """A large bfloat16 product and a large copy."""
    size = 64 if tiny else 8192
    a, b = (torch.randn(size, size, device=device).to(BF16) for _ in range(2))
    x = torch.empty(1 << (10 if tiny else 30), dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    for _ in range(1 if tiny else 20):
        a @ b  # the first product of a process takes longest
    product = steps.back_to_back(lambda: a @ b, 3 if tiny else 20)
    copy = steps.back_to_back(lambda: y.copy_(x), 3 if tiny else 20)
    return {
        "step": "ceilings",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "bf16_tflops": 2 * size**3 / product / 1e12,
        "copy_tb_per_s": 2 * x.numel() / copy / 1e12,
    }


def work_record(
    work: Work, name: str, step: steps.Step, leaf: Any, device: torch.device
) -> dict[str, Any]:
    """All times of a candidate, and the error of its gradient."""
    record: dict[str, Any] = {
        "work": work.name,
        "loss": work.loss,
        "size": work.size,
        "dtype": str(work.dtype).removeprefix("torch."),
        "projection_dtype": str(work.projection_dtype or "default"),
        "candidate": name,
        "aim_ms": work.aim,
    }
    try:
        record |= steps.measured(step, seconds=0.5, graph=not work.large)
        if name in ("kernels", "published") and not (name == "published" and work.large):
            error = pair_error if len(work.size) == 2 else sliced_error
            record["gradient_error"] = error(work, name, device)
    except torch.OutOfMemoryError:
        record["failed"] = "out of memory"
    except Exception as error:
        traceback.print_exc(limit=6)
        record["failed"] = repr(error)[:300]
    return record


def verdicts(report: Report, of: Work) -> None:
    """A line for a work whose candidates are all in."""
    rows = {
        r["candidate"]: r
        for r in report.content["works"]
        if (r["work"], r["loss"]) == (of.name, of.loss)
        and r["projection_dtype"] == str(of.projection_dtype or "default")
    }

    def ms(name: str, key: str = "synchronised") -> float | None:
        found = rows.get(name, {}).get(key)
        return None if found is None else 1e3 * found

    ours, published = ms("module"), ms("published")
    error = rows.get("kernels", {}).get("gradient_error")
    report.add(
        "steps",
        {
            "step": "verdict",
            "work": f"{of.name}, {of.loss}, {of.dtype}, {of.projection_dtype or 'default'}",
            "module_ms": ours,
            "kernels_ms": ms("kernels"),
            "on_device_ms": ms("kernels", "graph"),
            "published_ms": published,
            "floor_ms": ms("floor"),
            "aim_ms": of.aim,
            "reached": None if ours is None else ours <= of.aim,
            "error": error,
            "error_reached": None if error is None else error <= ERROR_AIMS[of.dtype],
            "times_published": published / ours if ours and published else None,
        },
    )


def measure_works(report: Report, works: list[Work], device: torch.device, reserve: float) -> None:
    """Every candidate of every work while there is time."""
    for work in works:
        candidates = pair_candidates if len(work.size) == 2 else sliced_candidates
        if report.left() < reserve:
            report.add("steps", {"step": "left out for time", "work": work.name, "loss": work.loss})
            continue
        try:
            for name, step, leaf in candidates(work, device):
                report.add("works", work_record(work, name, step, leaf, device))
                if device.type == "cuda":
                    torch.cuda.empty_cache()
        except Exception as error:
            traceback.print_exc(limit=6)
            report.add("steps", {"step": "work", "work": work.name, "failed": repr(error)[:300]})
        verdicts(report, work)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def measure_compiled(report: Report, works: list[Work], device: torch.device) -> None:
    """The published formulas under torch.compile, which takes most of a minute each."""
    for work in works:
        if report.left() < 60 or work.large or len(work.size) == 2:
            continue
        v, n, d, k = work.size
        leaf = embeddings(v, n, d, work.dtype, device).requires_grad_()
        formula = torch.compile(peers.SLICED[work.loss], dynamic=False)
        run = step_of(
            [leaf], lambda z, f=formula, d=d, k=k: f(z, peers.drawn(d, k, z.dtype, device))
        )
        report.add("works", work_record(work, "published, compiled", run, leaf, device))
        torch.compiler.reset()


def command(
    report: Report, name: str, arguments: list[str], seconds: float, **env: str
) -> subprocess.CompletedProcess[str] | None:
    """Run a command beside this one, with the end of what it said in the report."""
    seconds = min(seconds, report.left() - 2)
    if seconds < 10:
        report.add("steps", {"step": name, "left out": "for time"})
        return None
    path = os.pathsep.join([str(ROOT), str(ROOT / "adapters"), os.environ.get("PYTHONPATH", "")])
    start = time.monotonic()
    # Into a file: what was said before a limit is not lost.
    with tempfile.TemporaryFile("w+") as said:
        try:
            done = subprocess.run(
                arguments,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path, **env},
                stdout=said,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
            status: Any = done.returncode
        except subprocess.TimeoutExpired:
            done, status = None, "out of time"
        said.seek(0)
        text = said.read()
    lines = [line for line in text.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    report.add(
        "steps",
        {
            "step": name,
            "status": status,
            "seconds": time.monotonic() - start,
            "said": lines[-6:],
            "failed": failed,
        },
    )
    return done


def installed(name: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(name) is not None


def kernel_tests(report: Report) -> None:
    """The kernels' tests on the device."""
    if not installed("pytest"):
        report.add("steps", {"step": "kernel tests", "left out": "pytest is not installed"})
        return
    arguments = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfE"]
    if installed("pytest_benchmark"):
        arguments += ["-p", "no:benchmark"]
    if installed("xdist"):
        arguments += ["-n", str(min(8, os.cpu_count() or 1))]
    arguments += ["--tb=line", "--backend", "torch-cuda", "tests/torch_adapter/kernels"]
    command(report, "kernel tests", arguments, 150)


def checks(report: Report) -> None:
    """`visreg check` on CUDA, of each library that is installed."""
    for library, device in [("torch", "cuda"), ("cupy", None), ("jax", "gpu")]:
        if installed(library):
            arguments = [sys.executable, "-m", "visreg_core", "check", "--backends", library]
            arguments += ["--device", device] if device else []
            command(report, f"check, {library}", arguments, 60)


def trees(report: Report, device: torch.device, tiny: bool) -> None:
    """Average linkage by cosine distance."""
    from visreg_core.metrics import linkage

    n = 64 if tiny else 20_000
    x = torch.randn(n, 384, device=device)
    linkage(x[: n // 4])
    steps.wait()
    start = time.perf_counter()
    linkage(x)
    steps.wait()
    seconds = time.perf_counter() - start
    report.add("steps", {"step": "trees", "n": n, "seconds": seconds})


def two_samples(report: Report, device: torch.device, tiny: bool) -> None:
    """The sliced Wasserstein distance of two samples, and POT's where it is installed."""
    from visreg_torch.functional import sliced_wasserstein

    n, d, k = (64, 8, 16) if tiny else (100_000, 512, 1000)
    x, y = (torch.randn(n, d, device=device) for _ in range(2))
    w = torch.nn.functional.normalize(torch.randn(d, k, device=device), dim=0)
    record = {"step": "two samples", "size": (n, d, k)}
    record["ours"] = steps.measured(lambda: sliced_wasserstein(x, y, w), seconds=1, graph=False)
    if installed("ot"):
        import ot

        def by_pot() -> Any:
            return ot.sliced_wasserstein_distance(x, y, projections=w)

        record["POT"] = steps.measured(by_pot, seconds=1, graph=False)
    report.add("steps", record)


JAX_PROGRAM = """
import json, sys, time
import jax, jax.numpy as jnp
import visreg_core as vc
import visreg_jax
from tests.benchmarks import eager_jax

for name, (v, n, d, k) in json.loads(sys.argv[1]).items():
    z = jax.random.normal(jax.random.key(0), (v, n, d), jnp.float32)
    w = vc.random_slices(d, k, xp=jnp, dtype=jnp.float32)
    losses = {
        "ours": lambda z, w: visreg_jax.visreg_loss(z, w).total,
        "plain formula": lambda z, w: eager_jax.visreg_of_views(z, w),
    }
    for who, loss in losses.items():
        run = jax.jit(jax.value_and_grad(loss))
        jax.block_until_ready(run(z, w))
        times = []
        for _ in range(20):
            start = time.perf_counter()
            jax.block_until_ready(run(z, w))
            times.append(time.perf_counter() - start)
        found = {"work": name, "who": who, "seconds": sorted(times)[10]}
        print(json.dumps({**found, "device": str(jax.devices()[0])}), flush=True)
"""


def under_jax(report: Report, sizes: dict[str, tuple[int, ...]]) -> None:
    """VISReg under jit, against the plain formula under jit: the ends of what it prints."""
    if installed("jax"):
        quiet = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        arguments = [sys.executable, "-c", JAX_PROGRAM, json.dumps(sizes)]
        command(report, "JAX", arguments, 60, **quiet)


def trainer(report: Report) -> None:
    """A minute of the trainer: what it prints has images a second and the loss's share."""
    arguments = [sys.executable, "-m", "reference_train", "--config-name", "digits"]
    with tempfile.TemporaryDirectory() as folder:
        command(report, "trainer", [*arguments, f"run.folder={folder}/run"], 60)


def attempted(report: Report, name: str, step: Callable[[], None]) -> None:
    """A step within this process, unless time is short; its error is in the report."""
    if report.left() < 20:
        report.add("steps", {"step": name, "left out": "for time"})
        return
    try:
        step()
    except Exception as error:
        traceback.print_exc(limit=6)
        report.add("steps", {"step": name, "failed": repr(error)[:300]})


def tiny_works() -> list[Work]:
    """The same works at sizes that a CPU does at once."""
    small = {4: (2, 64, 16, 32), 2: (16, 24)}
    seen, out = set(), []
    for w in WORKS:
        if w.loss not in seen:
            seen.add(w.loss)
            out.append(Work(w.name, w.loss, small[len(w.size)], w.dtype, w.aim))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="in all")
    parser.add_argument("--json", metavar="FILE", help="written anew after every step")
    parser.add_argument("--only", action="append", metavar="WORK", help="works by name; repeatable")
    parser.add_argument("--works-only", action="store_true", help="nothing but the works")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: to see that it runs")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("expected a CUDA device; found none (--tiny runs on the CPU)")
    # With its index, as tensors have it.
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    works = tiny_works() if arguments.tiny else WORKS
    if arguments.only:
        works = [w for w in works if w.name in arguments.only]
    report = Report(arguments.json, arguments.minutes)
    report.add("steps", ceilings(device, arguments.tiny))
    alone = arguments.works_only or arguments.tiny
    measure_works(report, works, device, 10 if alone else 0.3 * 60 * arguments.minutes)
    if not alone:
        kernel_tests(report)
        checks(report)
        under_jax(report, {"step": STEP, "middle": MIDDLE})
    if not arguments.works_only:
        attempted(report, "trees", lambda: trees(report, device, arguments.tiny))
        attempted(report, "two samples", lambda: two_samples(report, device, arguments.tiny))
    if not alone:
        trainer(report)
        measure_compiled(report, works, device)
    report.add("steps", {"step": "done", "seconds_left": report.left()})
    for step in report.content["steps"]:
        if step["step"] == "verdict":
            print(json.dumps(step, default=str))
    for step in report.content["steps"]:
        for line in step.get("failed", []) if isinstance(step.get("failed"), list) else []:
            print(line)


if __name__ == "__main__":
    main()
