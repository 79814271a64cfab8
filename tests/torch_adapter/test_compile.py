"""The losses under torch.compile: one graph, any number of rows, the same values and gradients."""

import functools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

import visreg_torch
from tests.cases import CASES, PATHS, PRIMARY, each, named
from tests.torch_adapter.calls import (
    COTANGENTS,
    MASKED_OR_NOT,
    assert_all_close,
    mask_beside,
    ours,
    tensors,
    value_and_gradients,
)
from visreg_torch import _operators, _passes
from visreg_torch._call import split

# What torch's compiler itself does: it instantiates autograd functions, and uses torch.jit.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def call_of(case, arrays, row_mask=None):
    positional, keyword = case.split(arrays)
    if row_mask is not None:
        keyword["row_mask"] = row_mask
    declaration = case.function.declaration
    call, named_tensors = split(declaration, declaration.bind(positional, keyword))
    return call, list(named_tensors.values())


def operator_arguments(call, tensors_):
    """What the operator of a call takes, tensors detached."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_operators, "_apply", lambda operator, *values: seen.append(values) or [])
        _operators.call(call, [t.detach() for t in tensors_], True)
    return seen[0]


DYNAMIC = ("shape_loss", "sliced_wasserstein", "epps_pulley", "sigreg_loss", "spectralnet_loss")


@pytest.mark.parametrize(
    ("case", "dynamic"),
    [
        *(pytest.param(c, False, id=f"{c}") for c in PATHS),
        *(pytest.param(c, True, id=f"{c}-dynamic") for c in named(*DYNAMIC)),
        *(pytest.param(c, True, id=f"{c}-dynamic") for c in CASES if c.id == "vicreg_loss-views"),
    ],
)
def test_compiles_into_one_graph(case, dynamic, rng):
    """With sizes and numbers as constants; and with both as symbols, where they can be."""
    arrays = tensors(case, rng)
    compiled = torch.compile(ours(case), fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for f, e in zip(
        value_and_gradients(compiled, case, arrays),
        value_and_gradients(ours(case), case, arrays),
        strict=True,
    ):
        assert_all_close(f, e, rtol=1e-12, atol=1e-13)


@each(PRIMARY)
@pytest.mark.parametrize("need_grad", [False, True], ids=["value", "gradient"])
def test_operators_pass_torch_s_own_checks(case, need_grad, rng):
    """Schema, shapes (with symbols as sizes, too), and that nothing aliases or is written to."""
    call, arrays = call_of(case, tensors(case, rng, n=6, d=4, k=3))
    values = operator_arguments(call, arrays)[:-1]
    checks = ("test_schema", "test_faketensor")
    dynamic = ("test_aot_dispatch_dynamic",) if need_grad else ()
    operator = getattr(torch.ops.visreg, case.loss.name)
    torch.library.opcheck(operator.default, (*values, need_grad), test_utils=(*checks, *dynamic))
    if need_grad:
        outputs = operator(*values, True)
        out, saved = outputs[: len(case.loss.fields)], outputs[len(case.loss.fields) :]
        cotangents = [torch.full_like(f, c) for f, c in zip(out, COTANGENTS, strict=False)]
        back = getattr(torch.ops.visreg, f"{case.loss.name}_backward")
        given = (*values, saved, cotangents)
        torch.library.opcheck(back.default, given, test_utils=(*checks, *dynamic))


@pytest.mark.parametrize(("case", "masked"), MASKED_OR_NOT)
@pytest.mark.parametrize("shape", [(12, 5, 7), (6, 9, 2)], ids=["N>D", "N<D"])
def test_shapes_are_foretold(case, masked, shape, rng):
    """A run on the meta device returns what the runs on NumPy and on torch return."""
    n, d, k = shape
    drawn = tensors(case, rng, n=n, d=d, k=k)
    call, arrays = call_of(case, drawn, row_mask=mask_beside(drawn, n) if masked else None)
    arrays = [a.detach() for a in arrays]

    def told(outputs):
        return [(tuple(x.shape), x.dtype) for x in outputs]

    def real():
        fields, saved = _passes.forward(call, arrays, need_gradient=True)
        return told([*fields, *_passes.without_none(saved, fields[0])])

    assert _passes.runs_on_numpy(call, arrays)
    on_numpy = real()
    foretold = _passes.forward_of_shapes(call, [a.to("meta") for a in arrays], need_gradient=True)
    assert told(foretold) == on_numpy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_passes, "runs_on_numpy", lambda *_: False)
        assert real() == on_numpy


@pytest.mark.parametrize(
    ("case", "shape"),
    [pytest.param(c, (12, 5, 7), id=f"{c}-N>D") for c in CASES]
    + [pytest.param(c, (6, 9, 2), id=f"{c}-N<D") for c in PATHS],
)
def test_shapes_of_symbols_are_foretold(case, shape, rng):
    """With every size a symbol, the operator's shapes are those that it has at these sizes."""
    n, d, k = shape
    call, arrays = call_of(case, tensors(case, rng, n=n, d=d, k=k))
    arrays = [a.detach() for a in arrays]
    fields, saved = _passes.forward(call, arrays, need_gradient=True)
    real = [*fields, *_passes.without_none(saved, fields[0])]
    mode = FakeTensorMode(shape_env=ShapeEnv())
    symbols = [
        mode.from_tensor(
            a,
            symbolic_context=StatelessSymbolicContext(
                dynamic_sizes=[DimDynamic.DYNAMIC] * a.ndim, constraint_sizes=[None] * a.ndim
            ),
        )
        for a in arrays
    ]
    assert any(not isinstance(size, int) for x in symbols for size in x.shape)
    with mode:
        found = _passes.forward_of_shapes(call, symbols, need_gradient=True)
    assert [x.dtype for x in found] == [x.dtype for x in real]
    assert [[hint(size) for size in x.shape] for x in found] == [[*x.shape] for x in real]


