"""The losses of `visreg_core` as JAX functions with `jax.custom_vjp`: same names, same arguments.

Each takes and returns JAX arrays and works under ``jit``, ``vmap``, ``grad``, ``value_and_grad``,
``jax.checkpoint`` and ``lax.scan``. The gradient is the core's analytic one, with respect to the
embeddings only: it is accumulated in the pass that computes the value, chunk of slices by chunk of
slices, so that a backward pass holds no projections. A gradient with respect to slices, weights or
other numbers is an error, with respect to pairs, masses and affinities it is 0.

Forward mode (``jvp``, ``jacfwd``) is an error of JAX's for every `jax.custom_vjp` function; the
functions of the same names in `visreg_core` take JAX arrays, too, and have it. ``jax.hessian``
works: it is forward mode over the finished gradient.
"""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

import visreg_core
from visreg_core.slices import check_range
from visreg_jax._custom_vjp import evaluate, prepare

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

LOSSES: dict[str, Callable[..., Any]] = {}
"""The core's loss by its name."""

EMBEDDINGS: dict[str, tuple[str, ...]] = {}
"""The names of the differentiated arguments by the loss's name."""


def _differentiable(
    loss: Callable[Arguments, Result], *embeddings: str, example: str
) -> Callable[Arguments, Result]:
    """`loss` with its analytic gradient as JAX's; the core's docstring, with this example."""
    LOSSES[loss.__name__], EMBEDDINGS[loss.__name__] = loss, embeddings

    @functools.wraps(loss)
    def function(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return evaluate(*prepare(loss, embeddings, args, kwargs))

    function.__module__ = __name__
    function.__doc__ = documented(loss, example)
    return function


def documented(loss: Callable[..., Any], example: str) -> str:
    """The docstring of a core loss, its example replaced."""
    before, _, _ = (inspect.getdoc(loss) or "").partition("Examples\n--------\n")
    return f"{before}Examples\n--------\n{textwrap.dedent(example).strip()}\n"


center_loss = _differentiable(
    visreg_core.center_loss,
    "z",
    example="""
    >>> import jax
    >>> jax.jit(jax.grad(center_loss))(jax.numpy.ones((4, 2))).tolist()[0]
    [0.25, 0.25]
    """,
)

scale_loss = _differentiable(
    visreg_core.scale_loss,
    "z",
    example="""
    >>> import jax
    >>> import jax.numpy as jnp
    >>> float(jax.jit(scale_loss)(jnp.asarray([[3.0], [-3.0]])))
    4.0
    """,
)

shape_loss = _differentiable(
    visreg_core.shape_loss,
    "z",
    example="""
    >>> import jax
    >>> from visreg_jax import random_slices
    >>> z = jax.random.normal(jax.random.key(0), (512, 8))
    >>> bool(jax.jit(shape_loss)(z, random_slices(8, 64)) < 0.05)
    True
    """,
)

visreg_loss = _differentiable(
    visreg_core.visreg_loss,
    "z",
    example="""
    >>> import jax
    >>> from visreg_jax import random_slices
    >>> z = jax.random.normal(jax.random.key(0), (2, 64, 8))
    >>> def objective(z, step):
    ...     terms = visreg_loss(z, random_slices(8, 32, step=step))
    ...     return terms.total, terms
    >>> gradient, terms = jax.jit(jax.grad(objective, has_aux=True))(z, 7)
    >>> gradient.shape
    (2, 64, 8)
    """,
)

invariance_loss = _differentiable(
    visreg_core.invariance_loss,
    "z",
    example="""
    >>> import jax
    >>> import jax.numpy as jnp
    >>> float(jax.jit(invariance_loss)(jnp.stack([jnp.zeros((4, 3)), jnp.ones((4, 3))])))
    0.25
    """,
)

gaussian_sliced_wasserstein = _differentiable(
    visreg_core.gaussian_sliced_wasserstein,
    "z",
    example="""
    >>> import jax
    >>> from visreg_jax import random_slices
    >>> z = jax.random.normal(jax.random.key(0), (256, 16))
    >>> bool(jax.jit(gaussian_sliced_wasserstein)(z, random_slices(16, 64)) < 0.1)
    True
    """,
)

sliced_wasserstein = _differentiable(
    visreg_core.sliced_wasserstein,
    "x",
    "y",
    example="""
    >>> import jax
    >>> from visreg_jax import random_slices
    >>> x = jax.random.normal(jax.random.key(0), (64, 4))
    >>> slices = random_slices(4, 32)
    >>> jax.jit(jax.grad(sliced_wasserstein))(x, x[:50] + 1.0, slices).shape
    (64, 4)
    """,
)

max_sliced_wasserstein = _differentiable(
    visreg_core.max_sliced_wasserstein,
    "x",
    "y",
    example="""
    >>> import jax
    >>> import jax.numpy as jnp
    >>> x = jnp.zeros((5, 2))
    >>> float(jax.jit(max_sliced_wasserstein)(x, x + jnp.asarray([3.0, 0.0]), jnp.eye(2)))
    3.0
    """,
)

epps_pulley = _differentiable(
    visreg_core.epps_pulley,
    "x",
    example="""
    >>> import jax
    >>> jax.jit(epps_pulley)(jax.random.normal(jax.random.key(0), (3, 500))).shape
    (3,)
    """,
)

sigreg_loss = _differentiable(
    visreg_core.sigreg_loss,
    "z",
    example="""
    >>> import jax
    >>> from visreg_jax import random_slices
    >>> z = jax.random.normal(jax.random.key(0), (256, 16))
    >>> slices = random_slices(16, 64)
    >>> bool(jax.jit(sigreg_loss)(z, slices) < jax.jit(sigreg_loss)(0.1 * z, slices))
    True
    """,
)

variance_loss = _differentiable(
    visreg_core.variance_loss,
    "z",
    example="""
    >>> import jax
    >>> import jax.numpy as jnp
    >>> float(jax.jit(variance_loss)(jnp.asarray([[1.0], [-1.0]])))
    0.0
    """,
)

covariance_loss = _differentiable(
    visreg_core.covariance_loss,
    "z",
    example="""
    >>> import jax
    >>> import jax.numpy as jnp
    >>> float(jax.jit(covariance_loss)(jnp.asarray([[1.0, 1.0], [-1.0, -1.0]])))
    4.0
    """,
)

vicreg_loss = _differentiable(
    visreg_core.vicreg_loss,
    "a",
    "b",
    example="""
    >>> import jax
    >>> a = jax.random.normal(jax.random.key(0), (32, 8))
    >>> float(jax.jit(vicreg_loss)(a, a).invariance)
    0.0
    """,
)

barlow_twins_loss = _differentiable(
    visreg_core.barlow_twins_loss,
    "a",
    "b",
    example="""
    >>> import jax
    >>> a = jax.random.normal(jax.random.key(0), (64, 4))
    >>> bool(jax.jit(barlow_twins_loss)(a, a).on_diagonal < 1e-10)
    True
    """,
)

sag_vicreg_loss = _differentiable(
    visreg_core.sag_vicreg_loss,
    "a",
    "b",
    example="""
    >>> import jax
    >>> import jax.numpy as jnp
    >>> a, b = jax.random.normal(jax.random.key(0), (2, 16, 4))
    >>> terms = jax.jit(sag_vicreg_loss)(a, b, jnp.arange(16), jnp.ones(16))
    >>> terms._fields
    ('total', 'invariance', 'variance', 'covariance')
    """,
)

spectralnet_loss = _differentiable(
    visreg_core.spectralnet_loss,
    "y",
    example="""
    >>> import jax
    >>> import jax.numpy as jnp
    >>> float(jax.jit(spectralnet_loss)(jnp.asarray([[0.0], [2.0]]), jnp.ones((2, 2))))
    2.0
    """,
)


def random_slices(
    dim: int,
    n_slices: int,
    *,
    seed: Any = 0,
    step: Any = 0,
    start: int = 0,
    sampler: str = "gaussian",
    dtype: Any = None,
    device: Any = None,
) -> Any:
    """`visreg_core.random_slices` with ``xp=jax.numpy``: unit directions, the same everywhere.

    Parameters
    ----------
    dim : int
        Dimension D of the embeddings.
    n_slices : int
        Number K of directions.
    seed, step : int or integer array of no axes
        0 … 2³² − 1; both may be traced. Pass the training step for fresh directions at each.
    start : int
        Index of the first slice.
    sampler : {"gaussian", "orthogonal"}
        Independent directions, or blocks of `dim` orthonormal ones.
    dtype, device : optional
        Of the result; JAX's defaults if not given.

    Returns
    -------
    array of shape (dim, n_slices)
        Unit columns.

    Raises
    ------
    ValueError
        Where a count is not positive, a range is exceeded, or the sampler is unknown.

    Examples
    --------
    >>> import jax
    >>> jax.jit(lambda step: random_slices(8, 5, step=step))(3).shape
    (8, 5)
    """
    check_range(dim, n_slices, start, sampler)  # arrays cannot be compiled in
    return _random_slices(
        dim,
        n_slices,
        seed=_word(seed),
        step=_word(step),
        start=start,
        sampler=sampler,
        xp=jnp,
        dtype=dtype,
        device=device,
    )


# Compiled, because it is some two hundred small operations.
_random_slices = jax.jit(
    visreg_core.random_slices,
    static_argnames=("dim", "n_slices", "start", "sampler", "xp", "dtype", "device"),
)


def _word(value: Any) -> Any:
    """An integer as the int32 with its 32 bits, which is not compiled in; others as they are."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if not 0 <= value < 1 << 32:
            raise ValueError(f"expected seed and step in 0 ... 2**32 - 1; found {value}")
        return np.uint32(value).astype(np.int32)
    return value


def normal_quantiles(n: int, *, dtype: Any = None, device: Any = None) -> Any:
    """`visreg_core.normal_quantiles` with ``xp=jax.numpy``: Φ⁻¹(i / (n + 1)), i = 1 … n.

    Parameters
    ----------
    n : int
        Number of quantiles, at least 1.
    dtype, device : optional
        Of the result; JAX's defaults if not given.

    Returns
    -------
    array of shape (n,)
        Computed in float64 on the host and cast last.

    Examples
    --------
    >>> normal_quantiles(3).round(4).tolist()[1]
    0.0
    """
    return visreg_core.normal_quantiles(n, xp=jnp, dtype=dtype, device=device)
