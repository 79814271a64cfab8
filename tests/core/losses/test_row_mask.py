"""``row_mask``: exactly the loss of the kept rows, whatever stands in the others."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.cases import CASES, each
from tests.core.losses.test_gradients import autograd, uneven_cotangents
from tests.core.losses.test_values import assert_terms

MASKED = [c for c in CASES if c.loss.row_mask]
MASKS = {
    "ends": np.array([False, True, True, False, True, True, True, True, False, False]),
    "two": np.array([False, True, False, False, False, False, True, False, False, False]),
    "all": np.ones(10, dtype=bool),
}
GARBAGE = {"nan": np.nan, "inf": np.inf, "large": 1e30, "zero": 0.0}


def drawn(case, rng, mask, garbage):
    """Arrays with garbage in the masked rows, and those of the kept rows alone."""
    arrays = case.draw(rng, len(mask), 4, 5)
    if "pairs" in arrays:  # a kept row's partner is a kept row
        arrays["pairs"] = rng.choice(np.flatnonzero(mask), size=len(mask))
    kept = dict(arrays)
    for name in case.array_ndims:
        if name not in ("slices", "affinity"):
            axis = -1 if case.array_ndims[name] == 1 else -2
            kept[name] = np.compress(mask, arrays[name], axis=axis)
            if name != "pairs":
                keep = mask if axis == -1 else mask[:, None]
                arrays[name] = np.where(keep, arrays[name], garbage)
    if "pairs" in arrays:
        kept["pairs"] = (np.cumsum(mask) - 1)[kept["pairs"]]
    return arrays, kept


@each(MASKED)
@pytest.mark.lean_on_jax(dtype=[])  # test_jit compares the same
def test_value_is_that_of_the_kept_rows(case, where, rng):
    for mask in MASKS:
        check_masked_value(case, where, MASKS[mask], rng)


def check_masked_value(case, where, mask, rng):
    arrays, kept = drawn(case, rng, mask, np.nan)
    given = {n: where.asarray(a) for n, a in arrays.items()}
    result = case.call(given, row_mask=where.asarray(mask))
    kept = {n: a.astype(where.dtype).astype(a.dtype) if a.dtype.kind == "f" else a
            for n, a in kept.items()}  # fmt: skip
    assert_terms(case, where, result, case.expected(kept))


@each(MASKED)
@pytest.mark.dtypes("float64")
@pytest.mark.lean_on_jax(dtype=[])
def test_gradient_is_that_of_the_kept_rows(case, where, rng):
    for garbage in GARBAGE.values():
        check_masked_gradient(case, where, garbage, rng)


def check_masked_gradient(case, where, garbage, rng):
    mask = MASKS["ends"]
    arrays, kept = drawn(case, rng, mask, garbage)
    given = {n: where.asarray(a) for n, a in arrays.items()}
    cotangents = uneven_cotangents(case)
    _, vjp = case.value_and_vjp(given, row_mask=where.asarray(mask))
    _, kept_vjp = case.value_and_vjp({n: where.asarray(a) for n, a in kept.items()})
    pairs = zip(case.differentiated, vjp(*cotangents), kept_vjp(*cotangents), strict=True)
    for name, gradient, expected in pairs:
        gradient, expected = where.to_numpy(gradient), where.to_numpy(expected)
        axis = -1 if case.array_ndims[name] == 1 else -2
        inside = np.compress(mask, gradient, axis=axis)
        assert_allclose(inside, expected, rtol=0, atol=1e-12 * np.max(np.abs(expected)))
        assert np.all(np.compress(~mask, gradient, axis=axis) == 0)


@each([c for c in MASKED if not c.variant or c.wrt])
@pytest.mark.backends("torch", "jax", "torch-cuda")
@pytest.mark.dtypes("float64")
def test_autograd_through_the_masked_value(case, where, rng):
    """No NaN leaks out of masked rows into a framework's own gradient either."""
    mask = MASKS["ends"]
    arrays, _ = drawn(case, rng, mask, np.nan)

    class Masked(type(case)):
        def call(self, given):
            return super().call(given, row_mask=where.asarray(mask))

    masked = Masked(**vars(case))
    cotangents = uneven_cotangents(case)
    got = autograd(masked, where.backend, arrays, cotangents)
    _, vjp = case.value_and_vjp(arrays, row_mask=mask)  # on NumPy
    for g, analytic in zip(got, vjp(*cotangents), strict=True):
        assert_allclose(g, analytic, rtol=0, atol=1e-9 * np.max(np.abs(analytic)))


@each([c for c in MASKED if not c.variant])
@pytest.mark.backends("numpy", "torch")
@pytest.mark.dtypes("float64")
def test_masks_that_are_none(case, where, rng):
    """Another length, a matrix, floats, integers."""
    arrays = {n: where.asarray(a) for n, a in case.draw(rng, 10, 4, 5).items()}
    for bad in (np.ones(9, bool), np.ones((10, 1), bool), np.ones(10), np.arange(10)):
        with pytest.raises((TypeError, ValueError), match=r"row_mask.*(10|bool)"):
            case.call(arrays, row_mask=where.asarray(bad))


@each([c for c in MASKED if not c.variant and c.leading])
@pytest.mark.backends("numpy", "torch")
@pytest.mark.dtypes("float64")
def test_one_mask_serves_all_leading_axes(case, where, rng):
    mask = MASKS["ends"]
    arrays = case.draw(rng, len(mask), 4, 5, leading=(3,))
    if "pairs" in arrays:
        arrays["pairs"] = rng.choice(np.flatnonzero(mask), size=len(mask))
    given = {n: where.asarray(a) for n, a in arrays.items()}
    together = case.scalar(case.call(given, row_mask=where.asarray(mask)))
    single = []
    for v in range(3):
        one = {n: a[v] if a.ndim > case.array_ndims[n] else a for n, a in given.items()}
        single.append(float(case.scalar(case.call(one, row_mask=where.asarray(mask)))))
    assert_allclose(float(together), np.mean(single), rtol=1e-13)


@each(MASKED)
@pytest.mark.dtypes("float64")
@pytest.mark.lean_on_jax(dtype=[])
@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:divide by zero")
def test_fewer_than_two_kept_rows_are_nan(case, where, kept, rng):
    """How many are kept is known only when the program runs: too late to raise."""
    arrays = {n: where.asarray(a) for n, a in case.draw(rng, 10, 4, 5).items()}
    if "pairs" in arrays:
        arrays["pairs"] = where.asarray(np.zeros(10, dtype=int))
    mask = where.asarray(np.arange(10) < kept)
    result, _ = case.value_and_grad(arrays, row_mask=mask)
    for both in (case.call(arrays, row_mask=mask), result):
        value = float(where.to_numpy(case.scalar(both)))
        # the invariance of a single sample exists
        assert np.isnan(value) == (kept == 0 or case.loss.name != "invariance_loss")
