"""What each kernel of a step should take on an H200, from its machine code and its bytes.

    python -m tests.benchmarks.bench_kernels --json docs/benchmarks/kernels.json

No device is needed: triton compiles for compute capability 9.0, and launchers are called with
tensors of the meta device, as the losses call them. Registers and shared memory give the occupancy;
the arguments' sizes the bytes, each counted once; the instructions, each counted once, the time to
issue them, which is exact without loops and too small with them. The longest of these, and no less
than a kernel takes at all, is expected. Ceilings are those measured on the card.
"""

import argparse
import json
from pathlib import Path

import torch
from triton import cdiv
from triton.runtime import driver

from tests.torch_adapter.kernels import compiled
from visreg_torch.kernels import _launch, pair_direct, pairs, products, sliced
from visreg_torch.kernels.slices import gaussian_slices

BYTES, OPERATIONS, LEAST = 4.3e12, 703e12, 1.5e-6  # a second; of a launch
CORES, ISSUED = 132, 4 * 1.755e9  # instructions of a warp, a second and core
REGISTERS, SHARED, WARPS, PROGRAMS = 65_536, 228 * 1024, 64, 32  # of a core
STEP, MIDDLE = (10, 512, 256, 4096), (2, 4096, 512, 1024)
F32, BF16 = torch.float32, torch.bfloat16
# Loss, size, dtype, and µs on the device by docs/benchmarks/gpu.json.
WORKS = [
    ("visreg", STEP, BF16, 245),
    ("sigreg", STEP, BF16, 290),
    ("visreg", STEP, F32, 306),
    ("sigreg", STEP, F32, 344),
    ("visreg", MIDDLE, F32, 872),
    ("sigreg", MIDDLE, F32, 240),
    ("vicreg", (256, 8192), F32, 179),
    ("barlow_twins", (256, 8192), F32, 146),
    ("vicreg", (2048, 2048), F32, 426),
    ("barlow_twins", (2048, 2048), F32, 504),
    ("sag_vicreg", (2048, 2048), F32, 451),
]
ABOUT = (
    "From the machine code for compute capability 9.0 and the sizes of the arguments, without a "
    "device. MB is what the kernel reads and writes, each argument once; warps those that run at a "
    "time on a core, of 64, as registers and shared memory allow; wide the share of accesses to "
    "memory that are of 128 bits, in the code. Expected is the longest of bytes at 4.3 TB/s, "
    "operations at 703 TFLOP/s, instructions, each counted once, at 4 a cycle and core, and "
    "1.5 µs. Kernels that loop take longer than that, for which their instructions would have to "
    "be counted as often as they run. A sum's measured time is that of an H200 by a graph's "
    "replay, of the version that the table of losses on a GPU is of."
)
COLUMNS = (
    *("work", "kernel", "programs", "registers", "warps", "wide", "MB", "bound"),
    *("expected, µs", "measured, µs"),
)


def size_of(x):
    return x.numel() * x.element_size() if isinstance(x, torch.Tensor) else 0


def occupancy(kernel):
    """Warps that a core runs at a time."""
    registers = cdiv(kernel["registers"], 8) * 8 * 32 * kernel["warps"]
    fit = (REGISTERS // registers, SHARED // (kernel["shared"] + 1024), WARPS // kernel["warps"])
    return min(*fit, PROGRAMS) * kernel["warps"]


def expected(bounds):
    """The bound that is longest, and its seconds."""
    return max([*bounds.items(), ("launch", LEAST)], key=lambda item: item[1])


def recorded(rows):
    """In the places of `_launch.launch` and `products._multiply`: a row for each call."""
    compiled_once = {}

    def launch(function, grid, *args, **options):
        kernel = function.run(*args, grid=grid, warmup=True, **_launch.OPTIONS, **options)
        if kernel.hash not in compiled_once:
            compiled_once[kernel.hash] = compiled.report(function, kernel)
        found = compiled_once[kernel.hash]
        programs = torch.Size(grid).numel()
        # The embeddings and the product are for where Gram matrices cancel.
        touched = args[2:5] if function is pair_direct._direct else args
        n_bytes = sum(map(size_of, touched))
        issue = found["instructions"] * found["warps"] * programs / CORES / ISSUED
        bound, seconds = expected({"bytes": n_bytes / BYTES, "instructions": issue})
        wide = f"{100 * found['of_128_bits'] / max(found['memory'], 1):.0f} %"
        numbers = (programs, found["registers"], occupancy(found), wide)
        rows.append((found["kernel"], *numbers, n_bytes, bound, seconds))

    def multiply(a, b, out, add):
        operations = 2 * a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2]
        n_bytes = sum(map(size_of, (a, b, out))) + (size_of(out) if add else 0)
        bound, seconds = expected({"bytes": n_bytes / BYTES, "operations": operations / OPERATIONS})
        rows.append(("product", "–", "–", "–", "–", n_bytes, bound, seconds))

    return launch, multiply


def step(loss, size, dtype):
    """One forward and backward pass."""
    empty, one = compiled.empty, compiled.empty()
    if len(size) == 2:
        n = size[0]
        more = (empty(n, dtype=torch.int64), empty(n)) if loss == "sag_vicreg" else ()
        a, b = (empty(*size, dtype=dtype) for _ in range(2))
        fields, saved = getattr(pairs, f"{loss}_forward")(a, b, *more)
        cotangents = (one, *[None] * (len(fields) - 1))
        getattr(pairs, f"{loss}_backward")(a, b, *more, saved, cotangents)
        return
    v, n, d, k = size
    w = gaussian_slices(d, k, step=empty(dtype=torch.int64), device="meta")
    z = empty(v, n, d, dtype=dtype)
    fields, saved = getattr(sliced, f"{loss}_forward")(z, w)
    cotangents = (one, *[None] * (len(fields) - 1))
    getattr(sliced, f"{loss}_backward")(z, w, saved, cotangents)


def table():
    """Rows of the kernels of each work, and of their sums."""
    driver.set_active(compiled.Driver())
    compiled.stub_constants()
    rows, out = [], []
    _launch.launch, products._multiply = recorded(rows)
    for loss, size, dtype, measured in WORKS:
        rows.clear()
        step(loss, size, dtype)
        names = "VNDK" if len(size) == 4 else "ND"
        work = f"{loss}, {' '.join(f'{a}{n}' for a, n in zip(names, size, strict=True))}, "
        work += str(dtype).removeprefix("torch.")
        for kernel, *numbers, n_bytes, bound, seconds in rows:
            mb, us = f"{n_bytes / 1e6:.3g}", f"{1e6 * seconds:.1f}"
            out.append([work, kernel, *numbers, mb, bound, us, ""])
        whole = f"{1e6 * sum(row[-1] for row in rows):.0f}"
        out.append([work, f"sum of {len(rows)}", "", "", "", "", "", "", whole, str(measured)])
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", metavar="FILE", required=True)
    arguments = parser.parse_args()
    content = {
        "title": "Kernels on a GPU, expected",
        "about": ABOUT,
        "machine": {"device": "none; ceilings of one H200", "torch": torch.__version__},
        "columns": COLUMNS,
        "rows": table(),
    }
    Path(arguments.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
