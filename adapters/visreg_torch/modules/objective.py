"""The joint objective of invariance and regulariser."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from visreg_core import (
    checks,
    joint_objective,
)
from visreg_torch import functional
from visreg_torch.modules.base import Number, Step


class JointTerms(NamedTuple):
    """Terms of `JointObjective`; total = (1 − λ) invariance + λ regularizer.

    ``terms`` is the regulariser's own result: named terms, or the loss alone.
    """

    total: Tensor
    invariance: Tensor
    regularizer: Tensor
    terms: Any


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
    >>> from visreg_torch import SIGRegLoss
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
        checks.number("lam", lam)
        if n_global is not None:
            checks.positive_int("n_global", n_global)
        checks.flag("detach_center", detach_center)
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
        total, invariance = joined(self, z, regularizer, row_mask, scope, group)
        return JointTerms(total, invariance, regularizer, terms)


def joined(
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
