"""The path of kernels without a device: what a step starts is counted, and nothing is computed.

Tensors are of the meta device. A launch takes the way of one on CUDA up to triton's own launcher.
"""

import contextlib
from collections import Counter
from unittest import mock

import torch

from visreg_torch.kernels import _launch, _tape, products, sliced_rows

META = torch.device("meta")


class Compiled(dict):
    """Kernels as if they were all compiled: what is started is counted."""

    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def get(self, key, default=None):
        return self.start, 0, (), ()

    def start(self, *args):
        self.counts["launches"] += 1


@contextlib.contextmanager
def stubbed():
    """Context in which meta tensors are computed with by kernels; yields its counts.

    launches (of kernels and products), products, allocations.
    """
    counts, empty = Counter(), torch.empty

    def launch(kernel, grid, args, options):
        return _launch._launch_here(kernel, grid, 0, args, options)

    def multiply(*_):
        counts.update(launches=1, products=1)

    def allocated(*args, **options):
        counts["allocations"] += 1
        return empty(*args, **options)

    table = torch.empty(3, 16, device=META)

    def quantiles(*_):
        return table, None

    def knots(*_):
        return table, 0.2

    _tape.clear()
    with (
        mock.patch.dict(_launch.LAUNCHERS, meta=launch),
        mock.patch.object(_launch, "_COMPILED", Compiled(counts)),
        mock.patch.object(_launch, "stream_of", int),
        mock.patch.object(_tape, "DEVICES", {"meta"}),
        mock.patch.object(products, "_multiply", multiply),
        mock.patch.object(sliced_rows, "_quantiles", quantiles),
        mock.patch.object(sliced_rows, "_knots", knots),
        mock.patch.object(torch, "empty", allocated),
    ):
        yield counts
    _tape.clear()
