"""The losses as JAX functions: value and gradient against the core's on NumPy in float64.

Promotion of dtypes and of ranks is an error here, as strict users of JAX set it.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visreg_core
import visreg_jax
from tests.cases import FUNCTIONS, PATHS, PRIMARY, each, named
from visreg_core import value_and_vjp
from visreg_jax._custom_vjp import StaticCall

SHAPE = (8, 3, 5)
MASK = np.array([True, True, False, True, True, True, True, False])
COTANGENTS = (0.7, -1.3, 0.4, 2.1)


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def loss_of(case):
    return getattr(visreg_jax, case.loss.name)


def drawn(case, rng, dtype, leading=()):
    """Arrays on the host: what `dtype` keeps of a float64 draw, and the same as JAX arrays."""
    arrays = case.draw(rng, *SHAPE, leading=leading)
    if "pairs" in arrays:
        arrays["pairs"] = rng.choice(np.flatnonzero(MASK), size=len(MASK))
    given = {
        name: jnp.asarray(a, dtype if a.dtype.kind == "f" else jnp.int32)
        for name, a in arrays.items()
    }
    wide = {
        name: np.asarray(a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a)
        for name, a in given.items()
    }
    return given, {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in wide.items()}


def expected(case, arrays, cotangents, **extra):
    """The core's result and gradient on NumPy, as lists."""
    positional, keyword = case.split(arrays)
    result, vjp = value_and_vjp(case.function)(*positional, **keyword, **extra)
    fields = list(result) if isinstance(result, tuple) else [result]
    gradient = vjp(*cotangents[: len(fields)])
    return fields, list(gradient) if isinstance(gradient, tuple) else [gradient]


def found(case, arrays, cotangents, **extra):
    """The same by `jax.vjp` of the adapter's function."""
    wrt = [arrays[n] for n in case.differentiated]

    def function(*wrt):
        given = {**arrays, **dict(zip(case.differentiated, wrt, strict=True))}
        positional, keyword = case.split(given)
        return loss_of(case)(*positional, **keyword, **extra)

    result, vjp = jax.vjp(function, *wrt)
    fields = jax.tree.leaves(result)
    weights = [jnp.full_like(f, c) for f, c in zip(fields, cotangents, strict=False)]
    return fields, list(vjp(jax.tree.unflatten(jax.tree.structure(result), weights)))


def assert_close(got, want, rtol):
    for g, w in zip(got, want, strict=True):
        g, w = np.asarray(g, np.float64), np.asarray(w)
        assert g.shape == w.shape
        assert np.linalg.norm(g - w) <= rtol * np.linalg.norm(w) + rtol * 1e-2


# Options take their paths in float64, where differences show; precision is a matter of few paths.
FEW = named("visreg_loss", "sigreg_loss", "vicreg_loss", "sag_vicreg_loss", "sliced_wasserstein")
CASES = {"float64": PATHS, "float32": FEW, "bfloat16": FEW}


@pytest.mark.parametrize(
    ("case", "dtype"),
    [pytest.param(case, d, id=f"{case}-{d}") for d, cases in CASES.items() for case in cases],
)
def test_value_and_gradient(case, dtype, rng):
    """One program: the value alone, a vjp of all fields, and both of the rows that a mask keeps."""
    tolerance = {"float32": 2e-5, "bfloat16": 1e-2, "float64": 1e-11}[dtype]
    with jax.enable_x64(dtype == "float64"):
        given, wide = drawn(case, rng, dtype)

        @jax.jit
        def everything(arrays, mask):
            positional, keyword = case.split(arrays)
            alone = jax.tree.leaves(loss_of(case)(*positional, **keyword))
            masked = found(case, arrays, COTANGENTS, row_mask=mask) if case.loss.row_mask else None
            return alone, found(case, arrays, COTANGENTS), masked

        alone, (fields, gradients), masked = everything(given, jnp.asarray(MASK))
        want = expected(case, wide, COTANGENTS)
        assert_close(alone, want[0], tolerance)
        assert_close(fields, want[0], tolerance)
        assert_close(gradients, want[1], tolerance)
        if case.loss.row_mask:
            for got, w in zip(masked, expected(case, wide, COTANGENTS, row_mask=MASK), strict=True):
                assert_close(got, w, tolerance)
        assert {g.dtype.name for g in gradients} == {dtype}
        assert {f.dtype.name for f in fields} == {"float64" if dtype == "float64" else "float32"}


