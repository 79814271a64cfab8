"""Whole losses with kernels against the core's: end to end, and as its execution's kernels."""

import math

import pytest
import torch
from visreg_core.losses._differentiable import implementation_of
from visreg_core.losses._execution import PLAIN

import visreg_core as vc
from tests.torch_adapter.kernels.tensors import relative_error, strided
from visreg_torch.kernels import dispatch, fused
from visreg_torch.kernels.rows import KERNELS

pytestmark = pytest.mark.backends("torch", "torch-cuda")
LOSSES = {
    "visreg_loss": ({"weights": (0.5, 2.0, 3.0), "eps": 1e-3}, (0.7, -1.3, 0.4, 2.1)),
    "gaussian_sliced_wasserstein": ({}, (0.7,)),
    "sigreg_loss": ({"t_max": 4.0, "n_knots": 9, "scale_by_n": False}, (0.7,)),
}
losses = pytest.mark.parametrize("name", LOSSES)


def embeddings(draw, *shape, dtype=torch.float32):
    scale, mean = draw(2, 1, shape[-1])
    return (draw(*shape) * (scale / 3).exp() + mean / 2).to(dtype)


def slices_for(z, k):
    return vc.random_slices(z.shape[-1], k, xp=torch, dtype=torch.float32, device=z.device)


def fields(result):
    return tuple(result) if isinstance(result, tuple) else (result,)


def twin(name, z, slices, cotangents, **options):
    """The core's fields and gradient, in float64."""
    options.pop("projection_dtype", None)
    loss = getattr(vc, name)
    result, vjp = vc.value_and_vjp(loss)(z.double(), slices.double(), **options)
    return fields(result), vjp(*cotangents)


def assert_agree(name, z, slices, tolerance, **options):
    given, cotangents = LOSSES[name]
    expected, expected_gradient = twin(name, z, slices, cotangents, **given, **options)
    loss = getattr(vc, name)
    result, vjp = fused.run(loss, z, slices, **given, **options, need_grad=True)
    for f, e in zip(fields(result), expected, strict=True):
        assert f.shape == () and f.dtype == torch.float32
        torch.testing.assert_close(f.double(), e, rtol=tolerance, atol=1e-7)
    gradient = vjp(*cotangents)
    assert gradient.dtype == z.dtype and gradient.shape == z.shape
    assert relative_error(gradient, expected_gradient) < tolerance
    assert torch.equal(vjp(*cotangents), gradient)
    assert torch.equal(vjp(*cotangents, donated=True), gradient)


@losses
@pytest.mark.parametrize(("shape", "k"), [((2, 5), 1), ((2, 33, 20), 7), ((2, 1, 65, 4), 3)])
def test_agrees_with_the_core(draw, name, shape, k):
    z = embeddings(draw, *shape)
    assert_agree(name, z, slices_for(z, k), 1e-5)
    assert_agree(name, strided(z), slices_for(z, k), 1e-5)


@losses
def test_masked_rows(draw, mask_of, name):
    z, keep = embeddings(draw, 2, 40, 9), mask_of(40)
    z[:, ~keep] = 1e6
    assert_agree(name, z, slices_for(z, 5), 1e-5, row_mask=keep)


@losses
@pytest.mark.parametrize("narrow", [False, True])
def test_bfloat16(draw, name, narrow):
    """Of 16-bit projections little of p − q is left: they are what was asked for."""
    z = 2 * embeddings(draw, 2, 40, 30, dtype=torch.bfloat16)
    options = {"projection_dtype": torch.bfloat16} if narrow else {}
    assert_agree(name, z, slices_for(z, 40), 0.03 if narrow else 5e-3, **options)


def test_long_rows_without_a_sort(draw):
    """More samples than fit the registers: 16-bit projections are counted, others sorted."""
    z = draw(8200, 6).exp()  # far from Gaussian, so that much of p − q is left in 16 bits
    for dtype, kernel, tolerance in [
        (torch.bfloat16, "histogram_rows", 0.01),
        (torch.float32, "ordered_rows", 1e-5),
    ]:
        assert_agree("visreg_loss", z, slices_for(z, 2), tolerance, projection_dtype=dtype)
        assert dispatch.explain("gaussian").startswith(f"gaussian: {kernel} (")


@losses
@pytest.mark.parametrize("kernel", ["project_in_blocks", "ordered_rows"])
def test_other_kernels(draw, name, kernel):
    z = embeddings(draw, 2, 33, 20)
    with dispatch.forced(kernel):
        assert_agree(name, z, slices_for(z, 7), 1e-5)


