"""Self-supervised digits with Equinox and Optax: VICReg, one jitted step.

python docs/examples/jax_equinox.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax_digits import probe_accuracy, two_views

from visreg_jax import vicreg_loss

DIM, STEPS, BATCH = 32, 150, 256


def objective(model, views):
    a, b = jax.vmap(jax.vmap(model))(views)  # 2 x (BATCH, DIM)
    return vicreg_loss(a, b).total


def main():
    model = eqx.nn.MLP(64, DIM, width_size=128, depth=1, key=jax.random.key(0))
    optimizer = optax.adamw(3e-3)
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def train_step(model, state, views):
        loss, gradients = eqx.filter_value_and_grad(objective)(model, views)
        updates, state = optimizer.update(gradients, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, loss

    rng = np.random.default_rng(0)
    losses = []
    for _ in range(STEPS):
        model, state, loss = train_step(model, state, jnp.asarray(two_views(rng, BATCH)))
        losses.append(float(loss))
    embed = eqx.filter_jit(eqx.filter_vmap(model))
    deviation = float(jnp.std(embed(jnp.asarray(two_views(rng, 512)[0])), axis=0).min())
    accuracy = probe_accuracy(lambda x: embed(jnp.asarray(x)))
    print(f"loss {np.mean(losses[:10]):.3f} -> {np.mean(losses[-10:]):.3f}")
    print(f"smallest standard deviation {deviation:.2f}, probe accuracy {accuracy:.1%}")
    return losses, deviation, accuracy


if __name__ == "__main__":
    main()
