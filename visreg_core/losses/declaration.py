"""One declaration a loss: its forward and backward pass, and what other modules need to know.

A loss is written as two functions, and a named tuple of arrays that the first saves for the second.
`declare_loss` makes the public function from the first one; everything else (`value_and_grad`, the
adapters for Torch and JAX, sharded forms, `explain`, ``visreg check``, the tests' tables) reads the
declaration::

    class MeanNormSaved(NamedTuple):
        size: Array  # ...

    @declare_loss(differentiated=("z",), row_axes={"z": -2})
    def mean_norm(execution, z):
        ...
        return value, MeanNormSaved(size)

    @mean_norm.backward
    def _mean_norm_backward(execution, inputs, saved, cotangent):
        ...
        return gradient
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar

from visreg_core import _xp, checks
from visreg_core.losses.execution import Execution
from visreg_core.losses.kernels import kernels_of
from visreg_core.typing import Array, Namespace, Scalar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result", covariant=True)

Inputs = Mapping[str, Any]
Backward = Callable[..., Any]


class Example(NamedTuple):
    """A way to call a loss, on which ``visreg check`` compares array libraries.

    Parameters
    ----------
    name : str
        Distinguishes it from the loss's other examples; empty for the first.
    arrays : mapping
        For array arguments: the name of the sample array to pass, if not the argument's own name,
        or None to leave it out. Embeddings and arguments without a default are always passed.
        `visreg_core.crosscheck` lists the sample arrays.
    options : mapping
        Options by name.
    inputs : {"given", "wide", "ties"}
        The sample: as the user chose it, with N < D, or with many equal projections.
    differentiable : bool
        Whether differences of the value approximate the gradient. They do not where a part of the
        loss is held constant, or at ties.
    """

    name: str = ""
    arrays: Mapping[str, str | None] = {}
    options: Mapping[str, Any] = {}
    inputs: str = "given"
    differentiable: bool = True


@dataclass
class Declaration:
    """The arguments of `declare_loss`, which describes most fields, and what follows from them.

    Attributes
    ----------
    name : str
        Name of the public function.
    public : callable
        The public function.
    forward, backward : callable
        The two passes.
    signature : inspect.Signature
        Of the public function.
    """

    name: str
    forward: Callable[..., tuple[Any, Any]]
    signature: inspect.Signature
    differentiated: tuple[str, ...]
    row_axes: Mapping[str, int | str]
    constants: tuple[str, ...]
    shape_only: tuple[str, ...]
    terms: type | None
    saved: type | None
    sorts: bool
    sharded: bool
    min_rows: int
    root: Callable[..., float] | None
    magnitude: Callable[..., tuple[float, ...]] | None
    examples: tuple[Example, ...]
    backward: Backward = field(init=False, repr=False)
    public: Callable[..., Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parameters = self.signature.parameters.values()
        self.names = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        self.required = [p.name for p in parameters if p.default is p.empty]
        # In the signature's order, with None in place of what has no default.
        self.defaults = {p.name: None if p.default is p.empty else p.default for p in parameters}
        self.fields = ("value",) if self.terms is None else tuple(self.terms._fields)  # type: ignore[attr-defined]

    @property
    def takes_slices(self) -> bool:
        """Whether the loss is one of random directions."""
        return "slices" in self.signature.parameters

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments of a call by name; TypeError as Python's own for a call that does not fit.

        `inspect.Signature.bind` does the same at fifty times the cost.
        """
        inputs = dict(zip(self.names, args, strict=False))
        known = self.signature.parameters
        fits = len(args) <= len(self.names)
        for name in kwargs:
            fits = fits and name in known and name not in inputs
        inputs.update(kwargs)
        for name in self.required:
            fits = fits and name in inputs
        if not fits:
            self.signature.bind(*args, **kwargs)  # raises
        return {**self.defaults, **inputs}

    def embeddings(self, inputs: Inputs) -> list[str]:
        """Names of the differentiated arguments that a call has."""
        return [name for name in self.differentiated if inputs[name] is not None]

    def row_axis(self, name: str, inputs: Inputs) -> int:
        """The axis along which the rows of an argument lie that has them."""
        axis = self.row_axes[name]
        return inputs[axis] if isinstance(axis, str) else axis

    def execution(self, inputs: Inputs) -> Execution:
        """Execution of the public function: unsharded, with the kernels of the arrays' library."""
        first = inputs[self.differentiated[0]]
        if first is None:
            raise TypeError("expected an array; found None")
        for name, value in inputs.items():
            checks.plain(name, value)
        return Execution(kernels=kernels_of(_xp.library(first)))

    def value(self, inputs: Inputs) -> Any:
        """The result, without any work for a gradient."""
        return self.forward(self.execution(inputs), **inputs)[0]

    def gradients(
        self, execution: Execution, inputs: Inputs, saved: Any, cotangents: Sequence[Scalar]
    ) -> tuple[Array, ...]:
        """Gradients with respect to the embeddings, in the compute dtype."""
        found = self.backward(execution, inputs, saved, *cotangents)
        return found if isinstance(found, tuple) else (found,)


