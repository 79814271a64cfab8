"""The kernels' tests in processes of their own, where triton interprets kernels on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "kernels"
ROOT = FOLDER.parents[2]
# All but the one that captures graphs, which takes a device.
FILES = sorted(path.name for path in FOLDER.glob("test_*.py") if path.stem != "test_graph")
WHOLE = ["test_pairs.py", "test_sliced.py", "test_sorting.py"]
PARTS = {
    "rows": [name for name in FILES if name.endswith("_rows.py")],
    "whole": WHOLE,
    "adapter and slices": [
        name for name in FILES if not name.endswith("_rows.py") and name not in WHOLE
    ],
}
VARIABLES = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}

pytestmark = [
    pytest.mark.backends("torch"),
    pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux"),
]


@pytest.mark.parametrize("part", PARTS)
def test_kernels_under_the_interpreter(backend, part):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
            *("--backend", backend.value),
            *(str(FOLDER / name) for name in PARTS[part]),
        ],
        cwd=ROOT,
        env={**os.environ, **VARIABLES},
        capture_output=True,
        text=True,
    )
    summary = done.stdout.strip().rsplit("\n", 1)[-1]
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "passed" in summary and "skipped" not in summary
