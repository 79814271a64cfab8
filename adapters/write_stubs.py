"""Write `visreg_torch/functional.pyi`: the signatures of the losses, from their declarations.

Run it by ``make stubs`` after a loss was added or its arguments were changed.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from visreg_core.losses.declaration import Declaration, own_losses

STUB = Path(__file__).parent / "visreg_torch" / "functional.pyi"

_HEAD = '''"""Written by ``make stubs`` from the losses' declarations."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from visreg_core import {terms}
from visreg_core import joint_objective as joint_objective
from visreg_torch._differentiable import differentiable as differentiable
from visreg_torch._slices import random_slices as random_slices
from visreg_torch._walks import random_walk_affinity as random_walk_affinity
from visreg_torch._walks import random_walk_pairs as random_walk_pairs

__all__: list[str]
'''

_TYPES = {
    "Array": "Tensor",
    "Array | None": "Tensor | None",
    "DType": "torch.dtype | None",
    "Scalar": "float | Tensor",
    "tuple[Scalar, Scalar, Scalar]": "Sequence[float | Tensor]",
}


def stub() -> str:
    """The text of the stub."""
    losses = sorted(own_losses(), key=lambda loss: loss.name)
    terms = sorted({loss.terms.__name__ for loss in losses if loss.terms is not None})
    parts = [_HEAD.format(terms=", ".join(terms)).replace("Callable, ", "")]
    return "\n".join([*parts, *map(_function, losses)])


def _function(loss: Declaration) -> str:
    lines, keywords = [], False
    for p in loss.signature.parameters.values():
        if p.kind is p.KEYWORD_ONLY and not keywords:
            lines.append("*")
            keywords = True
        default = "" if p.default is inspect.Parameter.empty else f" = {p.default!r}"
        lines.append(f"{p.name}: {_TYPES.get(p.annotation, p.annotation)}{default}")
    if loss.sharded:
        lines += [] if keywords else ["*"]
        lines += ['scope: str = "local"', "group: Any = None"]
    result = "Tensor" if loss.terms is None else loss.terms.__name__
    arguments = "".join(f"    {line},\n" for line in lines).replace("'", '"')
    return f"def {loss.name}(\n{arguments}) -> {result}: ..."


if __name__ == "__main__":
    STUB.write_text(stub() + "\n")
