"""The kernels' tests, on the CPU under triton's interpreter or on a CUDA device.

    TRITON_INTERPRET=1 pytest tests/torch_adapter/kernels
    pytest --backend torch-cuda tests/torch_adapter/kernels

Triton looks at the variable while it is imported, and other tests import it too. So these are
collected only in a process that is meant for them; `test_kernels_interpreted.py`, next to this
folder, starts one.
"""

import os

import pytest
import torch

from visreg_torch import _passes, random_slices
from visreg_torch.kernels import _tape
from visreg_torch.kernels.whole import Whole

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETED:
    from tests.torch_adapter.kernels.interpreter import mend

    mend()


def pytest_configure(config):
    # NumPy's, for NaN and Inf that a kernel is meant to carry on.
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")


def pytest_ignore_collect(collection_path, config):
    on_device = "torch-cuda" in (config.getoption("--backend") or [])
    return None if INTERPRETED or on_device else True


@pytest.fixture(autouse=True)
def _decided_anew():
    """Tests change how passes are cut."""
    _tape.clear()


@pytest.fixture
def device(backend):
    return torch.device(backend.device or "cpu")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(20261123)


@pytest.fixture
def draw(generator, device):
    """Standard normal tensors, drawn on the host, so that devices see the same numbers."""

    def standard_normal(*shape, dtype=torch.float32):
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    return standard_normal


@pytest.fixture
def mask_of(generator, device):
    """Masks that keep about two thirds, and at least two."""

    def mask(n):
        kept = torch.rand(n, generator=generator) < 2 / 3
        kept[:2] = True
        return kept.to(device)

    return mask


@pytest.fixture
def inputs(draw):
    """Embeddings of two views, and slices."""
    z = (draw(2, 40, 9) * 1.3 + 0.2).requires_grad_()
    return z, random_slices(9, 6, dtype=torch.float32, device=z.device)


@pytest.fixture
def kernels_on_cpu(monkeypatch):
    """Not NumPy's path of the core: on a CPU the interpreter stands for a device."""
    monkeypatch.setattr(_passes, "runs_on_numpy", lambda *_: False)


@pytest.fixture
def fused_on(monkeypatch):
    """Types of the devices on which kernels ran from end to end, one for each run."""
    devices, forward = [], Whole.forward

    def spied(passes, execution, **inputs):
        devices.append(inputs[passes.declaration.embeddings(inputs)[0]].device.type)
        return forward(passes, execution, **inputs)

    monkeypatch.setattr(Whole, "forward", spied)
    return devices
