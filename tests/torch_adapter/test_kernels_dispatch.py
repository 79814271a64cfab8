"""Which kernel is chosen, and what is said about it. Nothing is run."""

import importlib.util
import subprocess
import sys

import array_api_compat.torch as xp
import pytest
import torch

from tests.torch_adapter.kernels.tensors import DTYPES
from visreg_torch.kernels import dispatch
from visreg_torch.kernels.dispatch import OPERATIONS, choose, explain, forced
from visreg_torch.kernels.rows import KERNELS, KernelMultiples


@pytest.fixture(autouse=True)
def forget():
    """What was found of devices is kept for a process."""
    dispatch._missing_on_cuda.cache_clear()
    yield
    dispatch._missing_on_cuda.cache_clear()


@pytest.fixture
def on_device(monkeypatch):
    """As if there were a device of CUDA and triton beside it."""
    monkeypatch.setattr(dispatch, "_missing", lambda device, dtype: None)


@pytest.mark.parametrize(
    ("operation", "dtype", "size", "kernel"),
    [
        ("gaussian", torch.float32, {"n": 8192}, "gaussian_rows"),
        ("gaussian", torch.bfloat16, {"n": 8192}, "gaussian_rows"),
        ("gaussian", torch.bfloat16, {"n": 8193}, "histogram_rows"),
        ("gaussian", torch.float16, {"n": 50_000}, "histogram_rows"),
        ("gaussian", torch.float32, {"n": 8193}, "ordered_rows"),
        ("epps_pulley", torch.float32, {"n": 2}, "epps_pulley_rows"),
        ("slices", torch.float16, {"n": 3}, "gaussian_slices"),
    ],
)
def test_choice(on_device, operation, dtype, size, kernel):
    choice = choose(operation, "cuda", dtype, **size)
    assert choice.kernel == kernel
    assert (
        explain(operation)
        == f"{operation}: {kernel or 'reference implementation'} ({choice.reason})"
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_slow_twin_where_kernels_do_not_run(monkeypatch, operation):
    def reason(device, dtype=torch.float32):
        kernel, reason = choose(operation, device, dtype, 512)
        assert kernel is None
        return reason

    assert reason("cpu") == "kernels do not run on the CPU"
    assert choose(operation, "meta", torch.float32, 512).kernel in OPERATIONS[operation]
    assert reason("mps") == "kernels are for CUDA, not for mps"
    assert reason("cuda", torch.float64) == "kernels compute in float32, not for torch.float64"
    dispatch._missing_on_cuda.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert reason("cuda") == "kernels need compute capability 8.0"
    dispatch._missing_on_cuda.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert reason("cuda") == "triton is not installed"


def test_forced(on_device):
    def chosen(operation, n=100):
        return choose(operation, "cuda", torch.bfloat16, n).kernel

    with forced("slow"):
        assert [chosen(operation) for operation in OPERATIONS] == [None] * len(OPERATIONS)
        assert explain("gaussian") == "gaussian: reference implementation (forced)"
    with forced("ordered_rows"):
        assert chosen("gaussian") == "ordered_rows"
        assert chosen("epps_pulley") == "epps_pulley_rows"
        with forced("slow"):
            assert chosen("gaussian") is None
        assert chosen("gaussian") == "ordered_rows"
    assert chosen("gaussian") == "gaussian_rows"


def test_explain_has_a_line_for_each_operation(monkeypatch):
    monkeypatch.setattr(dispatch, "_last", {})
    choose("gaussian", "cpu", torch.float32, 5)
    lines = explain().split("\n")
    assert len(lines) == len(OPERATIONS)
    assert lines[0] == "gaussian: reference implementation (kernels do not run on the CPU)"
    assert lines[1] == "epps_pulley: not requested yet"


def test_unknown_names():
    for function in (explain, lambda name: choose(name, "cpu", torch.float32, 5)):
        with pytest.raises(ValueError, match=r"an operation of gaussian, .*; found 'sort'"):
            function("sort")
    with pytest.raises(ValueError, match=r"expected a kernel of slow, .*; found 'fast'"):
        forced("fast").__enter__()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_core_runs_where_kernels_do_not(dtype):
    assert dispatch.passes("visreg_loss", torch.zeros(4, 2, dtype=dtype)) is None
    p, q = torch.randn(2, 2, 9)
    values, gradient = KERNELS["gaussian_term"](xp, p, q[0], None, True)
    assert values.shape == (2,) and gradient.shape == p.shape
    assert not isinstance(KERNELS["multiples"](xp, p, 4, sharded=False), KernelMultiples)


def test_importing_needs_no_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, visreg_torch.kernels as k, visreg_torch.kernels.whole\n"
        "print(k.choose('gaussian', 'cuda', torch.float32, 5))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "triton is not installed" in done.stdout, done.stderr
