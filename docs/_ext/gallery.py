"""Draws what each loss does to a cloud of points that descends it, or to two views of one."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

import visreg_core
from visreg_core import random_slices, value_and_grad

FRAMES = (0, 30, 120, 480)
SLICES = random_slices(2, 32)


def regularizers_of_vicreg(z):
    """Variance and covariance alone, with VICReg's weights: value and gradient."""
    parts = [(25, visreg_core.variance_loss), (1, visreg_core.covariance_loss)]
    found = [(weight, *value_and_grad(loss)(z)) for weight, loss in parts]
    return sum(w * value for w, value, _ in found), sum(w * g for w, _, g in found)


def on_slices(name):
    loss = value_and_grad(getattr(visreg_core, name))

    def value_and_gradient(z):
        result, gradient = loss(z, SLICES)
        return getattr(result, "total", result), gradient

    return value_and_gradient


def alone(name, **options):
    loss = value_and_grad(getattr(visreg_core, name))
    return lambda z: loss(z, **options)


LOSSES = {
    **{name: on_slices(name) for name in (
        "visreg_loss",
        "sigreg_loss",
        "weak_sigreg_loss",
        "gaussian_sliced_wasserstein",
        "gaussian_sliced_energy_distance",
        "sliced_statistic",
    )},
    **{name: alone(name) for name in (
        "sigreg_limit", "gaussian_mmd", "gaussian_ksd", "spherical_mmd"
    )},
    "VICReg's variance and covariance": regularizers_of_vicreg,
}  # fmt: skip


def of_views(name):
    loss = value_and_grad(getattr(visreg_core, name))

    def value_and_gradient(views):
        result, gradients = loss(*views)
        return getattr(result, "total", result), np.stack(gradients)

    return value_and_gradient


def visreg_and_invariance(views):
    """0.4 invariance + 0.6 VISReg: value and gradient."""
    invariance, pull = value_and_grad(visreg_core.invariance_loss)(views)
    regularizer, push = value_and_grad(visreg_core.visreg_loss)(views, SLICES)
    return 0.4 * invariance + 0.6 * regularizer.total, 0.4 * pull + 0.6 * push


def on_walks(views):
    """SAG-VICReg on the pairs of a walk between the views as they are."""
    pairs = visreg_core.random_walk_pairs(*views)
    terms, gradients = value_and_grad(visreg_core.sag_vicreg_loss)(*views, *pairs)
    return terms.total, np.stack(gradients)


LOSSES_OF_VIEWS = {
    "invariance_loss": value_and_grad(visreg_core.invariance_loss),
    "visreg_loss and invariance_loss": visreg_and_invariance,
    **{name: of_views(name) for name in ("vicreg_loss", "barlow_twins_loss", "wmse_loss")},
    "sag_vicreg_loss": on_walks,
}


class Flow(NamedTuple):
    """Clouds (frames, V, N, 2), the loss at them, how the gradient's norm falls with the scale."""

    clouds: np.ndarray
    values: list[float]
    at_collapse: float


def start(n=160):
    """Two clusters, flat and off the centre."""
    rng = np.random.default_rng(0)
    ends = np.where(rng.random(n) < 0.5, -1.0, 1.0)[:, None] * [0.8, 0.3]
    return ends + rng.standard_normal((n, 2)) * [0.25, 0.08] + [0.6, -0.2]


def two_views(n=160):
    """Of `start`, each moved a little."""
    return start(n) + 0.15 * np.random.default_rng(1).standard_normal((2, n, 2))


def flow(value_and_gradient, first):
    """Gradient descent from `first`, its step such that points move by 0.02 at first."""
    z = first
    gradient = value_and_gradient(z)[1]
    rate = 0.02 / np.sqrt(np.mean(gradient**2))
    clouds, values = [], []
    for step in range(FRAMES[-1] + 1):
        value, gradient = value_and_gradient(z)
        if step in FRAMES:
            clouds.append(z.reshape(-1, *z.shape[-2:]))
            values.append(float(value))
        z = z - rate * gradient
    near = first - first.mean(axis=-2, keepdims=True)
    ends = [np.linalg.norm(value_and_gradient(s * near)[1]) for s in (1e-3, 1e-1)]
    return Flow(np.stack(clouds), values, ends[0] / ends[1])


def all_flows():
    """By name: of one set, then of two views."""
    return {
        **{name: flow(loss, start()) for name, loss in LOSSES.items()},
        **{name: flow(loss, two_views()) for name, loss in LOSSES_OF_VIEWS.items()},
    }


def distance(cloud):
    """Root mean square between the two views of a frame."""
    return np.sqrt(np.mean(np.sum((cloud[0] - cloud[-1]) ** 2, axis=-1)))


def draw(flows, folder):
    from matplotlib import pyplot

    for i, (name, found) in enumerate(flows.items()):
        figure, axes = pyplot.subplots(1, len(FRAMES), figsize=(9, 2.4), sharex=True, sharey=True)
        for axis, step, cloud, value in zip(axes, FRAMES, *found[:2], strict=True):
            axis.plot(*cloud[:, ::4].transpose(2, 0, 1), color="#bbbbbb", lw=0.5)
            for view, color in zip(cloud, ("#1f5a94", "#c1622b"), strict=False):
                axis.scatter(*view.T, s=3, color=color)
            for radius in (1, 2):
                axis.add_patch(pyplot.Circle((0, 0), radius, fill=False, color="#bbbbbb", lw=0.7))
            axis.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[], yticks=[])
            axis.set_title(f"step {step}: {value:.3g}", fontsize=8)
        figure.suptitle(name, fontsize=9)
        figure.savefig(folder / f"gallery-{i}.png", dpi=110, bbox_inches="tight")
        pyplot.close(figure)


def page(flows):
    rows = []
    for name, found in flows.items():
        apart = [f"{distance(cloud):.2g}" for cloud in found.clouds[[0, -1]]]
        views = " | ".join(apart if len(found.clouds[0]) == 2 else ("–", "–"))
        values = f"{found.values[0]:.3g} | {found.values[-1]:.3g} | {found.at_collapse:.2g}"
        rows.append(f"| {name} | {values} | {views} |")
    table = [
        "| loss | at the start | at the end | gradient at collapse | views apart | at the end |",
        "| --- |" + " --- |" * 5,
    ]
    pictures = [f"![{name}](generated/gallery-{i}.png)\n" for i, name in enumerate(flows)]
    return "\n".join([*table, *rows, "", *pictures])


def write(app):
    folder = Path(app.srcdir) / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    flows = all_flows()
    draw(flows, folder)
    (folder / "gallery.md").write_text(page(flows))


def setup(app):
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
