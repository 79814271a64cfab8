"""Structured orthogonal slices: orthonormal, of the stream's signs, as good as Haar's blocks."""

import numpy as np
import pytest
from scipy import fft

from tests.core import reference
from visreg_core import random_slices, sigreg_limit, sigreg_loss, structured_slices, value_and_grad


@pytest.mark.parametrize("dim", [1, 7, 24, 36])
def test_blocks_are_orthonormal(dim):
    w = structured_slices(dim, 2 * dim + 1, seed=3, step=4)
    for block in (w[:, :dim], w[:, dim : 2 * dim], w[:, 2 * dim :]):
        np.testing.assert_allclose(block.T @ block, np.eye(block.shape[1]), atol=1e-13)
    assert dim < 7 or np.abs(w[:, :dim] - w[:, dim : 2 * dim]).max() > 0.1


def test_the_product_of_scipys_transforms_and_the_streams_signs():
    """A transform along both axes of a column as a matrix (p, q) is that by C_p ⊗ C_q."""
    p, q, seed, step = 3, 5, 11, 6
    dim = p * q
    found = structured_slices(dim, 2 * dim, seed=seed, step=step)

    def sign(row, d):
        words = reference.threefry2x32(seed, step, row, (4 << 28) + d // 2)
        return 1 if words[d % 2] >> 31 else -1

    def transformed(x):
        return fft.dctn(x.reshape(p, q, -1), norm="ortho", axes=(0, 1)).reshape(dim, -1)

    for block in range(2):
        first, second, third = (
            np.array([sign(3 * block + i, d) for d in range(dim)]) for i in range(3)
        )
        expected = transformed(first[:, None] * transformed(second[:, None] * transformed(
            np.diag(third).astype(float))))  # fmt: skip
        own = found[:, block * dim : (block + 1) * dim]
        np.testing.assert_allclose(own, expected, atol=1e-13)


def test_fourth_moments_are_those_of_the_sphere():
    dim = 64
    w = np.hstack([structured_slices(dim, dim, step=s) for s in range(60)])
    assert np.mean(w**4) == pytest.approx(3 / (dim * (dim + 2)), rel=0.03)
    squares = w**2 @ (w**2).T / w.shape[1]
    apart = squares[~np.eye(dim, dtype=bool)].mean()
    assert apart == pytest.approx(1 / (dim * (dim + 2)), rel=0.01)


def test_the_gradients_error_is_that_of_orthogonal_slices():
    """Around the gradient of infinitely many slices, at K = D: 0.55 of independent ones' here."""
    dim, fine = 48, {"t_max": 8.0, "n_knots": 65}
    z = 1.3 * np.random.default_rng(0).standard_normal((128, dim))
    _, limit = value_and_grad(sigreg_limit)(z)

    def error(draw):
        found = [value_and_grad(sigreg_loss)(z, draw(step), **fine)[1] for step in range(24)]
        return np.mean([np.sum((g - limit) ** 2) for g in found])

    independent = error(lambda s: random_slices(dim, dim, step=s))
    haar = error(lambda s: random_slices(dim, dim, step=s, sampler="orthogonal"))
    structured = error(lambda s: structured_slices(dim, dim, step=s))
    assert structured == pytest.approx(haar, rel=0.08)
    assert structured < 0.7 * independent
