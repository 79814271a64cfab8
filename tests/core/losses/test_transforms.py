"""``jax.jit``, ``jax.vmap`` and ``torch.compile(fullgraph=True)`` run every loss."""

import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.cases import PATHS, PRIMARY, each

SHAPE = (8, 3, 5)
MASK = np.array([True, True, False, True, True, True, True, False])
# Of XLA, which elsewhere in the tests hardly optimises (`tests/conftest.py`).
AS_USERS_COMPILE = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
    "xla_cpu_parallel_codegen_split_count": 32,
}


def flat(case, where, *results):
    """NumPy arrays of ``(result, gradients)`` pairs and of results."""
    out = []
    for result in results:
        for part in result if type(result) is tuple else (result,):
            leaves = part if type(part) is tuple else case.fields(part).values()
            out += [where.to_numpy(leaf) for leaf in leaves]
    return out


def assert_same(got, expected, rtol):
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        assert_allclose(g, e, rtol=rtol, atol=rtol * max(1.0, np.max(np.abs(e))))


def assert_leaves(got, expected, rtol):
    """Two results of the same structure, leaf by leaf, relative to a leaf's largest element."""
    import jax

    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_allclose(np.asarray(g), e, rtol=rtol, atol=rtol * max(1.0, np.max(np.abs(e))))


@each(PATHS)
@pytest.mark.backends("jax")
@pytest.mark.dtypes("float32")
@pytest.mark.variants_on_jax
def test_jit(case, where, rng):
    """One compilation, against NumPy in float64: the value, value_and_grad, a vjp, and both with
    a traced row mask over rows of NaN."""
    import jax

    drawn = case.draw(rng, *SHAPE)
    if "pairs" in drawn:
        drawn["pairs"] = rng.choice(np.flatnonzero(MASK), size=len(MASK))
    drawn = {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in drawn.items()}
    masked = {
        n: np.where(MASK if case.array_ndims[n] == 1 else MASK[:, None], a, np.nan).astype(a.dtype)
        if n in case.differentiated and case.loss.row_mask else a
        for n, a in drawn.items()
    }  # fmt: skip

    def everything(arrays, masked, row_mask):
        result, vjp = case.value_and_vjp(arrays)
        out = [case.call(arrays), case.value_and_grad(arrays), result]
        out += [vjp(*[0.5] * len(case.loss.fields))]
        if case.loss.row_mask:
            out.append(case.value_and_grad(masked, row_mask=row_mask))
        return tuple(out)

    def wide(arrays):
        return {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in arrays.items()}

    expected = everything(wide(drawn), wide(masked), MASK)
    given, given_masked = (
        {n: where.asarray(a) for n, a in arrays.items()} for arrays in (drawn, masked)
    )
    got = jax.jit(everything, compiler_options=AS_USERS_COMPILE)(
        given, given_masked, where.asarray(MASK)
    )
    for leaf in jax.tree.leaves(got):
        assert leaf.dtype == np.float32
    assert_leaves(got, expected, 2e-5)


@each(PRIMARY)
@pytest.mark.backends("jax")
@pytest.mark.dtypes("float32")
def test_vmap(case, where, rng):
    """Against NumPy in float64, one by one."""
    import jax

    singles = [case.draw(rng, *SHAPE) for _ in range(3)]
    stacked = {n: where.asarray(np.stack([s[n] for s in singles])) for n in singles[0]}
    together = jax.jit(jax.vmap(case.value_and_grad))(stacked)
    for i, one in enumerate(singles):
        expected = jax.tree.map(np.asarray, case.value_and_grad(one))
        assert_leaves(jax.tree.map(lambda a, i=i: a[i], together), expected, 2e-5)


def compiled(function, backend, **options):
    import torch

    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend, **options)


@each(PATHS)
@pytest.mark.backends("torch", "torch-cuda")
@pytest.mark.dtypes("float32")
def test_compile(case, where, rng):
    """value_and_grad and the masked value (or the plain one) in one graph without a break."""
    given = {n: where.asarray(a) for n, a in case.draw(rng, *SHAPE).items()}
    mask = where.asarray(MASK)
    if "pairs" in given:
        given["pairs"] = where.asarray(rng.choice(np.flatnonzero(MASK), size=len(MASK)))

    def everything(arrays, row_mask):
        masked = {"row_mask": row_mask} if case.loss.row_mask else {}
        return case.value_and_grad(arrays), case.call(arrays, **masked)

    got = compiled(everything, "eager")(given, mask)
    expected = everything(given, mask)
    for g, e in zip(got, expected, strict=True):
        assert_same(flat(case, where, g), flat(case, where, e), 1e-6)


