"""The losses as a user of JAX would write them from the papers, to compare with under `jax.jit`.

The transcriptions of `eager`, with JAX's own automatic differentiation.
"""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm


def visreg(z, slices):
    """Algorithm 1 of VISReg; z (N, D), slices (D, K) in place of the ones it draws."""
    n = z.shape[0]
    mu = z.mean(axis=0)
    centred = z - mu
    std = centred.std(axis=0)
    ordered = jnp.sort((centred / jax.lax.stop_gradient(std)) @ slices, axis=0)
    target = norm.ppf(jnp.arange(1, n + 1) / (n + 1))
    shape = ((ordered - target[:, None]) ** 2).mean()
    return ((1.0 - std) ** 2).mean() + shape + (mu**2).mean()


def visreg_of_views(z, slices):
    """Mean over the views z (V, N, D) of Algorithm 1."""
    return jax.vmap(visreg, (0, None))(z, slices).mean()


def sigreg(z, slices, t_max=3.0, n_knots=17):
    """SIGReg as in LeJEPA, with its tensor of shape (..., N, K, knots)."""
    knots = jnp.linspace(0, t_max, n_knots)
    weights = jnp.full(n_knots, 2 * t_max / (n_knots - 1)).at[jnp.asarray([0, -1])].divide(2)
    gaussian = jnp.exp(-(knots**2) / 2)
    angles = (z @ slices)[..., None] * knots
    real = jnp.cos(angles).mean(axis=-3) - gaussian
    imaginary = jnp.sin(angles).mean(axis=-3)
    return (((real**2 + imaginary**2) @ (weights * gaussian)) * z.shape[-2]).mean()


def off_diagonal_squares(matrix):
    """Sum of squares off the diagonal of a square matrix."""
    return (matrix**2).sum() - (jnp.diagonal(matrix) ** 2).sum()


def vicreg(a, b):
    """VICReg with its published weights and ε; a, b (N, D)."""
    n, d = a.shape
    invariance = ((a - b) ** 2).mean()
    variance = covariance = 0.0
    for z in (a, b):
        z = z - z.mean(axis=0)
        std = jnp.sqrt(z.var(axis=0, ddof=1) + 1e-4)
        variance = variance + jax.nn.relu(1 - std).mean() / 2
        covariance = covariance + off_diagonal_squares(z.T @ z / (n - 1)) / d
    return 25 * invariance + 25 * variance + covariance


def barlow_twins(a, b, weight=0.0051):
    """Barlow Twins with the paper's weight; a, b (N, D)."""
    n = a.shape[0]
    a = (a - a.mean(axis=0)) / a.std(axis=0)
    b = (b - b.mean(axis=0)) / b.std(axis=0)
    correlation = a.T @ b / n
    on_diagonal = ((jnp.diagonal(correlation) - 1) ** 2).sum()
    return on_diagonal + weight * off_diagonal_squares(correlation)
