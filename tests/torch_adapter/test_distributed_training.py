"""Data-parallel training with scope="global": the parameters' gradient is that of one process."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.torch_adapter.processes import run, successful
from tests.torch_adapter.test_distributed_values import EVEN, UNEVEN
from visreg_core import random_slices

VIEWS, FEATURES, DIM, SLICES = 3, 6, 4, 10


def encoder():
    """The same in every process."""
    torch.manual_seed(1)
    layers = (nn.Linear(FEATURES, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, DIM))
    return nn.Sequential(*layers).double()


def batch(n):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(VIEWS, n, FEATURES, generator=generator, dtype=torch.float64)


def slices(step):
    return random_slices(DIM, SLICES, step=step, xp=torch, dtype=torch.float64)


def visreg(z, step, **scope):
    from visreg_torch import functional as f

    invariance = f.invariance_loss(z, n_global=2, **scope)
    return f.joint_objective(invariance, f.visreg_loss(z, slices(step), **scope).total, 0.9)


def reweighted(z, step, **scope):
    """Terms by themselves, with weights of the caller's own."""
    from visreg_torch import functional as f

    terms = f.visreg_loss(z, slices(step), **scope)
    return 0.3 * terms.scale**2 + terms.shape * terms.center


def sigreg(z, step, **scope):
    from visreg_torch import functional as f

    return f.sigreg_loss(z, slices(step), **scope) + f.invariance_loss(z, **scope)


def vicreg(z, step, **scope):
    from visreg_torch import functional as f

    return f.vicreg_loss(z[0], z[1], **scope).total + f.barlow_twins_loss(z, **scope).total


OBJECTIVES = {f.__name__: f for f in (visreg, reweighted, sigreg, vicreg)}


def trained(model, x, objective, **scope):
    """Value and gradients of the parameters in each of two steps."""
    found = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        value = OBJECTIVES[objective](model(x), step, **scope)
        value.backward()
        found.append([value.detach(), *[p.grad.clone() for p in model.parameters()]])
        optimizer.step()
    return found


def on_rank(rank, rows, objective):
    x = batch(sum(rows)).split(rows, dim=1)[rank]
    return trained(DistributedDataParallel(encoder()), x, objective, scope="global")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("rows", [EVEN[2], UNEVEN[2], UNEVEN[3], UNEVEN[4]], ids=str)
def test_ddp_averages_to_the_gradient_of_one_process(rows, objective):
    expected = trained(encoder(), batch(sum(rows)), objective)
    for found in successful(run(len(rows), on_rank, rows, objective)):
        for step, of in zip(found, expected, strict=True):
            for a, b in zip(step, of, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
