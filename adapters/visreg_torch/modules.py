"""The losses as modules: settings once, slices by themselves, a step that a checkpoint resumes.

A loss that draws (slices, walks) draws them from the core's counter-based stream, by its `seed` and
a step. The step is a buffer: each forward pass in training mode advances it, evaluation does not,
and ``state_dict`` holds it, so that a resumed run draws what the uninterrupted one would have
drawn. Where a forward pass is run twice (``torch.utils.checkpoint``) pass ``step=`` yourself, which
leaves the buffer alone.

Modules return what their function does: a tensor, or named terms whose first is ``total``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from visreg_core import (
    BarlowTwinsTerms,
    SAGVICRegTerms,
    VICRegTerms,
    VISRegTerms,
    _checks,
    joint_objective,
)
from visreg_core.gaussian import epps_pulley_knots
from visreg_core.losses.random_walk import SCALES, check_percentile
from visreg_core.losses.vicreg import CONVENTIONS
from visreg_core.losses.visreg import EPS
from visreg_core.slices import SAMPLERS
from visreg_torch import distributed, functional

__all__ = [
    "BarlowTwinsLoss",
    "JointObjective",
    "JointTerms",
    "SAGVICRegLoss",
    "SIGRegLoss",
    "SlicedWassersteinLoss",
    "VICRegLoss",
    "VISRegLoss",
    "VISRegObjective",
]

Number = float | Tensor
Step = int | Tensor | None
Drawn = TypeVar("Drawn")

_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class JointTerms(NamedTuple):
    """Terms of `JointObjective`; total = (1 − λ) invariance + λ regularizer.

    ``terms`` is the regulariser's own result: named terms, or the loss alone.
    """

    total: Tensor
    invariance: Tensor
    regularizer: Tensor
    terms: Any


class VISRegObjective(NamedTuple):
    """Terms of ``VISRegLoss(lam=…)``; total = (1 − λ) invariance + λ regularizer."""

    total: Tensor
    invariance: Tensor
    regularizer: Tensor
    scale: Tensor
    shape: Tensor
    center: Tensor


class _Loss(nn.Module):
    """A loss with its settings, which `repr` shows."""

    def __new__(cls, *args: Any, **options: Any) -> _Loss:
        known = _options(cls)
        for name in options:
            if name not in known:
                raise TypeError(f"expected options of {', '.join(known)}; found {name}")
        return super().__new__(cls)

    def __init__(self, scope: str, group: Any) -> None:
        super().__init__()
        _checks.choice("scope", scope, distributed.SCOPES)
        self.scope = scope
        self.group = group

    def extra_repr(self) -> str:
        """Settings by name."""
        kept = {name: vars(self)[name] for name in _options(type(self)) if name in vars(self)}
        return ", ".join(f"{k}={v!r}" for k, v in kept.items() if k != "group" or v is not None)


def _options(cls: type[nn.Module]) -> list[str]:
    """Names of a class's options, and of its base's where it passes on what it does not know."""
    names: dict[str, None] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
            names |= dict.fromkeys(p.name for p in parameters if p.kind not in _VARIABLE)
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
    return list(names)


class _Drawing(_Loss):
    """A loss that draws by a seed and a step."""

    step: Tensor

    def __init__(self, seed: int, scope: str, group: Any) -> None:
        super().__init__(scope, group)
        _checks.positive_int("seed", seed, minimum=0)
        self.seed = seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def _drawn(self, draw: Callable[[int | Tensor], Drawn], step: Step) -> Drawn:
        """What is drawn at a step: as given, else the buffer's, which training then advances."""
        if step is not None:
            return draw(step)
        buffer = self.step
        drawn = draw(buffer)
        if self.training:
            buffer += 1  # in place: setting an attribute of a module takes a while
        return drawn


