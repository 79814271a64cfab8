"""The stable order of rows: NumPy's keyed sorts against its own stable argsort."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visreg_core import _xp
from visreg_core._xp import sorted_rows, sorted_values, targets_by_rank

LAYOUTS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "constant": lambda rng, n: np.full(n, rng.normal()),
    "few values": lambda rng, n: rng.integers(-3, 4, size=n) / 3,
    "outlier": lambda rng, n: np.r_[rng.normal(size=n - 1), 1e6 * rng.normal()],
    "two clusters": lambda rng, n: 1e-6 * rng.normal(size=n) + rng.integers(0, 2, size=n),
    "zeros of both signs": lambda rng, n: np.copysign(rng.integers(0, 2, n), rng.normal(size=n)),
    "ascending": lambda rng, n: np.sort(rng.normal(size=n)),
    "descending": lambda rng, n: np.sort(rng.normal(size=n))[::-1],
    "subnormal": lambda rng, n: rng.normal(size=n) * 1e-40,
    "huge": lambda rng, n: rng.normal(size=n) * 1e37,
    "neighbouring floats": lambda rng, n: 1 + rng.integers(0, 50, n) * np.finfo(np.float32).eps,
    "logarithmic": lambda rng, n: np.exp(rng.uniform(-60, 20, n)) * rng.choice([-1, 1], n),
}


def assert_sorts(p):
    """Order, values and ranks of every row, ties in index order."""
    order = np.argsort(p, axis=-1, kind="stable")
    values, got = sorted_rows(np, p)
    assert np.array_equal(got, order)
    assert np.array_equal(values, np.take_along_axis(p, order, axis=-1))
    assert np.array_equal(sorted_values(np, p), values)
    targets = np.arange(p.shape[-1], dtype=p.dtype)
    expected = np.empty_like(p)
    np.put_along_axis(expected, order, np.broadcast_to(targets, p.shape), axis=-1)
    assert np.array_equal(targets_by_rank(np, p, targets), expected)


@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    n=st.one_of(st.integers(2, 70), st.integers(71, 3000)),
    rows=st.integers(1, 4),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from(["float32", "float64"]),
)
@settings(max_examples=300, deadline=None)
def test_any_layout(layout, n, rows, seed, dtype):
    rng = np.random.default_rng(seed)
    p = np.stack([LAYOUTS[layout](rng, n) for _ in range(rows)]).astype(dtype)
    before = p.copy()
    assert_sorts(p)
    assert np.array_equal(p, before)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("n", [512, 513, 2**13, 2**13 + 1, 2**15, 2**15 + 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_where_another_way_begins(layout, n, dtype, rng):
    assert_sorts(np.stack([LAYOUTS[layout](rng, n) for _ in range(2)]).astype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_masked_rows_are_infinite_and_last(dtype, rng):
    p = rng.normal(size=(3, 50)).astype(dtype)
    p[:, ::7] = np.inf
    assert_sorts(p)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [400, 600])
def test_nan_comes_last_whatever_its_sign(dtype, n, rng):
    p = rng.normal(size=(3, n)).astype(dtype)
    p[:, 3::50] = -np.inf
    p[0, ::9], p[1, ::7] = np.nan, np.copysign(np.nan, -1)
    values, order = sorted_rows(np, p)
    expected = np.argsort(p, axis=-1, kind="stable")
    assert np.array_equal(order, expected)
    assert np.array_equal(values, np.take_along_axis(p, expected, axis=-1), equal_nan=True)


def test_rows_of_every_kind_at_once(rng):
    """A row that sorts all its bits does not disturb the others."""
    p = np.stack([LAYOUTS[layout](rng, 500) for layout in sorted(LAYOUTS)]).astype(np.float32)
    assert_sorts(p)


def test_the_same_on_every_backend(backend, rng):
    p = np.stack([LAYOUTS[k](rng, 64) for k in sorted(LAYOUTS) if k != "subnormal"])
    p = p.astype(np.float32)
    expected, order = sorted_rows(np, p)
    given_p = backend.asarray(p)
    values, got = sorted_rows(_xp.namespace(given_p), given_p)
    assert np.array_equal(backend.to_numpy(got), order)
    assert np.array_equal(backend.to_numpy(values), expected)
