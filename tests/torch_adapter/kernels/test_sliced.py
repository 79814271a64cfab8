"""Whole sliced losses by kernels, value and gradient, against the core in float64."""

import math

import pytest
import torch

import visreg_core as vc
from tests.torch_adapter.kernels.tensors import DTYPES, relative_error, strided
from visreg_torch.kernels import characteristic_rows, dispatch, moments, sliced_engine, sliced_rows

pytestmark = pytest.mark.backends("torch", "torch-cuda")
# Loss of the core -> options, and a cotangent for each field, none of them 1.
LOSSES = {
    "visreg_loss": ({"weights": (0.5, 2.0, 3.0), "eps": 1e-3}, (0.7, -1.3, 0.4, 2.1)),
    "shape_loss": ({"eps": 1e-3}, (0.7,)),
    "gaussian_sliced_wasserstein": ({}, (0.7,)),
    "sigreg_loss": ({"t_max": 4.0, "n_knots": 9, "scale_by_n": False}, (0.7,)),
}
losses = pytest.mark.parametrize("name", LOSSES)


def embeddings(draw, *shape, dtype=torch.float32):
    scale, mean = draw(2, 1, shape[-1])
    return (draw(*shape) * (scale / 3).exp() + mean / 2).to(dtype)


def slices_for(z, k):
    return vc.random_slices(z.shape[-1], k, xp=torch, dtype=torch.float32, device=z.device)


@pytest.fixture
def cut(monkeypatch):
    """Small limits, so that small tensors take the ways of large ones."""
    owners = {"SHORT_COLUMNS": moments, "SHORT_ROWS": characteristic_rows}
    owners |= {"MAX_SORTED": dispatch}
    sliced_rows._quantiles.cache_clear()

    def limit(**values):
        for name, value in values.items():
            own = "SHORT" if name.startswith("SHORT") else name
            monkeypatch.setattr(owners.get(name, sliced_engine), own, value)

    yield limit
    sliced_rows._quantiles.cache_clear()


def by_core(name, z, slices, cotangents, **options):
    options = {k: v for k, v in options.items() if k != "projection_dtype"}
    result, vjp = vc.value_and_vjp(getattr(vc, name))(z.double(), slices.double(), **options)
    return (tuple(result) if isinstance(result, tuple) else (result,)), vjp(*cotangents)


def by_kernels(name, z, slices, cotangents, **options):
    made = dispatch.passes(name, z, **options)
    fields, saved = made.forward(z, slices, **options)
    assert isinstance(saved, made.saved) and all(isinstance(s, torch.Tensor) for s in saved)
    given = tuple(None if c is None else torch.tensor(c, device=z.device) for c in cotangents)
    mask = {k: v for k, v in options.items() if k == "row_mask"}
    gradient = made.backward(z, slices, saved, given, **mask)
    assert gradient.dtype == z.dtype and gradient.shape == z.shape
    assert torch.equal(made.backward(z, slices, saved, given, donated=True, **mask), gradient)
    alone, nothing = made.forward(z, slices, **options, need_grad=False)
    assert nothing is None
    for a, f in zip(alone, fields, strict=True):
        assert f.shape == () and f.dtype == torch.float32
        torch.testing.assert_close(a, f, rtol=1e-6, atol=1e-7)
    return fields, gradient


def assert_agree(name, z, slices, tolerance, of_value=None, **options):
    given, cotangents = LOSSES[name]
    expected, of_z = by_core(name, z, slices, cotangents, **given, **options)
    fields, gradient = by_kernels(name, z, slices, cotangents, **given, **options)
    for f, e in zip(fields, expected, strict=True):
        torch.testing.assert_close(f.double(), e, rtol=of_value or tolerance, atol=1e-7)
    assert relative_error(gradient, of_z) < tolerance


def tolerance_of(dtype):
    return 5e-5 if dtype == torch.float32 else 5e-3


@losses
@pytest.mark.parametrize(("shape", "k"), [((2, 5), 1), ((2, 33, 20), 7), ((2, 1, 65, 4), 3)])
def test_agrees_with_the_core(draw, name, shape, k):
    z = embeddings(draw, *shape)
    assert_agree(name, z, slices_for(z, k), tolerance_of(z.dtype), 1e-5)


@losses
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_strides(draw, name, dtype):
    z = strided(embeddings(draw, 2, 33, 20, dtype=dtype))
    assert_agree(name, z, slices_for(z, 7), tolerance_of(dtype), 1e-5)


