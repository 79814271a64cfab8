"""Values with analytic gradients: how a public loss finds the code that differentiates it.

Each loss has one implementation, ``implementation(*arguments, need_grad, execution) -> (result,
vjp)``, with the public function's own arguments. The public function asks for the value alone and
no gradient work is done; `value_and_vjp` asks for both. Terms that are moments of the batch are
differentiated when `vjp` is called, from the mean and the standard deviation; a term that sorts or
sketches accumulates its gradient in the pass that computes its value, so that nothing else has to
be kept. What `vjp` keeps it closes over, and `closed_arrays` lists it for frameworks that hold
arrays between the two passes themselves. Where it keeps a gradient of the embeddings' size it takes
``donated=True``, which lets it write its result there: a `vjp` that is called no second time needs
no second array.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from visreg_core import _xp
from visreg_core._typing import Array, Namespace, Scalar

Loss = TypeVar("Loss", bound=Callable[..., Any])
Implementation = Callable[..., tuple[Any, Callable[..., Any]]]

_IMPLEMENTATIONS: dict[Callable[..., Any], Implementation] = {}


def differentiated_by(implementation: Implementation) -> Callable[[Loss], Loss]:
    """Decorator: `implementation` computes the decorated public loss and its gradient."""

    def register(loss: Loss) -> Loss:
        _IMPLEMENTATIONS[loss] = implementation
        return loss

    return register


def implementation_of(loss: Callable[..., Any]) -> Implementation:
    """The function that computes a public loss and its gradient; TypeError for anything else."""
    if loss not in _IMPLEMENTATIONS:
        known = sorted(f.__name__ for f in _IMPLEMENTATIONS)
        raise TypeError(f"expected one of the losses {', '.join(known)}; found {loss!r}")
    return _IMPLEMENTATIONS[loss]


def value_and_vjp(loss: Callable[..., Any]) -> Callable[..., tuple[Any, Callable[..., Any]]]:
    """Turn a loss into a function that also returns its vector-Jacobian product.

    Parameters
    ----------
    loss : callable
        One of this package's losses.

    Returns
    -------
    callable
        With the arguments of `loss`; returns ``(result, vjp)``. ``vjp(*cotangents)`` takes one
        cotangent for each field of the result (a single one where the result is an array) and
        returns the gradient with respect to the embeddings, in their dtype: an array, or a tuple
        of two for a loss of two embeddings. Cotangents are Python numbers or arrays of the
        field's shape.

    Raises
    ------
    TypeError
        Where `loss` is not one of this package's losses, or the number of cotangents is wrong.

    Notes
    -----
    No automatic differentiation is involved: it works on NumPy and CuPy, too. `vjp` may be called
    several times, to weigh the terms anew. Where a torch tensor requires a gradient, torch records
    this computation as it does any other, and keeps what a second derivative needs: call it under
    ``torch.no_grad()`` where none is wanted.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core import random_slices, value_and_vjp, visreg_loss
    >>> z = np.random.default_rng(0).standard_normal((64, 8))
    >>> terms, vjp = value_and_vjp(visreg_loss)(z, random_slices(8, 32))
    >>> vjp(0.0, 1.0, 0.5, 0.0).shape  # scale + shape / 2
    (64, 8)
    """
    implementation = implementation_of(loss)

    @functools.wraps(loss)
    def with_vjp(*args: Any, **kwargs: Any) -> tuple[Any, Callable[..., Any]]:
        result, vjp = implementation(*args, need_grad=True, **kwargs)
        n_fields = len(result) if isinstance(result, tuple) else 1

        def checked_vjp(*cotangents: Scalar) -> Any:
            if len(cotangents) != n_fields:
                raise TypeError(
                    f"expected {n_fields} cotangents, one for each field of the result of "
                    f"{loss.__name__}; found {len(cotangents)}"
                )
            return vjp(*cotangents)

        return result, checked_vjp

    return with_vjp


def value_and_grad(loss: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Turn a loss into a function that also returns its gradient.

    Parameters
    ----------
    loss : callable
        One of this package's losses.

    Returns
    -------
    callable
        With the arguments of `loss`; returns ``(result, gradient)``: the loss's own result and the
        gradient of it (of its field ``total``; of the sum, where the result has axes) with respect
        to the embeddings, in their dtype; a tuple of two for a loss of two embeddings.

    Raises
    ------
    TypeError
        Where `loss` is not one of this package's losses.

    Notes
    -----
    The gradient is analytic and needs no automatic differentiation.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core import scale_loss, value_and_grad
    >>> value, gradient = value_and_grad(scale_loss)(np.array([[1.0], [-1.0], [3.0], [-3.0]]))
    >>> gradient.shape
    (4, 1)
    """
    with_vjp = value_and_vjp(loss)

    @functools.wraps(loss)
    def with_gradient(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        result, vjp = with_vjp(*args, **kwargs)
        others = len(result) - 1 if isinstance(result, tuple) else 0
        return result, vjp(1.0, *[0.0] * others)

    return with_gradient


def gradient_like(xp: Namespace, gradient: Array, z: Array) -> Array:
    """The gradient in the dtype and shape of `z`."""
    return _xp.cast_finite(xp, xp.reshape(gradient, z.shape), z.dtype)


def times(kept: Array, factor: Scalar, donated: bool) -> Array:
    """``kept * factor``, in kept's own memory where it is `donated`."""
    if not donated:
        return kept * factor
    kept *= factor
    return kept


# --- closure conversion ---------------------------------------------------------------------------


def closed_arrays(
    function: Callable[..., Any],
) -> tuple[list[Array], Callable[[Sequence[Array]], Callable[..., Any]]]:
    """The arrays that a function closes over, and how to make it again over others in their place.

    Looks into tuples, lists, dictionaries and the functions among what is closed over. An array
    that is closed over twice is listed once.
    """
    arrays: list[Array] = []
    return arrays, _convert(function, arrays, {})


def _convert(
    value: Any, arrays: list[Array], known: dict[int, int]
) -> Callable[[Sequence[Array]], Any]:
    """Append the arrays in `value` to `arrays`; return what puts others in their place."""
    if _is_array(value):
        index = known.setdefault(id(value), len(arrays))
        if index == len(arrays):
            arrays.append(value)
        return lambda given: given[index]
    if isinstance(value, (tuple, list)):
        parts = [_convert(part, arrays, known) for part in value]
        make = getattr(value, "_make", type(value))  # a NamedTuple takes its fields one by one
        return lambda given: make(part(given) for part in parts)
    if isinstance(value, dict):
        of_key = {key: _convert(part, arrays, known) for key, part in value.items()}
        return lambda given: {key: part(given) for key, part in of_key.items()}
    if isinstance(value, types.FunctionType) and value.__closure__:
        cells = [_convert(cell.cell_contents, arrays, known) for cell in value.__closure__]

        def remake(given: Sequence[Array]) -> Callable[..., Any]:
            closure = tuple(types.CellType(cell(given)) for cell in cells)
            again = types.FunctionType(
                value.__code__, value.__globals__, value.__name__, value.__defaults__, closure
            )
            again.__kwdefaults__ = value.__kwdefaults__
            return again

        return remake
    return lambda given: value


def _is_array(value: Any) -> bool:
    try:
        _xp.library(value)
    except TypeError:
        return False
    return True
