"""What autograd is asked for in training: nothing more is computed, kept or held than is needed."""

import gc
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import visreg_torch
from tests.cases import FUNCTIONS, PRIMARY, each, named
from tests.torch_adapter.calls import (
    assert_all_close,
    ours,
    tensors,
    value_and_gradients,
    weighted,
)
from visreg_torch import _passes


@pytest.fixture
def asked(monkeypatch):
    """Whether gradients were asked for, of each forward pass."""
    seen, forward = [], _passes.forward

    def spied(call, arrays, *, need_gradient):
        seen.append(need_gradient)
        return forward(call, arrays, need_gradient=need_gradient)

    monkeypatch.setattr(_passes, "forward", spied)
    return seen


@each(PRIMARY)
def test_no_gradient_is_computed_where_none_is_wanted(case, asked, rng):
    arrays = tensors(case, rng)
    positional, keyword = case.split(arrays)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            result = ours(case)(*positional, **keyword)
        assert not weighted(result).requires_grad
    detached = [a.detach() for a in positional]
    assert not weighted(ours(case)(*detached, **keyword)).requires_grad
    assert asked == [False] * 3
    assert weighted(ours(case)(*positional, **keyword)).requires_grad
    assert asked[-1] is True


def kept_by(function):
    """Tensors saved for the backward pass of `function()`."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        result = function()
    return saved, result


@pytest.mark.parametrize("name", ["visreg_loss", "sigreg_loss", "gaussian_sliced_wasserstein"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_one_gradient(name, dtype):
    """Beside the embeddings and some rows: no projections, orders, knots or slices."""
    v, n, d, k = 2, 64, 24, 320
    z = torch.randn(v, n, d, dtype=dtype, requires_grad=True)
    slices = visreg_torch.random_slices(d, k)
    saved, _ = kept_by(lambda: weighted(getattr(visreg_torch, name)(z, slices)))
    others = [t for t in saved if t.data_ptr() != z.data_ptr()]
    assert len(others) < len(saved)
    large = [t for t in others if t.numel() > v * k]
    assert [t.numel() for t in large] == [z.numel()]
    assert sum(t.numel() for t in others) < 1.5 * z.numel()


@pytest.mark.parametrize("on_numpy", [True, False], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    "name", ["visreg_loss", "shape_loss", "sigreg_loss", "gaussian_sliced_wasserstein"]
)
def test_the_kept_gradient_is_handed_over(name, on_numpy, monkeypatch):
    """Where the graph goes, its memory becomes the result's; where it stays, it is not touched."""
    if not on_numpy:
        monkeypatch.setattr(_passes, "runs_on_numpy", lambda *_: False)
    z = torch.randn(3, 64, 24, requires_grad=True)
    slices = visreg_torch.random_slices(24, 16)
    saved, value = kept_by(lambda: weighted(getattr(visreg_torch, name)(z, slices)))
    (stored,) = [t for t in saved if t.numel() == z.numel() and t.data_ptr() != z.data_ptr()]
    before = stored.clone()
    (retained,) = torch.autograd.grad(value, z, retain_graph=True)
    assert torch.equal(stored, before)
    assert retained.data_ptr() != stored.data_ptr()
    (again,) = torch.autograd.grad(value, z, retain_graph=True)
    assert torch.equal(again, retained)
    value.backward()
    assert z.grad.data_ptr() == stored.data_ptr()
    torch.testing.assert_close(z.grad, retained, rtol=1e-6, atol=1e-9)


@each(PRIMARY)
def test_retained_graphs_go_back_again(case, rng):
    arrays = tensors(case, rng)
    positional, keyword = case.split(arrays)
    leaves = [a for a in arrays.values() if a.requires_grad]
    result = ours(case)(*positional, **keyword)
    first = torch.autograd.grad(weighted(result), leaves, retain_graph=True)
    second = torch.autograd.grad(weighted(result, (1, 2, 3, 4)), leaves, retain_graph=True)
    third = torch.autograd.grad(weighted(result), leaves)
    _, expected = value_and_gradients(case.function, case, arrays, (1, 2, 3, 4))
    assert_all_close(second, expected, rtol=1e-10, atol=1e-12)
    assert_all_close(third, first, rtol=1e-12, atol=1e-14)


def test_gradients_accumulate(rng):
    (case,) = named("visreg_loss")
    arrays = tensors(case, rng)
    z, slices = arrays.values()
    _, (once,) = value_and_gradients(ours(case), case, arrays, (1.0,))
    for _ in range(3):
        visreg_torch.visreg_loss(z, slices).total.backward()
    torch.testing.assert_close(z.grad, 3 * once, rtol=1e-12, atol=1e-14)


