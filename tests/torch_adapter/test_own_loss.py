"""A loss declared outside of the package, as the manual tells: on several processes, too."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.torch_adapter.processes import run, successful
from visreg_core import declare_loss, value_and_grad

PAGE = Path(__file__).parents[2] / "docs" / "own_loss.md"
ROWS = (5, 2, 4)


def declared():
    """The manual's own declaration: its first block."""
    block = re.search(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S).group(1)
    names = {"__name__": "somebody.losses"}
    exec(compile(block, "own_loss.md", "exec"), names)
    return names["norm_loss"]


def embeddings():
    return torch.from_numpy(np.random.default_rng(3).normal(size=(sum(ROWS), 4)))


def on_rank(rank):
    from visreg_torch import differentiable

    z = embeddings().split(ROWS)[rank].clone().requires_grad_()
    value = differentiable(declared())(z, scope="global")
    value.backward()
    return value.detach(), z.grad


def test_the_loss_of_several_processes_is_that_of_all_rows():
    results = successful(run(len(ROWS), on_rank))
    value, gradient = value_and_grad(declared())(embeddings().numpy())
    for found, _ in results:
        np.testing.assert_allclose(found, value, rtol=1e-12)
    found = torch.cat([g for _, g in results]) / len(ROWS)
    np.testing.assert_allclose(found, gradient, rtol=1e-12)


def test_without_saved_tracers_are_told():
    import visreg_torch

    @declare_loss(differentiated=("z",), row_axes={"z": -2})
    def plain_loss(execution, z):
        return (z * z).sum(), ()

    compiled = torch.compile(visreg_torch.differentiable(plain_loss), backend="eager")
    with pytest.raises(Exception, match=r"expected plain_loss to be declared with saved="):
        compiled(torch.ones(3, 2))


def test_arguments_that_no_operator_can_take_are_named():
    import visreg_torch

    @declare_loss(differentiated=("z",), row_axes={"z": -2})
    def odd_loss(execution, z, table: dict):
        return (z * z).sum(), ()

    with pytest.raises(TypeError, match="expected table of odd_loss to be annotated as one of"):
        visreg_torch.differentiable(odd_loss)
