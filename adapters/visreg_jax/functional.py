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

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import visreg_core
from visreg_core.losses.declaration import declaration_of, own_losses
from visreg_core.slices import check_range
from visreg_jax._custom_vjp import evaluate, prepare

if TYPE_CHECKING:  # the losses below have the core's signatures
    from visreg_core.losses import *  # noqa: F403


def differentiable(loss: Callable[..., Any]) -> Callable[..., Any]:
    """A loss whose derivative is its own backward pass, by `jax.custom_vjp`.

    Parameters
    ----------
    loss : callable
        A loss of `visreg_core`, or one declared by `visreg_core.declare_loss`.

    Returns
    -------
    callable
        With the arguments of `loss`, for JAX arrays.

    Raises
    ------
    TypeError
        Where `loss` is not a declared loss.

    Examples
    --------
    >>> import jax
    >>> from visreg_core import scale_loss
    >>> jax.grad(differentiable(scale_loss))(jax.numpy.asarray([[3.0], [-3.0]])).tolist()
    [[2.0], [-2.0]]
    """
    declaration = declaration_of(loss)

    def function(*args: Any, **kwargs: Any) -> Any:
        return evaluate(*prepare(declaration, declaration.bind(args, kwargs)))

    own: Any = function
    own.__name__ = own.__qualname__ = declaration.name
    own.__module__ = __name__
    own.__signature__ = declaration.signature
    own.declaration = declaration
    own.__doc__, _, _ = (inspect.getdoc(loss) or "").partition("Examples\n--------\n")
    return own


globals().update({loss.name: differentiable(loss.public) for loss in own_losses()})

__all__ = ["differentiable", "normal_quantiles", "random_slices"]
__all__ += [loss.name for loss in own_losses()]
__all__.sort()


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
    seed, step : int or 0-d integer array
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
