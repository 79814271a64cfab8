"""Whole losses of pairs by kernels, value and gradient, against the core in float64."""

import pytest
import torch
from scipy.linalg import hadamard

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


def off_diagonal(c):
    return ((c - c.diagonal().diag()) ** 2).sum()


def covariance(a, b):
    """VICReg's term by its D × D matrices."""
    return sum(off_diagonal(z.T.cov()) / z.shape[1] for z in (a, b))


def correlation(a, b):
    """Barlow Twins' term off the diagonal, likewise."""
    a, b = ((z - z.mean(0)) / z.std(0, correction=0) for z in (a, b))
    return off_diagonal(a.T @ b / len(a))


def assert_term(name, formula, a, b, more=(), of_column=1e-5):
    """A loss's last field and its gradient by columns; which views took no Gram matrices."""
    wide = [z.double().requires_grad_() for z in (a, b)]
    expected = formula(*wide)
    made = dispatch.passes(name, a, b)
    fields, saved = made.forward(a, b, *more)
    cotangents = (*[None] * (len(fields) - 1), torch.ones((), device=a.device))
    found = made.backward(a, b, *more, saved, cotangents)
    torch.testing.assert_close(fields[-1].double(), expected.detach(), rtol=1e-5, atol=0)
    for g, e in zip(found, torch.autograd.grad(expected, wide), strict=True):
        error = (g.double() - e).norm(dim=0) / e.norm(dim=0)
        assert error.max() < of_column
    alone, _ = made.forward(a, b, *more, need_grad=False)
    torch.testing.assert_close(alone[-1], fields[-1])
    return saved.direct.tolist()


@pytest.mark.parametrize(
    ("n", "d", "heavy", "ratio"),
    [(16, 40, 1, 1e3), (16, 40, 9, 1e3), (16, 40, 15, 1e4), (64, 80, 40, 1e4)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_heavy_columns_that_do_not_correlate(draw, n, d, heavy, ratio, dtype):
    """‖G‖² − Σ diag² would cancel: what is left is the loss of the others."""
    a, b = draw(n, d), draw(n, d)
    signs = torch.from_numpy(hadamard(n)[:, 1 : heavy + 1]).to(a)
    a[:, 3 : 3 + heavy] = ratio * signs
    a, b = a.to(dtype), b.to(dtype)
    rounding = 1e-5 if dtype == torch.float32 else 2**-8
    assert assert_term("vicreg_loss", covariance, a, a, of_column=rounding) == [1, 1]
    if dtype == torch.float32:  # one view's decision is not the other's
        pairs = pairing("sag_vicreg_loss", draw, n)
        assert assert_term("sag_vicreg_loss", covariance, a, b, pairs, 1e-3) == [1, 0]


@pytest.mark.parametrize(("n", "d"), [(16, 40), (64, 80)])
@pytest.mark.parametrize("coupling", [0.1, 1e-3])
def test_views_of_unlike_rows(draw, n, d, coupling):
    """Gram matrices whose scalar product is far below their norms."""
    rows = torch.from_numpy(hadamard(n)[:, 1:]).to(draw(1))
    a = rows[:, : n // 2] @ draw(n // 2, d)
    b = rows[:, n // 2 :] @ draw(n - 1 - n // 2, d) + coupling * a.flip(1)
    # Standardised columns have the rounding of float32; their product is as small as `coupling`.
    of_column = 1e-6 / coupling
    assert assert_term("barlow_twins_loss", correlation, a, b, (), of_column) == [1, 1]


@losses
def test_what_does_not_cancel_takes_gram_matrices(draw, name):
    a, b = embeddings(draw, 20, 70), embeddings(draw, 20, 70)
    _, saved = dispatch.passes(name, a, b).forward(a, b, *pairing(name, draw, 20))
    assert saved.direct.tolist() == [0, 0]


@pytest.mark.parametrize("name", ["vicreg_loss", "barlow_twins_loss"])
@pytest.mark.parametrize("scale", [1e-8, 1e8])
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
