"""The manual's training loops run, each in a process of its own, and learn something."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("torch_*.py"))
LAUNCH = {"torch_ddp": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")}


@pytest.mark.parametrize("script", SCRIPTS)
def test_example_trains(script, tmp_path):
    """Neighbours name the digits far better than by chance, and the step has advanced."""
    done = subprocess.run(
        [sys.executable, *LAUNCH.get(script, ()), str(EXAMPLES / f"{script}.py")],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"nearest neighbours (\S+)", done.stdout)[1]) > 0.75
    totals = [float(t) for t in re.findall(r"(?:total|loss|'loss':) '?(\d\S*?)'?,? ", done.stdout)]
    if len(totals) > 1:
        assert totals[-1] < totals[0]


def test_every_example_is_in_the_manual():
    page = (EXAMPLES.parent / "torch.md").read_text()
    assert [s for s in SCRIPTS if f"examples/{s}.py" not in page] == []