class _Sliced(_Drawing):
    """A loss on random slices."""

    def __init__(
        self,
        n_slices: int,
        sampler: str,
        chunk_size: int | None,
        projection_dtype: torch.dtype | None,
        seed: int,
        scope: str,
        group: Any,
    ) -> None:
        super().__init__(seed, scope, group)
        _checks.positive_int("n_slices", n_slices)
        _checks.choice("sampler", sampler, SAMPLERS)
        if chunk_size is not None:
            _checks.positive_int("chunk_size", chunk_size)
        if projection_dtype is not None:
            _checks.dtype("projection_dtype", projection_dtype, torch)
        self.n_slices = n_slices
        self.sampler = sampler
        self.chunk_size = chunk_size
        self.projection_dtype = projection_dtype

    def slices(self, z: Tensor, step: Step = None) -> Tensor:
        """Directions (D, n_slices) for z (..., N, D), on its device."""
        return self._drawn(
            lambda now: functional.random_slices(
                z.shape[-1],
                self.n_slices,
                seed=self.seed,
                step=now,
                start=_first_slice(self.scope, self.group, self.n_slices),
                sampler=self.sampler,
                dtype=torch.float64 if z.dtype == torch.float64 else torch.float32,
                device=z.device,
            ),
            step,
        )

    def _common(self) -> dict[str, Any]:
        return {
            "chunk_size": self.chunk_size,
            "projection_dtype": self.projection_dtype,
            "scope": self.scope,
            "group": self.group,
        }


def _first_slice(scope: str, group: Any, n_slices: int) -> int:
    """Where a process's slices start: each has its own in local scope, all the same in global."""
    return 0 if scope == "global" else distributed.rank_of(group) * n_slices


# --- the objective --------------------------------------------------------------------------------


class JointObjective(nn.Module):
    """(1 − λ) · invariance + λ · regularizer of the views (..., V, N, D) of a batch.

    Parameters
    ----------
    regularizer : Module
        A loss of embeddings: `VISRegLoss`, `SIGRegLoss`, `SlicedWassersteinLoss`, or any module
        that is called as ``regularizer(z, step)`` and returns a loss, or named terms whose
        first is ``total``. Where it has `scope` and `group` the invariance is computed over the
        same processes.
    lam : number
        λ. VISReg trains ImageNet-1K with 0.9 (ViT-B) and small data sets with 0.6, LeJEPA with
        0.02 or 0.05. Outside [0, 1] one of the two is rewarded for growing.
    n_global : int, optional
        How many views, the first, make the centre that all are drawn to; all if not given.
    detach_center : bool
        Hold that centre constant in the gradient.

    Raises
    ------
    ValueError, TypeError
        For options out of range.

    Examples
    --------
    >>> import torch
    >>> objective = JointObjective(SIGRegLoss(n_slices=64), lam=0.05)
    >>> views = torch.randn(2, 256, 8, requires_grad=True)
    >>> terms = objective(views)
    >>> terms.total.backward()
    >>> int(objective.regularizer.step)
    1
    """

    def __init__(
        self,
        regularizer: nn.Module,
        lam: Number,
        *,
        n_global: int | None = None,
        detach_center: bool = False,
    ) -> None:
        super().__init__()
        _checks.number("lam", lam)
        if n_global is not None:
            _checks.positive_int("n_global", n_global)
        _checks.flag("detach_center", detach_center)
        self.regularizer = regularizer
        self.lam = lam
        self.n_global = n_global
        self.detach_center = detach_center

    def extra_repr(self) -> str:
        """Settings by name."""
        return f"lam={self.lam}, n_global={self.n_global}, detach_center={self.detach_center}"

    def forward(
        self, z: Tensor, step: Step = None, *, row_mask: Tensor | None = None
    ) -> JointTerms:
        """Terms of the objective."""
        masked = {} if row_mask is None else {"row_mask": row_mask}
        terms = self.regularizer(z, step, **masked)
        regularizer: Any = getattr(terms, "total", terms)
        scope = getattr(self.regularizer, "scope", "local")
        group = getattr(self.regularizer, "group", None)
        total, invariance = _joined(self, z, regularizer, row_mask, scope, group)
        return JointTerms(total, invariance, regularizer, terms)


def _joined(
    settings: Any,
    z: Tensor,
    regularizer: Tensor,
    row_mask: Tensor | None,
    scope: str,
    group: Any,
) -> tuple[Tensor, Tensor]:
    """The objective, and the invariance in it."""
    invariance = functional.invariance_loss(
        z,
        settings.n_global,
        detach_center=settings.detach_center,
        row_mask=row_mask,
        scope=scope,
        group=group,
    )
    return joint_objective(invariance, regularizer, settings.lam), invariance


