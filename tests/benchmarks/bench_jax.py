"""Time and memory of the losses in JAX beside plain formulas under `jax.jit`.

    python -m tests.benchmarks.bench_jax [--only NAME ...] [--json FILE] [--quick]

Both are compiled, value and gradient in one program, and must agree before they are timed. Memory
is what XLA reserves for temporary arrays. Nothing fails for being slow.
"""

import argparse
import os
import statistics
import sys
from datetime import UTC, datetime
from importlib.metadata import version

from tests.benchmarks.bench_losses import assert_agree, print_table, write_json
from tests.benchmarks.measure import THREADS, interleaved_times, limit_threads, machine

# {name: (loss of the package, plain formula, differentiated arguments, times faster to reach)}
LOSSES = {
    "visreg": ("visreg_loss", "visreg_of_views", 1, 1.5),
    "sigreg": ("sigreg_loss", "sigreg", 1, 4),
    "vicreg": ("vicreg_loss", "vicreg", 2, 10),
    "barlow": ("barlow_twins_loss", "barlow_twins", 2, 10),
}
COLUMNS = (
    "work", "seconds", "plain, seconds", "times faster", "aim", "temporary MB", "plain, MB",
)  # fmt: skip
ABOUT = (
    "Value and gradients in float32 in JAX on the host's {threads} threads, beside the same loss "
    "written plainly and differentiated by JAX, both under `jax.jit`. Times are medians of "
    "{rounds} interleaved rounds, each after a call that is not timed, ratios the median over "
    "rounds with their range. Memory is that of the compiled program's temporary arrays, gradients "
    "left out."
)


def compiled(function, inputs, n_differentiated):
    """A function without arguments that returns ``(value, gradients)``, and its temporary MB."""
    import jax

    arrays = [jax.numpy.asarray(a) for a in inputs]
    of_embeddings = jax.value_and_grad(function, tuple(range(n_differentiated)))
    program = jax.jit(of_embeddings).lower(*arrays).compile()

    def run():
        value, gradients = jax.block_until_ready(program(*arrays))
        return float(value), gradients

    return run, program.memory_analysis().temp_size_in_bytes / 1e6


def bench(name, quick, rounds):
    import visreg_jax
    from tests.benchmarks import eager_jax
    from tests.benchmarks.works import WORKS

    work = WORKS[name]
    inputs = work.inputs(quick)
    loss_name, plain_name, differentiated, aim = LOSSES[name]
    loss = getattr(visreg_jax, loss_name)

    def total(*arrays):
        result = loss(*arrays)
        return result[0] if isinstance(result, tuple) else result

    functions = {"visreg_jax": total, "plain": getattr(eager_jax, plain_name)}
    programs = {c: compiled(f, inputs, differentiated) for c, f in functions.items()}
    runs = {c: run for c, (run, _) in programs.items()}
    assert_agree({c: run() for c, run in runs.items()})
    wall, cpu = interleaved_times(runs, rounds)
    return {
        "name": name,
        "title": work.title,
        "size": work.quick_size if quick else work.size,
        "at_least": aim,
        "seconds": wall,
        "cpu_seconds": cpu,
        "ratios": [b / a for a, b in zip(wall["visreg_jax"], wall["plain"], strict=True)],
        "temporary_mb": {c: mb for c, (_, mb) in programs.items()},
    }


def row(result):
    seconds = {c: statistics.median(t) for c, t in result["seconds"].items()}
    ratios, memory = result["ratios"], result["temporary_mb"]
    return [
        result["title"] + "".join(f" {k.upper()}={n}" for k, n in result["size"].items()),
        f"{seconds['visreg_jax']:.3g}",
        f"{seconds['plain']:.3g}",
        f"{statistics.median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f})",
        f"≥ {result['at_least']}",
        f"{memory['visreg_jax']:.0f}",
        f"{memory['plain']:.0f}",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", action="append", choices=list(LOSSES), help="may be repeated")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that it runs")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rounds = 2 if arguments.quick else arguments.rounds
    limit_threads()

    load_before = os.getloadavg()[0]
    results = []
    for name in arguments.only or LOSSES:
        print(f"{name} …", file=sys.stderr, flush=True)
        results.append(bench(name, arguments.quick, rounds))
    rows = [row(result) for result in results]
    print_table(COLUMNS, rows)
    if arguments.json:
        content = {
            "title": "Losses in JAX",
            "about": ABOUT.format(threads=THREADS, rounds=rounds),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": {**machine(), "jax": version("jax"), "load before": f"{load_before:.1f}"},
            "columns": COLUMNS,
            "rows": rows,
            "works": results,
        }
        write_json(arguments.json, content)


if __name__ == "__main__":
    main()
