r"""The papers' tables at the size of scikit-learn's digits: three seeds, mean and spread.

    python -m reference_train.experiments knockout
    python -m reference_train.experiments all --jobs 2

Names: knockout weights slices dimensions losses processes generalisation correlation share. Each
writes docs/results/NAME.json, which the manual shows. Runs are stored under runs/experiments and
not repeated.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reference_train.environment import write_result
from reference_train.logs import read_log

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "experiments"
SEEDS = (0, 1, 2)
# Some seconds on one core. All classes are trained on, but where an experiment divides them.
SMALL = {
    "model.patch": 4,
    "model.width": 32,
    "model.depth": 2,
    "model.hidden": 128,
    "run.epochs": 15,
    "run.threads": 1,
    "run.evaluate_every": "null",
    "run.checkpoint_every": 100000,
    "data.classes": "null",
}
PRELOADED = ["reference_train.train", "transformers.models.vit.modeling_vit"]
PRELOADED += ["sklearn.linear_model", "matplotlib.figure"]
MEASURES = ("linear probe", "kNN", "RankMe")

Settings = dict[str, Any]


class Experiment(NamedTuple):
    """Rows of one table: what to run, and which numbers to show."""

    title: str
    about: str
    variants: dict[str, Settings]
    columns: tuple[str, ...] = MEASURES
    measure: Callable[[list[Path]], list[dict[str, float]]] | None = None  # of runs' folders


def trained(folders: list[Path]) -> list[dict[str, float]]:
    """The trained encoders' rows of the tables at the runs' ends."""
    return [json.loads((folder / "results.json").read_text())["trained"] for folder in folders]


def with_stability(folders: list[Path]) -> list[dict[str, float]]:
    """`trained`, and how far the trees of two runs' test images agree: LCA, Spearman."""
    from visreg_core.metrics import lca_similarity

    sets = [np.load(folder / "embeddings" / "trained.npy") for folder in folders]
    others = [*sets[1:], sets[0]]
    stability = [lca_similarity(a, b).spearman for a, b in zip(sets, others, strict=True)]
    rows = zip(trained(folders), stability, strict=True)
    return [{**row, "LCA stability": value} for row, value in rows]


def loss_and_accuracy(folders: list[Path]) -> list[dict[str, float]]:
    """Pearson's correlation of the loss with the online probe's accuracy over each run."""
    return [_loss_and_accuracy(read_log(folder / "metrics.jsonl")) for folder in folders]


