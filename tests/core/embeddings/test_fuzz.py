"""Mutated files: each reads, or is refused in one line, in a process of limited memory.

A few hundred for each format; ``VISREG_FUZZ=20000 pytest tests/core/test_embeddings_fuzz.py``
reads more.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.embeddings.files import WRITERS

ROOT = Path(__file__).parents[3]
COUNT = int(os.environ.get("VISREG_FUZZ", "300"))


@pytest.mark.parametrize("kind", WRITERS)
def test_mutated_files(kind):
    count = COUNT // 5 if kind == "zarr" else COUNT  # many small files each
    ran = subprocess.run(
        [sys.executable, "-m", "tests.core.embeddings.files", kind, str(count), "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600 + 5 * count,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "0 complaints" in ran.stdout
