"""What is measured: for each work its inputs, this package's function, and what it stands beside.

A candidate is prepared with the inputs and returns a function without arguments that does the
work once and returns ``(value, gradients)``. The other libraries are imported by their candidates
only, so that the memory of one is measured without the others.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import visreg_core as vc

Candidate = Callable[..., Callable[[], tuple[float, tuple[np.ndarray, ...]]]]


def embeddings(rng, *shape):
    """Embeddings on the way to the target: correlated, off centre, of uneven scales; float32."""
    d = shape[-1]
    scales = np.exp(rng.normal(0, 0.3, d))
    mixing = rng.standard_normal((16, d)) / 8
    z = rng.standard_normal(shape) * scales + rng.standard_normal((*shape[:-1], 16)) @ mixing
    return (z + rng.normal(0, 0.1, d)).astype(np.float32)


def views_and_slices(v, n, d, k):
    return (
        embeddings(np.random.default_rng(0), v, n, d),
        vc.random_slices(d, k, dtype=np.float32),
    )


def two_views(n, d):
    rng = np.random.default_rng(0)
    a = embeddings(rng, n, d)
    return a, a + np.float32(0.3) * rng.standard_normal((n, d), dtype=np.float32)


def two_samples_and_slices(n, d, k):
    a, _ = two_views(n, d)
    b = embeddings(np.random.default_rng(1), n, d)
    return a, b, vc.random_slices(d, k, dtype=np.float32)


def ours(loss):
    """Value and analytic gradient of one of this package's losses."""

    def prepare(*arrays):
        with_gradient = vc.value_and_grad(loss)

        def run():
            result, gradient = with_gradient(*arrays)
            value = result[0] if isinstance(result, tuple) else result
            return float(value), gradient if isinstance(gradient, tuple) else (gradient,)

        return run

    return prepare


def ours_value(loss):
    """Value alone of one of this package's losses."""
    return lambda *arrays: lambda: (float(loss(*arrays)), ())


def through_autograd(loss_of, n_differentiated):
    """Forward and backward on torch tensors; the first arguments are differentiated.

    The loss comes from ``loss_of()``, which may import what it needs.
    """

    def prepare(*arrays):
        import torch

        torch.set_num_threads(2)
        loss = loss_of()
        tensors = [torch.from_numpy(a) for a in arrays]
        leaves = tensors[:n_differentiated]
        for leaf in leaves:
            leaf.requires_grad_()

        def run():
            for leaf in leaves:
                leaf.grad = None
            result = loss(*tensors)
            value = result[0] if isinstance(result, tuple) else result
            value.backward()
            return value.item(), tuple(leaf.grad.numpy() for leaf in leaves)

        return run

    return prepare


def eager(name, n_differentiated=1):
    """A function of `eager`, which torch differentiates step by step."""

    def loss_of():
        from tests.benchmarks import eager as plain

        return getattr(plain, name)

    return through_autograd(loss_of, n_differentiated)


def adapter(name, n_differentiated=1):
    """A loss of visreg_torch."""

    def loss_of():
        import visreg_torch

        return getattr(visreg_torch, name)

    return through_autograd(loss_of, n_differentiated)


def pot(x, y, slices):
    """POT's sliced Wasserstein distance of NumPy arrays along the same directions."""
    import ot

    return lambda: (float(ot.sliced_wasserstein_distance(x, y, projections=slices)), ())


@dataclass(frozen=True)
class Work:
    """One comparison: the candidate named last is the one that the others are compared with."""

    title: str
    make_inputs: Callable[..., tuple[np.ndarray, ...]]
    size: dict[str, int]
    quick_size: dict[str, int]
    candidates: dict[str, Candidate]
    at_least: float  # times faster
    at_most_mb: float  # above inputs and gradients

    @property
    def baseline(self):
        return list(self.candidates)[-1]

    def inputs(self, quick):
        return self.make_inputs(**(self.quick_size if quick else self.size))


_SLICED = {"v": 2, "n": 4096, "d": 512, "k": 1024}
_SLICED_QUICK = {"v": 2, "n": 64, "d": 16, "k": 32}
_WIDE = {"n": 256, "d": 8192}
_WIDE_QUICK = {"n": 16, "d": 64}

WORKS = {
    "visreg": Work(
        "VISReg",
        views_and_slices,
        _SLICED,
        _SLICED_QUICK,
        {
            "NumPy": ours(vc.visreg_loss),
            "torch adapter": adapter("visreg_loss"),
            "eager torch": eager("visreg_of_views"),
        },
        at_least=4,
        at_most_mb=100,
    ),
    "sigreg": Work(
        "SIGReg",
        views_and_slices,
        _SLICED,
        _SLICED_QUICK,
        {
            "NumPy": ours(vc.sigreg_loss),
            "torch adapter": adapter("sigreg_loss"),
            "eager torch": eager("sigreg"),
        },
        at_least=8,
        at_most_mb=100,
    ),
    "vicreg": Work(
        "VICReg",
        two_views,
        _WIDE,
        _WIDE_QUICK,
        {
            "NumPy": ours(vc.vicreg_loss),
            "torch adapter": adapter("vicreg_loss", 2),
            "eager torch": eager("vicreg", 2),
        },
        at_least=15,
        at_most_mb=8192**2 * 4 / 1e6,
    ),
    "barlow": Work(
        "Barlow Twins",
        two_views,
        _WIDE,
        _WIDE_QUICK,
        {
            "NumPy": ours(vc.barlow_twins_loss),
            "torch adapter": adapter("barlow_twins_loss", 2),
            "eager torch": eager("barlow_twins", 2),
        },
        at_least=15,
        at_most_mb=8192**2 * 4 / 1e6,
    ),
    "sw": Work(
        "two-sample sliced Wasserstein",
        two_samples_and_slices,
        {"n": 10_000, "d": 256, "k": 1000},
        {"n": 64, "d": 16, "k": 32},
        {
            "NumPy": ours_value(vc.sliced_wasserstein),
            "NumPy, with gradients": ours(vc.sliced_wasserstein),
            "POT": pot,
        },
        at_least=8,
        at_most_mb=300,
    ),
}
