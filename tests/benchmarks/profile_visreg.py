"""Where VISReg's time on NumPy goes: the floor of its two products, and a sampled profile.

Run as ``python -m tests.benchmarks.profile_visreg [--json] [--quick]``.
"""

import argparse
import json
import linecache
import re
import statistics
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from tests.benchmarks.measure import ROOT, interleaved_times, limit_threads

PACKAGE = str(ROOT / "visreg_core")

# Stage of a source line, by the first pattern that "module.function: source" matches.
STAGES = {
    "projection product": r"matmul_accumulate",
    "product back": r"_sliced\..*: .*(matmul|@)",
    "sort by rank": r"sorting_numpy\.(?!targets_by_rank)|sorted_values",
    "scatter of targets": r"sorting_numpy\.targets_by_rank|put_last",
    "differences": r"sliced_wasserstein\.",
    "moments, normalising, their gradient": r"_rows\.|visreg\.",
}


def two_products(z, slices):
    """The two products alone: projections (V, K, N), then their gradients times the slices."""
    import numpy as np

    directions = np.ascontiguousarray(slices.T)
    transposed = z.transpose(0, 2, 1)
    return lambda: np.matmul(np.matmul(directions, transposed).transpose(0, 2, 1), directions)


def line_shares(run, seconds, interval=5e-4):
    """Share of `run`'s wall time on each line of the package, repeated for `seconds`.

    A thread looks at what the others are at: each look counts for the innermost line of the
    package in every thread that is not waiting, split evenly between those threads. (NumPy's loops
    release the interpreter lock, so a look does not have to wait for them.)
    """
    counts = Counter()
    stop = threading.Event()

    def look():
        me = threading.get_ident()
        while not stop.wait(interval):
            frames = sys._current_frames()
            lines = [busy_line(frame) for thread, frame in frames.items() if thread != me]
            busy = [line for line in lines if line]
            for line in busy:
                counts[line] += 1 / len(busy)

    watcher = threading.Thread(target=look)
    watcher.start()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        run()
    stop.set()
    watcher.join()
    total = sum(counts.values())
    return {line: count / total for line, count in counts.most_common()}


def busy_line(frame):
    """Innermost line of the package, "module.function: source"; None if the thread waits."""
    if frame.f_code.co_filename == threading.__file__:
        return None
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    if frame is None:
        return None
    code = frame.f_code
    source = linecache.getline(code.co_filename, frame.f_lineno).strip()
    return f"{Path(code.co_filename).stem}.{code.co_name}: {source}"


def stage_shares(shares):
    """The lines' shares summed over `STAGES`; whatever belongs to none is "rest"."""
    stages = dict.fromkeys([*STAGES, "rest"], 0.0)
    for line, share in shares.items():
        matching = (stage for stage, pattern in STAGES.items() if re.search(pattern, line))
        stages[next(matching, "rest")] += share
    return stages


def measure(quick):
    """Times of the whole and of its products alone, and the whole's shares by stage and line."""
    from tests.benchmarks.works import WORKS

    work = WORKS["visreg"]
    inputs = work.inputs(quick)
    run = work.candidates["NumPy"](*inputs)
    shares = line_shares(run, seconds=0.2 if quick else 4)
    wall, _ = interleaved_times({"whole": run, "products": two_products(*inputs)}, rounds=5)
    return {
        "whole_seconds": wall["whole"],
        "products_seconds": wall["products"],
        "stages": stage_shares(shares),
        "lines": dict(list(shares.items())[:20]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that it runs")
    arguments = parser.parse_args()
    limit_threads()
    measured = measure(arguments.quick)
    if arguments.json:
        print(json.dumps(measured, ensure_ascii=False))
        return
    whole = statistics.median(measured["whole_seconds"])
    products = statistics.median(measured["products_seconds"])
    print(f"one call {whole:.3f} s, its two products alone {products:.3f} s\n")
    for kind in ("stages", "lines"):
        for name, share in measured[kind].items():
            print(f"{share * whole:.3f} s {share:6.1%}  {name}")
        print()


if __name__ == "__main__":
    main()
