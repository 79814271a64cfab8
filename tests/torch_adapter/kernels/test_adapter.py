"""The adapter's functions with kernels under them: chosen by themselves, through autograd."""

import pytest
import torch

import visreg_core as vc
import visreg_torch as vt
from tests.torch_adapter.kernels.tensors import relative_error
from visreg_torch import _run
from visreg_torch.kernels import dispatch, fused, rows

pytestmark = [
    pytest.mark.backends("torch", "torch-cuda"),
    # Dynamo instantiates autograd functions itself.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
FUSED = ("visreg_loss", "gaussian_sliced_wasserstein", "sigreg_loss")


@pytest.fixture(autouse=True)
def _not_on_numpy(monkeypatch):
    """On a CPU the interpreter stands for a device."""
    monkeypatch.setattr(_run, "runs_on_numpy", lambda *_: False)


@pytest.fixture
def inputs(draw):
    z = (draw(2, 40, 9) * 1.3 + 0.2).requires_grad_()
    return z, vt.random_slices(9, 6, dtype=torch.float32, device=z.device)


def total(result):
    """A loss; of several terms with weights of its own, none of them 1."""
    if not isinstance(result, tuple):
        return 0.7 * result
    return 0.7 * result.total - 1.3 * result.scale + 0.4 * result.shape + 2.1 * result.center


def expected(name, z, slices, **options):
    wide = z.detach().double().requires_grad_()
    value = total(getattr(vc, name)(wide, slices.double(), **options))
    return value, torch.autograd.grad(value, wide)[0]


def assert_close(value, gradient, name, z, slices, tolerance=1e-5, **options):
    wanted, wanted_gradient = expected(name, z, slices, **options)
    torch.testing.assert_close(value.double(), wanted, rtol=tolerance, atol=1e-7)
    assert gradient.dtype == z.dtype
    assert relative_error(gradient, wanted_gradient) < tolerance


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_losses_are_fused_where_they_can_be(name, masked, inputs, mask_of, monkeypatch):
    z, slices = inputs
    options = {"row_mask": mask_of(40)} if masked else {}
    ran, run = [], fused.run

    def spied(*args, **kwargs):
        found = run(*args, **kwargs)
        ran.append(found is not None)
        return found

    monkeypatch.setattr(_run, "run_fused", spied)
    value = total(getattr(vt, name)(z, slices, **options))
    (retained,) = torch.autograd.grad(value, z, retain_graph=True)
    (gradient,) = torch.autograd.grad(value, z)
    assert ran == [True]
    assert torch.equal(retained, gradient)
    assert_close(value, gradient, name, z, slices, **options)


@pytest.mark.parametrize("name", [*FUSED, "shape_loss"])
def test_compiled_losses_take_kernels_for_rows(name, inputs, monkeypatch):
    """Nor does this change what is kept, which the operator's shapes foretell."""
    z, slices = inputs
    asked, kernels = [], dict(rows.KERNELS)
    spied = {
        key: lambda *args, key=key: asked.append(key) or kernels[key](*args) for key in kernels
    }
    monkeypatch.setattr(_run, "KERNELS", spied)
    monkeypatch.setattr(_run, "run_fused", lambda *_, **__: pytest.fail("fused"))
    torch._dynamo.reset()
    compiled = torch.compile(getattr(vt, name), fullgraph=True, backend="aot_eager")
    value = total(compiled(z, slices))
    (gradient,) = torch.autograd.grad(value, z)
    assert asked
    assert_close(value, gradient, name, z, slices)


@pytest.mark.parametrize("name", FUSED)
def test_float16_overflows_to_inf(name, draw):
    """As loss scaling expects, whatever computed it."""
    z = draw(16, 5).half().requires_grad_()
    slices = vt.random_slices(5, 4, dtype=torch.float32, device=z.device)
    (2.0**40 * total(getattr(vt, name)(z, slices))).backward()
    assert z.grad.isinf().any()
    assert not z.grad.isnan().any()


def test_errors_are_the_core_s(inputs):
    z, slices = inputs
    for wrong, error, message in (
        ((z[..., :3], slices), ValueError, r"expected slices of shape \(D, K\)"),
        ((z[:, :1], slices), ValueError, "expected z with N >= 2"),
        ((z, slices, (1, 2)), ValueError, "expected weights to be 3 numbers"),
    ):
        with pytest.raises(error, match=message):
            vt.visreg_loss(*wrong)
    with pytest.raises(ValueError, match="expected eps to be a finite number >= 0"):
        vt.visreg_loss(z, slices, eps=-1.0)
    with pytest.raises(ValueError, match="expected row_mask boolean"):
        vt.visreg_loss(z, slices, row_mask=torch.ones(3, dtype=torch.bool, device=z.device))
    with pytest.raises(ValueError, match="expected chunk_size to be an integer"):
        vt.sigreg_loss(z, slices, chunk_size=0)


def test_the_slow_twin_runs_where_it_is_forced(inputs):
    z, slices = inputs
    with dispatch.forced(dispatch.SLOW):
        value = total(vt.visreg_loss(z, slices))
        (gradient,) = torch.autograd.grad(value, z)
    assert_close(value, gradient, "visreg_loss", z, slices)
