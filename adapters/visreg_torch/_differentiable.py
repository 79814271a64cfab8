"""Declared losses as functions of torch tensors, differentiated by their own backward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from visreg_core.losses.declaration import declaration_of
from visreg_torch import _operators
from visreg_torch._autograd import evaluate

_SHARDED = {"scope": "local", "group": None}
_DESCRIBED = """scope : {"local", "global"}
    "local": the loss of this process's rows. "global": that of the rows of all processes of
    `group`, the same number on each.
group : torch.distributed.ProcessGroup or Sharding, optional
    The processes that hold the batch; the default group if not given.

"""


def differentiable(loss: Callable[..., Any]) -> Callable[..., Any]:
    """A loss as a function of torch tensors, differentiated by its own backward pass.

    Parameters
    ----------
    loss : callable
        A loss of `visreg_core`, or one declared by `visreg_core.declare_loss`.

    Returns
    -------
    callable
        With the arguments of `loss`, and `scope` and `group` where its declaration says
        ``sharded``. It works eagerly, under ``torch.compile`` and ``torch.func``.

    Raises
    ------
    TypeError
        Where `loss` is not a declared loss.

    Examples
    --------
    >>> import torch
    >>> from visreg_core import scale_loss
    >>> z = torch.tensor([[3.0], [-3.0]], requires_grad=True)
    >>> differentiable(scale_loss)(z).backward()
    >>> z.grad.flatten().tolist()
    [2.0, -2.0]
    """
    declaration = declaration_of(loss)
    _operators.define(declaration)
    if declaration.sharded:

        def function(*args: Any, scope: str = "local", group: Any = None, **kwargs: Any) -> Any:
            inputs = declaration.bind(args, kwargs)
            return evaluate(declaration, inputs, scope=scope, group=group)
    else:

        def function(*args: Any, **kwargs: Any) -> Any:  # type: ignore[misc]
            return evaluate(declaration, declaration.bind(args, kwargs))

    own: Any = function
    own.__name__ = own.__qualname__ = declaration.name
    own.__module__ = "visreg_torch.functional"
    own.declaration = declaration
    own.__signature__ = _signature(declaration.signature, declaration.sharded)
    described, _, _ = (inspect.getdoc(loss) or "").partition("Examples\n--------\n")
    if declaration.sharded:
        described = described.replace("\n\nReturns\n", f"\n{_DESCRIBED}Returns\n", 1)
    own.__doc__ = described
    return own


def _signature(signature: inspect.Signature, sharded: bool) -> inspect.Signature:
    """The arguments of the loss, with `scope` and `group` where it is sharded."""
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in (_SHARDED.items() if sharded else ())
    ]
    return signature.replace(parameters=[*signature.parameters.values(), *extra])
