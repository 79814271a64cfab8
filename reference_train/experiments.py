r"""The papers' tables at the size of scikit-learn's digits: three seeds, mean and spread.

    python -m reference_train.experiments knockout
    python -m reference_train.experiments all --jobs 2

Names: NAMES.
Each writes docs/results/NAME.json, which the manual shows. Runs are stored under runs/experiments
and not repeated. --quick runs a name in seconds, to see that it does.
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


def sag(**settings: float) -> Settings:
    """SAG-VICReg with settings of its walk."""
    return {"method.name": "sag_vicreg", **{f"method.{k}": v for k, v in settings.items()}}


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
        "Regularisers with the weight λ of 0.02, 0.1, 0.3, 0.6, 0.9 (where an end was best also "
        "0.005 or 0.98) whose kNN accuracy was best with seed 0; the others with the settings of "
        "the recipe `digits`, not searched. K = 256 slices, D = 64. LCA stability: Spearman's "
        "correlation of the LCA heights of the test images between two seeds.",
        {
            "VISReg": {"method.name": "visreg", "method.lam": 0.6},
            "sliced Wasserstein": {"method.name": "swd", "method.lam": 0.3},
            "SIGReg": {"method.name": "sigreg", "method.lam": 0.02},
            "SIGReg, infinitely many slices": of_library("sigreg_limit", 0.02),
            "weak SIGReg": of_library("weak_sigreg_loss", 0.98),
            "sliced energy distance": of_library("gaussian_sliced_energy_distance", 0.6),
            "Anderson-Darling": of_library("sliced_statistic", 0.1, statistic="anderson_darling"),
            "Cramér-von Mises": of_library("sliced_statistic", 0.3, statistic="cramer_von_mises"),
            "Watson": of_library("sliced_statistic", 0.1, statistic="watson"),
            "Jarque-Bera": of_library("sliced_statistic", 0.02, statistic="jarque_bera"),
            "MMD, Gaussian kernel": of_library("gaussian_mmd", 0.9),
            "MMD, IMQ kernel": of_library("gaussian_mmd", 0.6, kernel="imq"),
            "KSD, Gaussian kernel": of_library("gaussian_ksd", 0.3),
            "KSD, IMQ kernel": of_library("gaussian_ksd", 0.3, kernel="imq"),
            "uniform on the sphere (MMD)": of_library("spherical_mmd", 0.98),
            "VICReg": {"method.name": "vicreg"},
            "SAG-VICReg": {"method.name": "sag_vicreg"},
            "Barlow Twins": {"method.name": "barlow_twins"},
            "SimCLR": {"method.name": "simclr"},
            "DINO": {"method.name": "dino", "method.prototypes": 1024},
            "SimSiam": {"method.name": "simsiam"},
            "BYOL": {"method.name": "byol"},
            "MoCo": {"method.name": "moco", "method.queue": 1024},
            "NNCLR": {"method.name": "nnclr", "method.queue": 1024},
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
    "size": Experiment(
        "Slices K, dimension D and processes together",
        "VISReg, Section 3.2: K has to exceed D by a factor, and M processes of K slices do as "
        "M K. The global batch is 64, statistics are each process's own.",
        {
            f"K = {k}, D = {d}, {m} process(es)": {
                "processes": m, "data.batch_size": 64 // m, "method.n_slices": k, "model.dim": d,
            }
            for k in (16, 128)
            for d in (64, 256)
            for m in (1, 2)
        },
    ),
    "ablation": Experiment(
        "Lambda, learning rate and batch size of VISReg",
        "VISReg, Table of the training's hyper-parameters, by the online probe on ImageNet-1K with "
        "ViT-B/16: lambda 0.9 is best of 0.7 ... 0.95 (67.98 to 69.19), the rate 9e-4 of 1e-4 ... "
        "9e-4, the batch 512 of 128 ... 2048. The dimension has a table of its own.",
        {
            **{f"lambda = {x}": {"method.lam": x} for x in (0.3, 0.6, 0.9)},
            **{f"rate = {x:g}": {"optim.lr": x} for x in (5e-4, 2e-3, 8e-3)},
            **{f"batch = {x}": {"data.batch_size": x} for x in (32, 64, 128)},
        },
    ),
    "neighbours": Experiment(
        "Neighbours, percentile and walk of SAG-VICReg",
        "SAG-VICReg, Appendix C: stable over the number of neighbours and the scale, the 20th "
        "percentile of the distances; the walk has one step.",
        {
            **{f"{k} neighbours": sag(n_neighbors=k) for k in (3, 10, 30)},
            **{f"percentile {p}": sag(percentile=p) for p in (5, 50, 90)},
            **{f"{n} steps": sag(walk_steps=n) for n in (2, 4)},
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


class Table(NamedTuple):
    """What is stored and shown."""

    title: str
    about: str
    columns: list[str]
    rows: list[list[str]]


class Runs(NamedTuple):
    """Where runs are made, with which seeds, and with which settings in all of them."""

    pool: concurrent.futures.Executor
    seeds: tuple[int, ...]
    common: Settings

    def of(self, settings: Settings) -> list[concurrent.futures.Future]:
        """The folder of a run for each seed, once it is done."""
        given = {**settings, **self.common}
        return [self.pool.submit(run_one, given, seed) for seed in self.seeds]


def row(name: str, numbers: list[list[float]], columns: list[str] | tuple[str, ...]) -> list[str]:
    """A row of a table, of the numbers of each seed; it is printed, too."""
    cells = [spread(list(c), n) for c, n in zip(zip(*numbers, strict=True), columns, strict=True)]
    print(" | ".join([name, *cells]), flush=True)  # noqa: T201
    return [name, *cells]


def tabulate(experiment: Experiment, runs: Runs) -> Table:
    """Run every variant with every seed; one row each."""
    futures = {name: runs.of(settings) for name, settings in experiment.variants.items()}
    measure, columns, rows = experiment.measure or trained, experiment.columns, []
    for name, folders in futures.items():
        measured = measure([folder.result() for folder in folders])
        rows.append(row(name, [[m[c] for c in columns] for m in measured], columns))
    return Table(experiment.title, experiment.about, ["", *columns], rows)


def store(name: str, table: Table) -> None:
    """``docs/results/NAME.json``, in the form of the benchmarks' files."""
    command = f"python -m reference_train.experiments {name}"
    result = {
        **table._asdict(),
        "about": f"{table.about} Made by `{command}`.",
        "machine": {
            "seeds": len(SEEDS),
            "epochs": SMALL["run.epochs"],
            "date": time.strftime("%F"),
        },
    }
    folder = ROOT / "docs" / "results"
    folder.mkdir(exist_ok=True)
    write_result(folder / f"{name}.json", result)


