"""One result on every backend, at sizes where fast paths, blocks and threads take over."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import visreg_core
from tests.backends import REQUIRED, Backend
from tests.cases import CASES, FUNCTIONS, OTHER_FUNCTIONS, PRIMARY, each
from visreg_core.testing import assert_close

# Odd sizes on both sides of N = D.
SHAPES = {"tall": (131, 17, 67), "wide": (33, 70, 41)}


@each(PRIMARY)
def test_larger_shapes(case, where, rng):
    """On JAX, which compiles each operation, one shape in each dtype."""
    on_jax = {"float64": ["tall"], "float32": ["wide"]}[where.dtype]
    for shape in on_jax if where.backend is Backend.JAX else SHAPES:
        check_larger_shape(case, where, case.draw(rng, *SHAPES[shape]))


def check_larger_shape(case, where, drawn):
    drawn = {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in drawn.items()}
    wide = {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in drawn.items()}
    expected, expected_gradients = case.value_and_grad(wide)
    result, gradients = case.value_and_grad({n: where.asarray(a) for n, a in drawn.items()})
    double = where.dtype == "float64"
    for name, value in case.fields(result).items():
        # Sums of squares about their targets: relative to the largest field before cancellation.
        scale = max(1.0, *(abs(float(v)) for v in case.fields(expected).values()))
        error = abs(float(where.to_numpy(value)) - float(case.fields(expected)[name]))
        assert error <= (1e-12 if double else 4e-6) * scale, name
    for g, e in zip(gradients, expected_gradients, strict=True):
        error = np.linalg.norm(where.to_numpy(g) - e)
        assert error <= (1e-10 if double else 5e-4) * np.linalg.norm(e)


@each(CASES)
def test_another_device_stays_the_device(case, rng):
    """On array-api-strict's second device, which no silent conversion to NumPy survives."""
    strict = Backend.STRICT.xp
    elsewhere = strict.Device("device1")
    drawn = case.draw(rng, 7, 4, 5)
    arrays = {n: strict.asarray(a, device=elsewhere) for n, a in drawn.items()}
    value = case.call(arrays)
    result, gradients = case.value_and_grad(arrays)
    expected, expected_gradients = case.value_and_grad(drawn)
    _, vjp = case.value_and_vjp(arrays)
    pulled = vjp(*[1.0] + [0.0] * (len(case.loss.fields) - 1))
    wanted = [float(v) for v in case.fields(expected).values()]
    for r in (value, result):
        for field, number in zip(case.fields(r).values(), wanted, strict=True):
            assert field.device == elsewhere
            assert abs(float(field) - number) <= 1e-11 * max(map(abs, wanted))
    for g, p, e in zip(gradients, pulled, expected_gradients, strict=True):
        for gradient in (g, p):
            assert gradient.device == elsewhere
            error = np.max(np.abs(Backend.STRICT.to_numpy(gradient) - e))
            assert error <= 1e-12 * np.max(np.abs(e))
    if case.loss.row_mask:
        n = drawn[case.differentiated[0]].shape[-1 if "x" in drawn and not case.loss.sliced else -2]
        mask = strict.ones(n, dtype=strict.bool, device=elsewhere)
        for field in case.fields(case.call(arrays, row_mask=mask)).values():
            assert field.device == elsewhere


def test_other_functions_stay_on_the_device(rng):
    strict = Backend.STRICT.xp
    elsewhere = strict.Device("device1")
    z = strict.asarray(rng.normal(size=(12, 3)), device=elsewhere)
    w = visreg_core.random_walk_affinity(z, z, 4)
    p = visreg_core.transition_matrix(w)
    pairs = visreg_core.sample_random_walk(p, n_steps=2)
    q = visreg_core.normal_quantiles(5, xp=strict, device=elsewhere)
    total = visreg_core.joint_objective(strict.sum(z), strict.sum(z), 0.5)
    for out in (w, p, pairs, q, total, visreg_core.orthonormalize(z)):
        assert out.device == elsewhere


@pytest.mark.backends("torch")
def test_torch_defaults_are_not_consulted(backend, rng):
    """A default dtype or device of the framework changes nothing."""
    torch = backend.xp
    case = next(c for c in PRIMARY if c.loss.name == "visreg_loss")
    arrays = {n: backend.asarray(a) for n, a in case.draw(rng).items()}
    expected = case.value_and_grad(arrays)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        got = case.value_and_grad(arrays)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert_close(got, expected, rtol=0)


@given(
    case=st.sampled_from(PRIMARY),
    n=st.integers(2, 14),
    d=st.integers(1, 9),
    k=st.integers(1, 6),
    scale=st.sampled_from([1e-6, 1e-2, 1.0, 30.0]),
    ties=st.booleans(),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_input_gives_one_result(case, n, d, k, scale, ties, seed):
    """NumPy, Torch and array-api-strict agree in float64, ties in index order included."""
    drawn = case.draw(np.random.default_rng(seed), n, d, k)
    if ties:
        if "slices" in drawn:  # on axis-parallel slices projections are exact, so ties are ties
            drawn["slices"] = np.eye(d)[:, np.arange(k) % d]
        for name in case.differentiated:
            drawn[name] = np.round(2 * drawn[name]) / 2
    for name in case.differentiated:
        drawn[name] = drawn[name] * (2.0 ** round(np.log2(scale)))
    results = []
    for backend in (Backend.NUMPY, Backend.TORCH, Backend.STRICT):
        result, gradients = case.value_and_grad({m: backend.asarray(a) for m, a in drawn.items()})
        fields = [float(v) for v in case.fields(result).values()]
        results.append((fields, [backend.to_numpy(g) for g in gradients]))
    (fields, gradients), *others = results
    scale_of_fields = max(1e-300, *(abs(f) for f in fields))
    largest = max(np.max(np.abs(drawn[name])) for name in case.differentiated)
    # Of two whitened rows no gradient is left but rounding, of terms of the size of value / z.
    terms = scale_of_fields / max(largest, 1e-300) if case.loss.name == "wmse_loss" else 0.0
    for other_fields, other_gradients in others:
        assert np.allclose(other_fields, fields, rtol=1e-11, atol=1e-12 * max(1, scale_of_fields))
        for g, e in zip(other_gradients, gradients, strict=True):
            assert np.max(np.abs(g - e)) <= 1e-9 * max(np.max(np.abs(e)), 1e-9, terms)


# The lists themselves ----------------------------------------------------------------------------


def test_every_public_function_is_declared():
    """A new loss cannot stay without a line in the table of cases."""
    public = {
        name
        for name in visreg_core.__all__
        if callable(getattr(visreg_core, name)) and not isinstance(getattr(visreg_core, name), type)
    }
    assert public == set(FUNCTIONS) | set(OTHER_FUNCTIONS)


def test_all_is_sorted_and_explicit():
    assert list(visreg_core.__all__) == sorted(visreg_core.__all__)
    for name in visreg_core.__all__:
        assert hasattr(visreg_core, name)


def test_required_backends_are_here():
    """Missing means failing, never skipping."""
    assert [b.value for b in REQUIRED] == ["numpy", "torch", "jax", "array_api_strict"]
    for backend in REQUIRED:
        assert backend.xp is not None


def test_required_backends_are_all_run(pytestconfig):
    if pytestconfig.getoption("--backend") is None:
        from tests.conftest import selected

        assert selected(pytestconfig) == list(REQUIRED)
