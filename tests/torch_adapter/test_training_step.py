"""A training step with a loss inside, as people run it: compiled, scaled, sharded, exported."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.distributed import device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

import visreg_torch as vt
from tests.torch_adapter.processes import run, successful

FEATURES, WIDTH, DIM, ROWS = 6, 8, 4, 16


class Encoder(nn.Module):
    """Two blocks and a head."""

    def __init__(self, checkpointed=False):
        super().__init__()
        torch.manual_seed(1)
        widths = (FEATURES, WIDTH, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.GELU(), nn.Dropout(0.1))
            for a, b in itertools.pairwise(widths)
        )
        self.head = nn.Linear(WIDTH, DIM)
        self.checkpointed = checkpointed

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.head(x).clone()  # FSDP warns of outputs that are views


def views(n=ROWS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, n, FEATURES, generator=generator, dtype=torch.float64).to(dtype)


OBJECTIVES = {
    "visreg": lambda **scope: vt.JointObjective(vt.VISRegLoss(12, **scope), 0.6),
    "sigreg": lambda **scope: vt.JointObjective(vt.SIGRegLoss(12, **scope), 0.1),
    "vicreg": lambda **scope: vt.VICRegLoss(**scope),
    "barlow": lambda **scope: vt.BarlowTwinsLoss(**scope),
}


def weights_after(model, objective, x, steps=3):
    """Plain training; the oracle of the others."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    torch.manual_seed(3)  # of the dropout
    for _ in range(steps):
        optimizer.zero_grad()
        objective(model(x)).total.backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def assert_close(found, expected, tolerance=1e-10):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- torch.compile --------------------------------------------------------------------------------


class Objective(nn.Module):
    """Model and loss as one module, with the slices' step as an argument."""

    def __init__(self, model, loss, draws):
        super().__init__()
        self.model, self.loss, self.draws = model, loss, draws

    def forward(self, x, step):
        return self.loss(self.model(x), *([step] if self.draws else []))


@pytest.mark.parametrize("name", ["visreg", "vicreg"])
def test_a_whole_compiled_step(name):
    """Model, slices, loss, backward pass and optimiser; one graph each way, compiled once."""
    torch._dynamo.reset()
    whole = Objective(Encoder().double().eval(), OBJECTIVES[name](), name in ("visreg", "sigreg"))
    plain = copy.deepcopy(whole)
    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    found = []
    for module in (plain, compiled):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
        for step in range(3):
            optimizer.zero_grad()
            module(views(), torch.tensor(step)).total.backward()
            optimizer.step()
        found.append([p.detach() for p in module.parameters()])
    assert_close(found[1], found[0])
    assert not torch.equal(found[0][0], next(Encoder().double().parameters()))


# --- gradient checkpointing -----------------------------------------------------------------------


def test_checkpointed_blocks():
    """Blocks, dropout included, are run again in the backward pass."""
    found, expected = (
        weights_after(Encoder(checkpointed).double(), OBJECTIVES["visreg"](), views())
        for checkpointed in (True, False)
    )
    assert_close(found, expected)


def test_a_checkpointed_loss_is_given_its_step():
    """The whole objective is run again: with its own step it would draw other slices."""
    model, objective, x = Encoder().double(), OBJECTIVES["visreg"](), views()
    torch.manual_seed(3)
    checkpoint(lambda x: objective(model(x), step=5).total, x, use_reentrant=False).backward()
    found = [p.grad.clone() for p in model.parameters()]
    assert int(objective.regularizer.step) == 0
    model.zero_grad()
    torch.manual_seed(3)
    objective(model(x), step=5).total.backward()
    assert_close(found, [p.grad for p in model.parameters()])


# --- loss scaling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_scaling(name):
    """float16 embeddings: gradients unscale to those of float32, but for float16's digits."""
    plain, model = Encoder().eval(), Encoder().eval()
    objective, x = OBJECTIVES[name](), views(dtype=torch.float32)
    objective.eval()
    objective(plain(x)).total.backward()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with torch.autocast("cpu", torch.float16):
        z = model(x)
        total = objective(z).total
    assert z.dtype == torch.float16 and total.dtype == torch.float32
    scaler.scale(total).backward()
    scaler.unscale_(optimizer)
    a, b = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (model, plain))
    assert (a - b).norm() < 0.02 * b.norm()


def test_a_scale_that_is_too_large_skips_the_step_and_falls():
    model, objective = Encoder().eval(), OBJECTIVES["vicreg"]()
    before = [p.detach().clone() for p in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with torch.autocast("cpu", torch.float16):
        total = objective(model(views(dtype=torch.float32))).total
    scaler.scale(total).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**29
    assert_close(model.parameters(), before, 0)


# --- torch.export ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["visreg", "barlow"])
def test_an_exported_model_with_its_loss(name):
    """The program gives the loss, for another number of rows, too."""
    draws = name in ("visreg", "sigreg")
    whole = Objective(Encoder().double().eval(), OBJECTIVES[name](), draws)
    given = (views(), torch.tensor(2))
    rows = torch.export.Dim("rows", min=4, max=64)
    program = torch.export.export(whole, given, dynamic_shapes=({1: rows}, None))
    for n in (ROWS, 23):
        found = program.module()(views(n), torch.tensor(2))
        expected = whole(views(n), torch.tensor(2))
        torch.testing.assert_close(found[0], expected.total, rtol=1e-12, atol=1e-12)


# --- FSDP2 ----------------------------------------------------------------------------------------


def sharded(rank, name):
    """Two processes with half of the rows and half of each parameter."""
    mesh = device_mesh.init_device_mesh("cpu", (2,))
    model = Encoder().double().eval()
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    x = views().chunk(2, dim=1)[rank]
    objective = OBJECTIVES[name](scope="global")
    plain = [w.full_tensor() for w in weights_after(model, objective, x)]

    # The same again from micro-batches, whose gradients are reduced once.
    model = Encoder().double().eval()
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    objective = OBJECTIVES[name](scope="global")
    for _ in range(3):
        optimizer.zero_grad()
        vt.large_batch(model, objective, x.split(4, dim=1))
        optimizer.step()
    return plain, [p.detach().full_tensor() for p in model.parameters()]


def test_fsdp_trains_as_one_process_does():
    expected = weights_after(Encoder().double().eval(), OBJECTIVES["visreg"](), views())
    for plain, in_parts in successful(run(2, sharded, "visreg")):
        assert_close(plain, expected)
        assert_close(in_parts, expected)
