"""The library's metrics for torchmetrics: they accumulate, and reduce over processes.

``pip install 'visreg-core[metrics]'``. Each state is a tensor of a fixed shape that merges with
others: spectral metrics accumulate the sum of the rows' outer products, and metrics that need rows
keep a uniform sample, of at most `max_rows`, of all rows on all processes. With fewer rows than
that they are exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from visreg_core import checks, metrics, optional
from visreg_core.metrics.spectrum import EFFECTIVE_RANK, RANKME
from visreg_torch import distributed, functional

optional.require("torchmetrics", extra="metrics", purpose="visreg_torch.metrics")
from torchmetrics import Metric  # noqa: E402  after the line that says what to install

__all__ = [
    "Alignment",
    "EffectiveRank",
    "Gaussianity",
    "KNNAgreement",
    "LCAStability",
    "RankMe",
    "Uniformity",
]


# --- ranks ----------------------------------------------------------------------------------------


class _Spectrum(Metric):
    """A function of the singular values of all rows, from the sum of their outer products."""

    full_state_update = False
    gram: Tensor

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__(**options)
        checks.positive_int("dim", dim)
        self.dim = dim
        gram = torch.zeros(dim + 1, dim + 1, dtype=torch.float64)
        self.add_state("gram", gram, dist_reduce_fx="sum")  # of the rows (1, z)

    def update(self, z: Tensor) -> None:
        """Add embeddings (..., D)."""
        z = _rows("z", z, self.dim).double()
        z = torch.cat([z.new_ones(len(z), 1), z], 1)
        self.gram += z.T @ z

    def _singular_values(self, *, center: bool) -> Any:
        gram = self.gram.cpu().numpy()
        n, sums, products = int(gram[0, 0]), gram[0, 1:], gram[1:, 1:]
        eps = 2.0**-52
        if center and n:
            before, products = products, products - sums[:, None] * (sums / n)
            left = max(products.trace(), before.trace() * eps)
            eps *= max(1.0, before.trace() / left) if left else 1.0  # of what cancelled
        return metrics.singular_values_from_gram(products, n, eps=eps)


class RankMe(_Spectrum):
    """`visreg_core.metrics.rankme` of all rows.

    Parameters
    ----------
    dim : int
        D.
    convention : str
        As in `visreg_core.metrics.rankme`.
    **options
        Of `torchmetrics.Metric`.

    Notes
    -----
    Singular values below √(D·ε) = 1e-7 of the largest count as 0 (`singular_values_from_gram`).

    Examples
    --------
    >>> import torch
    >>> metric = RankMe(8)
    >>> metric.update(torch.eye(8)), round(float(metric.compute()), 6)
    (None, 8.0)
    """

    higher_is_better = True

    def __init__(self, dim: int, convention: str = "exact", **options: Any) -> None:
        super().__init__(dim, **options)
        checks.choice("convention", convention, RANKME)
        self.convention = convention

    def compute(self) -> Tensor:
        """Of all rows so far."""
        s = self._singular_values(center=RANKME[self.convention].center)
        return torch.tensor(metrics.rankme_from_singular_values(s, convention=self.convention))


class EffectiveRank(_Spectrum):
    """`visreg_core.metrics.effective_rank` of all rows.

    Parameters
    ----------
    dim : int
        D.
    convention : str
        As in `visreg_core.metrics.effective_rank`, whose default is the other: "roy-vetterli" is
        `RankMe`.
    **options
        Of `torchmetrics.Metric`.

    Examples
    --------
    >>> import torch
    >>> metric = EffectiveRank(2)
    >>> metric.update(torch.cat([torch.eye(2), -torch.eye(2)])), round(float(metric.compute()), 6)
    (None, 2.0)
    """

    higher_is_better = True

    def __init__(self, dim: int, convention: str = "covariance", **options: Any) -> None:
        super().__init__(dim, **options)
        checks.choice("convention", convention, EFFECTIVE_RANK)
        self.convention = convention

    def compute(self) -> Tensor:
        """Of all rows so far."""
        s = self._singular_values(center=EFFECTIVE_RANK[self.convention][1])
        found = metrics.effective_rank_from_singular_values(s, convention=self.convention)
        return torch.tensor(found)


# --- samples of rows ------------------------------------------------------------------------------


class _Sampled(Metric):
    """A function of rows, of which those with the smallest random keys are kept."""

    full_state_update = False
    sample: Tensor

    def __init__(self, dims: tuple[int, ...], max_rows: int, seed: int, **options: Any) -> None:
        super().__init__(**options)
        for dim in dims:
            checks.positive_int("dim", dim)
        checks.positive_int("max_rows", max_rows)
        checks.positive_int("seed", seed, minimum=0)
        self.dims, self.max_rows, self.seed = dims, max_rows, seed
        self.draws = 0
        nothing = torch.full((max_rows, 1 + sum(dims)), torch.inf)  # a key and the row
        self.add_state("sample", nothing, dist_reduce_fx=self._smallest)

    def _smallest(self, samples: Tensor) -> Tensor:
        """The rows (max_rows, ...) with the smallest keys of some sets of rows (W, n, ...)."""
        rows = samples.flatten(0, 1)
        return rows[rows[:, 0].argsort(stable=True)[: self.max_rows]]

    def _add(self, *sets: Tensor) -> None:
        """Add rows, row i of all sets together."""
        # Independent of the training's random numbers; different for each process and update.
        draws = np.random.default_rng([self.seed, distributed.rank_of(), self.draws])
        self.draws += 1
        keys = torch.from_numpy(draws.random((len(sets[0]), 1))).to(self.sample)
        rows = torch.cat([keys, *(z.to(self.sample) for z in sets)], 1)
        self.sample = self._smallest(torch.cat([self.sample, rows])[None])

    def _sets(self) -> tuple[Tensor, ...]:
        kept = self.sample[torch.isfinite(self.sample[:, 0]), 1:]
        return torch.split(kept, list(self.dims), 1)


class _OfRows(_Sampled):
    def __init__(self, dim: int, max_rows: int, seed: int, **options: Any) -> None:
        super().__init__((dim,), max_rows, seed, **options)

    def update(self, z: Tensor) -> None:
        """Add embeddings (..., D)."""
        self._add(_rows("z", z, self.dims[0]))


class _OfPairs(_Sampled):
    def __init__(self, dim: int, max_rows: int, seed: int, **options: Any) -> None:
        super().__init__((dim, dim), max_rows, seed, **options)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add two views (..., D) of the same items, or an earlier and a later embedding of each."""
        self._add(*_pairs(x, y, self.dims[0]))