# --- one set of embeddings ------------------------------------------------------------------------


class VISRegLoss(_Sliced):
    """VISReg's regulariser. `JointObjective` adds the invariance of views.

    Parameters
    ----------
    n_slices : int
        Directions drawn for a forward pass; on several processes in local scope, by each.
    weights : three numbers
        λ_scale, λ_shape, λ_center; 0 is the ablation without that term, and a negative one rewards
        what its term punishes.
    lam, n_global, detach_center : optional
        An older spelling of `JointObjective`: with `lam` the module returns the terms of the
        whole objective, a `VISRegObjective`.
    detach_scale : bool
        Hold σ constant in the gradient of the shape (the paper's stop-gradient).
    eps : float
        Added to σ.
    sampler : {"gaussian", "orthogonal"}
        Of `random_slices`.
    chunk_size, projection_dtype
        As in `visreg_core.shape_loss`.
    seed : int
        Of the slices.
    scope, group
        As in `visreg_torch.functional`.

    Raises
    ------
    ValueError, TypeError
        For options that are unknown or out of range, or that need `lam`.

    Examples
    --------
    >>> import torch
    >>> loss = VISRegLoss(n_slices=64)
    >>> z = torch.randn(2, 256, 8, requires_grad=True)
    >>> terms = loss(z)
    >>> terms.total.backward()
    >>> int(loss.step)
    1
    """

    def __init__(
        self,
        n_slices: int = 4096,
        *,
        weights: Sequence[Number] = (1, 1, 1),
        lam: Number | None = None,
        n_global: int | None = None,
        detach_center: bool = False,
        detach_scale: bool = True,
        eps: float = EPS,
        sampler: str = "gaussian",
        chunk_size: int | None = None,
        projection_dtype: torch.dtype | None = None,
        seed: int = 0,
        scope: str = "local",
        group: Any = None,
    ) -> None:
        super().__init__(n_slices, sampler, chunk_size, projection_dtype, seed, scope, group)
        _checks.positive("eps", eps)
        if n_global is not None:
            _checks.positive_int("n_global", n_global)
        if lam is not None:
            _checks.number("lam", lam)
        elif n_global is not None or detach_center:
            raise ValueError("expected lam beside n_global and detach_center; found None")
        self.weights = _checks.weights("weights", weights, VISRegTerms._fields[1:])
        self.lam = lam
        self.n_global = n_global
        self.detach_center = detach_center
        self.detach_scale = detach_scale
        self.eps = eps

    def forward(
        self, z: Tensor, step: Step = None, *, row_mask: Tensor | None = None
    ) -> VISRegTerms | VISRegObjective:
        """Terms for embeddings (..., N, D), with `lam` (..., V, N, D)."""
        terms = functional.visreg_loss(
            z,
            self.slices(z, step),
            self.weights,
            detach_scale=self.detach_scale,
            eps=self.eps,
            row_mask=row_mask,
            **self._common(),
        )
        if self.lam is None:
            return terms
        total, invariance = _joined(self, z, terms.total, row_mask, self.scope, self.group)
        return VISRegObjective(total, invariance, *terms)


class SIGRegLoss(_Sliced):
    """SIGReg of embeddings (..., N, D), with LeJEPA's constants.

    Parameters
    ----------
    n_slices : int
        Directions drawn for a forward pass; on several processes in local scope, by each.
    t_max, n_knots, scale_by_n
        As in `visreg_core.sigreg_loss`.
    sampler, chunk_size, projection_dtype, seed, scope, group
        As in `VISRegLoss`.

    Raises
    ------
    ValueError, TypeError
        For options that are unknown or out of range.

    Examples
    --------
    >>> import torch
    >>> loss = SIGRegLoss(n_slices=64, seed=1)
    >>> loss(torch.randn(256, 8)).shape
    torch.Size([])
    """

    def __init__(
        self,
        n_slices: int = 1024,
        *,
        t_max: float = 3.0,
        n_knots: int = 17,
        scale_by_n: bool = True,
        sampler: str = "gaussian",
        chunk_size: int | None = None,
        projection_dtype: torch.dtype | None = None,
        seed: int = 0,
        scope: str = "local",
        group: Any = None,
    ) -> None:
        super().__init__(n_slices, sampler, chunk_size, projection_dtype, seed, scope, group)
        epps_pulley_knots(t_max, n_knots)  # which checks them
        self.t_max = t_max
        self.n_knots = n_knots
        self.scale_by_n = scale_by_n

    def forward(self, z: Tensor, step: Step = None, *, row_mask: Tensor | None = None) -> Tensor:
        """The loss."""
        return functional.sigreg_loss(
            z,
            self.slices(z, step),
            self.t_max,
            self.n_knots,
            scale_by_n=self.scale_by_n,
            row_mask=row_mask,
            **self._common(),
        )


