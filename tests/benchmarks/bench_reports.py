"""What a report of a large file takes beside reading it and the matrix products in it.

    python -m tests.benchmarks.bench_reports [--json FILE] [--folder FOLDER] [--quick]
    python -m tests.benchmarks.bench_reports --parts ROWS [--json FILE] [--quick]

Files are made in FOLDER (5 GB), and removed. With ``--parts`` rows are made part by part instead,
as many machines would hold them, and only states of `visreg_core.statistics` are kept. Nothing
fails for being slow.
"""

import argparse
import dataclasses
import json
import os
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks.bench_losses import print_table, write_json
from tests.benchmarks.measure import THREADS, fresh_process, limit_threads, machine

# rows, dimensions, dtype, classes of the labels (0: none)
CASES = (
    (5_000_000, 64, "float16", 0),
    (1_280_000, 768, "float32", 0),
    (100_000, 768, "float32", 0),
    (100_000, 768, "float32", 50),
)
QUICK = ((3000, 8, "float16", 0), (3000, 8, "float32", 5))
SLICES = 256
PART = 2_500_000
COLUMNS = (
    "rows", "D", "dtype", "classes", "reading twice, s", "products, s", "report and HTML, s",
    "report / larger", "wall s", "anonymous MB", "reads",
)  # fmt: skip
ABOUT = (
    "`visreg report` with its HTML, {slices} slices, beside reading the file twice and the matrix "
    "products alone, measured in the same process before it: the scatter matrix of all rows, and "
    "three projections of each (SIGReg, raw and standardised), in float64. Seconds are processor "
    "seconds of {threads} threads: other programs were at work. Memory is the largest anonymous "
    "one, seen every 20 ms."
)
PART_COLUMNS = (
    "pass", "rows", "parts", "µs a row", "processor s", "wall s", "state MB", "merging ms a state",
    "anonymous MB",
)  # fmt: skip
PART_ABOUT = (
    "{rows:,} rows of 64 float16 numbers, {slices} slices, in parts of {part:,} rows: each part is "
    "made (not counted), its state is updated, sent through `to_arrays` and `from_arrays`, and "
    "merged; the second pass makes the same parts again. One process, {threads} threads, on a "
    "machine with other work. The plan for 10⁹ rows on 64 machines is on the page of statistics."
)


def rows_of(rng, centres, count, dtype):
    """Rows of 200 overlapping classes."""
    import numpy as np

    dim = centres.shape[1]
    rows = np.float32(0.8) * rng.standard_normal((count, dim), dtype=np.float32)
    rows += np.float32(0.6) * centres[rng.integers(len(centres), size=count)]
    return rows.astype(dtype)


def centres_of(dim):
    import numpy as np

    return np.random.default_rng(0).standard_normal((200, dim), dtype=np.float32)


def make_file(path, n, dim, dtype):
    import numpy as np

    stored = np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=(n, dim))
    rng, centres, step = np.random.default_rng(1), centres_of(dim), 1 << 15
    for start in range(0, n, step):
        stop = min(start + step, n)
        stored[start:stop] = rows_of(rng, centres, stop - start, dtype)


class Timed:
    """Wall and processor seconds, and the peak of anonymous memory, of a ``with`` block."""

    def __enter__(self):
        self._done = threading.Event()
        self.anonymous = 0
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        self._start = time.perf_counter(), time.process_time()
        return self

    def _look(self):
        from tests.benchmarks.peak_memory import resident

        while not self._done.wait(0.02):
            self.anonymous = max(self.anonymous, resident("RssAnon"))

    def __exit__(self, *error):
        wall, cpu = self._start
        self.wall, self.cpu = time.perf_counter() - wall, time.process_time() - cpu
        self._done.set()
        self._watch.join()


def read_twice(stored):
    import numpy as np

    copy = np.empty((stored.default_block_rows, stored.shape[1]), stored.dtype)
    for _ in range(2):
        for block in stored.blocks():
            copy[: len(block)] = block


