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