@losses
def test_masked_rows(draw, mask_of, name):
    z, keep = embeddings(draw, 2, 40, 9), mask_of(40)
    z[:, ~keep] = torch.nan
    zeros = torch.where(keep[:, None], z, torch.zeros_like(z))
    given, cotangents = LOSSES[name]
    options = {**given, "row_mask": keep}
    expected, of_z = by_core(name, zeros, slices_for(z, 5), cotangents, **options)
    fields, gradient = by_kernels(name, z, slices_for(z, 5), cotangents, **options)
    for f, e in zip(fields, expected, strict=True):
        torch.testing.assert_close(f.double(), e, rtol=1e-5, atol=1e-7)
    assert relative_error(gradient, of_z) < 1e-5
    assert not gradient[:, ~keep].any()


@losses
def test_one_kept_row_is_no_sample(draw, name):
    z = embeddings(draw, 6, 3)
    keep = torch.arange(6, device=z.device) == 2
    fields, _ = dispatch.passes(name, z).forward(z, slices_for(z, 2), row_mask=keep)
    assert fields[0].isnan()


@losses
@pytest.mark.parametrize(("dtype", "n"), [(torch.bfloat16, 40), (torch.float16, 41)], ids=str)
def test_views_that_are_not_copied(draw, cut, name, dtype, n):
    """Large 16-bit views: σ in the slices, the mean off the projections."""
    cut(COPY_BYTES=0, WIDE_GRADIENT=0)
    z = embeddings(draw, 2, n, 24, dtype=dtype)
    assert_agree(name, z, slices_for(z, 7), 7e-3, 1e-4)
    z[..., 3] = 2.0  # a constant column centres to exactly 0, whatever it is divided by
    assert_agree(name, z, slices_for(z, 7), 7e-3, 1e-4)
    both = torch.stack([slices_for(z, 3), slices_for(z.flip(-1), 3).flip(0)])
    assert_agree(name, z, both, 7e-3, 1e-4)


@losses
@pytest.mark.parametrize("direct", [False, True])
def test_products_of_16_bits(draw, cut, name, direct):
    """Of 16-bit projections little of p − q is left: they are what was asked for."""
    if direct:
        cut(COPY_BYTES=0)
    z = 2 * embeddings(draw, 2, 40, 32, dtype=torch.bfloat16)
    assert_agree(name, z, slices_for(z, 40), 0.1, projection_dtype=torch.bfloat16)
    assert_agree(name, z, slices_for(z, 40), 5e-3, 1e-5, projection_dtype=torch.float32)


@losses
@pytest.mark.parametrize("rows", [3, 10])
def test_chunks(draw, cut, name, rows):
    """Slices at once: a part of a view's 5, and those of two views of three."""
    cut(CHUNK_BYTES=4 * 16 * rows)
    assert_agree(name, embeddings(draw, 3, 9, 4), slices_for(draw(4), 5), 1e-5)
    z = embeddings(draw, 3, 16, 8, dtype=torch.bfloat16)
    cut(COPY_BYTES=0)
    assert_agree(name, z, slices_for(z, 5), 7e-3, 1e-4)


@losses
def test_slices_of_each_view(draw, name):
    z = embeddings(draw, 2, 33, 20)
    slices = torch.stack([slices_for(z, 3), slices_for(z.flip(-1), 3).flip(0)])
    assert_agree(name, z, slices, 1e-5)
    assert_agree(name, embeddings(draw, 3, 2, 9, 20), slices, 1e-5)


@losses
@pytest.mark.parametrize("masked", [False, True])
def test_long_rows(draw, cut, mask_of, name, masked):
    """Counted keys: each target is off by half a key's width at most."""
    cut(MAX_SORTED=4, SHORT_COLUMNS=4, SHORT_ROWS=4)
    z = embeddings(draw, 2, 300, 6).exp()
    options = {"row_mask": mask_of(300)} if masked else {}
    assert_agree(name, z, slices_for(z, 3), 2e-3, 1e-5, **options)


@pytest.mark.parametrize("masked", [False, True])
def test_samples_that_coarse_keys_do_not_tell_apart(draw, mask_of, masked):
    """An outlier leaves the others few keys: float32 embeddings are in their own order still."""
    z = draw(1, 64, 1)
    z[0, 5] = 1e6
    options = {"row_mask": mask_of(64)} if masked else {}
    slices = torch.ones(1, 1, device=z.device)
    tolerance = {"tolerance": 1e-5, "of_value": 1e-5}
    assert_agree("gaussian_sliced_wasserstein", z, slices, **tolerance, **options)