@each([c for c in PRIMARY if c.leading])
def test_leading_axes_are_traced_without_promotion(case, rng):
    """Shapes alone: the numbers are the core's tests' matter."""
    given, wide = drawn(case, rng, "float32", leading=(2,))
    mask = {"row_mask": jnp.asarray(MASK)} if case.loss.row_mask else {}
    _, gradients = jax.eval_shape(lambda arrays: found(case, arrays, COTANGENTS, **mask), given)
    assert [g.shape for g in gradients] == [wide[n].shape for n in case.differentiated]


@each(named("covariance_loss", "vicreg_loss", "barlow_twins_loss", "sag_vicreg_loss"))
def test_fewer_rows_than_dimensions(case, rng):
    """Gram matrices instead of covariances."""
    with jax.enable_x64(True):
        arrays = case.draw(rng, 4, 11)
        given = {k: jnp.asarray(a) for k, a in arrays.items()}
        got, want = found(case, given, COTANGENTS), expected(case, arrays, COTANGENTS)
        for g, w in zip(got, want, strict=True):
            assert_close(g, w, 1e-11)


def test_names_and_signatures_are_the_core_s():
    core_only = {
        "__version__",
        "declare_loss",
        "Example",
        "Execution",
        "rectified_generalized_gaussian",
        "slices_for",
        "structured_slices",
        "subspace_slices",
        "value_and_grad",
        "value_and_vjp",
    }
    further = {"differentiable", "functional", "large_batch", "sharded"}
    assert set(visreg_jax.__all__) == set(visreg_core.__all__) - core_only | further
    assert list(visreg_jax.__all__) == sorted(visreg_jax.__all__)
    for name in FUNCTIONS:
        function = getattr(visreg_jax, name)
        assert inspect.signature(function) == inspect.signature(getattr(visreg_core, name))
        assert function.__module__ == "visreg_jax.functional"


# --- transformations ------------------------------------------------------------------------------


def sample(n=16, d=4, k=6):
    z = jax.random.normal(jax.random.key(0), (n, d))
    return z, visreg_jax.random_slices(d, k)


def objective(z, slices):
    return visreg_jax.visreg_loss(z, slices).total


def test_random_slices_are_the_core_s():
    for seed, step in ((0, 0), (2**32 - 1, 2**31), (3, np.int64(5))):
        got = visreg_jax.random_slices(5, 7, seed=seed, step=step, start=2)
        want = visreg_core.random_slices(5, 7, seed=seed, step=step, start=2, xp=jnp)
        np.testing.assert_allclose(got, want, atol=1e-6)
    for wrong in (-1, 2**32):
        with pytest.raises(ValueError, match=r"expected seed and step in 0 ... 2\*\*32 - 1; found"):
            visreg_jax.random_slices(5, 7, seed=wrong)
    with pytest.raises(TypeError, match="expected step to be an integer"):
        visreg_jax.random_slices(5, 7, step=1.5)
    with pytest.raises(ValueError, match="expected sampler to be one of"):
        visreg_jax.random_slices(5, 7, sampler="sobol")


