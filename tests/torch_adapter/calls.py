"""A case of the core's losses as a call of the adapter, and of the core under plain autograd."""

import numpy as np
import pytest
import torch

import visreg_torch
from tests.cases import CASES

# Of the result's fields, none of them 1.
COTANGENTS = (0.7, -1.3, 0.4, 2.1)


def tensors(case, rng, dtype=torch.float64, **size):
    """Arguments by name; the differentiated ones ask for a gradient."""
    drawn = case.draw(rng, **size)
    out = {}
    for name, a in drawn.items():
        t = torch.from_numpy(np.array(a))
        out[name] = t.to(dtype) if t.is_floating_point() else t
    for name in list(out)[: len(case.differentiated)]:
        out[name].requires_grad_()
    return out


def ours(case):
    """The adapter's function of a case."""
    return getattr(visreg_torch, case.loss.name)


def fields(result):
    return tuple(result) if isinstance(result, tuple) else (result,)


def weighted(result, cotangents=COTANGENTS):
    """Sum of the fields, each times its cotangent."""
    return sum((c * f).sum() for c, f in zip(cotangents, fields(result), strict=False))


def value_and_gradients(function, case, arrays, cotangents=COTANGENTS, **extra):
    """Fields, and gradients of `weighted` by autograd."""
    positional, keyword = case.split(arrays)
    result = function(*positional, **keyword, **extra)
    leaves = [a for a in arrays.values() if a.requires_grad]
    return fields(result), torch.autograd.grad(weighted(result, cotangents), leaves)


def assert_all_close(found, expected, **tolerance):
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, **tolerance)


# Every case without a mask, and with one where the loss takes it.
MASKED_OR_NOT = [
    pytest.param(case, masked, id=f"{case}-masked" if masked else str(case))
    for case in CASES
    for masked in (False, True)
    if case.loss.row_mask or not masked
]


def mask_beside(arrays, n):
    """A mask that drops two of n rows; pairs are led to a row that it keeps."""
    mask = torch.ones(n, dtype=torch.bool)
    mask[[1, n - 1]] = False
    if "pairs" in arrays:
        arrays["pairs"] = torch.where(mask[arrays["pairs"]], arrays["pairs"], 0)
    return mask
