"""NumPy's kernels against the functions that they replace, to the last bit."""

import numpy as np
import pytest

from visreg_core.losses import rows
from visreg_core.losses.execution import PLAIN, Execution
from visreg_core.losses.kernels import NUMPY
from visreg_core.losses.visreg import visreg_loss

SHARDS = PLAIN.shards


def embeddings(rng, shape, dtype):
    z = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3, shape[-1]) + 1
    z[..., 0] = 7
    z[..., -1] = 3e-3 if dtype == np.float16 else 1e-25 * rng.standard_normal(shape[:-1])
    return z.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(2, 3), (50, 6), (3, 40, 5), (300, 200)])
@pytest.mark.parametrize("options", [{}, {"eps": 1e-4, "ddof": 1}], ids=["biased", "unbiased"])
def test_moments(rng, shape, dtype, options):
    """Of one view and of several, together where they are small."""
    views = [embeddings(rng, shape, dtype) for _ in range(3)]
    for some in (views[:1], views):
        expected = rows.moments(np, some, None, SHARDS, **options)
        found = NUMPY["moments"](np, some, None, SHARDS, **options)
        for f, e in zip(found, expected, strict=True):
            assert f.rows.z is e.rows.z
            assert f.rows.n == e.rows.n
            for name in ("first", "rest", "unit"):
                assert np.array_equal(getattr(f.rows, name), getattr(e.rows, name)), name
            assert np.array_equal(f.centred, e.centred)
            assert np.array_equal(f.deviation, e.deviation)
            assert f.deviation.dtype == e.deviation.dtype


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_small_batches_in_one_chunk(rng, chunk_size):
    """Whether views are worked on together or one by one changes nothing."""
    z, w = rng.standard_normal((4, 20, 5)), rng.standard_normal((5, 8))
    w /= np.linalg.norm(w, axis=0)
    inputs = visreg_loss.declaration.bind((z, w), {"chunk_size": chunk_size})
    found = [
        visreg_loss.declaration.forward(Execution(kernels=kernels, need_gradient=True), **inputs)
        for kernels in (NUMPY, {})
    ]
    (terms, saved), (expected, expected_saved) = found
    np.testing.assert_allclose(terms, expected, rtol=1e-14)
    np.testing.assert_allclose(saved.gradient, expected_saved.gradient, rtol=1e-12, atol=1e-15)
