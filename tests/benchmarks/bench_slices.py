"""What a slice is worth: the error of gradients that K random slices leave, by sampler.

    python -m tests.benchmarks.bench_slices [--json FILE] [--figure FILE] [--quick]

Gradients of SIGReg are compared with those of infinitely many slices, of the others with the mean
of all draws. Sobol points, which no sampler of the package draws, are Φ⁻¹ of a scrambled sequence,
normalised.
"""

import argparse
import time
from datetime import UTC, datetime

import numpy as np
from scipy.special import ndtri
from scipy.stats import qmc

from tests.benchmarks.bench_losses import print_table, write_json
from tests.benchmarks.measure import machine
from visreg_core import (
    gaussian_sliced_energy_distance,
    gaussian_sliced_wasserstein,
    random_slices,
    sigreg_limit,
    sigreg_loss,
    structured_slices,
    value_and_grad,
)

DIMS, QUICK_DIMS = (64, 256, 1024), (8,)
ROWS = 512
SHARES = (0.25, 0.5, 1, 2, 4)  # K / D
SAMPLERS = ("gaussian", "orthogonal", "structured", "sobol")
LOSSES = {
    "SIGReg": (sigreg_loss, {"t_max": 6.0, "n_knots": 33}),
    "SWD": (gaussian_sliced_wasserstein, {}),
    "energy": (gaussian_sliced_energy_distance, {}),
}
COLUMNS = ("loss", "embeddings", "D", "sampler", *(f"K = {s:g} D" for s in SHARES), "draw / step")
ABOUT = (
    "E‖g_K − g‖² / ‖g‖² of the gradient g_K on K slices, {draws} draws of slices, {rows} rows, "
    "float32. \"1.3\": N(0, I) times 1.3; \"uneven\": columns whose deviations go from 0.2 to 2. "
    "The last column is the time to draw K = D slices over that of the loss and its gradient on "
    "them, in processor seconds."
)  # fmt: skip


def embeddings(kind, dim):
    z = np.random.default_rng(0).standard_normal((ROWS, dim))
    scale = 1.3 if kind == "1.3" else np.geomspace(0.2, 2, dim)
    return (scale * z).astype(np.float32)


def directions(sampler, dim, count, step):
    if sampler == "structured":
        return structured_slices(dim, count, step=step, dtype=np.float32)
    if sampler != "sobol":
        return random_slices(dim, count, step=step, sampler=sampler, dtype=np.float32)
    points = qmc.Sobol(dim, seed=step).random(1 << (count - 1).bit_length())[:count]
    w = ndtri(np.clip(points, 1e-9, 1 - 1e-9)).T
    return (w / np.linalg.norm(w, axis=0)).astype(np.float32)


def errors(name, z, draws):
    """Relative squared errors by sampler and share."""
    loss, options = LOSSES[name]
    dim = z.shape[1]
    drawn = {
        (sampler, share): [
            value_and_grad(loss)(
                z, directions(sampler, dim, max(1, round(share * dim)), step), **options
            )[1]
            for step in range(draws)
        ]
        for sampler in SAMPLERS
        for share in SHARES
    }
    if name == "SIGReg":
        _, limit = value_and_grad(sigreg_limit)(z)
        return {
            key: float(np.mean([np.sum((g - limit) ** 2) for g in found]) / np.sum(limit**2))
            for key, found in drawn.items()
        }
    mean = np.mean(drawn["orthogonal", SHARES[-1]], axis=0)
    return {
        key: float(np.sum(np.var(found, axis=0, ddof=1)) / np.sum(mean**2))
        for key, found in drawn.items()
    }


def drawing_share(name, z, sampler):
    """Processor time of drawing K = D slices over that of the step on them."""
    loss, options = LOSSES[name]
    dim = z.shape[1]

    def seconds(function):
        function()
        times = []
        for _ in range(3):
            start = time.process_time()
            function()
            times.append(time.process_time() - start)
        return sorted(times)[1]

    w = directions(sampler, dim, dim, 0)
    of_step = seconds(lambda: value_and_grad(loss)(z, w, **options))
    return seconds(lambda: directions(sampler, dim, dim, 1)) / max(of_step, 1e-9)


def draw_figure(works, path):
    """Error against K / D: a panel a loss, a line a sampler and kind of embeddings."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    dim = max(w["dim"] for w in works)
    figure, panels = plt.subplots(1, len(LOSSES), figsize=(11, 4), sharey=True, layout="tight")
    for panel, name in zip(panels, LOSSES, strict=True):
        for work in works:
            if work["loss"] == name and work["dim"] == dim:
                style = {"ls": "-" if work["embeddings"] == "1.3" else "--", "marker": "."}
                color = f"C{SAMPLERS.index(work['sampler'])}"
                label = f"{work['sampler']}, {work['embeddings']}"
                panel.loglog(SHARES, work["errors"], color=color, label=label, **style)
        panel.loglog(SHARES, [(dim - 1) / dim / s for s in SHARES], "k:", label="(D − 1)/K")
        panel.set(title=f"{name}, D = {dim}", xlabel="K / D")
    panels[0].set_ylabel("relative squared error of the gradient")
    panels[-1].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--figure", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that it runs")
    arguments = parser.parse_args()
    draws = 2 if arguments.quick else 8
    works, rows = [], []
    for name in LOSSES:
        for kind in ("1.3", "uneven"):
            for dim in QUICK_DIMS if arguments.quick else DIMS:
                z = embeddings(kind, dim)
                found = errors(name, z, draws)
                for sampler in SAMPLERS:
                    own = [found[sampler, share] for share in SHARES]
                    share = drawing_share(name, z, sampler)
                    works.append({
                        "loss": name, "embeddings": kind, "dim": dim, "sampler": sampler,
                        "shares": SHARES, "errors": own, "drawing": share,
                    })  # fmt: skip
                    cells = [f"{e:.2g}" for e in own]
                    rows.append([name, kind, str(dim), sampler, *cells, f"{share:.2f}"])
    print_table(COLUMNS, rows)
    if arguments.figure:
        draw_figure(works, arguments.figure)
    if arguments.json:
        content = {
            "title": "What a slice is worth",
            "about": ABOUT.format(draws=draws, rows=ROWS),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": machine(),
            "columns": COLUMNS,
            "rows": rows,
            "works": works,
        }
        write_json(arguments.json, content)


if __name__ == "__main__":
    main()
