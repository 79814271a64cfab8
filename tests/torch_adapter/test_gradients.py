"""Values and gradients of the adapter, against torch's autograd through the core's plain value."""

import inspect

import pytest
import torch

import visreg_core
import visreg_torch
from tests.cases import CASES, FUNCTIONS, each
from tests.torch_adapter.calls import assert_all_close, ours, tensors, value_and_gradients


@each(CASES)
@pytest.mark.parametrize("shape", [(12, 5, 7), (6, 9, 2)], ids=["N>D", "N<D"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_value_and_gradient_are_those_of_autograd(case, shape, masked, rng):
    if masked and not case.loss.row_mask:
        pytest.skip("takes no mask")
    n, d, k = shape
    arrays = tensors(case, rng, n=n, d=d, k=k)
    extra = {}
    if masked:
        extra["row_mask"] = torch.ones(n, dtype=torch.bool)
        extra["row_mask"][[1, n - 1]] = False
        if "pairs" in arrays:  # a kept row must be paired with a kept row
            arrays["pairs"] = torch.where(extra["row_mask"][arrays["pairs"]], arrays["pairs"], 0)
    found = value_and_gradients(ours(case), case, arrays, **extra)
    expected = value_and_gradients(case.function, case, arrays, **extra)
    for f, e in zip(found, expected, strict=True):
        assert_all_close(f, e, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_are_the_core_s(name):
    """In order, kind and default; behind them scope and group."""
    ours = inspect.signature(getattr(visreg_torch, name)).parameters
    core = inspect.signature(getattr(visreg_core, name)).parameters
    further = [n for n in ours if n not in core]
    assert further in ([], ["scope", "group"])
    assert list(core) == [n for n in ours if n not in further]
    for n, parameter in core.items():
        assert (ours[n].kind, ours[n].default) == (parameter.kind, parameter.default)
