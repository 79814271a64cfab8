"""Self-supervised digits with Flax NNX and Optax: VISReg's objective, one jitted step.

python docs/examples/jax_flax.py
"""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax_digits import probe_accuracy, two_views

from visreg_jax import invariance_loss, joint_objective, random_slices, visreg_loss

DIM, SLICES, STEPS, BATCH = 32, 64, 150, 256


class Encoder(nnx.Module):
    """A perceptron of one hidden layer."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.out = nnx.Linear(128, DIM, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


def objective(model, views, step):
    z = model(views)  # (2, BATCH, DIM)
    regularizer = visreg_loss(z, random_slices(DIM, SLICES, step=step)).total
    return joint_objective(invariance_loss(z), regularizer, lam=0.6)


@nnx.jit
def train_step(model, optimizer, views, step):
    loss, gradients = nnx.value_and_grad(objective)(model, views, step)
    optimizer.update(model, gradients)
    return loss


def main():
    model = Encoder(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=nnx.Param)
    rng = np.random.default_rng(0)
    losses = [
        float(train_step(model, optimizer, jnp.asarray(two_views(rng, BATCH)), jnp.asarray(step)))
        for step in range(STEPS)
    ]
    embed = nnx.jit(model)
    deviation = float(jnp.std(embed(jnp.asarray(two_views(rng, 512)[0])), axis=0).min())
    accuracy = probe_accuracy(lambda x: embed(jnp.asarray(x)))
    print(f"loss {np.mean(losses[:10]):.3f} -> {np.mean(losses[-10:]):.3f}")
    print(f"smallest standard deviation {deviation:.2f}, probe accuracy {accuracy:.1%}")
    return losses, deviation, accuracy


if __name__ == "__main__":
    main()