def test_projections_in_memory(draw):
    z = embeddings(draw, 2, 33, 70)  # more dimensions than it pays to project twice
    assert_agree("sigreg_loss", z, slices_for(z, 7), 1e-5)
    assert "70 dimensions" in dispatch.explain("projected_epps_pulley")


@losses
def test_chunks(draw, monkeypatch, name):
    z = embeddings(draw, 3, 9, 4)
    assert_agree(name, z, slices_for(z, 5), 1e-5, chunk_size=2)
    for k in (3, 10):  # slices at once: a part of a view's 5, and those of two views of three
        monkeypatch.setattr(fused, "_CHUNK_BYTES", 4 * 9 * k)
        assert_agree(name, z, slices_for(z, 5), 1e-5)


@losses
def test_slices_of_each_view(draw, name):
    z = embeddings(draw, 2, 33, 20)
    slices = torch.stack([slices_for(z, 3), slices_for(z.flip(-1), 3).flip(0)])
    assert_agree(name, z, slices, 1e-5)
    assert_agree(name, embeddings(draw, 3, 2, 9, 20), slices, 1e-5)


@losses
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradient_at_collapse_is_finite(draw, name, dtype):
    long = 9 if name == "sigreg_loss" else 8200
    for z in (torch.zeros(2, 6, 4), torch.full((2, 2, 1), 1e4), torch.ones(long, 1)):
        z = z.to(dtype).to(draw(1).device)
        result, vjp = fused.run(
            getattr(vc, name), z, slices_for(z, 1), need_grad=True, projection_dtype=dtype
        )
        assert all(math.isfinite(f) for f in fields(result))
        assert torch.isfinite(vjp(*LOSSES[name][1])).all()


def test_a_mean_far_from_zero(draw):
    """Half a unit in the last place of the mean is 0.4 % of the standard deviation."""
    z = draw(40, 6) + 1e5
    slices, on_scale = slices_for(z, 3), (0.0, 1.0, 0.0, 0.0)
    _, expected = twin("visreg_loss", z, slices, on_scale)
    _, vjp = fused.run(vc.visreg_loss, z, slices, need_grad=True)
    assert relative_error(vjp(*on_scale), expected) < 1e-4


@losses
def test_value_alone(draw, name):
    z = embeddings(draw, 2, 33, 20)
    slices, (options, cotangents) = slices_for(z, 7), LOSSES[name]
    result, _ = fused.run(getattr(vc, name), z, slices, **options, need_grad=False)
    expected, _ = twin(name, z, slices, cotangents, **options)
    for f, e in zip(fields(result), expected, strict=True):
        torch.testing.assert_close(f.double(), e, rtol=1e-5, atol=1e-7)


def test_what_is_left_to_the_core(draw):
    z = draw(5, 3)
    slices = slices_for(z, 2)

    def taken(loss, z=z, **options):
        return fused.takes(loss.__name__, z.device, z.dtype, **options)

    assert taken(vc.visreg_loss)
    assert not taken(vc.visreg_loss, detach_scale=False)
    assert not taken(vc.visreg_loss, z.double())
    assert not taken(vc.visreg_loss, projection_dtype=torch.float64)
    assert not taken(vc.gaussian_sliced_wasserstein, reduction="sum")
    assert not taken(vc.shape_loss)
    with dispatch.forced("slow"):
        assert not taken(vc.visreg_loss)
    with pytest.raises(RuntimeError, match=r"found visreg_loss of torch.float32 on .* the core"):
        fused.run(vc.visreg_loss, z, slices, need_grad=True, detach_scale=False)


@losses
@pytest.mark.parametrize("masked", [False, True])
def test_kernels_of_an_execution(draw, mask_of, name, masked):
    """Rows alone are replaced in the core's own pass."""
    z = embeddings(draw, 2, 33, 20)
    options, cotangents = LOSSES[name]
    options = {**options, "row_mask": mask_of(33) if masked else None}
    slices = slices_for(z, 7)
    expected, expected_gradient = twin(name, z, slices, cotangents, **options)
    execution = PLAIN._replace(kernels=KERNELS)
    for forced, kernel in [(None, "_rows"), ("slow", "slow twin")]:
        with dispatch.forced(forced or "project"):
            result, vjp = implementation_of(getattr(vc, name))(
                z, slices, **options, need_grad=True, execution=execution
            )
        for f, e in zip(fields(result), expected, strict=True):
            torch.testing.assert_close(f.double(), e, rtol=1e-5, atol=1e-7)
        assert relative_error(vjp(*cotangents), expected_gradient) < 1e-5
        operation = "epps_pulley" if name == "sigreg_loss" else "gaussian"
        assert kernel in dispatch.explain(operation)
