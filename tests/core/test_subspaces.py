"""Directions of fixed subspaces: which they are, and that SIGReg on them is Sub-JEPA's."""

import numpy as np
import pytest

from visreg_core import random_slices, sigreg_loss, subspace_slices

OPTIONS = {"n_subspaces": 4, "subspace_dim": 3, "seed": 5}  # two of them in a block of D = 8


def axes_of(columns):
    """Orthonormal axes of the space that columns span, by their singular values."""
    u, s, _ = np.linalg.svd(columns)
    assert s[2] > 1e-6 > 1e-12 > s[3]
    return u[:, :3]


@pytest.fixture
def two_steps():
    return [subspace_slices(8, 40, step=step, **OPTIONS).reshape(8, 4, 10) for step in (0, 9)]


def test_subspaces_stay_and_directions_change(two_steps):
    first, second = two_steps
    assert np.abs(first - second).max() > 0.1
    found = [axes_of(np.hstack([first[:, m], second[:, m]])) for m in range(4)]
    for i, j in ((0, 1), (2, 3)):
        assert np.abs(found[i].T @ found[j]).max() < 1e-12
    assert np.abs(found[0].T @ found[2]).max() > 0.1  # of another block
    other = subspace_slices(8, 40, **(OPTIONS | {"seed": 6}))
    assert np.linalg.matrix_rank(np.hstack([first[:, 0], other[:, :10]])) == 6


def test_sigreg_in_a_subspace_is_that_of_the_coordinates(two_steps, rng):
    z = rng.standard_normal((30, 8)) * np.linspace(0.2, 2, 8)
    parts = []
    for m in range(4):
        axes, w = axes_of(two_steps[0][:, m]), two_steps[0][:, m]
        np.testing.assert_allclose(np.linalg.norm(axes.T @ w, axis=0), 1, rtol=1e-12)
        parts.append(sigreg_loss(z @ axes, axes.T @ w))
    np.testing.assert_allclose(sigreg_loss(z, two_steps[0].reshape(8, 40)), np.mean(parts))


def test_directions_are_uniform_in_their_subspace():
    w = subspace_slices(5, 6000, n_subspaces=1, subspace_dim=3, dtype=np.float64)
    inside = np.linalg.svd(w, full_matrices=False)[0][:, :3].T @ w
    np.testing.assert_allclose(inside @ inside.T / 6000, np.eye(3) / 3, atol=0.03)
    np.testing.assert_allclose(inside.mean(axis=1), 0, atol=0.03)


def test_the_whole_space_is_one_subspace():
    w = subspace_slices(6, 12, n_subspaces=1, subspace_dim=6, seed=1, step=2)
    turn = w @ np.linalg.pinv(random_slices(6, 12, seed=1, step=2))
    np.testing.assert_allclose(turn @ turn.T, np.eye(6), atol=1e-12)


@pytest.mark.parametrize(("change", "words"), [
    ({"subspace_dim": 9}, "expected subspace_dim <= dim = 8; found 9"),
    ({"n_subspaces": 3}, "expected n_slices to be a multiple of n_subspaces = 3; found 40"),
    ({"n_subspaces": 0}, "expected n_subspaces to be an integer >= 1; found 0"),
])  # fmt: skip
def test_counts_that_do_not_fit(change, words):
    with pytest.raises(ValueError, match=words):
        subspace_slices(8, 40, **(OPTIONS | change))