@losses
@pytest.mark.parametrize(("number", "long"), [(0.0, True), (3.3, False), (3.3, True)])
def test_collapse(draw, cut, name, long, number):
    """Equal rows take their targets in index order: the gradient pulls them apart."""
    if long:
        cut(MAX_SORTED=1, SHORT_COLUMNS=1, SHORT_ROWS=1)
    z = torch.full((2, 6, 4), number, device=draw(1).device)
    given, cotangents = LOSSES[name]
    expected, of_z = by_core(name, z, slices_for(z, 3), cotangents, **given)
    fields, gradient = by_kernels(name, z, slices_for(z, 3), cotangents, **given)
    for f, e in zip(fields, expected, strict=True):
        torch.testing.assert_close(f.double(), e, rtol=1e-5, atol=1e-7)
    assert torch.isfinite(gradient).all()
    if name != "sigreg_loss":  # whose gradient vanishes with the embeddings
        assert relative_error(gradient, of_z) < 1e-5
        assert gradient.abs().sum() > 0


@losses
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scales(draw, name, scale):
    if name == "sigreg_loss" and scale > 1:
        return  # an angle of 1e8 has no digits behind the point
    for dtype in (torch.float32, torch.bfloat16):
        z = (scale * embeddings(draw, 2, 33, 20)).to(dtype)
        assert_agree(name, z, slices_for(z, 7), tolerance_of(dtype), 1e-5)


@pytest.mark.parametrize("direct", [False, True])
def test_a_mean_far_from_zero(draw, cut, direct):
    z = draw(40, 8) + (100 if direct else 1e5)
    if direct:
        cut(COPY_BYTES=0)
        z = z.to(torch.bfloat16)
    assert_agree("visreg_loss", z, slices_for(z, 3), 5e-3 if direct else 1e-4, 1e-5)


@losses
@pytest.mark.parametrize(
    ("number", "long"), [(math.nan, True), (math.nan, False), (math.inf, True)]
)
def test_what_is_no_number_is_heard_of(draw, cut, name, number, long):
    if long:
        cut(MAX_SORTED=1, SHORT_COLUMNS=1, SHORT_ROWS=1)
    z = embeddings(draw, 2, 33, 20)
    z[0, 3, 2] = number
    fields, _ = dispatch.passes(name, z).forward(z, slices_for(z, 7))
    assert not fields[0].isfinite()


def test_weights_on_the_device(draw):
    z = embeddings(draw, 33, 20)
    slices, weights = slices_for(z, 7), (0.5, 2.0, 3.0)
    passes = dispatch.passes("visreg_loss", z)
    expected, _ = passes.forward(z, slices, weights)
    tensors = tuple(torch.tensor(w, device=z.device) for w in weights)
    found, _ = passes.forward(z, slices, (tensors[0], 2.0, tensors[2]))
    assert torch.equal(torch.stack(found), torch.stack(expected))


def test_cotangents_that_are_missing(draw):
    z = embeddings(draw, 33, 20)
    slices, passes = slices_for(z, 7), dispatch.passes("visreg_loss", z)
    for cotangents in [(0.5, None, None, None), (None, None, 2.0, None), (None, 1.5, None, None)]:
        wide = tuple(0.0 if c is None else c for c in cotangents)
        _, expected = by_core("visreg_loss", z, slices, wide)
        _, saved = passes.forward(z, slices)
        given = tuple(None if c is None else torch.tensor(c, device=z.device) for c in cotangents)
        assert relative_error(passes.backward(z, slices, saved, given), expected) < 1e-5


def test_what_is_left_to_the_core(draw):
    z = draw(5, 3)
    assert dispatch.passes("visreg_loss", z) is not None
    assert dispatch.passes("visreg_loss", z, detach_scale=False) is None
    assert dispatch.passes("visreg_loss", z.double()) is None
    assert dispatch.passes("visreg_loss", z, projection_dtype=torch.float64) is None
    assert dispatch.passes("shape_loss", z, reduction="sum") is None
    assert dispatch.passes("invariance_loss", z) is None
    with dispatch.forced("slow"):
        assert dispatch.passes("visreg_loss", z) is None