class Gaussianity(_OfRows):
    """`visreg_core.metrics.gaussianity` of the rows: z-scores of two sliced statistics.

    Parameters
    ----------
    dim : int
        D.
    n_slices : int
        Random directions, always the same.
    max_rows : int
        Of the sample.
    seed : int
        Of the sample and of the directions.
    **options
        Of `torchmetrics.Metric`.

    Examples
    --------
    >>> import torch
    >>> metric = Gaussianity(4, n_slices=16)
    >>> metric.update(3 * torch.randn(512, 4)), bool(metric.compute()["epps_pulley_z"] > 10)
    (None, True)
    """

    higher_is_better = False

    def __init__(
        self, dim: int, n_slices: int = 256, max_rows: int = 4096, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(dim, max_rows, seed, **options)
        checks.positive_int("n_slices", n_slices)
        self.n_slices = n_slices

    def compute(self) -> dict[str, Tensor]:
        """z-scores of Epps-Pulley's statistic and of W₂², by name."""
        (z,) = self._sets()
        slices = functional.random_slices(
            z.shape[1], self.n_slices, seed=self.seed, dtype=z.dtype, device=z.device
        )
        found = metrics.gaussianity(z, slices)
        named = {"epps_pulley_z": found.epps_pulley, "wasserstein_z": found.wasserstein}
        return {name: torch.tensor(test.mean_z) for name, test in named.items()}


class Uniformity(_OfRows):
    """`visreg_core.metrics.uniformity` of the rows.

    Parameters
    ----------
    dim : int
        D.
    t : float
        Inverse width.
    max_rows : int
        Of the sample.
    seed : int
        Of the sample.
    **options
        Of `torchmetrics.Metric`.

    Examples
    --------
    >>> import torch
    >>> metric = Uniformity(2)
    >>> metric.update(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), metric.compute()
    (None, tensor(-8.))
    """

    higher_is_better = False

    def __init__(
        self, dim: int, t: float = 2.0, max_rows: int = 4096, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(dim, max_rows, seed, **options)
        self.t = t

    def compute(self) -> Tensor:
        """Of the sample."""
        (z,) = self._sets()
        return torch.tensor(metrics.uniformity(z, self.t))


class KNNAgreement(_OfPairs):
    """`visreg_core.metrics.mutual_knn` of two views: the share of neighbours in common.

    Parameters
    ----------
    dim : int
        D.
    k : int
        Neighbours.
    metric : str
        "cosine" or "euclidean".
    max_rows : int
        Of the sample.
    seed : int
        Of the sample.
    **options
        Of `torchmetrics.Metric`.

    Examples
    --------
    >>> import torch
    >>> metric, z = KNNAgreement(4), torch.randn(64, 4)
    >>> metric.update(z, 2 * z), metric.compute()
    (None, tensor(1.))
    """

    higher_is_better = True

    def __init__(
        self,
        dim: int,
        k: int = 10,
        metric: str = "cosine",
        max_rows: int = 4096,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(dim, max_rows, seed, **options)
        self.k, self.metric = k, metric

    def compute(self) -> Tensor:
        """Of the sample."""
        x, y = self._sets()
        return torch.tensor(metrics.mutual_knn(x, y, self.k, metric=self.metric))


class LCAStability(_OfPairs):
    """`visreg_core.metrics.lca_similarity` of two views: whether their dendrograms agree.

    Parameters
    ----------
    dim : int
        D.
    method, metric : str
        Of the dendrograms.
    max_rows : int
        Of the sample.
    seed : int
        Of the sample.
    **options
        Of `torchmetrics.Metric`.

    Examples
    --------
    >>> import torch
    >>> metric, z = LCAStability(4), torch.randn(64, 4)
    >>> metric.update(z, 2 * z), round(float(metric.compute()["spearman"]), 3)
    (None, 1.0)
    """

    higher_is_better = True

    def __init__(
        self,
        dim: int,
        method: str = "average",
        metric: str = "cosine",
        max_rows: int = 1024,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(dim, max_rows, seed, **options)
        self.method, self.metric = method, metric

    def compute(self) -> dict[str, Tensor]:
        """Pearson's, Spearman's and Kendall's correlations, by name."""
        x, y = self._sets()
        found: Any = metrics.lca_similarity(x, y, self.method, self.metric)
        return {name: torch.tensor(value) for name, value in found._asdict().items()}


# --- means ----------------------------------------------------------------------------------------


class Alignment(Metric):
    """`visreg_core.metrics.alignment` of all pairs of rows of two views.

    Parameters
    ----------
    dim : int
        D.
    alpha : float
        Exponent.
    **options
        Of `torchmetrics.Metric`.

    Examples
    --------
    >>> import torch
    >>> metric, z = Alignment(4), torch.randn(64, 4)
    >>> metric.update(z, -z), round(float(metric.compute()), 4)
    (None, 4.0)
    """

    full_state_update = False
    higher_is_better = False
    total: Tensor
    count: Tensor

    def __init__(self, dim: int, alpha: float = 2.0, **options: Any) -> None:
        super().__init__(**options)
        checks.positive_int("dim", dim)
        self.dim, self.alpha = dim, alpha
        for name in ("total", "count"):
            zero = torch.zeros((), dtype=torch.float64)
            self.add_state(name, zero, dist_reduce_fx="sum")

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add two views (..., D) of the same items."""
        x, y = _pairs(x, y, self.dim)
        self.total += len(x) * metrics.alignment(x, y, self.alpha)
        self.count += len(x)

    def compute(self) -> Tensor:
        """Of all pairs so far."""
        return self.total / self.count


def _rows(name: str, z: Tensor, dim: int) -> Tensor:
    """Embeddings (..., D) as rows."""
    if z.ndim < 2 or z.shape[-1] != dim:
        raise ValueError(f"expected {name} (..., {dim}); found shape {tuple(z.shape)}")
    return z.detach().flatten(0, -2)


def _pairs(x: Tensor, y: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    x, y = _rows("x", x, dim), _rows("y", y, dim)
    if len(x) != len(y):
        raise ValueError(f"expected x and y with as many rows; found {len(x)} and {len(y)}")
    return x, y
