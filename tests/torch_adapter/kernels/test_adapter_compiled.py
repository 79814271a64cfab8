"""The adapter's functions under torch.compile with kernels: as in eager code, by operators."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

import visreg_torch as vt
from tests.torch_adapter.kernels.losses import FUSED, assert_close, total
from tests.torch_adapter.kernels.tensors import strided
from tests.torch_adapter.test_compile import operator_arguments
from visreg_torch import _passes
from visreg_torch._call import split
from visreg_torch.kernels import rows

pytestmark = [
    pytest.mark.backends("torch", "torch-cuda"),
    pytest.mark.usefixtures("kernels_on_cpu"),
    # What torch's compiler itself does: it instantiates autograd functions, and uses torch.jit.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
losses = pytest.mark.parametrize("name", FUSED)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def really(fused_on, device):
    """How often kernels ran from end to end so far, other than to foretell shapes."""
    return lambda: sum(where == device.type for where in fused_on)


def compiled(name, compiler="aot_eager", **options):
    return torch.compile(getattr(vt, name), fullgraph=True, backend=compiler, **options)


def value_and_gradient(function, z, slices, **options):
    value = total(function(z, slices, **options))
    return value.detach(), torch.autograd.grad(value, z)[0]


def assert_same(found, expected):
    for f, e in zip(found, expected, strict=True):
        assert torch.equal(f, e)


@losses
@pytest.mark.parametrize(
    ("dtype", "masked", "chunk_size"),
    [
        (torch.float32, True, 4),
        (torch.bfloat16, False, 4),
        (torch.bfloat16, True, None),
    ],
    ids=str,
)
def test_compiled_code_takes_the_kernels_of_eager_code(
    name, dtype, masked, chunk_size, inputs, mask_of, really
):
    z, slices = inputs
    z = z.detach().to(dtype).requires_grad_()
    options = {"row_mask": mask_of(40) if masked else None, "chunk_size": chunk_size}
    found = value_and_gradient(compiled(name), z, slices, **options)
    assert really() == 1
    assert_same(found, value_and_gradient(getattr(vt, name), z, slices, **options))
    assert_close(*found, name, z, slices, 1e-5 if dtype == torch.float32 else 5e-3, **options)


@losses
def test_value_alone(name, inputs, really):
    z, slices = inputs
    with torch.no_grad():
        value = total(compiled(name)(z, slices))
    assert really() == 1
    assert torch.equal(value, total(getattr(vt, name)(z.detach(), slices)))


@losses
@pytest.mark.parametrize(("dtype", "chunk_size"), [(torch.float32, None), (torch.bfloat16, 4)])
def test_sizes_that_are_symbols(name, dtype, chunk_size, inputs, mask_of, really):
    z, slices = inputs
    z = z.detach().to(dtype).requires_grad_()
    options = {"row_mask": mask_of(40), "chunk_size": chunk_size}
    found = value_and_gradient(compiled(name, dynamic=True), z, slices, **options)
    assert really() == 1
    assert_same(found, value_and_gradient(getattr(vt, name), z, slices, **options))


def test_a_loss_without_kernels_from_end_to_end_has_those_of_rows(inputs, monkeypatch, really):
    """In the core's pass. That changes nothing that is kept, whose shapes the core foretells."""
    z, slices = inputs
    asked, kernels = [], dict(rows.KERNELS)
    spied = {
        key: lambda *args, key=key, **kw: asked.append(key) or kernels[key](*args, **kw)
        for key in kernels
    }
    monkeypatch.setattr(_passes, "KERNELS", spied)
    found = value_and_gradient(compiled("shape_loss"), z, slices, detach_scale=False)
    assert asked and not really()
    assert_close(*found, "shape_loss", z, slices, detach_scale=False)


def test_sizes_may_change(inputs, really):
    """Kernels choose their way by sizes: the second graph serves all that follow."""
    counter = CompileCounterWithBackend("aot_eager")
    name, slices = "visreg_loss", inputs[1]
    function = compiled(name, counter)
    for n in (40, 40, 33, 50, 3):
        z = torch.randn(2, n, 9, device=slices.device).requires_grad_()
        assert_close(*value_and_gradient(function, z, slices), name, z, slices)
    assert really() == 5
    assert counter.frame_count == 2


@pytest.mark.parametrize(
    ("name", "compiler"), [("vicreg_loss", "aot_eager"), ("barlow_twins_loss", "inductor")]
)
def test_sizes_of_pairs_may_change(name, compiler, draw, really):
    """Also from Gram matrices of columns to those of rows, which save other tensors."""
    counter = CompileCounterWithBackend(compiler)
    function = compiled(name, counter)
    for n in (12, 14, 20, 6, 7):
        views = [draw(n, 10).requires_grad_() for _ in range(2)]
        found, expected = (
            torch.autograd.grad(f(*views).total, views) for f in (function, getattr(vt, name))
        )
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    assert really() == 10
    assert counter.frame_count == 2


