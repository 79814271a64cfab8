"""SAG-VICReg's experiments: what embeddings keep of the order of classes not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from reference_train.experiments import RUNS, Runs, Table, row
from visreg_core.metrics import (
    cophenetic_similarity,
    hierarchical_knn_accuracy,
    hierarchical_linear_accuracy,
    hierarchical_rand_index,
    lca_similarity,
    rand_index_sweep,
)

METHODS = ("vicreg", "sag_vicreg")
# closed loops, straight strokes, open curves: a tree of our own making
FAMILY = {0: 0, 6: 0, 8: 0, 9: 0, 1: 1, 4: 1, 7: 1, 2: 2, 3: 2, 5: 2}
TREE = "closed loops (0, 6, 8, 9), straight strokes (1, 4, 7), open curves (2, 3, 5)"
CLUSTERS = (5, 10, 20, 40)


def levels_of(labels: np.ndarray) -> np.ndarray:
    """(N, 2): the family of each digit, and the digit."""
    return np.stack([[FAMILY[int(d)] for d in labels], labels], axis=1)


def generalisation(runs: Runs) -> Table:
    """Two models, trained on classes 0-4 and on 5-9, seen on 0-4."""
    halves = {"first": "[0,1,2,3,4]", "second": "[5,6,7,8,9]"}
    futures = {
        (name, half): runs.of({"method.name": name, "method.lam": 0.6, "data.classes": classes})
        for name in METHODS
        for half, classes in halves.items()
    }
    columns = ["LCA Pearson", "LCA Spearman", "LCA Kendall", "D1 to P2", "D2 to P1"]
    columns += ["kNN accuracy, families", "kNN accuracy, digits"]
    rows = []
    for name in METHODS:
        numbers = []
        for pair in zip(*(futures[name, half] for half in halves), strict=True):
            folders = [future.result() / "embeddings" for future in pair]
            labels = np.load(folders[0] / "labels.npy")
            sets = [np.load(folder / "trained.npy") for folder in folders]
            first, second = (x[labels < 5] for x in sets)
            similar = [*lca_similarity(first, second), *cophenetic_similarity(first, second)]
            near = hierarchical_knn_accuracy(sets[0], levels_of(labels), k=20)
            numbers.append([*similar, *near])
        rows.append(row(name, numbers, columns))
    about = (
        "SAG-VICReg, Tables 1, 2 and 4: similarity of the trees of two models trained on disjoint "
        "classes (0-4 and 5-9), on test images of classes 0-4; and leave-one-out kNN of the first "
        f"model on all test images, by a tree of our own: {TREE}. In the paper SAG-VICReg is ahead "
        "of VICReg on all of them but the finest kNN level."
    )
    return Table("SAG-VICReg and VICReg on disjoint classes", about, ["", *columns], rows)


def levels(runs: Runs) -> Table:
    """Rand index, kNN and linear accuracy by level of the classes' tree."""
    futures = {name: runs.of({"method.name": name, "method.lam": 0.6}) for name in METHODS}
    columns = ["Rand index, families", "Rand index, digits"]
    columns += [f"Rand index, {n} clusters" for n in CLUSTERS]
    columns += [f"{m} accuracy, {of}" for m in ("kNN", "linear") for of in ("families", "digits")]
    rows = []
    for name, folders in futures.items():
        measured = []
        for future in folders:
            folder = future.result() / "embeddings"
            measured.append(
                by_level(np.load(folder / "trained.npy"), np.load(folder / "labels.npy"))
            )
        rows.append(row(name, measured, columns))
    about = (
        "SAG-VICReg, Figure 4 and Tables 4 and 5, on the test images of digits and a tree of our "
        f"own: {TREE}. Rand index of spectral clustering with the labels of a level, with as many "
        "clusters as it has classes, and with the digits for other numbers of clusters; "
        "leave-one-out kNN; linear classifiers fitted on every other test image and tested on the "
        "rest. All classes are trained on."
    )
    return Table("SAG-VICReg and VICReg by level of the classes' tree", about, ["", *columns], rows)


def by_level(x: np.ndarray, labels: np.ndarray) -> list[float]:
    """The numbers of `levels` for one set of embeddings."""
    both = levels_of(labels)
    linear = hierarchical_linear_accuracy(x[::2], both[::2], test=x[1::2], test_labels=both[1::2])
    rand = hierarchical_rand_index(x, both).rand
    sweep = rand_index_sweep(x, labels, CLUSTERS).rand
    return [*rand, *sweep, *hierarchical_knn_accuracy(x, both, k=20), *linear]


# --- the spiral -----------------------------------------------------------------------------------

ARMS, POINTS, STEPS = 4, 300, 400


