"""Cost of the losses on a CPU as the batch grows: forward and backward beside eager torch.

    python -m tests.benchmarks.bench_cost [--only LOSS ...] [--json FILE] [--figure FILE] [--quick]

Times of one loss and size are interleaved in one process; each peak of memory is a fresh one's.
Nothing fails for being slow.
"""

import argparse
import json
import os
import statistics
import sys
from datetime import UTC, datetime

from tests.benchmarks.bench_losses import assert_agree, print_table, write_json
from tests.benchmarks.cost_figure import draw_cost
from tests.benchmarks.measure import (
    THREADS,
    fresh_process,
    interleaved_times,
    limit_threads,
    machine,
)

SIZES = (1000, 2000, 5000, 10_000, 20_000, 50_000)
QUICK_SIZES = (64,)
DIM, SLICES = 256, 256
# Loss of visreg_torch, of `eager`, and how many of the inputs are views to differentiate.
LOSSES = {
    "VISReg": ("visreg_loss", "visreg_of_views", 1),
    "SWD": ("gaussian_sliced_wasserstein", "gaussian_sliced_wasserstein", 1),
    "SIGReg": ("sigreg_loss", "sigreg", 1),
    "VICReg": ("vicreg_loss", "vicreg", 2),
    "Barlow Twins": ("barlow_twins_loss", "barlow_twins", 2),
}
COLUMNS = (
    "loss", "N", "ms", "eager, ms", "times faster", "MB above the embeddings", "eager, MB",
)  # fmt: skip
ABOUT = (
    "Forward and backward in float32 through autograd of two views of N rows in {dim} dimensions, "
    "{slices} slices where there are any, on {threads} threads of a CPU, beside the same loss in "
    "eager torch. Times are medians of {rounds} interleaved rounds, each after a call that is not "
    "timed. Memory is the peak of a fresh process above the embeddings, their gradient included."
)


def ways(name):
    """The work's two candidates by name."""
    from tests.benchmarks.works import adapter, eager

    ours, plain, n_views = LOSSES[name]
    return {"visreg_torch": adapter(ours, n_views), "eager": eager(plain, n_views)}


def inputs(name, n):
    """Arrays that a candidate takes."""
    from tests.benchmarks.works import two_views, views_and_slices

    return two_views(n, DIM) if LOSSES[name][2] == 2 else views_and_slices(2, n, DIM, SLICES)


def peak_alone(name, way, n):
    """Peak bytes above the inputs of one step, in this process."""
    from tests.benchmarks.peak_memory import peak_above

    return peak_above(ways(name)[way], inputs(name, 64), inputs(name, n))[0]


def bench(name, n, rounds):
    runs = {way: prepare(*inputs(name, n)) for way, prepare in ways(name).items()}
    assert_agree({way: run() for way, run in runs.items()})
    wall, _ = interleaved_times(runs, rounds)
    alone = ("-m", "tests.benchmarks.bench_cost", "--alone", name)
    return {
        "name": name,
        "size": {"n": n},
        "seconds": wall,
        "peak_bytes": {way: json.loads(fresh_process(*alone, way, str(n))) for way in runs},
    }


def row(result):
    ours, plain = (statistics.median(result["seconds"][way]) for way in ("visreg_torch", "eager"))
    megabytes = (result["peak_bytes"][way] / 1e6 for way in ("visreg_torch", "eager"))
    return [
        result["name"],
        f"{result['size']['n']:,}",
        f"{1e3 * ours:.3g}",
        f"{1e3 * plain:.3g}",
        f"{plain / ours:.1f}",
        *(f"{mb:.0f}" for mb in megabytes),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(LOSSES), help="may be repeated")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--figure", metavar="FILE", help="draw time and memory over N")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that it runs")
    parser.add_argument("--alone", nargs=3, metavar=("LOSS", "WAY", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    limit_threads()
    if arguments.alone:
        name, way, n = arguments.alone
        print(json.dumps(peak_alone(name, way, int(n))))
        return
    load_before = os.getloadavg()[0]
    works = []
    for name in arguments.only or LOSSES:
        for n in QUICK_SIZES if arguments.quick else SIZES:
            print(f"{name}, N = {n} …", file=sys.stderr, flush=True)
            works.append(bench(name, n, arguments.rounds))
    rows = [row(work) for work in works]
    print_table(COLUMNS, rows)
    if arguments.json:
        content = {
            "title": "Cost as the batch grows",
            "about": ABOUT.format(dim=DIM, slices=SLICES, threads=THREADS, rounds=arguments.rounds),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": {**machine(), "load before": f"{load_before:.1f}"},
            "columns": COLUMNS,
            "rows": rows,
            "works": works,
        }
        write_json(arguments.json, content)
    if arguments.figure:
        draw_cost(works, arguments.figure)


if __name__ == "__main__":
    main()
