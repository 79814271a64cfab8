"""16-bit embeddings, autocast and loss scaling; how many threads NumPy's path takes."""

import numpy as np
import pytest
import torch

import visreg_core
import visreg_torch
from tests.cases import PRIMARY, each, named
from tests.torch_adapter.calls import fields, ours, tensors, value_and_gradients, weighted
from visreg_core import threads
from visreg_torch import _passes

HALF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.fixture(params=["numpy", "torch"])
def path(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(_passes, "runs_on_numpy", lambda *_: False)
    return request.param


def relative_error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@each(PRIMARY)
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision(case, dtype, path, rng):
    """Against float64 on the same numbers: only the result is rounded to 16 bits."""
    arrays = tensors(case, rng, dtype, n=40, d=6, k=9)
    wide = {
        name: a.detach().double().requires_grad_(a.requires_grad) if a.is_floating_point() else a
        for name, a in arrays.items()
    }
    values, gradients = value_and_gradients(ours(case), case, arrays)
    expected_values, expected = value_and_gradients(case.function, case, wide)
    for v, e in zip(values, expected_values, strict=True):
        assert v.dtype == torch.float32
        torch.testing.assert_close(v.double(), e, rtol=1e-5, atol=1e-6)
    for g, e in zip(gradients, expected, strict=True):
        assert g.dtype == dtype
        assert relative_error(g, e) < HALF[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each(named("visreg_loss", "sigreg_loss", "vicreg_loss", "barlow_twins_loss"))
def test_autocast_changes_nothing_inside(case, dtype, path, rng):
    """A product in bfloat16 would be off by a hundredth."""
    arrays = tensors(case, rng, dtype, n=40, d=6, k=9)
    expected = value_and_gradients(ours(case), case, arrays)
    positional, keyword = case.split(arrays)
    leaves = [a for a in arrays.values() if a.requires_grad]
    with torch.autocast("cpu", torch.bfloat16):
        result = ours(case)(*positional, **keyword)
    found = fields(result), torch.autograd.grad(weighted(result), leaves)
    for given, wanted in zip(found, expected, strict=True):
        assert all(torch.equal(f, e) for f, e in zip(given, wanted, strict=True))


def test_affinities_under_autocast():
    a, b = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    loss = visreg_torch.SAGVICRegLoss(n_neighbors=20)
    with torch.autocast("cpu", torch.bfloat16):
        affinity = visreg_torch.random_walk_affinity(a, b)
        pairs, weights = loss.pairs(a, b, step=0)
    arrays = a.numpy(), b.numpy()
    assert np.array_equal(affinity, visreg_core.random_walk_affinity(*arrays))
    full = visreg_core.random_walk_affinity(*arrays, 20)
    assert np.array_equal(weights, full[np.arange(64), pairs])


def test_a_model_under_autocast(path):
    """Its bfloat16 embeddings go in; the error of the gradient is that of their rounding."""
    torch.manual_seed(0)
    model = torch.nn.Linear(32, 64)
    x = torch.randn(512, 32)
    slices = visreg_torch.random_slices(64, 256)
    with torch.autocast("cpu", torch.bfloat16):
        z = model(x)
        z.retain_grad()
        visreg_torch.visreg_loss(z, slices).total.backward()
    assert z.dtype == torch.bfloat16
    wide = z.detach().double().requires_grad_()
    visreg_core.visreg_loss(wide, slices.double()).total.backward()
    assert relative_error(z.grad, wide.grad) < HALF[torch.bfloat16]


def test_loss_scaling(path):
    """Float16 gradients that a scale makes too large are Inf, so that the step is skipped."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 4))
    x = torch.randn(64, 8)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    slices = visreg_torch.random_slices(4, 32)

    def loss():
        z = (x @ weight).half()
        return 100 * visreg_torch.visreg_loss(z, slices).total

    def step(scale):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer.zero_grad()
        scaler.scale(loss()).backward()
        scaler.unscale_(optimizer)
        before = weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        return weight.grad, bool((weight != before).any()), scaler.get_scale()

    gradient, stepped, scale = step(2.0**30)
    assert not torch.isfinite(gradient).all()
    assert not stepped
    assert scale == 2.0**29
    (expected,) = torch.autograd.grad(loss(), weight)
    gradient, stepped, scale = step(2.0**8)
    assert stepped
    assert scale == 2.0**8
    assert relative_error(gradient, expected.double()) < 1e-2


def test_projections_in_other_dtypes_run_on_torch(rng):
    (case,) = named("visreg_loss")
    z, slices = tensors(case, rng, torch.float32, n=64, d=8, k=16).values()
    exact = visreg_core.visreg_loss(z.double(), slices.double())
    for dtype, error in ((None, 1e-5), (torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        found = visreg_torch.visreg_loss(z, slices, projection_dtype=dtype)
        assert abs(found.shape.item() - exact.shape.item()) < error * exact.shape.item()
    assert found.shape.item() != exact.shape.float().item()
    with pytest.raises(TypeError, match="expected projection_dtype to be float16, bfloat16"):
        visreg_torch.visreg_loss(z, slices, projection_dtype=torch.int32)


# --- threads --------------------------------------------------------------------------------------


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_numpy_takes_no_more_threads_than_torch(torch_threads, monkeypatch, rng):
    """Several processes on one machine set torch's number, each to its share."""
    (case,) = named("sigreg_loss")
    z, slices = tensors(case, rng, torch.float32, n=512, d=8, k=512).values()
    seen, spread = [], threads.spread

    def spied(*args):
        parts = spread(*args)
        seen.append(len(parts))
        return parts

    monkeypatch.setattr(threads, "spread", spied)
    monkeypatch.setattr(threads, "_cores", lambda: 4)
    for number in (1, 3, 8):
        torch_threads(number)
        seen.clear()
        visreg_torch.sigreg_loss(z, slices, chunk_size=32)
        assert seen == [min(number, 4)]
    visreg_core.sigreg_loss(z.detach().numpy(), slices.numpy(), chunk_size=32)
    assert seen[-1] == 4


def test_blas_is_held_to_the_limit_and_let_go():
    import threadpoolctl

    def blas():
        return {
            p["filepath"]: p["num_threads"]
            for p in threadpoolctl.threadpool_info()
            if p["user_api"] == "blas"
        }

    np.ones((2, 2)) @ np.ones((2, 2))
    before = blas()
    with threads.at_most_threads(1):
        assert set(blas().values()) == {1}
        assert threads.available_threads() == 1
    assert blas() == before