class SlicedWassersteinLoss(_Sliced):
    """Squared sliced 2-Wasserstein distance of embeddings (..., N, D) to the standard Gaussian.

    Parameters
    ----------
    n_slices : int
        Directions drawn for a forward pass; on several processes in local scope, by each.
    reduction : {"mean", "sum"}
        Over the samples of a slice.
    sampler, chunk_size, projection_dtype, seed, scope, group
        As in `VISRegLoss`.

    Raises
    ------
    ValueError, TypeError
        For options that are unknown or out of range.

    Examples
    --------
    >>> import torch
    >>> loss = SlicedWassersteinLoss(n_slices=64, sampler="orthogonal")
    >>> bool(loss(torch.randn(512, 8)) < 0.1)
    True
    """

    def __init__(
        self,
        n_slices: int = 4096,
        *,
        reduction: str = "mean",
        sampler: str = "gaussian",
        chunk_size: int | None = None,
        projection_dtype: torch.dtype | None = None,
        seed: int = 0,
        scope: str = "local",
        group: Any = None,
    ) -> None:
        super().__init__(n_slices, sampler, chunk_size, projection_dtype, seed, scope, group)
        _checks.choice("reduction", reduction, ("mean", "sum"))
        self.reduction = reduction

    def forward(self, z: Tensor, step: Step = None, *, row_mask: Tensor | None = None) -> Tensor:
        """The loss."""
        return functional.gaussian_sliced_wasserstein(
            z,
            self.slices(z, step),
            reduction=self.reduction,
            row_mask=row_mask,
            **self._common(),
        )


# --- two or more views ----------------------------------------------------------------------------


class VICRegLoss(_Loss):
    """VICReg of two views a, b (..., N, D), or of the pairs of views (V, N, D).

    Parameters
    ----------
    weights : three numbers
        Of invariance, variance and covariance.
    gamma, eps, convention
        As in `visreg_core.vicreg_loss`.
    scope, group
        As in `visreg_torch.functional`.

    Raises
    ------
    ValueError, TypeError
        For options that are unknown or out of range.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.randn(2, 64, 8)
    >>> loss = VICRegLoss()
    >>> bool(loss(a, b).total == loss(torch.stack([a, b])).total)
    True
    """

    def __init__(
        self,
        weights: Sequence[Number] = (25, 25, 1),
        *,
        gamma: float = 1.0,
        eps: float = 1e-4,
        convention: str = "vicreg",
        scope: str = "local",
        group: Any = None,
    ) -> None:
        super().__init__(scope, group)
        _checks.number("gamma", gamma)
        _checks.not_negative("eps", eps)
        _checks.choice("convention", convention, CONVENTIONS)
        self.weights = _checks.weights("weights", weights, VICRegTerms._fields[1:])
        self.gamma = gamma
        self.eps = eps
        self.convention = convention

    def forward(
        self, a: Tensor, b: Tensor | None = None, *, row_mask: Tensor | None = None
    ) -> VICRegTerms:
        """Terms of the loss."""
        return functional.vicreg_loss(
            a,
            b,
            self.weights,
            gamma=self.gamma,
            eps=self.eps,
            convention=self.convention,
            row_mask=row_mask,
            scope=self.scope,
            group=self.group,
        )


