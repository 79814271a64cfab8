"""SpectralNet's loss and orthogonalisation against the Laplacian's eigenvectors."""

import numpy as np
import pytest
import scipy.linalg
from numpy.testing import assert_allclose

from visreg_core import orthonormalize, spectralnet_loss, value_and_grad

pytestmark = pytest.mark.lean_on_jax(dtype=["float64"])


def graph(rng, n=12):
    w = np.exp(-rng.uniform(0, 3, size=(n, n)))
    w = (w + w.T) / 2
    np.fill_diagonal(w, 0)
    return w


def laplacian(w):
    return np.diag(w.sum(1)) - w


def test_is_twice_the_laplacian_form(where, rng):
    w, y = graph(rng), rng.normal(size=(12, 3))
    expected = 2 * np.trace(y.T @ laplacian(w) @ y) / 12**2
    value, gradient = value_and_grad(spectralnet_loss)(where.asarray(y), where.asarray(w))
    rtol = 1e-12 if where.dtype == "float64" else 2e-6
    assert_allclose(where.to_numpy(value), expected, rtol=rtol)
    wanted = 4 * laplacian(w) @ y / 12**2
    assert_allclose(where.to_numpy(gradient), wanted, rtol=0, atol=2 * rtol * np.abs(wanted).max())


def test_an_asymmetric_affinity_counts_both_ways(rng):
    w, y = rng.uniform(size=(6, 6)), rng.normal(size=(6, 2))
    expected = sum(
        w[i, j] * np.sum((y[i] - y[j]) ** 2) for i in range(6) for j in range(6)
    ) / 36  # fmt: skip
    value, gradient = value_and_grad(spectralnet_loss)(y, w)
    assert_allclose(value, expected, rtol=1e-13)
    wanted = [2 / 36 * sum((w[i, j] + w[j, i]) * (y[i] - y[j]) for j in range(6)) for i in range(6)]
    assert_allclose(gradient, wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(12, 3), (5, 5), (30, 1)])
@pytest.mark.lean_on_jax(shape=[(12, 3)])
def test_orthonormalize(where, shape, rng):
    y = rng.normal(size=shape) @ (np.eye(shape[1]) + 0.3 * rng.normal(size=(shape[1], shape[1])))
    q = orthonormalize(where.asarray(y))
    assert where.backend.owns(q)
    assert where.backend.dtype_name(q) == where.dtype
    q = where.to_numpy(q)
    n, d = shape
    atol = 1e-12 if where.dtype == "float64" else 1e-5
    assert_allclose(q.T @ q, n * np.eye(d), rtol=0, atol=n * atol)
    angles = scipy.linalg.subspace_angles(y, q)
    assert np.max(angles) < (1e-7 if where.dtype == "float64" else 2e-3)


def test_orthonormalize_is_deterministic_across_backends(where, rng):
    """The signs too."""
    y = rng.normal(size=(10, 3))
    got = where.to_numpy(orthonormalize(where.asarray(y)))
    atol = 1e-11 if where.dtype == "float64" else 1e-4
    assert_allclose(got, orthonormalize(y), rtol=0, atol=atol)


def test_orthonormalize_needs_as_many_rows(rng):
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        orthonormalize(rng.normal(size=(3, 5)))


def test_minimiser_spans_the_lowest_eigenvectors(rng):
    """Projected gradient descent on the orthogonal constraint ends in the span of the Laplacian's
    d lowest eigenvectors, at the value of their eigenvalues' sum."""
    n, d = 12, 2
    w = graph(rng, n)
    values, vectors = np.linalg.eigh(laplacian(w))
    y = orthonormalize(rng.normal(size=(n, d)))
    step = n**2 / (4 * values[-1])
    for _ in range(4000):
        _, gradient = value_and_grad(spectralnet_loss)(y, w)
        y = orthonormalize(y - step * gradient)
    assert_allclose(spectralnet_loss(y, w), 2 * np.sum(values[:d]) / n, rtol=1e-9)
    assert np.max(scipy.linalg.subspace_angles(y, vectors[:, :d])) < 1e-5


@pytest.mark.backends("torch")
@pytest.mark.dtypes("float64")
def test_gradient_through_orthonormalize(where, rng):
    """Against differences: the loss of the orthonormalised output, as a network trains on it."""
    torch = where.backend.xp
    w = graph(rng, 8)
    y = rng.normal(size=(8, 3))

    def loss(v):
        return float(spectralnet_loss(orthonormalize(v), w))

    leaf = torch.tensor(y, requires_grad=True)
    spectralnet_loss(orthonormalize(leaf), torch.tensor(w)).backward()
    from tests.core.reference import central_difference

    assert_allclose(leaf.grad.numpy(), central_difference(loss, y), rtol=0, atol=1e-8)


def test_row_mask_keeps_rows_and_columns_of_the_affinity(where, rng):
    y, affinity = rng.normal(size=(9, 3)), rng.random((9, 9))
    keep = np.arange(9) % 4 != 1
    y[~keep], affinity[~keep] = np.nan, np.nan
    affinity[:, ~keep] = np.nan
    sub = affinity[np.ix_(keep, keep)]
    expected, of_kept = value_and_grad(spectralnet_loss)(y[keep], sub)
    got, gradient = value_and_grad(spectralnet_loss)(
        where.asarray(y), where.asarray(affinity), row_mask=where.asarray(keep)
    )
    rtol = 1e-12 if where.dtype == "float64" else 2e-6
    np.testing.assert_allclose(float(got), expected, rtol=rtol)
    gradient = where.to_numpy(gradient)
    np.testing.assert_allclose(gradient[keep], of_kept, rtol=0, atol=rtol * abs(of_kept).max())
    assert not gradient[~keep].any()


def test_clusters_far_apart_do_not_cancel(rng):
    """Rows that the affinity joins are 1e-5 apart, clusters 2: differences keep all digits."""
    side = np.where(np.arange(40) < 20, 1.0, -1.0)[:, None]
    y = (side + 1e-5 * rng.normal(size=(40, 2))).astype(np.float32)
    affinity = np.kron(np.eye(2), np.ones((20, 20)))
    wide = y.astype(np.float64)
    distances = ((wide[:, None] - wide[None]) ** 2).sum(-1)
    expected = (affinity * distances).mean()
    got = spectralnet_loss(y, affinity.astype(np.float32))
    np.testing.assert_allclose(got, expected, rtol=2e-6)
