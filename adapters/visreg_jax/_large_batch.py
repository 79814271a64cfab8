"""Embeddings of a batch that is too large for memory, differentiable micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["large_batch"]


def large_batch(
    embed: Callable[[Any, Any], Any], params: Any, micro_batches: Any, *, axis: int = -2
) -> Any:
    """Embeddings of all micro-batches, of which one at a time has its activations in memory.

    A loss of the result has the statistics, the value and the gradient of the whole batch. Its
    backward pass embeds each micro-batch again. It costs one more forward pass; memory is that of
    one micro-batch and of all embeddings with their gradient. Works under ``jit``, ``grad`` and
    ``shard_map``.

    Parameters
    ----------
    embed : callable
        ``embed(params, micro_batch)`` gives an array, or a pytree of arrays. It is pure: a random
        key is a part of its micro-batch.
    params : pytree
        What is trained.
    micro_batches : pytree of arrays
        With the micro-batches along their first axis, M equal ones.
    axis : int
        The axis of rows in each of the arrays that `embed` returns, along which they are joined.

    Returns
    -------
    array or pytree
        What `embed` would return of the whole batch: M times as many rows, in their order.

    Raises
    ------
    ValueError
        If an output has no axis `axis`.

    Examples
    --------
    >>> import jax
    >>> from visreg_jax import large_batch, random_slices, visreg_loss
    >>> params, batch = jax.numpy.ones((6, 4)), jax.random.normal(jax.random.key(0), (64, 6))
    >>> def objective(params):
    ...     z = large_batch(lambda p, x: jax.numpy.tanh(x @ p), params, batch.reshape(4, 16, 6))
    ...     return visreg_loss(z, random_slices(4, 8)).total
    >>> jax.jit(jax.grad(objective))(params).shape
    (6, 4)
    """
    # The compiler may not merge the passes in a loop, so that checkpoint need not forbid it.
    once = jax.checkpoint(embed, prevent_cse=False)
    parts = lax.map(lambda micro_batch: once(params, micro_batch), micro_batches)
    return jax.tree.map(lambda x: _joined(x, axis), parts)


def _joined(parts: jax.Array, axis: int) -> jax.Array:
    """Parts along the first axis, joined along `axis` of the others."""
    rank = parts.ndim - 1
    if not -rank <= axis < rank:
        shape = parts.shape[1:]
        raise ValueError(f"expected outputs with rows along axis {axis}; found shape {shape}")
    axis %= rank
    parts = jnp.moveaxis(parts, 0, axis)
    shape = (*parts.shape[:axis], -1, *parts.shape[axis + 2 :])
    return parts.reshape(shape)