@each(PRIMARY)
@pytest.mark.backends("torch", "torch-cuda")
@pytest.mark.dtypes("float64")
def test_compile_for_any_number_of_rows(case, where, rng):
    """Sizes and numbers that are symbols in the graph, in full precision."""
    function = compiled(case.value_and_grad, "eager", dynamic=True)
    for n in (12, 9):
        given = {name: where.asarray(a) for name, a in case.draw(rng, n, 5, 7).items()}
        got, expected = function(given), case.value_and_grad(given)
        assert_same(flat(case, where, got), flat(case, where, expected), 1e-12)


def test_compile_before_anything_else():
    """The first call in a process may be a traced one, which can import nothing by name."""
    program = """
import torch
from visreg_core import random_slices, value_and_grad, visreg_loss

def both(z):
    return value_and_grad(visreg_loss)(z, random_slices(3, 5, xp=torch, step=7))

z = torch.arange(24.0).reshape(8, 3) % 5
(got, gradient), (expected, own) = torch.compile(both, fullgraph=True, backend="eager")(z), both(z)
torch.testing.assert_close(got.total, expected.total)
torch.testing.assert_close(gradient, own)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@each(PRIMARY)
@pytest.mark.backends("torch", "torch-cuda")
@pytest.mark.dtypes("float32")
def test_compile_with_autograd(case, where, rng):
    """A compiled plain value has the gradient of the eager one (the graph is traced backwards)."""
    given = {n: where.asarray(a) for n, a in case.draw(rng, *SHAPE).items()}
    wrt = [given[n].requires_grad_() for n in case.differentiated]
    torch = where.backend.xp
    function = compiled(lambda arrays: case.scalar(case.call(arrays)), "aot_eager")
    got, expected = function(given), case.scalar(case.call(given))
    got = [got, *torch.autograd.grad(got, wrt)]
    expected = [expected, *torch.autograd.grad(expected, wrt)]
    assert_same([where.to_numpy(g) for g in got], [where.to_numpy(e) for e in expected], 1e-5)


@each([c for c in PRIMARY if c.loss.name in ("visreg_loss", "sigreg_loss", "vicreg_loss")])
@pytest.mark.backends("torch", "torch-cuda")
@pytest.mark.dtypes("float32")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # its own
def test_compile_with_inductor(case, where, rng):
    given = {n: where.asarray(a) for n, a in case.draw(rng, *SHAPE).items()}
    got = compiled(case.value_and_grad, "inductor")(given)
    assert_same(flat(case, where, got), flat(case, where, case.value_and_grad(given)), 1e-5)


@each(PRIMARY)
@pytest.mark.backends("torch", "torch-cuda")
@pytest.mark.dtypes("float64")
def test_gradients_survive(case, where, rng):
    """What requires a gradient keeps its graph, field by field and through a chain."""
    drawn = case.draw(rng, *SHAPE)
    given = {n: where.asarray(0.3 * a if n == "z" else a) for n, a in drawn.items()}
    for name in case.differentiated:
        leaf = given[name].requires_grad_()
        result = case.call({**given, name: leaf * 1.0})
        for field, value in case.fields(result).items():
            assert value.requires_grad, f"{field} lost the graph of {name}"
        (gradient,) = where.backend.xp.autograd.grad(case.scalar(result), leaf)
        assert gradient.abs().max() > 0
        given[name] = leaf.detach()
    for value in case.fields(case.call(given)).values():
        assert not value.requires_grad


@pytest.mark.backends("torch", "torch-cuda")
@pytest.mark.dtypes("float64")
def test_gradients_survive_in_the_other_functions(where, rng):
    import visreg_core

    z = where.asarray(rng.normal(size=(6, 3))).requires_grad_()
    affinity = visreg_core.random_walk_affinity(z, z, n_neighbors=3)
    assert not affinity.requires_grad, "no gradient flows into the affinity"
    weights = where.asarray(rng.uniform(size=(6, 6))).requires_grad_()
    assert visreg_core.transition_matrix(weights).requires_grad
    assert visreg_core.orthonormalize(z).requires_grad
    total = visreg_core.joint_objective(z.sum(), visreg_core.center_loss(z), 0.1)
    assert total.requires_grad
