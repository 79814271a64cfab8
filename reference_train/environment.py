"""Where a result comes from: commit, versions, processor; in every file of results."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from reference_train.logs import write_atomically

PACKAGES = ("visreg-core", "torch", "accelerate", "transformers", "kornia", "hydra-core", "numpy")
ROOT = Path(__file__).parents[1]


def provenance() -> dict[str, Any]:
    """Commit, date, versions and processors of this process."""
    cuda = torch.cuda.is_available()
    return {
        "commit": commit(),
        "date": time.strftime("%FT%TZ", time.gmtime()),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
    }


def environment(world: int, device: torch.device, folder: Path) -> dict[str, Any]:
    """Of a run, for ``environment.json``; starts of the same run on other ones are in "before"."""
    facts = provenance() | {
        "device": str(device),
        "processes": world,
        "threads": torch.get_num_threads(),
    }
    path = folder / "environment.json"
    if not path.exists():
        return facts | {"before": []}
    last = json.loads(path.read_text())
    before = last.pop("before")
    changed = any(last[key] != value for key, value in facts.items() if key != "date")
    return facts | {"before": [*before, last] if changed else before}


def write_result(path: Path, result: dict[str, Any]) -> None:
    """A file of results, as JSON with its "provenance"."""
    content = result | {"provenance": provenance()}
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False))


@functools.cache
def commit() -> str | None:
    """Of the repository that runs, with a + where tracked files differ; none outside of Git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
