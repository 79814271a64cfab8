"""Training: the examples of the manual learn, and Torch and JAX take the same steps."""

import importlib
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import visreg_core
import visreg_jax
import visreg_torch.functional

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.mark.parametrize("name", ["jax_flax", "jax_equinox"])
def test_example(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the libraries' own imports
        losses, deviation, accuracy = importlib.import_module(name).main()
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert deviation > 0.3  # no collapse
    assert accuracy > 0.85
    assert f"probe accuracy {accuracy:.1%}" in capsys.readouterr().out


OBJECTIVES = {
    "visreg": lambda of, z, slices: of.visreg_loss(z, slices).total,
    "sigreg": lambda of, z, slices: of.sigreg_loss(z, slices),
    "vicreg": lambda of, z, slices: of.vicreg_loss(z[0], z[1]).total,
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_torch_and_jax_train_alike(name, rng):
    """Same initial weights and batches: after 20 steps of SGD in float64, the same parameters."""
    start = {"first": rng.normal(size=(6, 10)) / 3, "second": rng.normal(size=(10, 4)) / 3}
    batches = rng.normal(size=(20, 2, 16, 6))
    rate = 0.02 if name == "vicreg" else 0.1

    def objective(of, weights, views, slices, tanh):
        z = tanh(views @ weights["first"]) @ weights["second"]
        return 0.5 * of.invariance_loss(z) + 0.5 * OBJECTIVES[name](of, z, slices)

    weights = {k: torch.tensor(w, requires_grad=True) for k, w in start.items()}
    optimizer = torch.optim.SGD(weights.values(), lr=rate)
    for step, views in enumerate(batches):
        slices = visreg_core.random_slices(4, 12, step=step, xp=torch, dtype=torch.float64)
        loss = objective(visreg_torch.functional, weights, torch.tensor(views), slices, torch.tanh)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with jax.enable_x64(True):
        transform = optax.sgd(rate)

        @jax.jit
        def update(carry, inputs):
            weights, state = carry
            step, views = inputs
            slices = visreg_jax.random_slices(4, 12, step=step, dtype=jnp.float64)
            gradients = jax.grad(lambda w: objective(visreg_jax, w, views, slices, jnp.tanh))(
                weights
            )
            updates, state = transform.update(gradients, state)
            return (optax.apply_updates(weights, updates), state), None

        trained = {k: jnp.asarray(w) for k, w in start.items()}
        steps = jnp.arange(20), jnp.asarray(batches)
        (trained, _), _ = jax.lax.scan(update, (trained, transform.init(trained)), steps)
        for k, w in weights.items():
            assert np.abs(w.detach().numpy() - start[k]).max() > 1e-2
            np.testing.assert_allclose(trained[k], w.detach().numpy(), atol=1e-9, rtol=0)
