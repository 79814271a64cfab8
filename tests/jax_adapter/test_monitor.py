"""The queue of a training run on JAX: what jit and scan leave in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from visreg_core import metrics
from visreg_jax import monitor


def test_the_queue_has_the_last_rows(rng):
    batches = jnp.asarray(rng.normal(size=(5, 2, 4, 3)), jnp.float32)
    queue = monitor.init((2, 3), max_rows=10)

    @jax.jit
    def after_each(queue, batches):
        def step(queue, z):
            queue = monitor.update(queue, z)
            return queue, queue

        return jax.lax.scan(step, queue, batches)[1]

    states = after_each(queue, batches)
    for i in range(5):
        seen = np.concatenate(batches[: i + 1], axis=1)[:, -10:]
        n = int(states.n[i])
        assert n == min(10, 4 * (i + 1))
        np.testing.assert_array_equal(states.rows[i][:, 10 - n :], seen)
        if i in (0, 4):
            found = monitor.compute(monitor.Queue(states.rows[i], states.n[i]), n_neighbors=2)
            assert found == pytest.approx(metrics.summary(seen, n_neighbors=2), rel=1e-4)


def test_no_gradient_flows_into_it():
    queue = monitor.init((3,), max_rows=4)
    z = jnp.ones((2, 3))
    assert not jax.grad(lambda z: jnp.sum(monitor.update(queue, z).rows))(z).any()