def hint(size):
    return size if isinstance(size, int) else size.node.hint


def test_rows_may_change_without_compiling_again(rng):
    """The second number of rows makes it a symbol; whether N < D holds makes one graph more."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda a, b: visreg_torch.vicreg_loss(a, b).total, fullgraph=True, backend=counter
    )
    (case,) = named("vicreg_loss")
    for n in (20, 21, 22, 23, 40, 6, 7, 8):
        arrays = tensors(case, rng, n=n, d=12)
        compiled_result = value_and_gradients(compiled, case, arrays, (1.3,))
        eager = value_and_gradients(ours(case), case, arrays, (1.3,))
        for f, e in zip(compiled_result[1], eager[1], strict=True):
            torch.testing.assert_close(f, e, rtol=1e-12, atol=1e-13)
    assert counter.frame_count <= 3


def test_sizes_that_are_sums_become_constants(rng):
    """The merged quantiles of N and M samples have N + M entries."""
    case = next(c for c in CASES if c.id == "max_sliced_wasserstein-unequal")
    compiled = torch.compile(ours(case), fullgraph=True, dynamic=True)
    for n in (6, 9):
        arrays = tensors(case, rng, n=n)
        found, expected = (value_and_gradients(f, case, arrays) for f in (compiled, ours(case)))
        for f, e in zip(found, expected, strict=True):
            assert_all_close(f, e, rtol=1e-12, atol=1e-13)


def test_a_weight_may_be_a_tensor_that_changes(rng):
    counter, compilations = CompileCounterWithBackend("aot_eager"), []

    @torch.compile(fullgraph=True, backend=counter)
    def loss(z, slices, weight):
        return visreg_torch.visreg_loss(z, slices, (weight, 1, weight)).total

    (case,) = named("visreg_loss")
    arrays = tensors(case, rng)
    for weight in (0.5, 2.0, 3.0):
        found = loss(arrays["z"], arrays["slices"], torch.tensor(weight, dtype=torch.float64))
        terms = visreg_torch.visreg_loss(arrays["z"], arrays["slices"])
        expected = weight * terms.scale + terms.shape + weight * terms.center
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
        found, expected = (torch.autograd.grad(x, arrays["z"])[0] for x in (found, expected))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
        compilations.append(counter.frame_count)
    assert len(set(compilations)) == 1


@pytest.mark.parametrize(
    ("dtype", "compiler"),
    [(torch.float32, "inductor"), (torch.bfloat16, "aot_eager")],
    ids=["float32", "bfloat16"],
)
def test_a_training_step_compiles_with_its_slices(dtype, compiler):
    """Slices drawn in the graph, by a step that is a buffer."""
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 4).to(dtype)
    loss = visreg_torch.VISRegLoss(16, lam=0.7, seed=3)
    plain = visreg_torch.VISRegLoss(16, lam=0.7, seed=3)
    x = torch.randn(2, 24, 6).to(dtype)
    counter = CompileCounterWithBackend(compiler)

    @torch.compile(fullgraph=True, backend=counter)
    def step(x):
        return loss(model(x)).total

    for i in range(3):
        gradients = []
        for function in (step, lambda x: plain(model(x)).total):
            model.zero_grad()
            function(x).backward()
            gradients.append(model.weight.grad.clone())
        tolerance = 1e-4 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)
        assert int(loss.step) == i + 1
    assert counter.frame_count == 1


def test_no_gradient_is_computed_where_none_is_wanted(rng):
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(visreg_torch.scale_loss, fullgraph=True, backend=counter)
    z = torch.randn(8, 3, requires_grad=True)
    with torch.no_grad():
        compiled(z)
    (graph,) = counter.graphs
    calls = [n for n in graph.graph.nodes if "visreg.scale_loss" in str(n.target)]
    assert [n.args[-1] for n in calls] == [False]


# Sizes on either side of every branch on sizes: N < D, N < 128, V N < D, one chunk and several.
SIZES = ((8, 64, 5), (12, 64, 5), (40, 64, 5), (130, 64, 9), (131, 20, 9), (16, 64, 5))
CONVENTIONS = ("vicreg", "solo-learn", "paper", "visreg")
FUZZED = [
    *((c, {}) for c in PATHS),
    *((c, {"convention": v}) for c in named("vicreg_loss") for v in CONVENTIONS[1:]),
]
# Half of the cases in each 16-bit type, which take one way; all in float32, which is computed in
# itself, at two of the sizes.
DTYPES = [
    pytest.param(c, options, dtype, sizes, id="-".join((str(c), *options.values(), str(dtype))))
    for i, (c, options) in enumerate(FUZZED)
    for dtype, sizes in (
        ((torch.bfloat16, torch.float16)[i % 2], SIZES),
        (torch.float32, (SIZES[1], SIZES[4])),
    )
]


@pytest.mark.parametrize(("case", "options", "dtype", "sizes"), DTYPES)
def test_compiled_is_eager_at_changing_sizes(case, options, dtype, sizes, rng):
    """One compiled function, called with sizes that take every branch on sizes."""
    function = functools.partial(ours(case), **options)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for n, d, k in sizes:
        arrays = tensors(case, rng, dtype, n=n, d=d, k=k)
        found = value_and_gradients(compiled, case, arrays)
        expected = value_and_gradients(function, case, arrays)
        for f, e in zip(found, expected, strict=True):
            assert_all_close(f, e, rtol=1e-5, atol=1e-6)


def test_one_tensor_may_be_both_views():
    a = torch.randn(8, 3, requires_grad=True)
    compiled = torch.compile(visreg_torch.vicreg_loss, fullgraph=True, backend="aot_eager")
    found, expected = (
        torch.autograd.grad(f(a, a).total, a)[0] for f in (compiled, visreg_torch.vicreg_loss)
    )
    torch.testing.assert_close(found, expected)


# The compiler looks at .grad of tensors that are not leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("name", ["vicreg_loss", "barlow_twins_loss"])
@pytest.mark.parametrize("twice_first", [False, True])
def test_calls_alike_go_back_each_by_itself(name, twice_first):
    """Two tensors, one tensor twice, and views of one: of the same shapes, with open graphs."""
    torch.manual_seed(0)
    compiled = torch.compile(getattr(visreg_torch, name), fullgraph=True, backend="aot_eager")
    leaves = [torch.randn(2, 8, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    x, y, z = leaves
    pairs = [(x[0].clone(), x[1].clone()), tuple(z.unbind(0)), (y[1], y[1])]
    if twice_first:
        pairs.reverse()
    results = [compiled(*pair).total for pair in pairs]
    found = torch.autograd.grad(sum(results), leaves)
    (core,) = (case.function for case in named(name))
    expected = torch.autograd.grad(sum(core(*pair).total for pair in pairs), leaves)
    assert_all_close(found, expected, rtol=1e-10, atol=1e-12)


def test_calls_of_other_numbers_go_back_each_by_itself(rng):
    (case,) = named("visreg_loss")
    z, slices = tensors(case, rng).values()
    weights = (2.0, 5.0)
    results = []
    for weight in weights:
        compiled = torch.compile(visreg_torch.visreg_loss, fullgraph=True, backend="aot_eager")
        results.append(compiled(z, slices, (weight, 1.0, 1.0)).total)
    for weight, result in zip(weights, results, strict=True):
        (found,) = torch.autograd.grad(result, z)
        (expected,) = torch.autograd.grad(case.function(z, slices, (weight, 1, 1)).total, z)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


class Views(torch.nn.Module):
    """A module with a loss of one tensor or of two."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, x):
        result = self.loss(x, x.flip(0)) if self.loss.n_views == 2 else self.loss(x)
        return result if isinstance(result, torch.Tensor) else result.total


EXPORTS = {
    "trace": torch.jit.trace,
    "not strict": functools.partial(torch.export.export, strict=False),
    "strict": functools.partial(torch.export.export, strict=True),
}


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("name", [n for n in dir(visreg_torch) if n.endswith("Loss")])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_onnx_is_refused_in_one_line(name, export, monkeypatch):
    """In each of the ways in which torch.onnx.export captures a model; none needs onnxscript."""
    from torch.onnx._internal.exporter import _flags

    loss = getattr(visreg_torch, name)()
    two = name in ("VICRegLoss", "BarlowTwinsLoss", "SAGVICRegLoss")
    loss.n_views = 2 if two else 1
    x = torch.randn(12, 8)
    monkeypatch.setattr(_flags, "_is_onnx_exporting", True)
    with pytest.raises(RuntimeError, match=r"expected a model without loss in torch\.onnx\.export"):
        EXPORTS[export](Views(loss), (x,))
    Views(loss)(x)  # other threads go on training
