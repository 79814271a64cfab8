"""Measures of a model's outputs while it trains, in a plain loop, under Lightning or Trainer.

A `Monitor` watches layers, keeps their last output rows, and every `every` steps returns
`visreg_core.metrics.summary` of each as a dictionary of numbers, for any tracker::

    monitor = Monitor(model, ["backbone", "projector"], every=100)
    ...
    for name, value in monitor.step().items():  # after each step; empty except every 100th
        writer.add_scalar(name, value, step)

`lightning_callback` and `trainer_callback` do the same in a framework's loop. Each process
measures its own rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visreg_core import checks
from visreg_core.metrics import summary

__all__ = ["FeatureQueue", "Monitor", "lightning_callback", "trainer_callback"]


class FeatureQueue:
    """The most recent rows, in float32 on their device, without a graph.

    Parameters
    ----------
    max_rows : int
        How many.

    Examples
    --------
    >>> import torch
    >>> queue = FeatureQueue(6)
    >>> for _ in range(3):
    ...     queue.add(torch.randn(2, 4, 8))  # V views of N rows
    >>> queue.rows().shape
    torch.Size([2, 6, 8])
    """

    def __init__(self, max_rows: int) -> None:
        checks.positive_int("max_rows", max_rows)
        self.max_rows = max_rows
        self.batches: deque[Tensor] = deque()

    def __len__(self) -> int:
        return min(self.max_rows, sum(batch.shape[-2] for batch in self.batches))

    def add(self, z: Tensor) -> None:
        """Add a batch (..., N, D); if its shape differs in more than N, the queue starts anew."""
        if z.ndim < 2:
            raise ValueError(f"expected z (..., N, D); found shape {tuple(z.shape)}")
        z = z.detach()[..., -self.max_rows :, :].to(torch.float32, copy=True)
        like = [*z.shape[:-2], z.shape[-1]]
        if self.batches and like != [*self.batches[0].shape[:-2], self.batches[0].shape[-1]]:
            self.batches.clear()
        self.batches.append(z)
        held = sum(batch.shape[-2] for batch in self.batches)
        while held - self.batches[0].shape[-2] >= self.max_rows:
            held -= self.batches.popleft().shape[-2]

    def rows(self) -> Tensor:
        """The last rows (..., n, D), n ≤ max_rows, oldest first."""
        return torch.cat(list(self.batches), -2)[..., -self.max_rows :, :]


class Monitor:
    """Watches layers of a model in training mode.

    Parameters
    ----------
    model : Module
        Its forward passes in training mode with gradients are watched.
    layers : sequence of str
        Names of its submodules, "" for itself, whose output is (N, D) or (V, N, D), or
        (V·N, D) with `views`.
    every : int
        Steps between measures.
    max_rows : int
        Rows measured: the last ones.
    views : int
        V, if a layer's output has the views stacked along the rows.
    n_neighbors : int
        As in `visreg_core.metrics.summary`.

    Raises
    ------
    ValueError
        For a layer that the model does not have.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.GELU(), torch.nn.Linear(8, 4))
    >>> monitor = Monitor(model, ["0", ""], every=2)
    >>> for _ in range(2):
    ...     _ = model(torch.randn(2, 32, 6))
    ...     found = monitor.step()
    >>> sorted(found)[:3]
    ['0/alignment', '0/effective_rank', '0/knn_agreement']
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        *,
        every: int = 100,
        max_rows: int = 1024,
        views: int = 1,
        n_neighbors: int = 10,
    ) -> None:
        checks.positive_int("every", every)
        checks.positive_int("views", views)
        checks.positive_int("n_neighbors", n_neighbors)
        modules = dict(model.named_modules())
        for layer in layers:
            if layer not in modules:
                raise ValueError(f"expected layers of the model; found {layer!r}")
        self.every, self.views, self.n_neighbors = every, views, n_neighbors
        self.steps = 0
        self.queues = {layer: FeatureQueue(max_rows) for layer in layers}
        self.hooks = [modules[layer].register_forward_hook(self._hook(layer)) for layer in layers]

    def _hook(self, layer: str) -> Any:
        def add(module: nn.Module, _: Any, output: Tensor) -> None:
            if module.training and torch.is_grad_enabled():
                if self.views > 1 and output.ndim == 2:
                    output = output.reshape(self.views, -1, output.shape[-1])
                self.queues[layer].add(output)

        return add

    def step(self) -> dict[str, float]:
        """Count a step; every `every` steps returns the measures, named "layer/measure"."""
        self.steps += 1
        return {} if self.steps % self.every else self.measures()

    def measures(self) -> dict[str, float]:
        """Measures of the rows now in the queues. The host waits for the device here."""
        return {
            f"{layer or 'output'}/{name}": value
            for layer, queue in self.queues.items()
            if len(queue) > 1
            for name, value in summary(queue.rows(), n_neighbors=self.n_neighbors).items()
        }

    def close(self) -> None:
        """Stop watching."""
        for hook in self.hooks:
            hook.remove()


def lightning_callback(layers: Sequence[str], **options: Any) -> Any:
    """A callback for Lightning's ``Trainer``, which logs to the trainer's loggers.

    Parameters
    ----------
    layers : sequence of str
        Names of submodules of the ``LightningModule``.
    **options
        Of `Monitor`. A step is a batch.

    Returns
    -------
    lightning.Callback
        For ``Trainer(callbacks=[…])``.

    Examples
    --------
    >>> callback = lightning_callback(["encoder"], every=50)
    """
    from lightning import Callback

    class MonitorCallback(Callback):
        """Watches from the start of the training to its end."""

        monitor: Monitor

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.monitor = Monitor(pl_module, layers, **options)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            # Not `log_dict`, which repeats or drops values at its own period.
            if found := self.monitor.step():
                for logger in trainer.loggers:
                    logger.log_metrics(found, step=trainer.global_step)

        def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
            if hasattr(self, "monitor"):
                self.monitor.close()

    return MonitorCallback()


def trainer_callback(trainer: Any, layers: Sequence[str], **options: Any) -> Any:
    """A callback for the ``Trainer`` of transformers, which logs to the trainer's trackers.

    Parameters
    ----------
    trainer : transformers.Trainer
        The callback is also added to it.
    layers : sequence of str
        Names of submodules of its model.
    **options
        Of `Monitor`. A step is one of the optimiser.

    Returns
    -------
    transformers.TrainerCallback
        For ``trainer.remove_callback``.
    """
    from transformers import TrainerCallback

    class MonitorCallback(TrainerCallback):
        """Watches from the start of the training to its end."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.monitor = Monitor(trainer.model, layers, **options)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if found := self.monitor.step():
                trainer.log(found)

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.monitor.close()

    callback = MonitorCallback()
    trainer.add_callback(callback)
    return callback