class Loss(Generic[Arguments, Result]):
    """The type of a declared loss: a function with a `declaration`.

    At run time it is a plain function, so that `help`, `inspect` and documentation see one.
    """

    declaration: Declaration
    __name__: str

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """The loss."""
        raise NotImplementedError

    def backward(self, function: Backward) -> Backward:
        """Decorator of the backward pass."""
        raise NotImplementedError


_DECLARED: dict[str, Declaration] = {}


def declare_loss(
    *,
    differentiated: tuple[str, ...],
    row_axes: Mapping[str, int | str],
    constants: tuple[str, ...] = (),
    shape_only: tuple[str, ...] = (),
    terms: type | None = None,
    saved: type | None = None,
    sorts: bool = False,
    sharded: bool = True,
    min_rows: int = 2,
    root: Callable[..., float] | None = None,
    magnitude: Callable[..., tuple[float, ...]] | None = None,
    examples: tuple[Example, ...] = (Example(),),
) -> Callable[
    [Callable[Concatenate[Execution, Arguments], tuple[Result, Any]]], Loss[Arguments, Result]
]:
    """Decorator that makes a public loss of its forward pass.

    The decorated function takes an `Execution` first, then the loss's own arguments, and returns
    ``(result, saved)``: an array or a named tuple of arrays, and a named tuple of what the backward
    pass needs besides the inputs. The public function has its name, docstring and arguments except
    the first, and returns the result. The decorator ``.backward`` of the public function then takes
    the backward pass, ``backward(execution, inputs, saved, *cotangents)``: `inputs` holds all
    arguments by name, there is one cotangent for each field of the result, and it returns a
    gradient in the compute dtype for each differentiated argument that is not None (a tuple of
    several).

    Parameters
    ----------
    differentiated : tuple of str
        The arguments with a gradient: the embeddings. They come first.
    row_axes : mapping
        For each argument that holds one row a sample the axis of its rows, counted from the end
        (-2 for embeddings ``(..., N, D)``), or the name of the option that says which.
    constants : tuple of str
        Arrays whose gradient is 0 by definition. For any other array that is not differentiated a
        request for its gradient is an error.
    shape_only : tuple of str
        Arrays of which the backward pass needs only the shape, so that they are not saved.
    terms : type, optional
        Class of the result, a NamedTuple whose first field is ``total``; an array if not given.
    saved : type, optional
        Class of what is saved, a NamedTuple. Each field is an array, None, or a tuple with one of
        these for each view, and annotated so. Saved arrays are new ones: none is an input or a part
        of one. Needed for ``torch.compile``.
    sorts : bool
        Whether a term sorts: its gradient jumps where two samples change places.
    sharded : bool
        Whether the loss of a batch spread over processes is computed through
        ``execution.shards``: statistics by ``sum``, rows by ``gather``.
    min_rows : int
        Rows that the batch must have.
    root : callable, optional
        The order p, by the options, of a loss that is a p-th root of a mean of powers.
    magnitude : callable, optional
        Sums of absolute values before cancellation, one for each field, of float64 NumPy arrays
        and options as the loss takes them: against these ``visreg check`` judges rounding. If not
        given, the values themselves.
    examples : tuple of Example
        The calls that ``visreg check`` makes.

    Returns
    -------
    callable
        The decorator.

    Examples
    --------
    >>> from typing import NamedTuple
    >>> import numpy as np
    >>> class Saved(NamedTuple):
    ...     n: np.ndarray | None
    >>> @declare_loss(differentiated=("z",), row_axes={"z": -2}, saved=Saved)
    ... def energy(execution, z):
    ...     return execution.shards.sum((z * z).sum()), Saved(None)
    >>> @energy.backward
    ... def _energy_backward(execution, inputs, saved, cotangent):
    ...     return 2 * cotangent * inputs["z"]
    >>> value, gradient = value_and_grad(energy)(np.array([[1.0, 2.0], [3.0, 0.0]]))
    >>> float(value), gradient.tolist()
    (14.0, [[2.0, 4.0], [6.0, 0.0]])
    """

    def decorate(
        forward: Callable[Concatenate[Execution, Arguments], tuple[Result, Any]],
    ) -> Loss[Arguments, Result]:
        signature = inspect.signature(forward)
        _, *parameters = signature.parameters.values()
        returned = inspect.Signature.empty if terms is None else terms.__name__
        declaration = Declaration(
            forward.__name__,
            forward,
            signature.replace(parameters=parameters, return_annotation=returned),
            differentiated,
            row_axes,
            constants,
            shape_only,
            terms,
            saved,
            sorts,
            sharded,
            min_rows,
            root,
            magnitude,
            examples,
        )

        @functools.wraps(forward)
        def loss(*args: Any, **kwargs: Any) -> Any:
            return declaration.value(declaration.bind(args, kwargs))

        def backward(function: Backward) -> Backward:
            declaration.backward = function
            return function

        public: Any = loss
        del public.__wrapped__
        public.__signature__ = declaration.signature
        public.declaration, public.backward = declaration, backward
        declaration.public = public
        _DECLARED[f"{forward.__module__}.{forward.__qualname__}"] = declaration
        return public

    return decorate


