"""Passes that are recorded and repeated compute what those that decide each time do."""

import pytest
import torch

import visreg_torch as vt
from tests.torch_adapter.kernels.losses import FUSED, total
from visreg_torch.kernels import _tape

pytestmark = [
    pytest.mark.backends("torch", "torch-cuda"),
    pytest.mark.usefixtures("kernels_on_cpu"),
]


def step(function, *embeddings, **options):
    """Value and gradients, with nothing else of the step left."""
    leaves = [x.clone().requires_grad_() for x in embeddings]
    result = function(*leaves, **options)
    value = total(result) if not isinstance(result, tuple) else result.total
    return value.detach(), *torch.autograd.grad(value, leaves)


def steps_agree(function, batches, **options):
    by_tape = [step(function, *batch, **options) for batch in batches]
    played = [tape for tape in _tape._TAPES.values() if isinstance(tape, _tape.Tape)]
    _tape.clear()
    for batch, found in zip(batches, by_tape, strict=True):
        for f, e in zip(found, step(function, *batch, **options), strict=True):
            assert torch.equal(f, e)
        _tape.clear()
    return len(played)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FUSED)
def test_sliced_losses(name, dtype, draw, device):
    w = vt.random_slices(9, 6, dtype=torch.float32, device=device)
    batches = [(draw(2, 12, 9, dtype=dtype),) for _ in range(4)]
    assert steps_agree(lambda z: getattr(vt, name)(z, w), batches) == 2


@pytest.mark.parametrize(("n", "d"), [(10, 20), (20, 10)])
@pytest.mark.parametrize("name", ["vicreg_loss", "barlow_twins_loss"])
def test_losses_of_pairs(name, n, d, draw):
    batches = [tuple(draw(2, n, d)) for _ in range(4)]
    assert steps_agree(getattr(vt, name), batches) == 2
    assert steps_agree(getattr(vt, name), [(draw(2, n, d),) for _ in range(4)]) == 2


def test_a_changing_batch_and_a_gradient_that_is_kept(draw, device):
    """Steps of other sizes in between; and a graph that is gone through twice."""
    w = vt.random_slices(9, 6, dtype=torch.float32, device=device)
    sizes = (12, 10, 12, 10, 12, 10)
    assert steps_agree(lambda z: vt.visreg_loss(z, w), [(draw(2, n, 9),) for n in sizes]) == 4
    z = draw(2, 12, 9).requires_grad_()
    for _ in range(3):
        value = vt.visreg_loss(z, w).total
        first = torch.autograd.grad(value, z, retain_graph=True)[0]
        kept = first.clone()
        (second,) = torch.autograd.grad(value, z)
        assert torch.equal(first, kept)
        assert torch.equal(second, kept)


def test_other_operations_make_no_tape():
    """What a recording does not note would be missing from the steps."""
    x = torch.ones(3)

    def run():
        return [x.view(3, 1).add_(1)]

    for _ in range(4):
        _tape.played("test", [x], run)
    assert _tape._TAPES["test"] is False
    assert x.tolist() == [5, 5, 5]
    _tape.clear()