def multiply(n, dim):
    """The products of a report, of rows that are in memory."""
    import numpy as np

    from visreg_core import random_slices, threads

    count = min(n, 1 << 14)
    z = np.random.default_rng(0).standard_normal((count, dim))
    w = random_slices(dim, SLICES)

    def work(parts):
        for part in parts:
            part.T @ part
            for _ in range(3):
                w.T @ part.T

    halves = np.array_split(z, THREADS)
    with threads.blas_on_one_thread():
        for _ in range(-(-n // count)):
            threads.spread(work, halves, z.nbytes)


def alone(path, classes):
    """What one file takes, in this process."""
    import numpy as np

    from visreg_core.embeddings import load
    from visreg_core.report import report
    from visreg_core.report._html import to_html
    from visreg_core.report._model import Comparison

    def page(found):
        return to_html(Comparison([found], []), {})

    page(report(np.random.default_rng(0).standard_normal((100, 4))))  # libraries load
    stored = load(path)
    n, dim = stored.shape
    shown = []

    def counted(rows):
        for piece in stored.pieces(rows):
            shown.append(len(piece))
            yield piece

    labels = np.random.default_rng(1).integers(classes, size=n) if classes else None
    with Timed() as reading:
        read_twice(stored)
    with Timed() as products:
        multiply(n, dim)
    with Timed() as whole:
        page(report(dataclasses.replace(stored, pieces=counted), labels=labels, n_slices=SLICES))
    return {
        "rows": n,
        "dim": dim,
        "dtype": stored.dtype.name,
        "classes": classes,
        "reading": reading.cpu,
        "products": products.cpu,
        "report": whole.cpu,
        "wall": [reading.wall, products.wall, whole.wall],
        "anonymous_mb": whole.anonymous / 1e6,
        "reads": sum(shown) / n,
    }


def in_parts(n, part):
    """Both passes over rows that are made part by part: what each of them takes."""
    import numpy as np

    from visreg_core.statistics import Statistics

    centres = centres_of(64)
    starts = range(0, n, part)

    def rows_from(start):
        count = min(part, n - start)
        rng = np.random.default_rng([2, start])
        return np.concatenate(
            [
                rows_of(rng, centres, min(1 << 17, count - i), np.float16)
                for i in range(0, count, 1 << 17)
            ]
        )

    def whole_pass(name, new, update):
        total, wall, cpu, merging, anonymous, size = None, 0.0, 0.0, 0.0, 0, 0
        for start in starts:
            rows = rows_from(start)
            with Timed() as updating:
                state = new()
                update(state, rows, start)
            with Timed() as sending:
                arrays = state.to_arrays()
                size = max(size, sum(a.nbytes for a in arrays.values()))
                sent = type(state).from_arrays(arrays)
                if total is None:
                    total = sent
                else:
                    total.merge(sent)
            wall, cpu = wall + updating.wall + sending.wall, cpu + updating.cpu + sending.cpu
            merging += sending.wall
            anonymous = max(anonymous, updating.anonymous, sending.anonymous)
            print(f"{name}: {min(start + part, n):,} rows, {cpu:.0f} s", flush=True)
        row = [
            name, f"{n:,}", str(len(starts)), f"{cpu / n * 1e6:.2f}", f"{cpu:.0f}", f"{wall:.0f}",
            f"{size / 1e6:.1f}", f"{merging / len(starts) * 1e3:.0f}", f"{anonymous / 1e6:.0f}",
        ]  # fmt: skip
        return total, row

    first, row = whole_pass(
        "first", lambda: Statistics(64, n_slices=SLICES), lambda s, z, i: s.update(z, numbers=i)
    )
    known = first.result().moments, first.slices
    second, other = whole_pass(
        "second", lambda: type(first.distributions())(*known), lambda s, z, i: s.update(z)
    )
    assert first.result().n == n == int(second.gaussian.counts[0].sum())
    return [row, other]


def table(measured):
    rows = []
    for m in measured:
        floor = max(m["reading"], m["products"])
        rows.append(
            [
                f"{m['rows']:,}", str(m["dim"]), m["dtype"], str(m["classes"] or "none"),
                *(f"{m[name]:.2f}" for name in ("reading", "products", "report")),
                f"{m['report'] / floor:.2f}", f"{m['wall'][2]:.1f}", f"{m['anonymous_mb']:.0f}",
                f"{m['reads']:g}",
            ]
        )  # fmt: skip
    return rows


def measured_files(cases, folder):
    measured = []
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "rows.npy"
        for n, dim, dtype, classes in cases:
            make_file(path, n, dim, dtype)
            command = ("-m", "tests.benchmarks.bench_reports", "--alone", str(path), str(classes))
            measured.append(json.loads(fresh_process(*command)))
    return measured


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--folder", help="where files are made")
    parser.add_argument("--parts", type=int, metavar="ROWS", help="so many rows, part by part")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--alone", nargs=2, metavar=("FILE", "CLASSES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    limit_threads()
    if arguments.alone:
        path, classes = arguments.alone
        print(json.dumps(alone(path, int(classes))))
        return
    load_before = os.getloadavg()[0]
    content = {"date": datetime.now(UTC).strftime("%Y-%m-%d")}
    if arguments.parts:
        part = arguments.parts // 4 if arguments.quick else PART
        about = PART_ABOUT.format(rows=arguments.parts, slices=SLICES, part=part, threads=THREADS)
        content |= {"title": "Statistics in parts", "about": about, "columns": PART_COLUMNS}
        content["rows"] = in_parts(arguments.parts, part)
    else:
        content |= {
            "title": "Reports of large files",
            "about": ABOUT.format(slices=SLICES, threads=THREADS),
            "columns": COLUMNS,
        }
        content["measured"] = measured_files(QUICK if arguments.quick else CASES, arguments.folder)
        content["rows"] = table(content["measured"])
    content["machine"] = {**machine(), "load before": f"{load_before:.1f}"}
    print_table(content["columns"], content["rows"])
    if arguments.json:
        write_json(arguments.json, content)


if __name__ == "__main__":
    main()
