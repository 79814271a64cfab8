"""Large batches on JAX: gradients of the whole batch, activations of one micro-batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visreg_jax as vj

FEATURES, WIDTH, DIM, MICRO, ROWS = 6, 8, 4, 4, 6


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def params(rng):
    return {
        "first": jnp.asarray(rng.normal(size=(FEATURES, WIDTH)) / 3),
        "second": jnp.asarray(rng.normal(size=(WIDTH, DIM)) / 3),
    }


def embed(params, x):
    """Linear, LayerNorm, tanh, linear."""
    x = x @ params["first"]
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return jnp.tanh(x) @ params["second"]


def batch(rng):
    return jnp.asarray(rng.normal(size=(2, MICRO * ROWS, FEATURES)))


def in_parts(x):
    """(V, N, F) to (M, V, N / M, F)."""
    return jnp.stack(jnp.split(x, MICRO, axis=1))


def assert_close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-10, 1e-12), found, expected)


def test_embeddings_and_their_derivative_are_those_of_the_whole_batch(rng):
    """For any cotangent, so that every loss has the gradient that it has of the whole batch."""
    weights, x = params(rng), batch(rng)
    cotangent = jnp.asarray(rng.normal(size=(2, MICRO * ROWS, DIM)))

    @jax.jit
    def both(weights):
        whole, whole_vjp = jax.vjp(lambda p: embed(p, x), weights)
        parts, parts_vjp = jax.vjp(lambda p: vj.large_batch(embed, p, in_parts(x)), weights)
        return (whole, whole_vjp(cotangent)), (parts, parts_vjp(cotangent))

    expected, found = both(weights)
    assert_close(found, expected)


def test_keys_draw_dropout_again_and_outputs_may_be_several(rng):
    weights, x = params(rng), batch(rng)
    keys = jax.random.split(jax.random.key(3), MICRO)

    def dropped(params, part):
        x, key = part
        z = embed(params, x * jax.random.bernoulli(key, 0.5, x.shape))
        return {"views": z, "first": z[0]}

    def objective(outputs):
        assert outputs["first"].shape == (MICRO * ROWS, DIM)
        return jnp.mean(outputs["views"] ** 4) + jnp.mean(outputs["first"] ** 2)

    def at_once(params):
        parts = [
            dropped(params, part)
            for part in zip(in_parts(x), [keys[i] for i in range(MICRO)], strict=True)
        ]
        joined = jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis=-2), *parts)
        return objective(joined)

    def by_parts(params):
        return objective(vj.large_batch(dropped, params, (in_parts(x), keys)))

    assert_close(*(jax.jit(jax.value_and_grad(f))(weights) for f in (by_parts, at_once)))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_rows_may_lie_on_any_axis(axis, rng):
    x = jnp.asarray(rng.normal(size=(3, 2, 4, 5)))  # three micro-batches
    found = vj.large_batch(lambda p, part: p * part, 2.0, x, axis=axis)
    np.testing.assert_array_equal(found, 2 * np.concatenate(list(x), axis=axis))


def test_no_activations_of_all_micro_batches_are_kept(rng):
    """What crosses from the forward to the backward pass is no larger than inputs and outputs."""
    weights, x = params(rng), batch(rng)

    def residuals(function):
        _, vjp = jax.vjp(function, weights)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(vjp))

    def by_parts(p):
        return vj.large_batch(embed, p, in_parts(x))

    of_all = residuals(lambda p: embed(p, x))
    allowed = x.nbytes + sum(w.nbytes for w in weights.values())
    assert residuals(by_parts) <= allowed < of_all


def test_on_a_mesh(rng):
    """Inside of a shard_map, beside the sharded losses: the gradient is that of one device."""
    weights, x = params(rng), batch(rng)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def on_device(weights, x):
        def objective(p):
            z = vj.large_batch(embed, p, in_parts(x))
            return vj.sharded.vicreg_loss(z, axis_name="data").total

        return jax.lax.pmean(jax.grad(objective)(weights), "data")

    found = jax.jit(
        jax.shard_map(on_device, mesh=mesh, in_specs=(spec(), spec(None, "data")), out_specs=spec())
    )(weights, x)
    assert_close(found, jax.grad(lambda p: vj.vicreg_loss(embed(p, x)).total)(weights))


@pytest.mark.parametrize("shape", [(), (4,)])
def test_outputs_without_rows_are_told(shape):
    with pytest.raises(ValueError, match=r"rows along axis -2; found shape \("):
        vj.large_batch(lambda p, x: p * x, jnp.ones(shape), jnp.ones(3))
