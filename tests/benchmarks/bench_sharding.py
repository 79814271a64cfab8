"""Bytes, time and work per process of the losses of a batch spread over processes.

    python -m tests.benchmarks.bench_sharding [--only NAME ...] [--json FILE] [--rounds R] [--quick]

The same batch lies on 1, 2, 3 and 4 processes of a Gloo group, one thread each. What falls as 1/W
is the work of a process; with more processes than cores wall time cannot. Nothing fails for being
slow.
"""

import argparse
import os
import statistics
import sys
import time
from datetime import UTC, datetime

from tests.benchmarks.bench_losses import print_table, write_json
from tests.benchmarks.measure import machine

SIZES = (1, 2, 3, 4)
SHAPE = {"v": 2, "n": 4096, "d": 512, "k": 1024}
QUICK_SHAPE = {"v": 2, "n": 48, "d": 8, "k": 16}
# Loss, how it sorts, and its number of views as arguments.
WORKS = {
    "visreg gather": ("visreg_loss", "gather", 0),
    "visreg exchange": ("visreg_loss", "exchange", 0),
    "sigreg": ("sigreg_loss", "auto", 0),
    "vicreg": ("vicreg_loss", "auto", 2),
    "barlow": ("barlow_twins_loss", "auto", 2),
}
COLUMNS = (
    "loss", "W", "ms a step", "CPU ms a process", "of W = 1", "computing", "of W = 1",
    "collectives", "MB sent",
)  # fmt: skip
ABOUT = (
    "One step (value and gradient) in float32 of {v} views of {n} rows in {d} dimensions, {k} "
    "slices, in even parts on W processes of one machine by Gloo, one thread each. Medians of "
    "{rounds} steps; of CPU time, the mean over processes: all of it, and that of the thread that "
    "computes, without Gloo's own. Bytes are those that a process sends. Agreement on shapes is "
    "included. On the machine below more than {cores} processes share its cores, so that CPU time "
    "is what to read."
)


def on_rank(rank, size, name, shape, rounds):
    """Wall, CPU and computing seconds of each round of a process, and what it sent."""
    import torch

    from visreg_core import random_slices
    from visreg_torch import distributed, functional

    loss, sorting, views = WORKS[name]
    torch.manual_seed(rank)
    rows = shape["n"] // size
    z = torch.randn(shape["v"], rows, shape["d"], requires_grad=True)
    slices = random_slices(shape["d"], shape["k"], xp=torch, dtype=torch.float32)
    arrays = [z[i] for i in range(views)] if views else [z, slices]
    shards = []
    made = distributed.ProcessShards.__init__

    def noted(self, *arguments):
        made(self, *arguments)
        shards.append(self)

    distributed.ProcessShards.__init__ = noted

    def step():
        z.grad = None
        result = getattr(functional, loss)(
            *arrays, scope="global", group=distributed.Sharding(sorting=sorting)
        )
        (result.total if isinstance(result, tuple) else result).backward()

    step()
    times = []
    for _ in range(rounds):
        torch.distributed.barrier()
        shards.clear()
        start = time.perf_counter(), time.process_time(), time.thread_time()
        step()
        end = time.perf_counter(), time.process_time(), time.thread_time()
        times.append([b - a for a, b in zip(start, end, strict=True)])
    return {
        "seconds": [t[0] for t in times],
        "cpu_seconds": [t[1] for t in times],
        "computing_seconds": [t[2] for t in times],
        "collectives": sum(s.traffic.n_calls for s in shards),
        "bytes_sent": sum(s.traffic.n_bytes for s in shards),
    }


def bench(name, shape, rounds):
    """Of each number of processes, the results of its ranks."""
    from tests.torch_adapter.processes import run, successful

    return {
        size: successful(run(size, on_rank, size, name, shape, rounds, deadline=600.0))
        for size in SIZES
    }


def table_rows(name, of_sizes):
    """Rows of the printed table and of the manual's page."""

    def mean(size, key):
        ranks = of_sizes[size]
        return statistics.mean(statistics.median(r[key]) for r in ranks)

    for size, ranks in of_sizes.items():
        row = [name, size, f"{1e3 * mean(size, 'seconds'):.3g}"]
        for key in ("cpu_seconds", "computing_seconds"):
            row += [f"{1e3 * mean(size, key):.3g}", f"{mean(size, key) / mean(1, key):.2f}"]
        yield [*row, ranks[0]["collectives"], f"{ranks[0]['bytes_sent'] / 1e6:.3g}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(WORKS), help="may be repeated")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that it runs")
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    shape = QUICK_SHAPE if arguments.quick else SHAPE
    results = {}
    for name in arguments.only or WORKS:
        print(f"{name} …", file=sys.stderr, flush=True)
        results[name] = bench(name, shape, arguments.rounds)
    rows = [row for name, of_sizes in results.items() for row in table_rows(name, of_sizes)]
    print_table(COLUMNS, [[str(cell) for cell in row] for row in rows])
    if arguments.json:
        about = ABOUT.format(**shape, rounds=arguments.rounds, cores=os.cpu_count())
        content = {
            "title": "Losses of a batch on several processes",
            "about": about,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": {**machine(), "threads": 1, "load before": f"{load_before:.1f}"},
            "columns": COLUMNS,
            "rows": rows,
            "works": results,
        }
        write_json(arguments.json, content)


if __name__ == "__main__":
    main()
