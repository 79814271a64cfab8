"""Launches and host time of a step, without a device: kernels and products are counted, not run."""

import statistics
import time

import pytest
import torch

from visreg_torch.kernels import (
    _launch,
    pairs,
    products,
    sliced,
    sliced_engine,
    sliced_rows,
    slices,
)

pytestmark = pytest.mark.backends("torch")
META = torch.device("meta")
STEP, PAIR = (10, 512, 256, 4096), (256, 1024)


@pytest.fixture
def launches(monkeypatch):
    """Names of what a step starts. Tensors are of the "meta" device, and nothing is computed."""
    names = []

    def launch(kernel, grid, first, *others, **options):
        names.append(kernel.__name__ if hasattr(kernel, "__name__") else "kernel")

    def product(a, b, dtype, *, out=None, add=False):
        names.append("product")
        return torch.empty((*a.shape[:2], b.shape[2]), device=META) if out is None else out

    constants = torch.empty(512, device=META), None
    monkeypatch.setattr(_launch, "launch", launch)
    monkeypatch.setattr(sliced_engine, "product", product)
    monkeypatch.setattr(pairs, "product", product)
    monkeypatch.setattr(sliced_rows, "_quantiles", lambda *_: constants)
    monkeypatch.setattr(sliced_rows, "_knots", lambda *_: (torch.empty(3, 16, device=META), 0.2))
    assert products  # which the two took `product` from
    return names


def step_of(name, dtype):
    """A draw of slices where there are any, forward and backward."""
    one = torch.empty((), device=META)
    if name in ("vicreg", "sag_vicreg", "barlow_twins"):
        a, b = (torch.empty(PAIR, dtype=dtype, device=META) for _ in range(2))
        n = PAIR[0]
        drawn = (torch.empty(n, dtype=torch.int64, device=META), torch.empty(n, device=META))
        more = drawn if name == "sag_vicreg" else ()

        def run():
            fields, saved = getattr(pairs, f"{name}_forward")(a, b, *more)
            cotangents = (one, *[None] * (len(fields) - 1))
            getattr(pairs, f"{name}_backward")(a, b, *more, saved, cotangents)

        return run
    v, n, d, k = STEP
    z = torch.empty((v, n, d), dtype=dtype, device=META)

    def run():
        w = slices.gaussian_slices(d, k, step=3, device=META)
        fields, saved = getattr(sliced, f"{name}_forward")(z, w)
        cotangents = (one, *[None] * (len(fields) - 1))
        getattr(sliced, f"{name}_backward")(z, w, saved, cotangents)

    return run


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("visreg", 8),
        ("sigreg", 8),
        ("gaussian_sliced_wasserstein", 8),
        ("vicreg", 10),
        ("sag_vicreg", 10),
        ("barlow_twins", 10),
    ],
)
def test_a_step_is_a_handful_of_launches(backend, launches, name, limit, dtype):
    run = step_of(name, dtype)
    run()
    assert len(launches) <= limit, launches


@pytest.mark.parametrize("name", ["visreg", "sigreg", "vicreg", "barlow_twins"])
def test_host_time_of_a_step(backend, launches, name, record_property):
    """Python's part, without that of starting kernels. Generous: machines of tests are shared."""
    run, times = step_of(name, torch.bfloat16), []
    for _ in range(30):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    record_property("milliseconds", 1e3 * statistics.median(times))
    assert min(times) < 2e-3