def test_vmap_and_checkpoint_and_eager_calls():
    z, slices = sample()
    stack = jnp.stack([z, 2 * z, z + 1])
    together = jax.jit(jax.vmap(jax.value_and_grad(jax.checkpoint(objective)), (0, None)))
    values, gradients = together(stack, slices)
    for one, value, gradient in zip(stack, values, gradients, strict=True):
        want = value_and_vjp(visreg_core.visreg_loss)(np.asarray(one), np.asarray(slices))
        assert_close([value, gradient], [want[0].total, want[1](1, 0, 0, 0)], 1e-5)
    sigreg = jax.jit(jax.vmap(lambda z: visreg_jax.sigreg_loss(z, slices, n_knots=4)))(stack)
    for one, value in zip(stack, sigreg, strict=True):
        want = visreg_core.sigreg_loss(np.asarray(one), np.asarray(slices), n_knots=4)
        assert_close([value], [want], 1e-5)
    value, gradient = jax.value_and_grad(objective)(np.asarray(z), slices)  # NumPy's, not jitted
    assert_close([value, gradient], [values[0], gradients[0]], 1e-5)


def test_equal_calls_from_outside_of_a_program_are_compiled_once(monkeypatch):
    z, slices = sample()
    runs = []
    run = StaticCall.run
    monkeypatch.setattr(StaticCall, "run", lambda *args, **kw: runs.append(1) or run(*args, **kw))
    both = jax.value_and_grad(lambda z: visreg_jax.sigreg_loss(z, slices, n_knots=3, chunk_size=2))
    first = both(z)
    traced = len(runs)
    np.testing.assert_array_equal(both(z + 0)[1], first[1])
    assert len(runs) == traced
    with pytest.raises(ValueError, match=r"integer >= 2; found 3\.0"):
        visreg_jax.sigreg_loss(z, slices, n_knots=3.0, chunk_size=2)


def test_a_training_loop_in_a_scan_with_traced_step_and_seed():
    """Steps of a scan, and of Python, see the same directions; the objective falls."""
    z, _ = sample()

    def value(z, step, seed):
        return objective(z, visreg_jax.random_slices(4, 6, step=step, seed=seed))

    def update(z, step, seed=3):
        found, gradient = jax.value_and_grad(value)(z, step, seed)
        return z - 4.0 * gradient, found

    @jax.jit
    def train(z, seed):
        return jax.lax.scan(lambda z, step: update(z, step, seed), z, jnp.arange(20))

    _, values = train(5 * z, jnp.asarray(3))
    assert values[-1] < 0.1 * values[0]
    by_hand = 5 * z
    one = jax.jit(update)
    for step in range(3):
        by_hand, found = one(by_hand, step)
        np.testing.assert_allclose(found, values[step], rtol=1e-5)


def test_a_scan_over_layers_differentiates_through_the_loss():
    """The loss inside a scan that is itself differentiated: residuals are stacked by JAX."""
    z, slices = sample()

    def deep(z):
        def layer(h, _):
            h = 0.9 * h
            return h, objective(h, slices)

        return jnp.sum(jax.lax.scan(layer, z, None, length=3)[1])

    got = jax.jit(jax.grad(deep))(z)
    w = value_and_vjp(visreg_core.visreg_loss)
    want = sum(
        s * w(s * np.asarray(z, np.float64), np.asarray(slices, np.float64))[1](1, 0, 0, 0)
        for s in (0.9, 0.81, 0.729)
    )
    assert_close([got], [want], 1e-4)


def test_an_unused_field_has_no_gradient():
    z, slices = sample()
    got = jax.grad(lambda z: visreg_jax.visreg_loss(z, slices).scale)(z)
    want = visreg_core.value_and_grad(visreg_core.scale_loss)(np.asarray(z))[1]
    assert_close([got], [want], 1e-5)


def test_no_tracer_leaks():
    z, slices = sample()
    with jax.checking_leaks():
        jax.jit(jax.grad(objective))(z, slices)


def test_forward_mode():
    """An error for the custom gradient; the core's functions have it; second derivatives work."""
    z, slices = sample(6, 2, 3)
    with pytest.raises(TypeError, match=r"forward-mode autodiff \(jvp\) to a custom_vjp"):
        jax.jvp(lambda z: objective(z, slices), (z,), (z,))
    _, slope = jax.jvp(visreg_core.scale_loss, (z,), (z,))
    gradient = jax.grad(visreg_jax.scale_loss)(z)
    np.testing.assert_allclose(slope, jnp.sum(gradient * z), rtol=1e-4)
    hessians = [jax.jit(jax.hessian(of.scale_loss))(z) for of in (visreg_core, visreg_jax)]
    np.testing.assert_allclose(*hessians, atol=1e-5)


