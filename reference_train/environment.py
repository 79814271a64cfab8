"""Versions and machine of a run."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

PACKAGES = ("visreg-core", "torch", "accelerate", "transformers", "kornia", "hydra-core", "numpy")


def environment(world: int, device: torch.device) -> dict[str, Any]:
    """Versions and machine, for ``environment.json``."""
    return {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processes": world,
        "threads": torch.get_num_threads(),
    }
