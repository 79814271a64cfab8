"""Occupancy and bounds of the expected times of kernels."""

import pytest

from tests.benchmarks.bench_kernels import expected, occupancy

pytestmark = pytest.mark.backends("torch")


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "at_a_time"),
    # By the vendor's calculator, for compute capability 9.0.
    [
        (32, 0, 4, 64),
        (64, 0, 4, 32),
        (65, 0, 4, 28),
        (255, 0, 8, 8),
        (32, 48 * 1024, 4, 16),
        (32, 227 * 1024, 4, 4),
        (16, 0, 1, 32),
    ],
)
def test_occupancy(backend, registers, shared, warps, at_a_time):
    assert occupancy({"registers": registers, "shared": shared, "warps": warps}) == at_a_time


def test_the_longest_bound_is_expected(backend):
    assert expected({"bytes": 3e-6, "operations": 5e-6}) == ("operations", 5e-6)
    assert expected({"bytes": 1e-9})[0] == "launch"