def test_embeddings_changed_before_the_backward_pass_are_noticed():
    z = torch.randn(8, 3, requires_grad=True)
    x = z * 1
    loss = visreg_torch.scale_loss(x)
    x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_regions(use_reentrant):
    """Both of torch's ways; the region draws its slices by a step that the caller passes."""
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 4, dtype=torch.float64)
    loss = visreg_torch.VISRegLoss(32)
    x = torch.randn(16, 6, dtype=torch.float64, requires_grad=True)

    def region(x, step):
        return loss(model(x), step=step).total

    gradients = []
    for step in (3, 4):
        for run in (region, lambda *a: checkpoint(region, *a, use_reentrant=use_reentrant)):
            model.zero_grad()
            run(x, step).backward()
            gradients.append(model.weight.grad.clone())
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[2], gradients[3])
    assert not torch.equal(gradients[0], gradients[2])
    assert int(loss.step) == 0


def test_saved_tensors_may_live_elsewhere(rng):
    """On disk, in pinned memory: what is unpacked is a copy."""
    (case,) = named("visreg_loss")
    arrays = tensors(case, rng)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        result = visreg_torch.visreg_loss(*arrays.values()).total
    (found,) = torch.autograd.grad(result, arrays["z"])
    _, (expected,) = value_and_gradients(ours(case), case, arrays, (1.0,))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("on_numpy", [True, False], ids=["numpy", "torch"])
@each(PRIMARY)
def test_memory_is_free_when_the_step_is_done(case, on_numpy, monkeypatch, rng):
    """At once, and not when Python next looks for cycles."""
    if not on_numpy:
        monkeypatch.setattr(_passes, "runs_on_numpy", lambda *_: False)

    def step(backward):
        drawn = case.draw(rng)
        arrays = {name: torch.from_numpy(a) for name, a in drawn.items()}
        for name in case.differentiated:
            arrays[name].requires_grad_()
        positional, keyword = case.split(arrays)
        value = weighted(ours(case)(*positional, **keyword))
        if backward:
            value.backward()
        return [weakref.ref(a) for a in drawn.values()]

    gc.disable()
    try:
        assert not any(memory() is not None for memory in step(True) + step(False))
    finally:
        gc.enable()


TWO_VIEWS = {
    "halves": lambda z: (z[:6], z[6:]),
    "every second": lambda z: (z[0::2], z[1::2]),
    "overlapping": lambda z: (z[0:6], z[2:8]),
    "within": lambda z: (z[0::2], z[1:7]),
    "columns": lambda z: (z[:, :2], z[:, 2:]),
    "twice": lambda z: (z, z),
    "expanded": lambda z: (z[:1].expand(6, 4), z[1:2].expand(6, 4)),
}


@pytest.mark.parametrize("views", TWO_VIEWS.values(), ids=TWO_VIEWS)
@each(named("vicreg_loss", "barlow_twins_loss", "sliced_wasserstein"))
def test_views_of_one_tensor_may_live_elsewhere_each(case, views):
    """What is unpacked of one of them does not reach into the other; it is contiguous."""
    z = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    others = (torch.eye(views(z)[0].shape[1], dtype=z.dtype),) if case.loss.sliced else ()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.detach().clone(memory_format=torch.contiguous_format), lambda t: t
    ):
        result = weighted(ours(case)(*views(z), *others))
    (found,) = torch.autograd.grad(result, z)
    (expected,) = torch.autograd.grad(weighted(case.function(*views(z), *others)), z)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


# --- second derivatives ---------------------------------------------------------------------------


@each(PRIMARY)
def test_a_second_derivative_is_refused_in_one_line(case, rng):
    arrays = tensors(case, rng)
    positional, keyword = case.split(arrays)
    leaf = positional[0]
    value = weighted(ours(case)(*positional, **keyword))
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
    message = rf"expected one derivative of visreg_torch.{case.loss.name}; found a second: .*"
    with pytest.raises(RuntimeError, match=message) as caught:
        gradient.square().sum().backward()
    assert "\n" not in str(caught.value)