def _loss_and_accuracy(rows: list[dict[str, Any]]) -> dict[str, float]:
    loss, accuracy = np.array([[r["loss"], r["probe_accuracy"]] for r in rows]).T
    late = slice(len(rows) // 10, None)
    return {
        "whole run": float(np.corrcoef(loss, accuracy)[0, 1]),
        "without the first tenth": float(np.corrcoef(loss[late], accuracy[late])[0, 1]),
    }


def weights(scale: float, shape: float, center: float) -> Settings:
    """VISReg's weights as settings."""
    return {"method.scale": scale, "method.shape": shape, "method.center": center}


def of_library(name: str, lam: float, **options: str) -> Settings:
    """A loss of visreg_torch and its weight as settings."""
    settings: Settings = {"method.name": f"visreg_torch:{name}", "method.lam": lam}
    return settings | {f"+method.options.{key}": value for key, value in options.items()}


EXPERIMENTS = {
    "knockout": Experiment(
        "Terms of VISReg",
        "VISReg, Tables of knock-outs and of detachment. On Imagenette with ViT-S/8 the paper has "
        "20.80 without scale, 33.42 without shape, 91.41 without centre, 91.82 with all; without "
        "detachment 90.62.",
        {
            "VISReg": {},
            "no scale": weights(0, 1, 1),
            "no shape": weights(1, 0, 1),
            "no centre": weights(1, 1, 0),
            "no detachment": {"method.detach_scale": "false"},
        },
    ),
    "weights": Experiment(
        "Weights of VISReg's terms",
        "VISReg, Table of weight ratios: the sum is 3. On Imagenette equal weights are best, on "
        "ImageNet-LT and Galaxy10 a larger weight of the shape.",
        {
            "1 : 1 : 1": {},
            "scale 2:1": weights(1.5, 0.75, 0.75),
            "shape 2:1": weights(0.75, 1.5, 0.75),
            "centre 2:1": weights(0.75, 0.75, 1.5),
            "scale 4:1": weights(2, 0.5, 0.5),
            "shape 4:1": weights(0.5, 2, 0.5),
            "centre 4:1": weights(0.5, 0.5, 2),
        },
    ),
    "slices": Experiment(
        "Number of slices K at D = 64",
        "VISReg, Figure of K from D/8 to 16 D: the transport losses stay accurate at D/8, and "
        "VISReg is the most robust. SIGReg with lambda 0.02, the others with 0.6.",
        {
            f"{name}, K = {k}": {"method.name": name, "method.lam": lam, "method.n_slices": k}
            for name, lam in (("visreg", 0.6), ("swd", 0.6), ("sigreg", 0.02))
            for k in (8, 64, 1024)
        },
    ),
    "dimensions": Experiment(
        "Dimension D of the projections at K = 256",
        "VISReg, Figure of D: the accuracy falls once K is no longer larger than D by a factor, "
        "which is smallest for VISReg.",
        {
            f"{name}, D = {d}": {"method.name": name, "method.lam": lam, "model.dim": d}
            for name, lam in (("visreg", 0.6), ("swd", 0.6), ("sigreg", 0.02))
            for d in (16, 64, 512)
        },
    ),
    "losses": Experiment(
        "Every loss",
        "Each loss with the weight λ of 0.02, 0.1, 0.3, 0.6, 0.9 whose kNN accuracy was best with "
        "seed 0; K = 256 slices. LCA stability: Spearman's correlation of the LCA heights of the "
        "test images between two seeds.",
        {
            "VISReg": {"method.name": "visreg"},
            "sliced Wasserstein": {"method.name": "swd"},
            "SIGReg": {"method.name": "sigreg", "method.lam": 0.02},
            "SIGReg, infinitely many slices": of_library("sigreg_limit", 0.02),
            "weak SIGReg": of_library("weak_sigreg_loss", 0.6),
            "sliced energy distance": of_library("gaussian_sliced_energy_distance", 0.6),
            "Anderson-Darling": of_library("sliced_statistic", 0.6, statistic="anderson_darling"),
            "Cramér-von Mises": of_library("sliced_statistic", 0.6, statistic="cramer_von_mises"),
            "Watson": of_library("sliced_statistic", 0.6, statistic="watson"),
            "Jarque-Bera": of_library("sliced_statistic", 0.6, statistic="jarque_bera"),
            "MMD, Gaussian kernel": of_library("gaussian_mmd", 0.6),
            "MMD, IMQ kernel": of_library("gaussian_mmd", 0.6, kernel="imq"),
            "KSD, Gaussian kernel": of_library("gaussian_ksd", 0.6),
            "KSD, IMQ kernel": of_library("gaussian_ksd", 0.6, kernel="imq"),
            "uniform on the sphere (MMD)": of_library("spherical_mmd", 0.6),
            "VICReg": {"method.name": "vicreg"},
            "SAG-VICReg": {"method.name": "sag_vicreg"},
            "Barlow Twins": {"method.name": "barlow_twins"},
            "SimCLR": {"method.name": "simclr"},
            "DINO": {"method.name": "dino", "method.prototypes": 1024},
        },
        (*MEASURES, "LCA stability"),
        with_stability,
    ),
    "processes": Experiment(
        "Slices of each process",
        "VISReg, Figure of GPUs: few slices on each of several processes, all different, do as "
        "many on one. The global batch is 64; `local` has each process's statistics of its own "
        "half of it, `global` those of the whole batch and all processes' slices.",
        {
            "1 process, K = 8": {"method.n_slices": 8},
            "1 process, K = 16": {"method.n_slices": 16},
            "2 processes, K = 8 each, local": {
                "processes": 2, "data.batch_size": 32, "method.n_slices": 8,
            },
            "2 processes, K = 8 each, global": {
                "processes": 2, "data.batch_size": 32, "method.n_slices": 8,
                "method.scope": "global",
            },
        },
    ),
    "correlation": Experiment(
        "Loss and online accuracy",
        "VISReg, Figure of the correlation: -0.996 between the training loss and the online "
        "probe's accuracy over a run of ViT-L/14 on ImageNet-1K. Here over the readings of a run.",
        {
            name: {"method.name": name, "method.lam": lam, "run.log_every": 10}
            for name, lam in (
                ("visreg", 0.6),
                ("swd", 0.6),
                ("sigreg", 0.02),
                ("vicreg", 0.6),
                ("barlow_twins", 0.6),
                ("simclr", 0.6),
            )
        },
        ("whole run", "without the first tenth"),
        loss_and_accuracy,
    ),
}  # fmt: skip


def run_one(settings: Settings, seed: int) -> Path:
    """The folder of a run with these settings, made now unless it is there already."""
    given = {**SMALL, **settings, "run.seed": seed}
    processes = given.pop("processes", 1)
    name = ",".join(f"{key.split('.')[1]}={value}" for key, value in sorted(given.items()))
    folder = RUNS / f"{name},p={processes}".replace(" ", "")
    if (folder / "results.json").exists():
        return folder
    arguments = ["--config-name", "digits", *(f"{key}={value}" for key, value in given.items())]
    arguments.append(f"run.folder='{folder}'")
    if processes == 1:
        from reference_train.train import main as train

        with contextlib.redirect_stdout(io.StringIO()):  # the run's table; errors are shown
            train(arguments)
    else:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *launcher, "-m", "reference_train", *arguments]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return folder


def spread(values: list[float], column: str) -> str:
    """Mean and standard deviation over seeds, in per cent where the column is an accuracy."""
    percent = column in ("linear probe", "kNN") or "accuracy" in column
    factor, digits = (100, 1) if percent else (1, 1 if column == "RankMe" else 3)
    mean, deviation = np.mean(values) * factor, np.std(values, ddof=1) * factor
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}{' %' if percent else ''}"


