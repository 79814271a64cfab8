"""The adapter's losses that kernels compute from end to end, and what they are compared with."""

import torch

import visreg_core as vc
from tests.torch_adapter.kernels.tensors import relative_error

FUSED = ("visreg_loss", "gaussian_sliced_wasserstein", "sigreg_loss")


def total(result):
    """A loss; of several terms with weights of its own, none of them 1."""
    if not isinstance(result, tuple):
        return 0.7 * result
    return 0.7 * result.total - 1.3 * result.scale + 0.4 * result.shape + 2.1 * result.center


def expected(name, z, slices, **options):
    """Value and gradient by the core in float64."""
    wide = z.detach().double().requires_grad_()
    value = total(getattr(vc, name)(wide, slices.double(), **options))
    return value, torch.autograd.grad(value, wide)[0]


def assert_close(value, gradient, name, z, slices, tolerance=1e-5, **options):
    wanted, wanted_gradient = expected(name, z, slices, **options)
    torch.testing.assert_close(value.double(), wanted, rtol=tolerance, atol=1e-7)
    assert gradient.dtype == z.dtype
    assert relative_error(gradient, wanted_gradient) < tolerance
