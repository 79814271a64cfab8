"""Time and memory of the losses, on NumPy and through torch's autograd, beside eager torch and POT.

    python -m tests.benchmarks.bench_losses [--only NAME ...] [--json FILE] [--quick]

Every pair must agree in value (and gradient) before it is timed. Nothing fails for being slow.
"""

import argparse
import json
import os
import statistics
import sys
from datetime import UTC, datetime

from tests.benchmarks.measure import (
    THREADS,
    import_times,
    interleaved_times,
    limit_threads,
    machine,
    module_json,
)

NAMES = ("visreg", "sigreg", "vicreg", "barlow", "sw")
COLUMNS = (
    "work", "candidate", "seconds", "beside", "seconds", "times faster", "aim",
    "MB above inputs and gradients", "beside", "aim",
)  # fmt: skip
ABOUT = (
    "Value and gradients in float32 on {threads} threads, beside the same loss written plainly in "
    "eager torch (for the two-sample distance: POT's value on NumPy arrays). Times are medians of "
    "{rounds} interleaved rounds, each after a call that is not timed, ratios the median over "
    "rounds with their range. Memory is the peak of a fresh process. {profile}"
)


def assert_agree(outcomes):
    """Values to a relative 1e-3, gradients, where both have them, to 1e-2 in norm."""
    import numpy as np

    (name, (value, gradients)), *others = outcomes.items()
    for other, (other_value, other_gradients) in others:
        if abs(value - other_value) > 1e-3 * abs(other_value):
            raise AssertionError(f"expected one value; {name}: {value}, {other}: {other_value}")
        for g, h in zip(gradients, other_gradients, strict=False):
            error = np.linalg.norm(g - h) / np.linalg.norm(h)
            if not error <= 1e-2:
                raise AssertionError(f"gradients of {name} and {other} differ by {error:.1e}")


def bench(name, quick, rounds):
    """Times of all candidates of one work in this process, memory of each in its own."""
    from tests.benchmarks.works import WORKS

    work = WORKS[name]
    inputs = work.inputs(quick)
    runs = {c: prepare(*inputs) for c, prepare in work.candidates.items()}
    outcomes = {c: run() for c, run in runs.items()}
    baseline = work.baseline
    for candidate in runs:
        assert_agree({candidate: outcomes[candidate], baseline: outcomes[baseline]})
    del outcomes
    wall, cpu = interleaved_times(runs, rounds)
    ratios = {
        c: [b / a for a, b in zip(wall[c], wall[baseline], strict=True)]
        for c in wall
        if c != baseline
    }
    return {
        "name": name,
        "title": work.title,
        "size": work.quick_size if quick else work.size,
        "baseline": baseline,
        "at_least": work.at_least,
        "at_most_mb": work.at_most_mb,
        "seconds": wall,
        "cpu_seconds": cpu,
        "ratios": ratios,
        "memory": {c: module_json("peak_memory", name, c, quick=quick) for c in runs},
    }


def table_rows(result):
    """Rows of the printed table and of the manual's page."""
    seconds = {c: statistics.median(t) for c, t in result["seconds"].items()}
    memory = {c: m["above_mb"] for c, m in result["memory"].items()}
    baseline = result["baseline"]
    size = " ".join(f"{key.upper()}={number}" for key, number in result["size"].items())
    for candidate, ratios in result["ratios"].items():
        yield [
            f"{result['title']} {size}",
            candidate,
            f"{seconds[candidate]:.3g}",
            baseline,
            f"{seconds[baseline]:.3g}",
            f"{statistics.median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f})",
            f"≥ {result['at_least']}",
            f"{memory[candidate]:.0f}",
            f"{memory[baseline]:.0f}",
            f"≤ {result['at_most_mb']:.0f}",
        ]


def profile_sentence(profiled):
    """What VISReg's time is spent on, beside the two products that it cannot do without."""
    whole = statistics.median(profiled["whole_seconds"])
    products = statistics.median(profiled["products_seconds"])
    stages = ", ".join(
        f"{stage} {share * whole:.3f} s" for stage, share in profiled["stages"].items()
    )
    return (
        f"The floor of VISReg is its two matrix products: {products:.3f} s alone, of "
        f"{whole:.3f} s. A sampled profile of the whole: {stages}."
    )


def print_table(header, rows):
    lines = [list(header), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def write_json(path, content):
    """Write beside and rename, so that a run that is stopped leaves the last one whole."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(f"{path}.part", "w") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.write("\n")
    os.replace(f"{path}.part", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", action="append", choices=NAMES, help="may be repeated")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that it runs")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    names = arguments.only or NAMES
    quick, rounds = arguments.quick, 2 if arguments.quick else arguments.rounds
    limit_threads()

    load_before = os.getloadavg()[0]
    results = []
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        results.append(bench(name, quick, rounds))
    rows = [row for result in results for row in table_rows(result)]
    print_table(COLUMNS, rows)

    content = {
        "title": "Losses",
        "about": "",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {**machine(), "load before": f"{load_before:.1f}"},
        "columns": COLUMNS,
        "rows": rows,
        "works": results,
    }
    sentence = ""
    if "visreg" in names:
        content["visreg_profile"] = module_json("profile_visreg", "--json", quick=quick)
        sentence = profile_sentence(content["visreg_profile"])
        print("\n" + sentence)
    numpy_seconds, package_seconds = import_times(1 if quick else 15)
    content["import_seconds"] = {"numpy": numpy_seconds, "visreg_core after it": package_seconds}
    imports = (
        f"`import visreg_core` takes {statistics.median(package_seconds):.3f} s after "
        f"`import numpy` ({statistics.median(numpy_seconds):.3f} s)."
    )
    print(imports)
    content["about"] = ABOUT.format(
        threads=THREADS, rounds=rounds, profile=f"{sentence} {imports}".strip()
    )
    if arguments.json:
        write_json(arguments.json, content)


if __name__ == "__main__":
    main()
