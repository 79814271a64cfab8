"""Measures of embeddings while a model trains, as pure functions of a state.

`update` is a part of the training step, `compute` is called from outside of it::

    queue = init((2, 64), max_rows=1024)  # two views of 64 dimensions
    ...
    queue = update(queue, z)  # under jit, in a scan
    ...
    log(compute(queue))
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from visreg_core import checks
from visreg_core.metrics import summary

__all__ = ["Queue", "compute", "init", "update"]


class Queue(NamedTuple):
    """The rows (..., max_rows, D) that came last, newest last; the last n are filled."""

    rows: jax.Array
    n: jax.Array


def init(shape: tuple[int, ...], *, max_rows: int, dtype: object = jnp.float32) -> Queue:
    """An empty queue.

    Parameters
    ----------
    shape : tuple of int
        (..., D): that of the embeddings without their axis of rows.
    max_rows : int
        How many rows are kept.
    dtype : dtype
        Of what is kept.

    Returns
    -------
    Queue
        The state.

    Examples
    --------
    >>> init((2, 8), max_rows=16).rows.shape
    (2, 16, 8)
    """
    checks.positive_int("max_rows", max_rows)
    rows = jnp.zeros((*shape[:-1], max_rows, shape[-1]), dtype)  # type: ignore[arg-type]
    return Queue(rows, jnp.zeros((), jnp.int32))


def update(queue: Queue, z: jax.Array) -> Queue:
    """The queue with the rows of embeddings (..., N, D); they get no gradient from it.

    Parameters
    ----------
    queue : Queue
        The state.
    z : array (..., N, D)
        Embeddings.

    Returns
    -------
    Queue
        The new state.

    Examples
    --------
    >>> import jax
    >>> queue = jax.jit(update)(init((8,), max_rows=16), jax.numpy.ones((10, 8)))
    >>> int(queue.n)
    10
    """
    z = jax.lax.stop_gradient(z).astype(queue.rows.dtype)
    max_rows = queue.rows.shape[-2]
    rows = jnp.concatenate([queue.rows, z], axis=-2)[..., -max_rows:, :]
    return Queue(rows, jnp.minimum(queue.n + z.shape[-2], max_rows))


def compute(queue: Queue, *, n_neighbors: int = 10) -> dict[str, float]:
    """`visreg_core.metrics.summary` of the rows in the queue; the host waits for the device here.

    Parameters
    ----------
    queue : Queue
        The state, of rows (n, D) or (V, n, D), at least two of them.
    n_neighbors : int
        As in `visreg_core.metrics.summary`.

    Returns
    -------
    dict of str to float
        Measures by name.

    Examples
    --------
    >>> import jax
    >>> z = jax.random.normal(jax.random.key(0), (2, 64, 8))
    >>> round(compute(update(init((2, 8), max_rows=32), z))["rankme"])
    8
    """
    n = int(queue.n)
    return summary(queue.rows[..., queue.rows.shape[-2] - n :, :], n_neighbors=n_neighbors)
