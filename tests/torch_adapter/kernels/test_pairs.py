"""Whole losses of pairs by kernels, value and gradient, against the core in float64."""

import pytest
import torch

import visreg_core as vc
from tests.torch_adapter.kernels.tensors import relative_error
from visreg_torch.kernels import dispatch

pytestmark = pytest.mark.backends("torch", "torch-cuda")
FOUR, THREE = (0.7, -1.3, 0.4, 2.1), (0.7, -1.3, 0.4)
COTANGENTS = {"vicreg_loss": FOUR, "sag_vicreg_loss": FOUR, "barlow_twins_loss": THREE}
losses = pytest.mark.parametrize("name", COTANGENTS)
SIZES = [(5, 3), (20, 70), (70, 20), (33, 33), (9, 200)]
COVARIANCE = (0.0, 0.0, 0.0, 1.0)


def embeddings(draw, n, d, dtype=torch.float32):
    scale, mean = draw(2, d)
    return (draw(n, d) * (scale / 2).exp() + mean).to(dtype)


def pairing(name, draw, n):
    if name != "sag_vicreg_loss":
        return ()
    return ((draw(n).abs() * n).long() % n, draw(n).abs())


def as_tuple(x):
    return x if isinstance(x, tuple) else (x,)


def assert_agree(name, a, b, more=(), tolerance=3e-5, of_value=1e-5, cotangents=None, **options):
    cotangents = cotangents or COTANGENTS[name]
    wide = [x if x is None or not x.is_floating_point() else x.double() for x in (a, b, *more)]
    result, vjp = vc.value_and_vjp(getattr(vc, name))(*wide, **options)
    expected = as_tuple(vjp(*cotangents))
    made = dispatch.passes(name, a, b, **options)
    fields, saved = made.forward(a, b, *more, **options)
    assert isinstance(saved, made.saved)
    given = tuple(torch.tensor(c, device=a.device) for c in cotangents)
    back = {k: v for k, v in options.items() if "weight" not in k}
    gradients = as_tuple(made.backward(a, b, *more, saved, given, **back))
    for f, e in zip(fields, result, strict=True):
        assert f.shape == () and f.dtype == torch.float32
        torch.testing.assert_close(f.double(), e, rtol=of_value, atol=1e-7)
    for g, e in zip(gradients, expected, strict=True):
        assert g.dtype == a.dtype and g.shape == e.shape
        assert relative_error(g, e) < tolerance
    alone, nothing = made.forward(a, b, *more, **options, need_grad=False)
    assert nothing is None
    torch.testing.assert_close(torch.stack(alone), torch.stack(fields), rtol=1e-6, atol=1e-7)


@losses
@pytest.mark.parametrize(("n", "d"), SIZES)
def test_agrees_with_the_core(draw, name, n, d):
    a, b = embeddings(draw, n, d), embeddings(draw, n, d)
    assert_agree(name, a, b, pairing(name, draw, n))


@losses
@pytest.mark.parametrize(("n", "d"), [(20, 70), (70, 20)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits(draw, name, n, d, dtype):
    a, b = embeddings(draw, n, d, dtype), embeddings(draw, n, d, dtype)
    assert_agree(name, a, b, pairing(name, draw, n), tolerance=7e-3, of_value=1e-3)


@pytest.mark.parametrize("name", ["vicreg_loss", "barlow_twins_loss"])
def test_views_in_one_array(draw, name):
    views = torch.stack([embeddings(draw, 20, 30), embeddings(draw, 20, 30)])
    assert_agree(name, views, None)


def test_two_rows_and_one_column(draw):
    assert_agree("vicreg_loss", draw(2, 1), draw(2, 1))


@pytest.mark.parametrize("convention", ["solo-learn", "paper"])
def test_conventions(draw, convention):
    a, b = embeddings(draw, 20, 30), embeddings(draw, 20, 30)
    assert_agree("vicreg_loss", a, b, convention=convention, gamma=1.5, eps=1e-2)


def test_options(draw):
    a, b = embeddings(draw, 20, 30), embeddings(draw, 20, 30)
    two = torch.tensor(2.0, device=a.device)
    assert_agree("vicreg_loss", a, b, weights=(1.0, two, 3.0))
    assert_agree("barlow_twins_loss", a, b, off_diagonal_weight=0.3, eps=1e-2)


@pytest.mark.parametrize(("n", "d"), [(20, 70), (90, 70)])
def test_a_few_columns_that_carry_all(draw, n, d):
    """Σ‖G‖² − Σ diag² would cancel: what is left is the loss of the others."""
    a, b = embeddings(draw, n, d), draw(n, d) * 1e-3
    a[:, 3] *= 1e3
    a[:, 9] *= 1e2
    b[:, :5] *= 1e3
    # A sum of a few large products has their rounding, which is that of 16 or 17 bits.
    assert_agree("vicreg_loss", a, b, cotangents=COVARIANCE, of_value=5e-5)


@pytest.mark.parametrize("name", ["vicreg_loss", "barlow_twins_loss"])
@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e4, 1e8])
@pytest.mark.parametrize(("n", "d"), [(20, 30), (30, 20)])
def test_scales(draw, name, scale, n, d):
    a, b = scale * embeddings(draw, n, d), scale * embeddings(draw, n, d)
    cotangents = COVARIANCE if name == "vicreg_loss" else None
    assert_agree(name, a, b, cotangents=cotangents)


@losses
@pytest.mark.parametrize(("n", "d"), [(20, 30), (30, 20)])
def test_constant_columns(draw, name, n, d):
    a, b = embeddings(draw, n, d), embeddings(draw, n, d)
    a[:, 5], a[:, 7], b[:, 7] = 3.3, 1e6, 1e6
    assert_agree(name, a, b, pairing(name, draw, n))


@losses
def test_collapse_is_finite(draw, name):
    z, more = torch.ones(6, 9, device=draw(1).device), pairing(name, draw, 6)
    made = dispatch.passes(name, z, z)
    fields, saved = made.forward(z, z, *more)
    given = tuple(torch.ones((), device=z.device) for _ in fields)
    for x in (*fields, *made.backward(z, z, *more, saved, given)):
        assert x.isfinite().all()


@losses
def test_not_a_number_is_heard_of(draw, name):
    a, b = embeddings(draw, 20, 30), embeddings(draw, 20, 30)
    a[3, 5] = torch.nan
    fields, _ = dispatch.passes(name, a, b).forward(a, b, *pairing(name, draw, 20))
    assert fields[0].isnan()


def test_pairs_that_all_rows_share(draw):
    a, b = embeddings(draw, 20, 30), embeddings(draw, 20, 30)
    pairs = torch.full((20,), 7, device=a.device)
    assert_agree("sag_vicreg_loss", a, b, (pairs, draw(20).abs()))


def test_what_is_left_to_the_core(draw):
    a, b = draw(2, 5, 3), draw(5, 3)
    assert dispatch.passes("vicreg_loss", b, b) is not None
    assert dispatch.passes("vicreg_loss", a, a) is None
    assert dispatch.passes("vicreg_loss", draw(3, 5, 3), None) is None
    assert dispatch.passes("vicreg_loss", b, b, convention="visreg") is None
    assert dispatch.passes("barlow_twins_loss", b, b, row_mask=b[:, 0] > 0) is None
