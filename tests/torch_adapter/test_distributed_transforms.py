"""scope="global" where torch does more than call forward and backward once."""

import warnings

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.torch_adapter.processes import run, successful
from visreg_core import random_slices

ROWS = (6, 6)
SLICES = random_slices(5, 7, xp=torch, dtype=torch.float64)


def own_rows(rank, dtype=torch.float64):
    generator = torch.Generator().manual_seed(6)
    z = torch.randn(2, sum(ROWS), 5, generator=generator, dtype=torch.float64)
    return z.to(dtype).split(ROWS, dim=1)[rank].clone().requires_grad_()


def visreg(z, **sharding):
    from visreg_torch import functional
    from visreg_torch.distributed import Sharding

    slices = SLICES.to(torch.float64 if z.dtype == torch.float64 else torch.float32)
    terms = functional.visreg_loss(z, slices, scope="global", group=Sharding(**sharding))
    return terms.total + terms.scale


def barlow(z, **sharding):
    """Which reduces in the backward pass, too; with a group that is named."""
    from visreg_torch import functional
    from visreg_torch.distributed import Sharding

    group = Sharding(torch.distributed.group.WORLD, **sharding)
    return functional.barlow_twins_loss(z, scope="global", group=group).total


def sag_vicreg(z, **sharding):
    """Whose pairs depend on all rows' neighbours."""
    from visreg_torch import SAGVICRegLoss
    from visreg_torch.distributed import Sharding

    group = Sharding(**sharding)
    return SAGVICRegLoss(3, n_steps=2, scope="global", group=group)(*z, step=5).total


def compiled(rank, fullgraph):
    warnings.simplefilter("default")  # Dynamo looks at .grad where it breaks a graph
    found = []
    for loss in (visreg, barlow, sag_vicreg):

        def of_twice(z, loss=loss):
            return loss(2 * z, static_shapes=fullgraph)

        z = own_rows(rank)
        (expected,) = torch.autograd.grad(of_twice(z), z)
        value = torch.compile(of_twice, fullgraph=fullgraph, backend="aot_eager")(z)
        (gradient,) = torch.autograd.grad(value, z)
        found.append([value.detach(), of_twice(z).detach(), gradient, expected])
    return found


@pytest.mark.parametrize("fullgraph", [True, False], ids=["whole", "broken at the agreement"])
def test_compiled(fullgraph):
    for result in successful(run(2, compiled, fullgraph)):
        for value, expected, gradient, expected_gradient in result:
            torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
            torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-15)


def repeated(rank):
    found = {}
    for loss in (visreg, barlow):
        z = own_rows(rank)
        value = loss(z)
        (found["once"],) = torch.autograd.grad(value, z, retain_graph=True)
        (found["again"],) = torch.autograd.grad(3 * value, z)
        (found["checkpointed"],) = torch.autograd.grad(
            checkpoint(loss, z, use_reentrant=False, preserve_rng_state=False), z
        )
        with torch.no_grad():
            found["value"], found["without gradient"] = value.detach(), loss(z)
        torch.testing.assert_close(found["again"], 3 * found["once"])
        assert torch.equal(found["checkpointed"], found["once"])
        assert torch.equal(found["without gradient"], found["value"])
    return True


def test_backward_again_checkpointed_and_without_gradient():
    assert successful(run(2, repeated)) == [True, True]


def in_half(rank, dtype):
    z = own_rows(rank, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = visreg(z)
    value.backward()
    return [value.detach(), z.grad]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_half_precision_under_autocast(dtype):
    from visreg_torch import functional

    results = successful(run(2, in_half, dtype))
    z = torch.cat([own_rows(rank, dtype) for rank in range(2)], dim=1).detach().requires_grad_()
    terms = functional.visreg_loss(z, SLICES.float())
    value = terms.total + terms.scale
    value.backward()
    for found, gradient in results:
        assert found.dtype == torch.float32 and gradient.dtype == dtype
        torch.testing.assert_close(found, value.detach(), rtol=1e-6, atol=0)
    gradient = torch.cat([g.double() for _, g in results], dim=1) / 2  # exact: a power of two
    error = torch.linalg.vector_norm(gradient - z.grad) / torch.linalg.vector_norm(z.grad.double())
    assert error < (1e-6 if dtype == torch.float32 else 1e-4)