@pytest.mark.parametrize("weights", [(0, 1, 0), (0.5, 0, 2.0), (1, torch.tensor(0.3), 1)], ids=str)
def test_weights(weights, inputs, really):
    z, slices = inputs
    found = value_and_gradient(compiled("visreg_loss"), z, slices, weights=weights)
    assert really() == 1
    assert_same(found, value_and_gradient(vt.visreg_loss, z, slices, weights=weights))
    assert_close(*found, "visreg_loss", z, slices, weights=weights)


def test_one_term_alone(inputs):
    z, slices = inputs
    for field in vt.VISRegTerms._fields:
        found, expected = (
            torch.autograd.grad(getattr(f(z, slices), field), z)[0]
            for f in (compiled("visreg_loss"), vt.visreg_loss)
        )
        assert torch.equal(found, expected)


# --- several calls --------------------------------------------------------------------------------


@losses
def test_calls_alike_in_one_graph(name, inputs, really):
    """They share what the forward pass leaves for the backward pass, which is no tensor."""
    z, slices = inputs
    other = (2 * z.detach() - 1).requires_grad_()
    function = getattr(vt, name)

    def both(z, other, slices):
        return 2 * total(function(z, slices)) + total(function(other, slices)) ** 2

    step = torch.compile(both, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(step(z, other, slices), (z, other))
    assert really() == 2
    expected = torch.autograd.grad(both(z, other, slices), (z, other))
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_training_steps_with_accumulation(compiler, draw, device, really):
    """Batches whose gradients add up, parameters that change; slices drawn in the eager graph."""
    slices = vt.random_slices(4, 16, dtype=torch.float32, device=device)
    steps, models = [], []
    for _ in range(2):
        torch.manual_seed(0)
        model, drawn = torch.nn.Linear(6, 4).to(device), vt.VISRegLoss(16, seed=3)
        models.append(model)
        if compiler == "inductor":  # to which drawing is a lot of code
            steps.append(lambda x, model=model: vt.visreg_loss(model(x), slices).total)
        else:
            steps.append(lambda x, model=model, drawn=drawn: drawn(model(x)).total)
    steps[0] = torch.compile(steps[0], fullgraph=True, backend=compiler)
    for _ in range(2):
        batches = draw(2, 2, 24, 6)
        for model, step in zip(models, steps, strict=True):
            model.zero_grad()
            for x in batches:
                step(x).backward()
        gradients = [model.weight.grad for model in models]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            for model in models:
                model.weight -= 0.1 * gradients[1]
    assert really() == 8


# --- the operators --------------------------------------------------------------------------------


def call_of(name, z, slices, **options):
    declaration = getattr(vt, name).declaration
    inputs = declaration.bind((z.detach(), slices), options)
    call, tensors = split(declaration, inputs)
    given = list(tensors.values())
    call = _passes.with_kernels(call, given)
    assert call.kernels is not None
    return call, given


@losses
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_operators_pass_torch_s_own_checks(name, masked, inputs, mask_of):
    options = {"row_mask": mask_of(40)} if masked else {}
    call, tensors = call_of(name, *inputs, **options)
    values = operator_arguments(call, tensors)[:-1]
    n_fields = len(call.declaration.fields)
    checks = ("test_schema", "test_faketensor")
    forward = getattr(torch.ops.visreg, name)
    for need_grad in (False, True):
        torch.library.opcheck(forward.default, (*values, need_grad), test_utils=checks)
    outputs = forward(*values, True)
    saved = outputs[n_fields:]
    cotangents = [torch.full_like(f, 0.3 + i) for i, f in enumerate(outputs[:n_fields])]
    backward = getattr(torch.ops.visreg, f"{name}_backward")
    torch.library.opcheck(backward.default, (*values, saved, cotangents), test_utils=checks)
    before = [k.clone() for k in saved]
    first, second = (backward(*values, saved, cotangents)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert_same(saved, before)


@losses
@pytest.mark.parametrize("case", ["float32", "16 bits", "views of views", "narrow products"])
def test_shapes_are_foretold(name, case, draw):
    """And dtypes: those of a fake call are those of the real one."""
    options = {"projection_dtype": torch.bfloat16} if case == "narrow products" else {}
    z, slices = draw(2, 12, 4), vt.random_slices(4, 5, dtype=torch.float32)
    if case == "views of views":
        z = draw(3, 2, 12, 4)
        slices = torch.stack([slices, slices.flip(0)])
    z, slices = z.to(torch.float32 if case == "float32" else torch.bfloat16), slices.to(z.device)
    for given in (z, strided(z)) if case == "views of views" else (z,):
        call, tensors = call_of(name, given, slices, **options)
        fields, saved = _passes.forward(call, tensors, need_gradient=True)
        real = [*fields, *_passes.without_none(saved, fields[0])]
        mode = FakeTensorMode()
        with mode:
            found = _passes.forward_of_shapes(
                call, [mode.from_tensor(t) for t in tensors], need_gradient=True
            )
        assert [(x.shape, x.dtype, x.device) for x in found] == [
            (x.shape, x.dtype, x.device) for x in real
        ]
