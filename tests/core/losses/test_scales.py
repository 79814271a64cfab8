"""Scales over the whole range of float32: of all embeddings, and of single dimensions.

The oracle is the same loss in float64, whose range holds all squares of these numbers.
"""

import numpy as np
import pytest

from tests.cases import named
from visreg_core import barlow_twins_loss, scale_loss, value_and_grad

# Losses whose value and gradient stay within float32 wherever the embeddings do.
BOUNDED = named("shape_loss", "visreg_loss", "scale_loss", "barlow_twins_loss", "variance_loss")
# A quantised text model has dimensions of these deviations, beside ordinary ones.
DEAD = (1.5e-33, 2.1e-33, 3.9e-9)


def columns(d):
    out = np.ones(d)
    out[: len(DEAD)] = DEAD
    return out


WAYS = {
    "dead dimensions": (columns, BOUNDED),
    "one of 1e-25": (lambda d: np.where(np.arange(d) == 3, 1e-25, 1.0), BOUNDED),
    "all 1e-30": (lambda d: np.full(d, 1e-30), BOUNDED),
    "all 5e18": (lambda d: np.full(d, 5e18), BOUNDED),
    # (1 − σ)² is beyond float32 here, but what is free of scale is not.
    "all 1e30": (lambda d: np.full(d, 1e30), named("shape_loss", "barlow_twins_loss")),
}


@pytest.mark.parametrize(
    ("case", "scales"),
    [
        pytest.param(case, scales, id=f"{case}-{way}")
        for way, (scales, cases) in WAYS.items()
        for case in cases
    ],
)
@pytest.mark.dtypes("float32")
def test_float32_is_float64(case, scales, where, rng):
    arrays = case.draw(rng, 24, 6, 7)
    for name in case.differentiated:
        arrays[name] = (arrays[name] * scales(6)).astype(np.float32).astype(np.float64)
    arrays = {n: a.astype(np.float32).astype(a.dtype) for n, a in arrays.items()}
    expected, expected_gradients = case.value_and_grad(arrays)
    found, gradients = case.value_and_grad({n: where.asarray(a) for n, a in arrays.items()})
    for f, e in zip(case.fields(found).values(), case.fields(expected).values(), strict=True):
        np.testing.assert_allclose(where.to_numpy(f), e, rtol=3e-5, atol=3e-6)
    for g, e in zip(gradients, expected_gradients, strict=True):
        g = where.to_numpy(g).astype(np.float64)
        # Dimension by dimension: those of small scale have large gradients.
        error, size = np.linalg.norm(g - e, axis=-2), np.linalg.norm(e, axis=-2)
        assert np.all(error <= 3e-4 * size)


def test_a_nearly_dead_dimension_is_drawn_out(rng):
    """The norm of the scale loss's gradient tends to 2/√(ND), however small the deviation."""
    z = rng.standard_normal((200, 1)).astype(np.float32) * np.float32(1e-25)
    _, gradient = value_and_grad(scale_loss)(z)
    np.testing.assert_allclose(np.linalg.norm(gradient), 2 / np.sqrt(200), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 5e18])
def test_barlow_twins_is_free_of_scale(scale, rng):
    a, b = rng.standard_normal((2, 64, 5))
    expected = barlow_twins_loss(a, b)
    found = barlow_twins_loss(*((x * scale).astype(np.float32) for x in (a, b)))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
