"""The exact gradient of a batch that is too large for memory, by micro-batches."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

__all__ = ["large_batch"]


def large_batch(
    model: nn.Module,
    loss: Callable[[Any], Any],
    micro_batches: Iterable[Any],
    *,
    embed: Callable[[Any], Any] | None = None,
    dim: int = -2,
) -> Any:
    """Backpropagate the loss of a whole batch with one micro-batch at a time in memory.

    The micro-batches are embedded without a graph, the loss and its gradient are computed of all
    embeddings together, and each micro-batch is embedded again, with a graph, to backpropagate its
    part of the gradient to the parameters. So the statistics of the loss are those of the whole
    batch, where accumulating gradients would use those of each micro-batch. It costs one more
    forward pass; memory is that of one micro-batch and of all outputs with their gradient. Like
    ``backward`` it adds to the parameters' ``grad``.

    The second pass repeats the first one: random numbers of torch (on the host and on the devices
    of the model), NumPy and Python are drawn again, and buffers that a forward pass changes, such
    as running means, start from where they were. Layers whose outputs depend on the batch have a
    micro-batch for it: `torch.nn.BatchNorm1d` uses a micro-batch's statistics.

    Parameters
    ----------
    model : Module
        The trained model. Under ``DistributedDataParallel`` and FSDP gradients are reduced once,
        with the last micro-batch; a loss with ``scope="global"`` is then that of all micro-batches
        of all processes.
    loss : callable
        Takes the outputs of `embed` for the whole batch, and returns a scalar or a tuple that
        begins with one, such as the terms of this package's modules. It is called once. It may have
        parameters, which get their gradients, but must not call `model`.
    micro_batches : iterable
        Arguments of `embed`, at least one.
    embed : callable, optional
        Maps a micro-batch to the outputs: a tensor, or tuples, lists or dictionaries of tensors and
        None. By default `model`; otherwise it calls `model`, and may include augmentation.
    dim : int
        The axis of rows in each tensor, along which micro-batches are concatenated.

    Returns
    -------
    Tensor or tuple
        The result of `loss`, detached.

    Raises
    ------
    ValueError
        If there is no micro-batch, no output requires a gradient, an output has no axis `dim`, or
        micro-batches give outputs of several structures.
    RuntimeError
        If the second pass gave different outputs from the first: `embed` uses a random generator of
        its own, or a state that is not in the model's buffers. The gradients are wrong then.

    Notes
    -----
    The method is GradCache (Gao et al. 2021). With loss scaling, scale inside of the
    loss: ``lambda z: scaler.scale(loss(z).total)``.

    Examples
    --------
    >>> import torch
    >>> from visreg_torch import VISRegLoss
    >>> model = torch.nn.Linear(6, 4)
    >>> terms = large_batch(model, VISRegLoss(n_slices=8), torch.randn(64, 6).split(16))
    >>> model.weight.grad.shape
    torch.Size([4, 6])
    """
    embed = model if embed is None else embed
    batches = list(micro_batches)
    if not batches:
        raise ValueError("expected at least one micro-batch; found none")
    devices = sorted({p.device for p in model.parameters() if p.device.type != "cpu"}, key=str)

    states, parts = [], []
    with torch.no_grad(), _as_before(model, devices):
        for batch in batches:
            states.append(_random_state(devices))
            parts.append(pytree.tree_flatten(embed(batch)))
    # Older torch would reuse, in the second pass, 16-bit parameters cached by the first without a
    # graph.
    torch.clear_autocast_cache()

    structure = parts[0][1]
    _same_structure(structure, [found for _, found in parts])
    outputs = [_Output(leaves, dim) for leaves in zip(*(p[0] for p in parts), strict=True)]
    del parts
    result = loss(pytree.tree_unflatten([output.whole for output in outputs], structure))
    (result[0] if isinstance(result, tuple) else result).backward()

    after = _random_state(devices)
    differences = []
    for i, (batch, state) in enumerate(zip(batches, states, strict=True)):
        _set_random_state(state, devices)
        last = i + 1 == len(batches)
        with contextlib.nullcontext() if last else _unsynchronised(model):
            leaves, found = pytree.tree_flatten(embed(batch))
            _same_structure(structure, [found])
            again = zip(outputs, leaves, strict=True)
            pairs = [(o.part(i), x) for o, x in again if o.has_gradient and x.requires_grad]
            if not pairs:
                raise ValueError("expected outputs that require a gradient; found none")
            torch.autograd.backward([x for _, x in pairs], [part.gradient for part, _ in pairs])
        differences += [_difference(x.detach(), part.value) for part, x in pairs]
    _set_random_state(after, devices)
    if any(bool(d > 1) for d in differences):  # all of them at the end, because the host waits here
        raise RuntimeError(
            "expected the same outputs in both passes; found others: embed draws from a generator "
            "of its own or has a state that is not among the model's buffers"
        )
    return pytree.tree_map_only(Tensor, Tensor.detach, result)


def _same_structure(structure: pytree.TreeSpec, others: Sequence[pytree.TreeSpec]) -> None:
    """Leaves are joined by their place, which the order of a dictionary's keys is a part of."""
    for found in others:
        if found != structure:
            raise ValueError(
                f"expected outputs of one structure, keys in one order: {structure}; found {found}"
            )