def test_a_gradient_penalty_through_the_core_is_possible():
    """As the message says."""
    import visreg_core

    z = torch.randn(8, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(visreg_core.scale_loss(z), z, create_graph=True)
    gradient.square().sum().backward()
    assert torch.isfinite(z.grad).all()


# --- torch.func -----------------------------------------------------------------------------------


@each(PRIMARY)
def test_func_grad(case, rng):
    arrays = tensors(case, rng)
    _, expected = value_and_gradients(ours(case), case, arrays)
    positional, keyword = case.split(arrays)
    count = len(case.differentiated)
    found = torch.func.grad(
        lambda *a: weighted(ours(case)(*a, *positional[count:], **keyword)), tuple(range(count))
    )(*(p.detach() for p in positional[:count]))
    assert_all_close(found, expected, rtol=1e-12, atol=1e-14)


@each(PRIMARY)
def test_vmap_of_values_and_gradients(case, rng):
    """Over the embeddings, the other arguments shared; a loop is the oracle."""
    drawn = [tensors(case, rng) for _ in range(3)]
    count = len(case.differentiated)
    positional, keyword = case.split(drawn[0])
    stacked = [
        torch.stack([list(d.values())[i].detach() for d in drawn], dim=-1) for i in range(count)
    ]

    def loss(*embeddings):
        return weighted(ours(case)(*embeddings, *positional[count:], **keyword))

    found = torch.func.vmap(loss, in_dims=-1)(*stacked)
    gradients = torch.func.vmap(torch.func.grad(loss, tuple(range(count))), in_dims=-1)(*stacked)
    for b in range(3):
        own = [s[..., b].clone().requires_grad_() for s in stacked]
        expected = loss(*own)
        torch.testing.assert_close(found[b], expected.detach(), rtol=1e-12, atol=1e-14)
        for g, e in zip(gradients, torch.autograd.grad(expected, own), strict=True):
            torch.testing.assert_close(g[b], e, rtol=1e-12, atol=1e-14)


def test_vmap_over_slices_and_grad_of_vmap(rng):
    (case,) = named("visreg_loss")
    z = tensors(case, rng)["z"]
    slices = torch.stack(
        [visreg_torch.random_slices(5, 7, seed=s, dtype=torch.float64) for s in range(3)]
    )

    def mean(z):
        return torch.func.vmap(lambda w: visreg_torch.visreg_loss(z, w).total)(slices).mean()

    found = torch.func.grad(mean)(z.detach())
    values = [visreg_torch.visreg_loss(z, w).total for w in slices]
    (expected,) = torch.autograd.grad(sum(values) / 3, z)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_jacobian_of_the_terms(rng):
    """`jacrev` asks for the gradient of each field at once, batched."""
    (case,) = named("visreg_loss")
    z, slices = tensors(case, rng).values()
    jacobian = torch.func.jacrev(lambda z: torch.stack(visreg_torch.visreg_loss(z, slices)))(
        z.detach()
    )
    for row, field in zip(jacobian, visreg_torch.visreg_loss(z, slices), strict=True):
        (expected,) = torch.autograd.grad(field, z, retain_graph=True)
        torch.testing.assert_close(row, expected, rtol=1e-12, atol=1e-14)


# --- where tensors stand for something ------------------------------------------------------------


@each(PRIMARY)
def test_fake_tensors(case, rng):
    """Shapes, dtypes and gradients without numbers, as tools that plan memory ask for them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    arrays = tensors(case, rng)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {name: mode.from_tensor(a) for name, a in arrays.items()}
        positional, keyword = case.split(fake)
        result = ours(case)(*positional, **keyword)
        leaves = [a for a in fake.values() if a.requires_grad]
        gradients = torch.autograd.grad(weighted(result), leaves)
    real, _ = value_and_gradients(ours(case), case, arrays)
    for f, r in zip(result if isinstance(result, tuple) else (result,), real, strict=True):
        assert (f.shape, f.dtype) == (r.shape, r.dtype)
    assert [g.shape for g in gradients] == [leaf.shape for leaf in leaves]


def test_profilers_see_one_operator():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    names = []
    z = torch.randn(8, 3, requires_grad=True)
    with Names():
        visreg_torch.scale_loss(z).backward()
    assert [n for n in names if "visreg" in n] == [
        "visreg.scale_loss.default",
        "visreg.scale_loss_backward.default",
    ]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, loss in FUNCTIONS.items() if loss.sliced])
def test_slices_that_ask_for_a_gradient_are_refused(name, rng):
    (case,) = named(name)
    arrays = tensors(case, rng)
    arrays["slices"].requires_grad_()
    with pytest.raises(ValueError, match="expected slices without gradient"):
        ours(case)(*arrays.values())


def test_a_weight_that_asks_for_a_gradient_is_refused():
    z, slices = torch.randn(8, 3), visreg_torch.random_slices(3, 4)
    weight = torch.tensor(2.0, requires_grad=True)
    with pytest.raises(ValueError, match=r"expected weights\[1\] without gradient"):
        visreg_torch.visreg_loss(z, slices, (1, weight, 1))


def test_arrays_of_another_library_are_refused():
    import numpy as np

    def refused(name):
        return pytest.raises(TypeError, match=f"expected {name} to be a torch.Tensor; found nd")

    z = torch.zeros(4, 2)
    with refused("z"):
        visreg_torch.scale_loss(np.zeros((4, 2)))
    with refused("slices"):
        visreg_torch.visreg_loss(z, np.eye(2))
    with refused("row_mask"):
        visreg_torch.scale_loss(z, row_mask=np.ones(4, bool))
    with pytest.raises(TypeError, match=r"z to be a dense torch.Tensor; found torch.sparse_coo"):
        visreg_torch.scale_loss(z.to_sparse())


def test_errors_are_the_core_s():
    with pytest.raises(ValueError, match=r"expected z with N >= 2 samples .*found shape \(1, 3\)"):
        visreg_torch.scale_loss(torch.zeros(1, 3, requires_grad=True))
    with pytest.raises(TypeError, match=r"expected z of dtype float16, .*found int64"):
        visreg_torch.scale_loss(torch.zeros(4, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected weights to be 3 numbers"):
        visreg_torch.vicreg_loss(torch.zeros(4, 3), torch.zeros(4, 3), (1, 2))


def test_unknown_groups_are_refused():
    with pytest.raises(TypeError, match="group to be a ProcessGroup or a Sharding; found str"):
        visreg_torch.scale_loss(torch.zeros(4, 3), scope="global", group="all")


def test_unknown_scopes_are_refused():
    with pytest.raises(ValueError, match=r"scope to be one of \['local', 'global'\]; found 'all'"):
        visreg_torch.scale_loss(torch.zeros(4, 3), scope="all")


# --- older entry points ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@each(PRIMARY)
def test_a_traced_loss_computes_what_it_is_given(case, rng):
    """Not the first batch's loss for ever, and its gradient, though the example asked for none."""
    first, second = (tensors(case, rng) for _ in range(2))
    positional, keyword = case.split({name: a.detach() for name, a in first.items()})
    traced = torch.jit.trace(lambda *a: weighted(ours(case)(*a, **keyword)), positional)
    positional, _ = case.split(second)
    leaves = [a for a in second.values() if a.requires_grad]
    found, expected = traced(*positional), weighted(ours(case)(*positional, **keyword))
    torch.testing.assert_close(found, expected)
    assert_all_close(
        torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), rtol=0, atol=0
    )


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", [n for n in dir(visreg_torch) if n.endswith("Loss")])
def test_a_traced_module_computes_what_it_is_given(name, rng):
    """With the slices or pairs of each step."""
    loss = getattr(visreg_torch, name)()
    first, second = (torch.from_numpy(rng.normal(size=(2, 12, 6))) for _ in range(2))
    given = [tuple(views) if name == "SAGVICRegLoss" else (views,) for views in (first, second)]
    traced = torch.jit.trace(loss, given[0], check_trace=False)
    for step in (5, 6):
        found = []
        for module in (traced, loss):
            if hasattr(loss, "step"):
                loss.step.fill_(step)
            result = module(*given[1])
            found.append(result[0] if isinstance(result, tuple) else result)
            assert int(getattr(loss, "step", step + 1)) == step + 1
        torch.testing.assert_close(*found)


def test_an_exported_model_has_its_loss():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.loss = torch.nn.Linear(4, 4), visreg_torch.VISRegLoss(8)

        def forward(self, x):
            return self.loss(self.linear(x), 3).total

    model = Model()
    exported = torch.export.export(model, (torch.randn(8, 4),)).module()
    x = torch.randn(8, 4)
    torch.testing.assert_close(exported(x), model(x))


def test_batches_of_cotangents_are_refused_in_one_line():
    z, slices = torch.randn(8, 4, requires_grad=True), visreg_torch.random_slices(4, 6)
    terms = torch.stack(tuple(visreg_torch.visreg_loss(z, slices)))
    with pytest.raises(RuntimeError, match=r"one cotangent of .*visreg_loss .* torch.func.jacrev"):
        torch.autograd.grad(terms, z, torch.eye(4), is_grads_batched=True)
