"""Steps in a captured graph, where there is a device: nothing waits, or is allocated by data."""

import pytest
import torch

import visreg_torch
from tests.torch_adapter.kernels.tensors import relative_error
from visreg_torch.kernels import dispatch
from visreg_torch.kernels.slices import gaussian_slices

pytestmark = [
    pytest.mark.backends("torch-cuda"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="a graph is captured on a device"),
]


def captured(step):
    """A graph of a step, warmed up as torch asks for: constants come from the host there."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return graph, result


@pytest.mark.parametrize("name", ["visreg_loss", "gaussian_sliced_wasserstein", "sigreg_loss"])
@pytest.mark.parametrize("n", [300, 9000])
def test_a_graph_of_a_sliced_loss_follows_its_inputs(draw, name, n):
    z, step = draw(2, n, 24, dtype=torch.bfloat16), torch.zeros((), dtype=torch.int64).cuda()
    passes, one = dispatch.passes(name, z), torch.ones((), device=z.device)

    def run():
        w = gaussian_slices(24, 40, step=step, device=z.device)
        fields, saved = passes.forward(z, w)
        cotangents = (one, *[None] * (len(fields) - 1))
        return fields[0], passes.backward(z, w, saved, cotangents)

    graph, (value, gradient) = captured(run)
    z.copy_(2 * draw(2, n, 24, dtype=torch.bfloat16))
    step.fill_(7)
    graph.replay()
    expected, of_z = run()
    assert torch.equal(value, expected)
    assert relative_error(gradient, of_z) == 0


@pytest.mark.parametrize("name", ["vicreg_loss", "barlow_twins_loss"])
@pytest.mark.parametrize(("n", "d"), [(40, 60), (60, 40)])
def test_a_graph_of_a_loss_of_pairs_follows_its_inputs(draw, name, n, d):
    a, b = draw(n, d), draw(n, d)
    passes, one = dispatch.passes(name, a, b), torch.ones((), device=a.device)

    def run():
        fields, saved = passes.forward(a, b)
        cotangents = (one, *[None] * (len(fields) - 1))
        return fields[0], *passes.backward(a, b, saved, cotangents)

    graph, found = captured(run)
    a.copy_(3 * draw(n, d))
    graph.replay()
    for f, e in zip(found, run(), strict=True):
        assert torch.equal(f, e)


@pytest.mark.parametrize("name", ["VISRegLoss", "SIGRegLoss", "SlicedWassersteinLoss"])
def test_a_graph_of_a_module_draws_anew(draw, name):
    """Through autograd: the step is read and advanced on the device, at each replay."""
    z = draw(2, 300, 24).requires_grad_()
    loss = getattr(visreg_torch, name)(40, seed=3).to(z.device)

    def run():
        result = loss(z)
        value = getattr(result, "total", result)
        return value, *torch.autograd.grad(value, z)

    graph, found = captured(run)
    for _ in range(2):
        at = int(loss.step)
        graph.replay()
        again = getattr(visreg_torch, name)(40, seed=3).to(z.device)
        again.step.fill_(at)
        result = again(z)
        value = getattr(result, "total", result)
        assert torch.equal(found[0], value)
        assert torch.equal(found[1], torch.autograd.grad(value, z)[0])
        assert int(loss.step) == at + 1


@pytest.mark.parametrize("name", ["VICRegLoss", "BarlowTwinsLoss"])
def test_a_graph_of_a_module_of_pairs(draw, name):
    a, b = (draw(40, 60).requires_grad_() for _ in range(2))
    loss = getattr(visreg_torch, name)()

    def run():
        value = loss(a, b).total
        return value, *torch.autograd.grad(value, (a, b))

    graph, found = captured(run)
    with torch.no_grad():
        a.copy_(3 * draw(40, 60))
    graph.replay()
    for f, e in zip(found, run(), strict=True):
        assert torch.equal(f, e)
