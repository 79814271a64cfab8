"""The few smallest of a row, against a stable sort of all of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visreg_core import _xp


def rows_of(kind, rng, shape):
    x = rng.standard_normal(shape)
    if kind == "ties":
        return np.round(2 * x)  # both zeros among them
    if kind == "equal":
        return np.ones(shape)
    if kind == "nan":
        return np.where(rng.random(shape) < 0.4, np.nan, x)
    if kind == "infinite":
        return np.where(rng.random(shape) < 0.97, np.inf, x)
    return x


KINDS = ("plain", "ties", "equal", "nan", "infinite")


def by_sorting(x, k):
    filled = np.where(np.isnan(x), np.inf, x)
    return np.argsort(filled, axis=-1, kind="stable")[:, :k]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 7), (40, 3), (500, 10)])
@pytest.mark.lean_on_jax(n=[40], dtype=["float32"])
def test_as_a_stable_sort(where, kind, n, k, rng):
    x = where.asarray(rows_of(kind, rng, (5, n)))
    found = _xp.smallest(_xp.namespace(x), x, k)
    assert where.backend.owns(found)
    assert np.array_equal(where.backend.to_numpy(found), by_sorting(where.to_numpy(x), k))


def test_both_zeros_tie(where):
    x = where.asarray(np.array([[1.0, 0.0, -0.0, 0.0, -0.0, 2.0, -1.0]]))
    found = _xp.smallest(_xp.namespace(x), x, 4)
    assert where.backend.to_numpy(found).tolist() == [[6, 1, 2, 3]]


@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 9),
    n=st.integers(1, 2000),
    k=st.integers(1, 20),
)
@settings(max_examples=150, deadline=None)
def test_numpy_at_any_size(kind, seed, rows, n, k):
    x = rows_of(kind, np.random.default_rng(seed), (rows, n)).astype(np.float32)
    assert np.array_equal(_xp.smallest(np, x, min(k, n)), by_sorting(x, min(k, n)))
