"""Time and memory of the dendrogram metrics beside SciPy's linkage.

    python -m tests.benchmarks.bench_trees [--json FILE] [--rounds R] [--large] [--quick]

N = 10,000 is timed against one average linkage of SciPy in the same run; what SciPy's memory does
not allow is timed alone in fresh processes. Nothing fails for being slow.
"""

import argparse
import json
import os
import statistics
import time
from datetime import UTC, datetime

from tests.benchmarks.measure import fresh_process, interleaved_times, machine
from tests.benchmarks.peak_memory import reset_peak, resident

DIMENSIONS = 64
COLUMNS = ("work", "N", "s", "CPU s", "of one SciPy linkage", "MB above inputs", "aim")
ABOUT = (
    "Average linkage of cosine distances, D = 64, float64, on all cores, of which SciPy's linkage "
    "uses one: clusters inside clusters, and a random nonlinear image of them as the second "
    "set. Times at N = {n} are medians of {rounds} interleaved rounds in one process, ratios (of "
    "wall time) the median over rounds; memory and the larger times are of fresh processes, one "
    "run each. On a machine with other work CPU time is what to read. Linkage compares 1.2 N² "
    "pairs at N = 10,000 and 1.4 N² at 40,000, each a product of D numbers, and single linkage "
    "N²/2. So time grows a little faster than N², and memory as N·D. No GPU was there to run on."
)
AIMS = {
    ("linkage", 10_000): "≤ 0.12 of one SciPy linkage, on two threads",
    ("linkage", 100_000): "≤ 40 s, on two threads",
    ("linkage_single", 100_000): "≤ 60 s, on two threads, ≤ 300 MB",
    ("lca_similarity", 10_000): "≤ 0.22 of one SciPy linkage, on two threads, ≤ 500 MB",
    ("lca_similarity", 50_000): "≤ 22 s, on two threads, ≤ 2000 MB",
}


def one_thread():
    """Call before the libraries are imported."""
    for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[variable] = "1"


def two_sets(n):
    """Items in 100 fine classes of 20 coarse ones, and another model's view of them."""
    import numpy as np

    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((20, DIMENSIONS))
    fine = coarse[np.arange(100) % 20] + 0.5 * rng.standard_normal((100, DIMENSIONS))
    x = fine[rng.integers(100, size=n)] + 0.5 * rng.standard_normal((n, DIMENSIONS))
    y = np.tanh(x @ rng.standard_normal((DIMENSIONS, DIMENSIONS)) / 8)
    return x, y


def works(n):
    """Name -> function of nothing, on sets of n items."""
    import scipy.cluster.hierarchy as sch

    from visreg_core import metrics

    x, y = two_sets(n)
    return {
        "scipy_linkage": lambda: sch.linkage(x, "average", "cosine"),
        "linkage": lambda: metrics.linkage(x),
        "linkage_ward": lambda: metrics.linkage(x, "ward", "euclidean"),
        "linkage_single": lambda: metrics.linkage(x, "single", "euclidean"),
        "lca_similarity": lambda: metrics.lca_similarity(x, y),
        "lca_similarity_depth": lambda: metrics.lca_similarity(x, y, distance="depth"),
        "cophenetic_similarity": lambda: metrics.cophenetic_similarity(x, y),
    }


def alone(name, n):
    """Seconds and peak bytes above the inputs of one work, in this process."""
    works(200)[name]()  # libraries load and warm up
    run = works(n)[name]
    before = resident("VmRSS")
    reset = reset_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return {
        "work": name,
        "n": n,
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "bytes_above_inputs": resident("VmHWM") - before if reset else None,
    }


def fresh(name, n):
    return json.loads(fresh_process("-m", "tests.benchmarks.bench_trees", "--alone", name, str(n)))


def beside_scipy(n, rounds):
    """All works interleaved with SciPy's linkage."""
    functions = works(n)
    wall, cpu = interleaved_times(functions, rounds)
    return {
        name: {
            "n": n,
            "seconds": wall[name],
            "cpu_seconds": cpu[name],
            "ratio": statistics.median(
                a / b for a, b in zip(wall[name], wall["scipy_linkage"], strict=True)
            ),
        }
        for name in functions
    }


def table(timed, single):
    """Rows of the manual's page."""
    memory = {(r["work"], r["n"]): r["bytes_above_inputs"] for r in single}
    rows = []
    for name, result in timed.items():
        n = result["n"]
        times = statistics.median(result["seconds"]), statistics.median(result["cpu_seconds"])
        rows.append(_row(name, n, *times, f"{result['ratio']:.3f}", memory.get((name, n))))
    for r in single:
        if r["work"] not in timed or timed[r["work"]]["n"] != r["n"]:
            times = r["seconds"], r["cpu_seconds"]
            rows.append(_row(r["work"], r["n"], *times, "", r["bytes_above_inputs"]))
    return rows


def _row(name, n, seconds, cpu_seconds, ratio, peak):
    megabytes = "" if peak is None else f"{peak / 1e6:.0f}"
    aim = AIMS.get((name, n), "")
    return [name, f"{n:,}", f"{seconds:.3g}", f"{cpu_seconds:.3g}", ratio, megabytes, aim]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", action="store_true", help="N = 200,000 too (minutes)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--alone", nargs=2, metavar=("WORK", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    one_thread()
    if arguments.alone:
        name, n = arguments.alone
        print(json.dumps(alone(name, int(n))))
        return
    load_before = os.getloadavg()[0]
    n = 300 if arguments.quick else 10_000
    timed = beside_scipy(n, arguments.rounds)
    single = [fresh(name, n) for name in timed]
    if not arguments.quick:
        single.append(fresh("linkage", 50_000))
        single.append(fresh("lca_similarity", 50_000))
        if arguments.large:
            single.append(fresh("linkage", 100_000))
            single.append(fresh("linkage_single", 100_000))
            single.append(fresh("linkage", 200_000))
    rows = table(timed, single)
    for row in (COLUMNS, *rows):
        print("  ".join(str(cell).rjust(12) for cell in row))
    if arguments.json:
        content = {
            "title": "Dendrograms and their similarity",
            "about": ABOUT.format(n=f"{n:,}", rounds=arguments.rounds),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": {**machine(), "load before": f"{load_before:.1f}"},
            "columns": COLUMNS,
            "rows": rows,
            "timed": timed,
            "alone": single,
        }
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
            file.write("\n")


if __name__ == "__main__":
    main()