def declaration_of(loss: Any) -> Declaration:
    """The declaration of a public loss; TypeError for anything else."""
    declaration = getattr(loss, "declaration", None)
    if not isinstance(declaration, Declaration):
        known = ", ".join(sorted(d.name for d in declared()))
        raise TypeError(f"expected a declared loss, such as {known}; found {loss!r}")
    return declaration


def declared() -> Iterator[Declaration]:
    """All losses that have been declared, in this package and elsewhere."""
    yield from _DECLARED.values()


def own_losses() -> list[Declaration]:
    """The losses of this package."""
    own = [d for d in declared() if d.forward.__module__.startswith("visreg_core.losses.")]
    return [d for d in own if d.forward.__module__ != __name__]  # not the example above


# --- derivatives without automatic differentiation ------------------------------------------------


def value_and_vjp(loss: Callable[..., Any]) -> Callable[..., tuple[Any, Callable[..., Any]]]:
    """Turn a loss into a function that also returns its vector-Jacobian product.

    Parameters
    ----------
    loss : callable
        A loss of this package, or one declared by `declare_loss`.

    Returns
    -------
    callable
        With the arguments of `loss`; returns ``(result, vjp)``. ``vjp(*cotangents)`` takes one
        cotangent for each field of the result (a single one where the result is an array) and
        returns the gradient with respect to the embeddings, in their dtype; a tuple of two for a
        loss of two embeddings.

    Raises
    ------
    TypeError
        Where `loss` is not a declared loss, or for another number of cotangents.

    Notes
    -----
    No automatic differentiation is involved: it works on NumPy and CuPy, too. `vjp` may be called
    several times, to weigh the terms anew. Where a torch tensor requires a gradient, torch records
    this computation as any other, and saves what a second derivative needs: call it under
    ``torch.no_grad()`` where none is needed.

    Examples
    --------
    >>> import numpy as np
    >>> from visreg_core import random_slices, value_and_vjp, visreg_loss
    >>> z = np.random.default_rng(0).standard_normal((64, 8))
    >>> terms, vjp = value_and_vjp(visreg_loss)(z, random_slices(8, 32))
    >>> vjp(0.0, 1.0, 0.5, 0.0).shape  # scale + shape / 2
    (64, 8)
    """
    declaration = declaration_of(loss)

    def with_vjp(*args: Any, **kwargs: Any) -> tuple[Any, Callable[..., Any]]:
        inputs = declaration.bind(args, kwargs)
        execution = declaration.execution(inputs)._replace(need_gradient=True)
        result, saved = declaration.forward(execution, **inputs)

        def vjp(*cotangents: Scalar) -> Any:
            if len(cotangents) != len(declaration.fields):
                raise TypeError(
                    f"expected {len(declaration.fields)} cotangents, one for each field of the "
                    f"result of {declaration.name}; found {len(cotangents)}"
                )
            found = declaration.gradients(execution, inputs, saved, cotangents)
            names = declaration.embeddings(inputs)
            like = [
                _gradient_like(_xp.namespace(g), g, inputs[name])
                for g, name in zip(found, names, strict=True)
            ]
            return like[0] if len(like) == 1 else tuple(like)

        return result, vjp

    return functools.update_wrapper(with_vjp, loss, ("__module__", "__name__", "__doc__"))


def value_and_grad(loss: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Turn a loss into a function that also returns its gradient.

    Parameters
    ----------
    loss : callable
        A loss of this package, or one declared by `declare_loss`.

    Returns
    -------
    callable
        With the arguments of `loss`; returns ``(result, gradient)``: the loss's own result and the
        gradient of it (of its field ``total``; of the sum, where the result has axes) with respect
        to the embeddings, in their dtype; a tuple of two for a loss of two embeddings.

    Raises
    ------
    TypeError
        Where `loss` is not a declared loss.

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

    def with_gradient(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        result, vjp = with_vjp(*args, **kwargs)
        others = len(result) - 1 if isinstance(result, tuple) else 0
        return result, vjp(1.0, *[0.0] * others)

    return functools.update_wrapper(with_gradient, loss, ("__module__", "__name__", "__doc__"))


def _gradient_like(xp: Namespace, gradient: Array, z: Array) -> Array:
    """The gradient in the dtype of `z`; in float16 clipped to its range."""
    return _xp.cast_finite(xp, gradient, z.dtype)


def times(saved: Array, factor: Scalar, donated: bool) -> Array:
    """``saved * factor``, in saved's own memory where it is `donated`."""
    if not donated:
        return saved * factor
    saved *= factor
    return saved
