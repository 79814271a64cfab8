"""Draws of the rectified generalized Gaussian against SciPy's law; the sparsity that they bring."""

import math

import numpy as np
import pytest
from scipy import stats

from tests.backends import Backend
from visreg_core import (
    random_slices,
    rectified_generalized_gaussian,
    sliced_wasserstein,
    value_and_grad,
)
from visreg_core.metrics import sparsity


@pytest.mark.parametrize("p", [0.7, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("nonzero", [0.1, 0.5, 0.8])
def test_law_is_scipys_generalized_normal(p, nonzero):
    x = rectified_generalized_gaussian(4000, 3, p=p, nonzero=nonzero, scale=1.7).ravel()
    law = stats.gennorm(p, scale=1.7 * p ** (1 / p))  # its density has no 1/p
    law = stats.gennorm(p, loc=law.ppf(nonzero), scale=1.7 * p ** (1 / p))
    assert np.all(x >= 0)
    error = math.sqrt(nonzero * (1 - nonzero) / x.size)
    assert abs(np.mean(x > 0) - nonzero) < 4 * error
    positive = x[x > 0]
    truncated = lambda v: (law.cdf(v) - law.cdf(0)) / law.sf(0)  # noqa: E731
    assert stats.kstest(positive, truncated).pvalue > 1e-3


def test_entries_depend_on_their_place_alone():
    whole = rectified_generalized_gaussian(7, 5, seed=3, step=2)
    np.testing.assert_array_equal(
        rectified_generalized_gaussian(4, 3, seed=3, step=2), whole[:4, :3]
    )
    assert not np.array_equal(whole, rectified_generalized_gaussian(7, 5, seed=3, step=3))
    torch = rectified_generalized_gaussian(7, 5, seed=3, step=2, xp=Backend.TORCH.xp)
    np.testing.assert_allclose(torch.numpy(), whole, rtol=1e-7)


def test_descent_makes_embeddings_as_sparse_as_the_target():
    """RDMReg by itself, on free embeddings that are rectified first."""
    n, dim = 128, 6
    z = np.random.default_rng(0).standard_normal((n, dim))
    target = rectified_generalized_gaussian(n, dim, p=1.0, nonzero=0.3)
    before = sparsity(np.maximum(z, 0)).nonzero
    for step in range(150):
        w = random_slices(dim, 16, step=step)
        y = np.maximum(z, 0)
        _, (gradient, _) = value_and_grad(sliced_wasserstein)(y, target, w, power=True)
        z -= 0.2 * n * dim * gradient * (z > 0)
    after = sparsity(np.maximum(z, 0)).nonzero
    assert before > 0.45
    assert abs(after - 0.3) < abs(before - 0.3) / 2


def test_sparsity_of_known_rows():
    x = np.array([[0.0, 0, 0, 0], [1, 0, 0, 0], [2, -2, 2, -2], [1e200, 1e200, 0, 0]])
    found = sparsity(x)
    assert found.nonzero == 7 / 16
    assert found.participation == pytest.approx((1 / 4 + 1 + 1 / 2) / 3)
    assert math.isnan(sparsity(np.zeros((2, 3))).participation)


def test_arguments_are_checked():
    for options in ({"p": 0.0}, {"nonzero": 1.0}, {"nonzero": 0.0}, {"scale": -1.0}, {"n": 0}):
        with pytest.raises(ValueError, match="expected"):
            rectified_generalized_gaussian(**{"n": 2, "dim": 2, **options})
