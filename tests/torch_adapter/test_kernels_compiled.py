"""Every kernel compiles for a large GPU, down to its machine code, and fits it. None is there."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "adapters" / "visreg_torch" / "kernels"
SHARED_BYTES, REGISTERS_OF_A_CORE = 227 * 1024, 65_536

pytestmark = [
    pytest.mark.backends("torch"),
    pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux"),
]


def said_by(module, cache):
    """JSON objects that a module of the kernels' tests prints, in a process that compiles."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.torch_adapter.kernels.{module}"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What became of each kernel. The assembler comes with triton: without it this fails."""
    return said_by("compiled", str(tmp_path_factory.mktemp("triton")))


def launched():
    """Names of the kernels that launchers start: functions of triton whose name is private."""
    for path in KERNELS.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            decorators = getattr(node, "decorator_list", [])
            if (
                any(ast.unparse(d).startswith("triton.jit") for d in decorators)
                and node.name[0] == "_"
            ):
                yield f"{path.stem}.{node.name}"


def test_every_kernel_is_compiled(backend, compiled):
    assert {c["kernel"] for c in compiled} == set(launched())


def test_kernels_fit_the_device(backend, compiled):
    for c in compiled:
        assert c["shared"] <= SHARED_BYTES, c
        assert c["registers"] * 32 * c["warps"] <= REGISTERS_OF_A_CORE, c


def test_sorted_rows_ask_the_driver_for_no_shared_memory(backend, compiled):
    """48 KiB are had without, and one that the driver takes for itself."""
    found = [c["shared"] for c in compiled if c["kernel"].startswith("sorted_rows")]
    assert found
    assert max(found) <= 49 * 1024


def test_kernels_do_not_spill(backend, compiled):
    """But for one whose counters fill the registers."""
    for c in compiled:
        counts = c["kernel"].startswith("counted")
        assert c["stack"] <= (256 if counts else 0), c
        assert c["spilled"] <= (64 if counts else 0), c


# Kernels that bytes bound, all of whose rows begin at multiples of 16 bytes in one of the sizes.
OF_BYTES = (
    *("ends._combined", "moments._short_columns", "moments._standard_parts"),
    *("operands._slice_operands", "operands._split_rows", "sorted_rows._sorted_rows"),
    *("pair_columns._columns", "pair_columns._parts", "pair_products._correlation"),
    *("pair_products._symmetric", "vicreg_ends._vicreg_gradient", "barlow_ends._along"),
)


@pytest.mark.parametrize("name", OF_BYTES)
def test_kernels_read_and_write_128_bits_at_a_time(backend, compiled, name):
    """The rest are statistics of columns, numbers and masks."""
    shares = [c["of_128_bits"] / c["memory"] for c in compiled if c["kernel"] == name]
    assert max(shares) > 0.7


def test_the_product_without_a_diagonal_is_of_tensor_cores(backend, compiled):
    """The others are the vendor's."""
    assert {c["kernel"] for c in compiled if c["tensor_cores"]} == {"pair_direct._direct"}


def test_a_word_compiles_nothing_again(backend, compiled):
    """One kernel for all integers, another for a tensor's, and one for the smallest sizes."""
    assert [c["kernel"] for c in compiled].count("slices._kernel") == 3


def test_slices_are_no_approximations(backend, compiled):
    """They agree with the core's to a few units in the last place."""
    assert all(c["approximate"] == 0 for c in compiled if c["kernel"] == "slices._kernel")


def test_sorted_rows_machine_code_is_right(backend, tmp_path):
    """Instruction by instruction: the way through shared memory is no interpreter's."""
    cases = said_by("ptx", str(tmp_path))
    assert {c["n"] for c in cases} == {300, 500, 512, 4000}
    for c in cases:
        assert c["gradient"] < 2**-8, c  # of bfloat16
        assert c["value"] < 1e-5, c


def test_modules_say_what_bounds_their_kernels(backend):
    for name in {kernel.split(".")[0] for kernel in launched()}:
        said = ast.get_docstring(ast.parse((KERNELS / f"{name}.py").read_text())) or ""
        said = " ".join(said.lower().split())
        for word in ("bottleneck: ", "exact", "worst case: ", "rejected: "):
            assert word in said, (name, word)