class _Part(NamedTuple):
    value: Tensor
    gradient: Tensor


class _Output:
    """One of the outputs: the micro-batches concatenated, as a leaf of a new graph."""

    def __init__(self, parts: Sequence[Any], dim: int) -> None:
        self.whole = parts[0]
        if isinstance(parts[0], Tensor):
            if not -parts[0].ndim <= dim < parts[0].ndim:
                shape = tuple(parts[0].shape)
                raise ValueError(
                    f"expected outputs with rows along axis {dim}; found shape {shape}"
                )
            self.dim, self.lengths = dim, [part.shape[dim] for part in parts]
            self.whole = torch.cat(list(parts), dim)
            self.whole.requires_grad_(self.whole.is_floating_point())

    @property
    def has_gradient(self) -> bool:
        return getattr(self.whole, "grad", None) is not None

    def part(self, i: int) -> _Part:
        """Of micro-batch i."""
        start, length = sum(self.lengths[:i]), self.lengths[i]
        both = self.whole.detach(), self.whole.grad
        return _Part(*(x.narrow(self.dim, start, length) for x in both))


def _difference(x: Tensor, before: Tensor) -> Tensor:
    """Difference of two outputs, in units of the error that another order of sums may cause."""
    wide = torch.promote_types(x.dtype, torch.float32)
    allowed = torch.finfo(x.dtype).eps ** 0.5 * before.norm(dtype=wide)
    return (x - before).norm(dtype=wide) / allowed.clamp(min=torch.finfo(wide).tiny)


# --- models ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _as_before(model: Any, devices: list[torch.device]) -> Iterator[None]:
    """Context after which buffers have their old values; and generators, if it is left by error."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = _random_state(devices)
    try:
        yield
    except BaseException:
        _set_random_state(state, devices)
        raise
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
        if isinstance(model, DistributedDataParallel):
            model.require_forward_param_sync = True  # rank 0's were overwritten: broadcast again


@contextlib.contextmanager
def _unsynchronised(model: Any) -> Iterator[None]:
    """Context in which gradients accumulate without being reduced over processes."""
    if hasattr(model, "no_sync"):  # DDP, FSDP
        with model.no_sync():
            yield
    elif hasattr(model, "set_requires_gradient_sync"):  # FSDP2
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
    else:
        yield


# --- random numbers -------------------------------------------------------------------------------


def _random_state(devices: list[torch.device]) -> tuple[Any, ...]:
    on_devices = [torch.get_device_module(d).get_rng_state(d) for d in devices]
    libraries = random.getstate(), np.random.get_state()  # noqa: NPY002  augmentations draw there
    return (*libraries, torch.get_rng_state(), on_devices)


def _set_random_state(state: tuple[Any, ...], devices: list[torch.device]) -> None:
    python, numpy, host, on_devices = state
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(host)
    for d, of_device in zip(devices, on_devices, strict=True):
        torch.get_device_module(d).set_rng_state(of_device, d)