def spirals(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (ARMS * POINTS, 2) on as many arms, from the centre outwards, and their arms."""
    rng = np.random.default_rng(seed)
    t = np.tile(np.linspace(0.3, 1, POINTS), ARMS)
    arm = np.repeat(np.arange(ARMS), POINTS)
    angle = 2 * np.pi * (t + arm / ARMS)
    points = np.stack([t * np.cos(angle), t * np.sin(angle)], axis=1)
    return points + 0.01 * rng.standard_normal(points.shape), arm


def embedded_spiral(name: str, points: np.ndarray, seen: np.ndarray, seed: int) -> np.ndarray:
    """Embeddings (N, 8) of all points by a small network that was trained on the seen ones."""
    import visreg_torch as vt

    torch.manual_seed(seed)
    loss = vt.VICRegLoss() if name == "vicreg" else vt.SAGVICRegLoss(10, seed=seed)
    widths, modules = (2, 64, 64, 8), []
    for i in range(3):
        modules += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
    network = nn.Sequential(*modules[:-1])
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    x = torch.from_numpy(points.astype(np.float32))
    training = x[torch.from_numpy(seen)]
    for step in range(STEPS):
        batch = training[torch.randperm(len(training))[:256]]
        views = [network(batch + 0.03 * torch.randn_like(batch)) for _ in range(2)]
        terms = loss(torch.stack(views)) if name == "vicreg" else loss(*views, step)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
    with torch.no_grad():
        return network(x).numpy()


def spiral(runs: Runs) -> Table:
    """An arm of a spiral that was not trained on: numbers, and a figure of the last seed."""
    columns = ["LCA Spearman, trained arms", "LCA Spearman, unseen arm"]
    columns += ["kNN accuracy of arms, trained", "kNN accuracy of arms, unseen"]
    rows, drawn = [], {}
    for name in METHODS:
        numbers = []
        for seed in runs.seeds:
            points, arm = spirals(seed)
            seen = arm > 0
            z = embedded_spiral(name, points, seen, seed)
            drawn[name] = points, arm, z
            trees = [lca_similarity(points[m], z[m]).spearman for m in (seen, ~seen)]
            near = [own_arm(z, arm, m) for m in (seen, ~seen)]
            numbers.append([*trees, *near])
        rows.append(row(name, numbers, columns))
    draw(drawn, RUNS / "spiral.png")
    about = (
        f"SAG-VICReg, Figure 1: points on {ARMS} arms of a spiral, three of them trained on for "
        f"{STEPS} steps of a small network. Agreement of the trees of points and of embeddings, "
        "and the share of the ten nearest embeddings that lie on the point's own arm. The figure "
        "is runs/experiments/spiral.png."
    )
    return Table("SAG-VICReg and VICReg on a spiral", about, ["", *columns], rows)


def own_arm(z: np.ndarray, arm: np.ndarray, rows: np.ndarray, k: int = 10) -> float:
    """Share of the k nearest of all embeddings, over `rows`, that lie on the row's own arm."""
    distances = ((z[rows][:, None] - z[None]) ** 2).sum(-1)
    near = np.argsort(distances, axis=1)[:, 1 : k + 1]
    return float((arm[near] == arm[rows][:, None]).mean())


def draw(drawn: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], path: Path) -> None:
    """The points, and two principal components of each method's embeddings, coloured by arm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from reference_train.pictures import principal_components

    figure = Figure(figsize=(4 * (len(drawn) + 1), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(drawn) + 1)
    points, arm, _ = next(iter(drawn.values()))
    panels = {"points": points, **{n: principal_components(z, 2) for n, (_, _, z) in drawn.items()}}
    for ax, (name, xy) in zip(axes, panels.items(), strict=True):
        for a in range(ARMS):
            marker, label = ("x", "unseen") if a == 0 else (".", None)
            ax.scatter(*xy[arm == a].T, s=8, marker=marker, color=f"C{a}", label=label)
        ax.set_title(name)
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


# --- what it costs --------------------------------------------------------------------------------


def overhead(runs: Runs) -> Table:
    """Seconds of a step with SAG-VICReg and with VICReg; alone on the machine."""
    from reference_train import methods
    from reference_train.model import Learner
    from reference_train.settings import Config
    from reference_train.share import step_times

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = 256 if device.type == "cuda" else 32
    rows = []
    for backbone, size in (("resnet34", 32), ("vit_s_8", 32)):
        config = Config()
        config.model.backbone, config.augment.global_size = backbone, size
        config.model.hidden, config.model.dim = 1024, 1024
        learner = Learner(config, 0).to(device)
        crops = [torch.randn(2, images, 3, size, size, device=device)]
        times = []
        for name in METHODS:
            config.method.name = name
            method = methods.build(config, learner).to(device)
            times.append(step_times(learner, method, crops))
        (plain, _), (sag, in_loss) = times
        cells = [f"{plain * 1e3:.1f} ms", f"{sag * 1e3:.1f} ms", f"{in_loss * 1e3:.1f} ms"]
        rows.append([backbone, f"2 x {images} x {size} px", *cells, f"{sag / plain - 1:+.1%}"])
        print(" | ".join(rows[-1]), flush=True)  # noqa: T201
    columns = ["backbone", "batch", "VICReg", "SAG-VICReg", "its loss", "overhead"]
    about = (
        "SAG-VICReg, Appendix J: 3600 s an epoch of ImageNet against VICReg's 2800 s, +29 %, on an "
        "L40. Here a step's forward and backward pass without data and optimiser, D = 1024, best "
        f"of three, on {device.type}."
    )
    return Table("Overhead of SAG-VICReg over VICReg", about, columns, rows)