def tabulate(experiment: Experiment, pool: concurrent.futures.Executor) -> list[list[str]]:
    """Run every variant with every seed; one row each."""
    futures = {
        name: [pool.submit(run_one, settings, seed) for seed in SEEDS]
        for name, settings in experiment.variants.items()
    }
    rows = []
    for name, runs in futures.items():
        measured = (experiment.measure or trained)([run.result() for run in runs])
        cells = [spread([m[c] for m in measured], c) for c in experiment.columns]
        rows.append([name, *cells])
        print(" | ".join(rows[-1]), flush=True)  # noqa: T201
    return rows


def store(name: str, title: str, about: str, columns: list[str], rows: list[list[str]]) -> None:
    """``docs/results/NAME.json``, in the form of the benchmarks' files."""
    command = f"python -m reference_train.experiments {name}"
    result = {
        "title": title,
        "about": f"{about} Made by `{command}`.",
        "machine": {
            "seeds": len(SEEDS),
            "epochs": SMALL["run.epochs"],
            "date": time.strftime("%F"),
        },
        "columns": columns,
        "rows": rows,
    }
    folder = ROOT / "docs" / "results"
    folder.mkdir(exist_ok=True)
    write_result(folder / f"{name}.json", result)


def generalisation(
    pool: concurrent.futures.Executor,
) -> tuple[str, str, list[str], list[list[str]]]:
    """SAG-VICReg's protocol: two models, trained on classes 0-4 and on 5-9, seen on 0-4."""
    from visreg_core.metrics import (
        cophenetic_similarity,
        hierarchical_knn_accuracy,
        lca_similarity,
    )

    halves = {"first": "[0,1,2,3,4]", "second": "[5,6,7,8,9]"}
    # closed loops, straight strokes, open curves: a tree of our own making
    family = {0: 0, 6: 0, 8: 0, 9: 0, 1: 1, 4: 1, 7: 1, 2: 2, 3: 2, 5: 2}
    futures = {
        (name, half, seed): pool.submit(
            run_one, {"method.name": name, "method.lam": 0.6, "data.classes": classes}, seed
        )
        for name in ("vicreg", "sag_vicreg")
        for half, classes in halves.items()
        for seed in SEEDS
    }
    columns = ["LCA Pearson", "LCA Spearman", "LCA Kendall", "D1 to P2", "D2 to P1"]
    columns += ["kNN accuracy, families", "kNN accuracy, digits"]
    rows = []
    for name in ("vicreg", "sag_vicreg"):
        numbers = []
        for seed in SEEDS:
            folders = [futures[name, half, seed].result() / "embeddings" for half in halves]
            labels = np.load(folders[0] / "labels.npy")
            sets = [np.load(folder / "trained.npy") for folder in folders]
            first, second = (x[labels < 5] for x in sets)
            levels = np.stack([[family[int(d)] for d in labels], labels], axis=1)
            numbers.append(
                [
                    *lca_similarity(first, second),
                    *cophenetic_similarity(first, second),
                    *hierarchical_knn_accuracy(sets[0], levels, k=20),
                ]
            )
        cells = [
            spread(list(c), n) for c, n in zip(zip(*numbers, strict=True), columns, strict=True)
        ]
        rows.append([name, *cells])
        print(" | ".join(rows[-1]), flush=True)  # noqa: T201
    about = (
        "SAG-VICReg, Tables 1, 2 and 4: similarity of the trees of two models trained on disjoint "
        "classes (0-4 and 5-9), on test images of classes 0-4; and leave-one-out kNN of the first "
        "model on all test images, by a tree of our own: closed loops (0, 6, 8, 9), straight "
        "strokes (1, 4, 7), open curves (2, 3, 5). In the paper SAG-VICReg is ahead of VICReg on "
        "all of them but the finest kNN level."
    )
    return "SAG-VICReg and VICReg on disjoint classes", about, ["", *columns], rows


def share(pool: concurrent.futures.Executor) -> tuple[str, str, list[str], list[list[str]]]:
    """Share of a step spent in the loss; alone on the machine, so not in the pool."""
    from reference_train.share import ABOUT, COLUMNS, rows

    return "Share of a step spent in the loss", ABOUT, COLUMNS, rows()


SPECIAL = {"generalisation": generalisation, "share": share}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    names = [*EXPERIMENTS, *SPECIAL]
    parser = argparse.ArgumentParser(
        prog="python -m reference_train.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", choices=[*names, "all"], metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    given = parser.parse_args(arguments)
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    # a fresh process for each run, forked from one that has imported everything
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with concurrent.futures.ProcessPoolExecutor(given.jobs, context, max_tasks_per_child=1) as pool:
        for name in names if "all" in given.names else given.names:
            if name in SPECIAL:
                title, about, columns, rows = SPECIAL[name](pool)
            else:
                experiment = EXPERIMENTS[name]
                title, about = experiment.title, experiment.about
                columns, rows = ["", *experiment.columns], tabulate(experiment, pool)
            store(name, title, about, columns, rows)


if __name__ == "__main__":
    main()
