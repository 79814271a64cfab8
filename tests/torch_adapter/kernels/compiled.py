"""Compiles every kernel for compute capability 9.0, without a device; prints what it became.

    python -m tests.torch_adapter.kernels.compiled

The launchers are called as they are used, with tensors of the "meta" device, which have sizes and
no memory; what starts nothing there is replaced by compiling. One JSON object a line: kernel,
registers, bytes of stack and of shared memory a program, and how many roots, quotients and
functions are approximations.
"""

import json
import re
import subprocess
import tempfile

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from visreg_torch.kernels import _launch, pairs, sliced, sliced_rows
from visreg_torch.kernels.epps_pulley_rows import epps_pulley_polynomial, epps_pulley_sums
from visreg_torch.kernels.gaussian_rows import gaussian_rows
from visreg_torch.kernels.histogram_rows import histogram_rows
from visreg_torch.kernels.ordered_rows import ordered_rows
from visreg_torch.kernels.slices import gaussian_slices

FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


class Driver:
    """All that compiling asks of a device."""

    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)


def said_of(cubin, *options):
    """What triton's copy of cuobjdump says of a kernel's machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [knobs.nvidia.cuobjdump.path, *options, file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout


def report(function, kernel):
    """What became of a kernel."""
    usage = said_of(kernel.asm["cubin"], "--dump-resource-usage")
    # Of an instruction its name and modifiers, predicates left out.
    listing = said_of(kernel.asm["cubin"], "-sass")
    code = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([\w.]+)", listing, re.M)
    over_memory = [name for name in code if name.startswith(("LDG", "STG", "LDGSTS", "UTMA"))]
    return {
        "kernel": f"{function.__module__.rsplit('.', 1)[-1]}.{function.__name__}",
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared": int(re.search(r"SHARED:(\d+)", usage)[1]) + kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "approximate": len(re.findall(r"\.(?:approx|full)\.", kernel.asm["ptx"])),
        "instructions": sum(name != "NOP" for name in code),
        "spilled": sum(name.startswith(("LDL", "STL")) for name in code),
        "tensor_cores": sum(name.startswith(("HGMMA", "HMMA", "WGMMA")) for name in code),
        "memory": len(over_memory),
        "of_128_bits": sum(".128" in name for name in over_memory),
    }


def compile_only(said=lambda launch: print(json.dumps(launch), flush=True)):
    """In the place of `_launch.launch`: says what became of each kernel, once."""
    seen = set()

    def launch(function, grid, *args, **options):
        kernel = function.run(*args, grid=grid, warmup=True, **_launch.OPTIONS, **options)
        if kernel.hash not in seen:
            seen.add(kernel.hash)
            said(report(function, kernel))

    return launch


def empty(*shape, dtype=FLOAT32):
    return torch.empty(shape, dtype=dtype, device="meta")


def mask(n):
    return empty(n, dtype=torch.bool)


def rows():
    gaussian_rows(empty(40_960, 3), empty(3), mask(3), need_grad=False)
    gaussian_rows(empty(40_960, 512), empty(512))
    gaussian_rows(empty(40_960, 1000, dtype=BFLOAT16), empty(1000), mask(1000))
    for dtype, row_mask in [(BFLOAT16, None), (FLOAT16, mask(50_000))]:
        histogram_rows(empty(100, 50_000, dtype=dtype), empty(50_000), row_mask)
    ordered_rows(empty(100, 50_001), empty(50_001), mask(50_001))
    for n, row_mask in [(512, None), (50_001, mask(50_001))]:
        epps_pulley_sums(empty(4096, n), 16, row_mask)
    epps_pulley_polynomial(empty(4096, 512), *empty(2, 4096, 16))


def stub_constants():
    """What depends on sizes alone, without its numbers."""
    sliced_rows._quantiles = lambda n, device: (empty(n), empty(2, n + 1, dtype=torch.float64))
    sliced_rows._knots = lambda *_: (empty(3, 16), 0.2)


def whole_losses():
    """A training step in 16 and 32 bits, short and long rows, and views that are not copied."""
    stub_constants()
    one = empty()
    sizes = [
        (10, 512, 256, 4096, BFLOAT16),
        (10, 64, 256, 2048, FLOAT32),
        (2, 4096, 512, 1024, FLOAT32),
        (8, 50_000, 10_000, 2500, BFLOAT16),
    ]
    for v, n, d, k, dtype in sizes:
        z, w = empty(v, n, d, dtype=dtype), empty(d, k)
        for name, fields in [("visreg", 4), ("sigreg", 1)]:
            _, saved = getattr(sliced, f"{name}_forward")(z, w)
            cotangents = (one, *[None] * (fields - 1))
            getattr(sliced, f"{name}_backward")(z, w, saved, cotangents)


def losses_of_pairs():
    """By Gram matrices of rows and of columns."""
    one = empty()
    for n, d, dtype in [(256, 8192, FLOAT32), (2048, 2048, FLOAT32), (256, 8192, BFLOAT16)]:
        a, b = empty(n, d, dtype=dtype), empty(n, d, dtype=dtype)
        _, saved = pairs.vicreg_forward(a, b)
        pairs.vicreg_backward(a, b, saved, (one, None, None, None))
        _, saved = pairs.barlow_twins_forward(a, b)
        pairs.barlow_twins_backward(a, b, saved, (one, None, None))
        drawn = empty(n, dtype=torch.int64), empty(n)
        _, saved = pairs.sag_vicreg_forward(a, b, *drawn)
        pairs.sag_vicreg_backward(a, b, *drawn, saved, (one, None, None, None))


def slices():
    """One kernel for all integers, and one each for a tensor's and for the smallest sizes."""
    for word in (0, 1, 16, 2**31, 2**32 - 1):
        gaussian_slices(256, 4096, seed=word, step=word, start=word, device="meta")
    step = empty(dtype=torch.int64)
    gaussian_slices(10_001, 65_537, step=step, dtype=BFLOAT16, device="meta")
    gaussian_slices(1, 1, device="meta")


if __name__ == "__main__":
    driver.set_active(Driver())
    _launch.launch = compile_only()
    rows()
    whole_losses()
    losses_of_pairs()
    slices()
