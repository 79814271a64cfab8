"""Bytes, time and work per process of the losses of a batch spread over processes.

    python -m tests.benchmarks.bench_sharding [--only NAME ...] [--json FILE] [--rounds R] [--quick]

The same batch lies on 1, 2, 3 and 4 processes of a Gloo group, one thread each. What falls as 1/W
is the work of a process; with more processes than cores wall time cannot, and processes that share
caches slow each other down. So the share of one process is also run alone, with copies of its own
rows in the place of what others would send. Nothing fails for being slow.
"""

import argparse
import os
import statistics
import sys
import time
from datetime import UTC, datetime

import numpy as np

import visreg_core as vc
from tests.benchmarks.bench_losses import print_table, write_json
from tests.benchmarks.measure import interleaved_times, machine
from visreg_core import threads
from visreg_core.losses.declaration import declaration_of
from visreg_core.losses.execution import PLAIN
from visreg_core.losses.kernels import NUMPY
from visreg_core.losses.random_walk import nearest, pairs_of_nearest

SIZES = (1, 2, 3, 4)
SHAPE = {"v": 2, "n": 4096, "d": 512, "k": 1024}
QUICK_SHAPE = {"v": 2, "n": 96, "d": 8, "k": 16}
# Loss, how it sorts, and its number of views as arguments.
WORKS = {
    "visreg gather": ("visreg_loss", "gather", 0),
    "visreg exchange": ("visreg_loss", "exchange", 0),
    "sigreg": ("sigreg_loss", "auto", 0),
    "vicreg": ("vicreg_loss", "auto", 2),
    "barlow": ("barlow_twins_loss", "auto", 2),
    "sag-vicreg": ("sag_vicreg_loss", "auto", 2),  # and its pairs
}
SAG_VICREG = "sag_vicreg_loss"
COLUMNS = (
    "loss", "W", "ms a step", "CPU ms a process", "of W = 1", "computing", "of W = 1",
    "share run alone, ms", "times W, of W = 1", "collectives", "MB sent",
)  # fmt: skip
ABOUT = (
    "One step (value and gradient) in float32 of {v} views of {n} rows in {d} dimensions, {k} "
    "slices, in even parts on W processes of one machine by Gloo, one thread each. Medians of "
    "{rounds} steps; of CPU time, the mean over processes: all of it, and that of the thread that "
    "computes, without Gloo's own. Bytes are those that a process sends. Agreement on shapes is "
    "included. On the machine below more than {cores} processes share its cores, so that CPU time "
    "is what to read; and since processes that run at once share caches and memory besides, the "
    "share of one process was run alone, too, with copies of its own rows for those of the others: "
    "its computing, without agreement and without packing what is sent. "
    "Every process draws all slices by itself, which takes {drawing:.1f} ms beside these numbers."
)


class Echo:
    """W shards of which one runs: what the others would send is its own, slightly scaled.

    Scaled, since a row and its copies would tie wherever they are sorted.
    """

    def __init__(self, size):
        self.size = size

    def _copies(self, x):
        every = np.empty((self.size, *x.shape), x.dtype)
        for s, out in enumerate(every):
            np.multiply(x, 1 + s / 64, out=out)
        return every

    def sum(self, x):
        return x * self.size

    def maximum(self, x):
        return x.copy()

    def gather(self, x, axis):
        axis %= x.ndim
        shape = (*x.shape[:axis], -1, *x.shape[axis + 1 :])
        return np.moveaxis(self._copies(x), 0, axis).reshape(shape)

    def own(self, x, axis):
        return np.split(x, self.size, axis)[0]

    def scatter_sum(self, x, axis):
        return sum(np.split(x, self.size, axis))

    def exchange(self, x, split, join):
        return self.gather(self.own(x, split), join)


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

    everywhere = {"scope": "global", "group": distributed.Sharding(sorting=sorting)}

    def step():
        z.grad = None
        paired = functional.random_walk_pairs(*arrays, **everywhere) if loss == SAG_VICREG else ()
        result = getattr(functional, loss)(*arrays, *paired, **everywhere)
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


def alone(name, shape, rounds):
    """Of each number of processes, seconds of one's share of a step, run alone by one thread."""
    loss, sorting, views = WORKS[name]
    slices = vc.random_slices(shape["d"], shape["k"], dtype=np.float32)
    declaration = declaration_of(getattr(vc, loss))

    def step_of(size):
        rows = np.random.default_rng(0).standard_normal(
            (shape["v"], shape["n"] // size, shape["d"]), dtype=np.float32
        )
        execution = PLAIN._replace(sorting=sorting, kernels=NUMPY, need_gradient=True)
        if size > 1:
            execution = execution._replace(shards=Echo(size))
        arrays = [rows[i] for i in range(views)] if views else [rows, slices]

        def pairs():
            a, b = arrays
            near = nearest(a, execution.shards.gather(b, -2), 10)
            return pairs_of_nearest(
                near, 20, scale="local", symmetrize=False, n_steps=1, seed=0, step=0
            )

        def step():
            paired = pairs() if loss == SAG_VICREG else ()
            inputs = declaration.bind((*arrays, *paired), {})
            _, saved = declaration.forward(execution, **inputs)
            cotangents = (1.0, *[0.0] * (len(declaration.fields) - 1))
            declaration.gradients(execution, inputs, saved, cotangents)

        return step

    with threads.at_most_threads(1):
        wall, _ = interleaved_times({size: step_of(size) for size in SIZES}, rounds)
    return wall


def drawing_seconds(shape, rounds):
    """What drawing all slices takes one thread."""

    def draw():
        vc.random_slices(shape["d"], shape["k"], dtype=np.float32)

    with threads.at_most_threads(1):
        return statistics.median(interleaved_times({"draw": draw}, rounds)[0]["draw"])


def bench(name, shape, rounds):
    """Of each number of processes, the results of its ranks, and seconds of a share alone."""
    from tests.torch_adapter.processes import run, successful

    seconds = alone(name, shape, rounds)
    return {
        size: {
            "ranks": successful(run(size, on_rank, size, name, shape, rounds, deadline=600.0)),
            "alone_seconds": seconds[size],
        }
        for size in SIZES
    }


def table_rows(name, of_sizes):
    """Rows of the printed table and of the manual's page."""

    def mean(size, key):
        ranks = of_sizes[size]["ranks"]
        return statistics.mean(statistics.median(r[key]) for r in ranks)

    whole = statistics.median(of_sizes[1]["alone_seconds"])
    for size, found in of_sizes.items():
        row = [name, size, f"{1e3 * mean(size, 'seconds'):.3g}"]
        for key in ("cpu_seconds", "computing_seconds"):
            row += [f"{1e3 * mean(size, key):.3g}", f"{mean(size, key) / mean(1, key):.2f}"]
        share = statistics.median(found["alone_seconds"])
        row += [f"{1e3 * share:.3g}", f"{size * share / whole:.2f}"]
        first = found["ranks"][0]
        yield [*row, first["collectives"], f"{first['bytes_sent'] / 1e6:.3g}"]


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
        drawing = 1e3 * drawing_seconds(shape, arguments.rounds)
        about = ABOUT.format(
            **shape, rounds=arguments.rounds, cores=os.cpu_count(), drawing=drawing
        )
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
