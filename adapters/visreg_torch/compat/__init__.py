"""The losses with the names and arguments of other packages: only an import changes.

`visreg_torch.compat.lightly`, `visreg_torch.compat.stable_pretraining`,
`visreg_torch.compat.solo_learn` and `visreg_torch.compat.lejepa` have the classes and functions of
those packages, with their arguments, defaults and results. On one process a loss has the same
value as theirs, given the same random directions; its docstring states any difference. Directions
depend on a seed and a step, as in `visreg_torch.modules`, and on several processes a loss of
gathered rows is that of the whole batch, with its gradient, however the rows are spread.
"""

from __future__ import annotations

from visreg_core import checks

__all__ = ["convert_lambda"]

_RATIOS = {
    "convex": lambda lam: lam / (1 - lam),
    "additive": lambda lam: lam,
}


def convert_lambda(lam: float, given: str, wanted: str, *, factor: float = 1.0) -> float:
    """Convert λ between two forms of an objective, so that their minimisers are the same.

    Parameters
    ----------
    lam : float
        λ in the form `given`; below 1 where that is "convex".
    given, wanted : {"convex", "additive"}
        "convex": (1 − λ) invariance + λ regularizer. "additive": invariance + λ regularizer.
    factor : float
        The regularizer of the form `given` over that of the form `wanted`: N from LeJEPA's
        statistic, which has a factor N, to ``scale_by_n=False``; 1/D from an invariance summed over
        D dimensions to one averaged over them.

    Returns
    -------
    float
        λ in the form `wanted`. The objectives differ by a factor, which acts on the learning rate
        unless the optimiser is scale-free.

    Raises
    ------
    ValueError
        For an unknown form or a `lam` out of range.

    Examples
    --------
    >>> convert_lambda(0.25, "additive", "convex")
    0.2
    >>> round(convert_lambda(0.02, "convex", "convex", factor=256), 3)  # λ without the N of 256
    0.839
    """
    checks.choice("given", given, _RATIOS)
    checks.choice("wanted", wanted, _RATIOS)
    checks.positive("factor", factor)
    if not 0 <= lam < (1 if given == "convex" else float("inf")):
        raise ValueError(f"expected lam >= 0, below 1 in the convex form; found {lam!r}")
    ratio = factor * _RATIOS[given](lam)
    return ratio / (1 + ratio) if wanted == "convex" else ratio
