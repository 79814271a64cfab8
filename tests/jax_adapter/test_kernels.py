"""Faster twins on the host against what they stand in for, and what other devices run."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visreg_jax
from visreg_core import _xp
from visreg_core._xp.of_jax import order_of_pairs, order_of_words
from visreg_jax._kernels import multiples


@pytest.mark.parametrize("n", [1, 2, 15, 64, 257])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_sums_of_multiples_in_one_pass(n, masked, rng):
    with jax.enable_x64(True):
        angle = jnp.asarray(rng.normal(size=(3, n)))
        keep = jnp.asarray(rng.uniform(size=n) < 0.7)[None, :] if masked else None
        kept = np.ones(n) if keep is None else np.asarray(keep)[0]
        got = jax.jit(lambda angle, keep: multiples(jnp, angle, 5, sharded=False).sums(keep))(
            angle, keep
        )
        for part, function in zip(got, (np.cos, np.sin), strict=True):
            want = [(kept * function(j * np.asarray(angle))).sum(-1) for j in range(1, 6)]
            np.testing.assert_allclose(part, np.transpose(want), rtol=1e-12, atol=1e-12)


def test_a_nan_is_heard_of():
    angle = jnp.ones((2, 40)).at[1, 3].set(jnp.nan)
    cos, sin = multiples(jnp, angle, 3, sharded=False).sums(None)
    assert jnp.isnan(cos[1]).all() and jnp.isnan(sin[1]).all()
    assert jnp.isfinite(cos[0]).all() and jnp.isfinite(sin[0]).all()


def test_order_of_single_words_and_of_pairs(rng):
    """Ties in index order, zeros of both signs tie, NaN last: of float32 on the host, and else."""
    p = np.round(rng.normal(size=(4, 300)), 1).astype(np.float32)
    p[0, ::7], p[1, ::5], p[2, ::3] = np.inf, np.nan, -np.inf
    p[3, ::2] = -np.abs(p[3, ::2])
    p[1, 0] = -np.nan
    want = np.argsort(p, axis=-1, kind="stable")
    for order in (order_of_pairs, order_of_words):
        for run in (order, jax.jit(order)):
            np.testing.assert_array_equal(run(jnp.asarray(p)), want)
    stacked = jax.jit(jax.vmap(lambda p: _xp.stable_order(jnp, p)))(jnp.asarray(p)[:, None])
    np.testing.assert_array_equal(stacked[:, 0], want)


@pytest.mark.parametrize(("platform", "sorted_arrays"), [("cpu", 1), ("cuda", 2), ("tpu", 2)])
def test_what_a_platform_runs(platform, sorted_arrays):
    """Single words, and one pass over all multiples, are for the host alone."""

    def losses(z, slices):
        return (
            visreg_jax.visreg_loss(z, slices).total
            + visreg_jax.sigreg_loss(z, slices, n_knots=4)
        )  # fmt: skip

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((16, 3), (3, 4))]
    exported = jax.export.export(jax.jit(jax.grad(losses)), platforms=[platform])(*shapes)
    program = exported.mlir_module()
    (operands,) = re.findall(r'"stablehlo.sort"\(([^)]*)\)', program)
    assert len(operands.split(", ")) == sorted_arrays
    on_host = sorted_arrays == 1
    assert ("tensor<4x16xi64>" in program) == on_host
    several = re.findall(r"stablehlo.reduce\(.*?\), \(.*?\), ", program)
    assert bool(several) == on_host
