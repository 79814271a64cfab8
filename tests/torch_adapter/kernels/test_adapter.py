"""The adapter's functions with kernels under them: chosen by themselves, through autograd."""

import pytest
import torch

import visreg_core as vc
import visreg_torch as vt
from tests.torch_adapter.kernels.losses import FUSED, assert_close, total
from tests.torch_adapter.kernels.tensors import relative_error
from visreg_torch.kernels import dispatch

pytestmark = [
    pytest.mark.backends("torch", "torch-cuda"),
    pytest.mark.usefixtures("kernels_on_cpu"),
]


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_losses_are_fused_where_they_can_be(name, masked, inputs, mask_of, fused_on):
    z, slices = inputs
    options = {"row_mask": mask_of(40)} if masked else {}
    value = total(getattr(vt, name)(z, slices, **options))
    (retained,) = torch.autograd.grad(value, z, retain_graph=True)
    (gradient,) = torch.autograd.grad(value, z)
    assert fused_on == [z.device.type]
    assert torch.equal(retained, gradient)
    assert_close(value, gradient, name, z, slices, **options)


@pytest.mark.parametrize("name", FUSED)
def test_float16_overflows_to_inf(name, draw):
    """As loss scaling expects, whatever computed it."""
    z = draw(16, 5).half().requires_grad_()
    slices = vt.random_slices(5, 4, dtype=torch.float32, device=z.device)
    (2.0**40 * total(getattr(vt, name)(z, slices))).backward()
    assert z.grad.isinf().any()
    assert not z.grad.isnan().any()


@pytest.mark.parametrize("name", ["vicreg_loss", "sag_vicreg_loss", "barlow_twins_loss"])
@pytest.mark.parametrize(("n", "d"), [(9, 30), (30, 9)])
def test_losses_of_pairs_are_fused(name, n, d, draw, fused_on):
    """By products of rows and of columns, which save different arrays."""
    a, b = draw(n, d).requires_grad_(), draw(n, d).requires_grad_()
    more = (draw(n).abs().long(), draw(n).abs()) if name == "sag_vicreg_loss" else ()
    wide = [x.detach().double().requires_grad_() for x in (a, b)]
    doubles = [x.double() if x.is_floating_point() else x for x in more]
    value, expected = getattr(vt, name)(a, b, *more)[0], getattr(vc, name)(*wide, *doubles)[0]
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
    gradients = torch.autograd.grad(value, (a, b))
    assert fused_on == [a.device.type]
    for found, wanted in zip(gradients, torch.autograd.grad(expected, wide), strict=True):
        assert relative_error(found, wanted) < 5e-5


def test_errors_are_the_core_s(inputs):
    z, slices = inputs
    for wrong, error, message in (
        ((z[..., :3], slices), ValueError, r"expected slices of shape \(D, K\)"),
        ((z[:, :1], slices), ValueError, "expected z with N >= 2"),
        ((z, slices, (1, 2)), ValueError, "expected weights to be 3 numbers"),
    ):
        with pytest.raises(error, match=message):
            vt.visreg_loss(*wrong)
    with pytest.raises(ValueError, match="expected eps to be a finite number > 0"):
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
