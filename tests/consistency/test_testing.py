"""``assert_close`` catches what a comparison of values lets through."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from tests.backends import Backend
from visreg_core.testing import assert_close


class Pair(NamedTuple):
    total: object
    part: object


def test_equal_arrays_pass(where, rng):
    a = rng.normal(size=(3, 4))
    assert_close(where.asarray(a), where.asarray(a))
    assert_close(where.asarray(a), where.asarray(a), measure="l2")
    one = where.asarray(np.asarray(2.0))
    assert_close(one, 2.0)
    assert_close(Pair(one, one), Pair(one, 2.0))


@pytest.mark.parametrize("measure", ["elementwise", "l2"])
def test_values(where, measure, rng):
    a = rng.normal(size=(3, 4))
    b = a.copy()
    b[1, 2] += 1e-3
    with pytest.raises(AssertionError, match=r"\(1, 2\)" if measure == "elementwise" else "norm"):
        assert_close(where.asarray(b), where.asarray(a), measure=measure)
    assert_close(where.asarray(b), where.asarray(a), measure=measure, atol=2e-3)
    assert_close(where.asarray(b), where.asarray(a), measure=measure, rtol=1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("measure", ["elementwise", "l2"])
def test_what_is_not_finite_differs(bad, measure):
    a, b = np.ones(3), np.array([1.0, bad, 1.0])
    for x, y in ((a, b), (b, a)):
        with pytest.raises(AssertionError):
            assert_close(x, y, measure=measure, rtol=1e9, atol=1e9)


def test_the_l2_norm_neither_overflows_nor_vanishes():
    for scale in (1e-200, 1e200):
        a = scale * np.array([3.0, 4.0])
        assert_close(a * (1 + 1e-15), a, measure="l2")
        with pytest.raises(AssertionError):
            assert_close(a * 1.01, a, measure="l2")


def test_kind():
    a = np.ones(3)
    with pytest.raises(AssertionError, match="namespace is numpy, expected torch"):
        assert_close(a, torch.from_numpy(a))
    with pytest.raises(AssertionError, match="dtype is float32, expected float64"):
        assert_close(a.astype(np.float32), a)
    with pytest.raises(AssertionError, match="shape"):
        assert_close(a[:, None], a)
    strict = Backend.STRICT.xp
    elsewhere = strict.ones(3, device=strict.Device("device1"))
    with pytest.raises(AssertionError, match="device"):
        assert_close(elsewhere, strict.ones(3))
    assert_close(a, torch.from_numpy(a), check_namespace=False, check_device=False)
    assert_close(a.astype(np.float32), a, check_dtype=False)


def test_tuples():
    one = np.float64(1)
    with pytest.raises(AssertionError, match=r"result\.part: 1 of 1"):
        assert_close(Pair(one, np.float64(2)), Pair(one, one))
    with pytest.raises(AssertionError, match="fields"):
        assert_close((one, one), Pair(one, one))
    with pytest.raises(AssertionError, match="tuple"):
        assert_close(one, (one,))


def test_unknown_measure_lists_the_known():
    with pytest.raises(ValueError, match=r"elementwise.*l2"):
        assert_close(1.0, 1.0, measure="max")


def test_python_numbers():
    assert_close(1.0, 1.0)
    with pytest.raises(AssertionError):
        assert_close(1.0, 1.1)
