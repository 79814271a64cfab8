"""Values and gradients of the adapter, against torch's autograd through the core's plain value."""

import ast
import inspect
import itertools
import runpy
from pathlib import Path

import pytest
import torch

import visreg_core
import visreg_torch
from tests.cases import CASES, FUNCTIONS, PRIMARY, each, named
from tests.torch_adapter.calls import (
    COTANGENTS,
    MASKED_OR_NOT,
    assert_all_close,
    fields,
    mask_beside,
    ours,
    tensors,
    value_and_gradients,
)
from visreg_torch import _passes
from visreg_torch._call import LossCall

ADAPTERS = Path(visreg_torch.__file__).parents[1]


@pytest.mark.parametrize(("case", "masked"), MASKED_OR_NOT)
@pytest.mark.parametrize("shape", [(12, 5, 7), (6, 9, 2)], ids=["N>D", "N<D"])
def test_value_and_gradient_are_those_of_autograd(case, masked, shape, rng):
    """With an upstream gradient for each field, none of them 1."""
    n, d, k = shape
    arrays = tensors(case, rng, n=n, d=d, k=k)
    extra = {"row_mask": mask_beside(arrays, n)} if masked else {}
    found = value_and_gradients(ours(case), case, arrays, **extra)
    expected = value_and_gradients(case.function, case, arrays, **extra)
    for f, e in zip(found, expected, strict=True):
        assert_all_close(f, e, rtol=1e-10, atol=1e-12)


@each(PRIMARY)
def test_torch_path_is_the_same(case, rng, monkeypatch):
    """What runs where NumPy cannot: on devices, on shards."""
    arrays = tensors(case, rng)
    call = LossCall(case.function.declaration, {}, [])
    assert _passes.runs_on_numpy(call, list(arrays.values()))
    on_numpy = value_and_gradients(ours(case), case, arrays)
    monkeypatch.setattr(_passes, "runs_on_numpy", lambda *_: False)
    on_torch = value_and_gradients(ours(case), case, arrays)
    for f, e in zip(on_torch, on_numpy, strict=True):
        assert_all_close(f, e, rtol=1e-10, atol=1e-12)


SEVERAL_FIELDS = [case for case in PRIMARY if len(case.loss.fields) > 1]


@each(SEVERAL_FIELDS)
def test_each_subset_of_the_fields_has_its_gradient(case, rng):
    """Fields without a cotangent, with one of another sign, and the total by itself."""
    arrays = tensors(case, rng)
    positional, keyword = case.split(arrays)
    leaves = [a for a in arrays.values() if a.requires_grad]
    names = case.loss.fields
    for chosen in itertools.product([False, True], repeat=len(names)):
        if not any(chosen):
            continue
        found, expected = (
            torch.autograd.grad(
                sum(
                    c * getattr(result, name)
                    for name, c, there in zip(names, COTANGENTS, chosen, strict=False)
                    if there
                ),
                leaves,
            )
            for result in (f(*positional, **keyword) for f in (ours(case), case.function))
        )
        assert_all_close(found, expected, rtol=1e-10, atol=1e-12)


@each([c for c in CASES if c.held is None and c.loss.name not in ("sag_vicreg_loss",)])
def test_central_differences(case, rng):
    """torch's own check, for all losses without a stop-gradient."""
    arrays = tensors(case, rng, n=5, d=3, k=2)
    positional, keyword = case.split(arrays)
    assert torch.autograd.gradcheck(lambda *a: fields(ours(case)(*a, **keyword)), positional)


def test_an_input_that_asks_for_no_gradient_gets_none(rng):
    (case,) = named("vicreg_loss")
    arrays = tensors(case, rng)
    arrays["b"].requires_grad_(False)
    a, b = arrays.values()
    (found,) = torch.autograd.grad(visreg_torch.vicreg_loss(a, b).total, a)
    (expected,) = torch.autograd.grad(visreg_core.vicreg_loss(a, b).total, a)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z.transpose(-1, -2).contiguous().transpose(-1, -2),
        lambda z: torch.cat([z, z], -1)[..., : z.shape[-1]],
        lambda z: torch.stack([z, z], -1)[..., 0],
        lambda z: z[:1].expand_as(z),
        lambda z: torch.complex(z, -z).conj().imag,
    ],
    ids=["transposed", "columns", "every second", "expanded", "lazily negated"],
)
@each(named("visreg_loss", "invariance_loss", "vicreg_loss"))
def test_strided_embeddings(case, change, rng):
    arrays = {
        name: change(a.detach()).requires_grad_() if a.requires_grad else a
        for name, a in tensors(case, rng).items()
    }
    found, expected = (value_and_gradients(f, case, arrays) for f in (ours(case), case.function))
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


def test_the_stub_is_what_the_declarations_say():
    """``make stubs`` writes it; compared as parsed, since layout is the formatter's."""
    script = runpy.run_path(str(ADAPTERS / "write_stubs.py"))
    written = ast.dump(ast.parse(script["STUB"].read_text()))
    assert ast.dump(ast.parse(script["stub"]())) == written