def share(runs: Runs) -> Table:
    """Share of a step spent in the loss; alone on the machine, so not in the pool."""
    from reference_train.share import ABOUT, COLUMNS, rows

    return Table("Share of a step spent in the loss", ABOUT, COLUMNS, rows())


def special() -> dict[str, Callable[[Runs], Table]]:
    """Tables that are not a row a variant."""
    from reference_train import structure

    named = (structure.generalisation, structure.levels, structure.spiral, structure.overhead)
    return {function.__name__: function for function in (*named, share)}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    specials = special()
    names = [*EXPERIMENTS, *specials]
    parser = argparse.ArgumentParser(
        prog="python -m reference_train.experiments",
        description=__doc__.replace("NAMES", " ".join(names)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", choices=[*names, "all"], metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    parser.add_argument(
        "--quick", action="store_true", help="two seeds, one epoch; nothing is stored in docs/"
    )
    given = parser.parse_args(arguments)
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    # a fresh process for each run, forked from one that has imported everything
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with concurrent.futures.ProcessPoolExecutor(given.jobs, context, max_tasks_per_child=1) as pool:
        runs = Runs(pool, SEEDS, {})
        if given.quick:
            runs = Runs(pool, SEEDS[:2], {"run.epochs": 1, "optim.warmup_epochs": 0.1})
        for name in names if "all" in given.names else given.names:
            if name in specials:
                table = specials[name](runs)
            else:
                table = tabulate(EXPERIMENTS[name], runs)
            if not given.quick:
                store(name, table)


if __name__ == "__main__":
    main()