class BarlowTwinsLoss(_Loss):
    """Barlow Twins of two views a, b (..., N, D), or of the pairs of views (V, N, D).

    Parameters
    ----------
    off_diagonal_weight : number
        λ.
    eps : float
        As in `visreg_core.barlow_twins_loss`; 1e-5 gives the value of a BatchNorm layer.
    scope, group
        As in `visreg_torch.functional`.

    Raises
    ------
    ValueError, TypeError
        For options that are unknown or out of range.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.randn(2, 64, 8)
    >>> terms = BarlowTwinsLoss(5e-3)(a, b)
    >>> terms._fields
    ('total', 'on_diagonal', 'off_diagonal')
    """

    def __init__(
        self,
        off_diagonal_weight: Number = 0.0051,
        *,
        eps: float = 0.0,
        scope: str = "local",
        group: Any = None,
    ) -> None:
        super().__init__(scope, group)
        _checks.number("off_diagonal_weight", off_diagonal_weight)
        _checks.not_negative("eps", eps)
        self.off_diagonal_weight = off_diagonal_weight
        self.eps = eps

    def forward(
        self, a: Tensor, b: Tensor | None = None, *, row_mask: Tensor | None = None
    ) -> BarlowTwinsTerms:
        """Terms of the loss."""
        return functional.barlow_twins_loss(
            a,
            b,
            self.off_diagonal_weight,
            eps=self.eps,
            row_mask=row_mask,
            scope=self.scope,
            group=self.group,
        )


class SAGVICRegLoss(_Drawing):
    """SAG-VICReg of two views a, b (N, D): VICReg on pairs that a random walk draws.

    The affinity of the rows, the walk and the weights of its pairs are made in the forward pass
    and carry no gradient.

    Parameters
    ----------
    n_neighbors, percentile, scale, symmetrize
        Of `visreg_core.random_walk_affinity`.
    n_steps : int
        Steps of the walk.
    weights : three numbers
        Of invariance, variance and covariance.
    gamma, eps
        As in `visreg_core.vicreg_loss`.
    seed : int
        Of the walk.
    scope, group
        As in `visreg_torch.functional`.

    Raises
    ------
    ValueError, TypeError
        For options that are unknown or out of range.

    Examples
    --------
    >>> import torch
    >>> a, b = torch.randn(2, 64, 8)
    >>> terms = SAGVICRegLoss(n_neighbors=5)(a, b)
    >>> terms._fields
    ('total', 'invariance', 'variance', 'covariance')
    """

    def __init__(
        self,
        n_neighbors: int = 10,
        *,
        percentile: float = 20,
        scale: str = "local",
        symmetrize: bool = False,
        n_steps: int = 1,
        weights: Sequence[Number] = (25, 25, 1),
        gamma: float = 1.0,
        eps: float = 1e-4,
        seed: int = 0,
        scope: str = "local",
        group: Any = None,
    ) -> None:
        super().__init__(seed, scope, group)
        _checks.positive_int("n_neighbors", n_neighbors)
        _checks.positive_int("n_steps", n_steps)
        _checks.choice("scale", scale, SCALES)
        check_percentile(percentile)
        _checks.number("gamma", gamma)
        _checks.not_negative("eps", eps)
        self.n_neighbors = n_neighbors
        self.percentile = percentile
        self.scale = scale
        self.symmetrize = symmetrize
        self.n_steps = n_steps
        self.weights = _checks.weights("weights", weights, SAGVICRegTerms._fields[1:])
        self.gamma = gamma
        self.eps = eps

    def forward(self, a: Tensor, b: Tensor, step: Step = None) -> SAGVICRegTerms:
        """Terms of the loss."""
        pairs, pair_weights = self.pairs(a, b, step)
        return functional.sag_vicreg_loss(
            a,
            b,
            pairs,
            pair_weights,
            self.weights,
            gamma=self.gamma,
            eps=self.eps,
            scope=self.scope,
            group=self.group,
        )

    def pairs(self, a: Tensor, b: Tensor, step: Step = None) -> tuple[Tensor, Tensor]:
        """For each row of a the row of b that the walk pairs it with, and the pair's affinity.

        In global scope b's rows are counted through all processes.
        """
        return self._drawn(
            lambda now: functional.random_walk_pairs(
                a,
                b,
                self.n_neighbors,
                self.percentile,
                scale=self.scale,
                symmetrize=self.symmetrize,
                n_steps=self.n_steps,
                seed=self.seed,
                step=now,
                scope=self.scope,
                group=self.group,
            ),
            step,
        )