# --- memory ---------------------------------------------------------------------------------------


@each(named("visreg_loss", "sigreg_loss"))
def test_a_chunk_bounds_the_memory_of_the_compiled_program(case):
    """Temporary memory, as XLA counts it, follows the chunk, not the number of slices."""
    n, d, k = 512, 16, 1024
    loss = loss_of(case)

    def temporary(chunk, k):
        def value(z, slices):
            result = loss(z, slices, chunk_size=chunk)
            return case.scalar(result)

        shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (d, k))]
        compiled = jax.jit(jax.value_and_grad(value)).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    projections = n * k * 4
    chunk = projections // 16
    small, half = temporary(64, k), temporary(64, k // 2)
    assert small < 10 * chunk
    assert small - half < chunk
    assert temporary(k, k) > 2 * projections


# --- errors ---------------------------------------------------------------------------------------


def test_gradients_that_the_losses_do_not_have_are_errors():
    z, slices = sample()
    with pytest.raises(ValueError, match="expected slices without gradient: visreg_loss"):
        jax.grad(objective, argnums=1)(z, slices)

    def weighted(z, weight):
        return visreg_jax.visreg_loss(z, slices, weights=(weight, 1, 1)).total

    with pytest.raises(ValueError, match="expected weights without gradient"):
        jax.grad(weighted, argnums=1)(z, jnp.float32(2))
    traced = jax.jit(jax.grad(weighted))(z, jnp.float32(2))
    np.testing.assert_allclose(traced, jax.grad(weighted)(z, 2), rtol=1e-5)


def test_constants_have_a_gradient_of_zero():
    y = jax.random.normal(jax.random.key(0), (6, 2))
    affinity = jnp.ones((6, 6))
    assert not jax.grad(visreg_jax.spectralnet_loss, argnums=1)(y, affinity).any()


def test_arrays_of_numpy_are_refused():
    z, slices = sample()
    with pytest.raises(TypeError, match=r"expected z to be an array of jax; found numpy\."):
        visreg_jax.visreg_loss(np.asarray(z), slices)
    with pytest.raises(TypeError, match="expected all arrays from one library; found jax and num"):
        visreg_jax.visreg_loss(z, np.asarray(slices))
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        visreg_jax.visreg_loss(z, slices, nonsense=1)
    with pytest.raises(ValueError, match="expected reduction to be one of"):
        visreg_jax.center_loss(z, reduction="max")


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("shape_loss", "detach_scale"),
        ("visreg_loss", "weights"),
        ("invariance_loss", "detach_center"),
        ("sliced_wasserstein", "power"),
        ("max_sliced_wasserstein", "p"),
        ("sigreg_loss", "scale_by_n"),
        ("sigreg_loss", "n_knots"),
        ("vicreg_loss", "convention"),
        ("random_walk_affinity", "symmetrize"),
        ("random_slices", "n_slices"),
    ],
)
def test_a_traced_option_is_an_error_of_one_line(name, option):
    z, slices = sample()
    arguments = {
        "random_slices": (4,),
        "invariance_loss": (jnp.stack([z, z]),),
        **dict.fromkeys(("vicreg_loss", "random_walk_affinity"), (z, z)),
        **dict.fromkeys(("sliced_wasserstein", "max_sliced_wasserstein"), (z, z, slices)),
    }.get(name, (z, slices))
    with pytest.raises((TypeError, ValueError), match=f"expected {option} to be .*; found") as e:
        jax.jit(lambda x: getattr(visreg_jax, name)(*arguments, **{option: x}))(True)
    assert "\n" not in str(e.value)
