"""``normal_quantiles`` against mpmath."""

import mpmath
import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.backends import Backend
from visreg_core import gaussian, normal_quantiles


def exact(n):
    with mpmath.workdps(40):
        root = mpmath.sqrt(2)
        return np.array(
            [float(root * mpmath.erfinv(mpmath.mpf(2 * i) / (n + 1) - 1)) for i in range(1, n + 1)]
        )


@pytest.mark.parametrize("n", [1, 2, 3, 10, 257])
def test_against_mpmath(where, n):
    got = normal_quantiles(n, xp=where.backend.xp, dtype=where.backend.dtype(where.dtype))
    assert where.backend.owns(got)
    assert got.shape == (n,)
    assert where.backend.dtype_name(got) == where.dtype
    rtol = {"float64": 2e-15, "float32": 6e-8}[where.dtype]
    assert_allclose(where.to_numpy(got), exact(n), rtol=rtol, atol=1e-16)


@pytest.mark.parametrize("i", [1, 2, 50_000, 99_999, 100_000])
def test_extreme_quantiles(i):
    got = normal_quantiles(100_000)[i - 1]
    with mpmath.workdps(40):
        wanted = mpmath.sqrt(2) * mpmath.erfinv(mpmath.mpf(2 * i) / 100_001 - 1)
    assert_allclose(got, float(wanted), rtol=1e-13, atol=1e-15)


def test_antisymmetric_and_increasing():
    q = normal_quantiles(1000)
    assert_allclose(q, -q[::-1], rtol=0, atol=1e-14)
    assert np.all(np.diff(q) > 0)


@pytest.mark.dtypes("float16", "bfloat16")
def test_half_precision_is_cast_last(where):
    """No Inf from a position that rounds to 1: 1 - 1e-5 is 1 in bfloat16."""
    dtype = where.backend.dtype(where.dtype)
    got = where.to_numpy(normal_quantiles(100_000, xp=where.backend.xp, dtype=dtype))
    assert np.all(np.isfinite(got))
    assert_allclose(got, normal_quantiles(100_000), rtol=2.0**-8, atol=1e-6)


def test_defaults_to_numpy_float64():
    q = normal_quantiles(4)
    assert isinstance(q, np.ndarray)
    assert q.dtype == np.float64


def test_what_the_caller_writes_does_not_reach_the_next_caller(backend):
    before = backend.to_numpy(normal_quantiles(6, xp=backend.xp)).copy()
    q = normal_quantiles(6, xp=backend.xp)
    try:
        q[0] = 100.0
    except (ValueError, TypeError):
        assert backend in (Backend.NUMPY, Backend.JAX)  # read-only, or immutable
    assert np.array_equal(backend.to_numpy(normal_quantiles(6, xp=backend.xp)), before)
    assert np.max(np.abs(normal_quantiles(6))) < 2


@pytest.mark.parametrize("n", [0, -1, 2.5])
def test_bad_n(n):
    with pytest.raises((TypeError, ValueError), match=str(n)):
        normal_quantiles(n)


@pytest.mark.backends("torch")
def test_while_torch_traces(backend):
    """SciPy breaks a graph; inside one the same numbers come from torch."""
    torch = backend.xp

    def double(x):
        return x * normal_quantiles(x.shape[0], xp=torch, dtype=x.dtype)

    torch._dynamo.reset()
    got = torch.compile(double, fullgraph=True, backend="eager")(torch.ones(9, dtype=torch.float64))
    assert_allclose(got.numpy(), exact(9), rtol=1e-13, atol=1e-15)


@pytest.mark.backends("jax")
def test_while_jax_traces(backend):
    import jax

    got = jax.jit(lambda x: x * normal_quantiles(9, xp=backend.xp, dtype=x.dtype))(np.ones(9))
    assert_allclose(got, exact(9), rtol=1e-13, atol=1e-15)


def test_few_sizes_are_kept():
    """Batches of every size, for a long time, take no more memory."""
    for n in range(1000, 1200):
        normal_quantiles(n)
    assert len(gaussian._QUANTILES) <= 64
